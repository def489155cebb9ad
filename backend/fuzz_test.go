package backend

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/subnet"
)

// families are the mixtures of what may have one, or the other, or both.
var families = []subnet.Pair[bool]{{V4: true}, {V4: true, V6: true}, {V6: true}}

// carriages are all types, in all modes.
var carriages = []string{`{"Type":"vxlan"}`, `{"Type":"vxlan","DirectRouting":true}`, `{"Type":"host-gw"}`, `{"Type":"udp"}`, `{"Type":"alloc"}`,
	`{"Type":"l2"}`, `{"Type":"extension"}`, `{"Type":"extension","PreStartupCommand":"true"}`, `{"Type":"ipip"}`, `{"Type":"ipip","DirectRouting":true}`,
	`{"Type":"wireguard"}`, `{"Type":"wireguard","Mode":"auto"}`, `{"Type":"wireguard","Mode":"ipv4"}`, `{"Type":"wireguard","Mode":"ipv6"}`}

// only leaves of a pair what some families have.
func only[T comparable](p subnet.Pair[T], some subnet.Pair[bool]) (rest subnet.Pair[T]) {
	for f := range some.All() {
		*rest.At(f) = p.Of(f)
	}
	return rest
}

func subnetsOf(n int) subnet.Pair[netip.Prefix] {
	return subnet.Pair[netip.Prefix]{V4: netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/24", n)), V6: netip.MustParsePrefix(fmt.Sprintf("fd12:3456:0:%x::/64", n))}
}

func addressesOf(n int) subnet.Pair[netip.Addr] {
	return subnet.Pair[netip.Addr]{V4: netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", n)), V6: netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", n))}
}

// agent is a host with a mixture of families inside and on the underlay, and what the config of its network is by its lights.
type agent struct {
	carriage        string
	inside, outside subnet.Pair[bool]
	reached         Families
}

func (a agent) String() string {
	return fmt.Sprintf("%s inside %v outside %v, reached by %s", a.carriage, a.inside, a.outside, a.reached)
}

// agents are all that there may be.
func agents() (all []agent) {
	for _, carriage := range carriages {
		for _, inside := range families {
			if strings.Contains(carriage, "ipip") && inside.V6 {
				continue
			}
			for _, outside := range families {
				for reached := range Both + 1 {
					all = append(all, agent{carriage, inside, outside, reached})
				}
			}
		}
	}
	return all
}

// host is the n-th with these families, all on one segment, and how it carries packets.
func (a agent) host(t testing.TB, n int) (Host, Backend) {
	config := mustConfig(t, fmt.Sprintf(`{"Network":"10.5.0.0/16","EnableIPv4":%t,"EnableIPv6":%t,"IPv6Network":"fd12:3456::/48","Backend":%s}`,
		a.inside.V4, a.inside.V6, a.carriage))
	h := Host{Config: config, Facts: Facts{Key: Secret{1: byte(n)}, Printed: fmt.Sprint("printed by ", n)}, Options: Options{Bridge: "docker0", Forward: true, Families: a.reached}}
	h.Underlay = Underlay{Device: "eth0", MTU: 1500, Local: only(addressesOf(n), a.outside), Public: only(addressesOf(n), a.outside),
		OnLink: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")}}
	h.Self = subnet.Lease{Subnet: only(subnetsOf(n), a.inside), PublicIP: h.Underlay.Public}
	return h, mustBackend(t, config)
}

// Two hosts of one network, whatever families each has: what one sends, the other takes, and answers.
func TestHostsAgree(t *testing.T) {
	t.Parallel()
	all := agents()
	for i, one := range all {
		a, err := one.plan(t, 1, nil)
		if err != nil {
			if len(err.Error()) < 20 {
				t.Errorf("%v: %v", one, err)
			}
			continue // it says why it can't take part
		}
		for _, other := range all[i:] {
			if one.carriage != other.carriage {
				break // they are in order
			}
			if b, err := other.plan(t, 2, a); err == nil {
				agree(t, one, other, b)
			}
		}
	}
}

// agree checks two agents, of which the plan of the other is b.
func agree(t *testing.T, one, other agent, b *Plan) {
	a, _ := one.plan(t, 1, b)
	if a.Peers() != b.Peers() {
		t.Errorf("%v\n%v\nonly one takes the other for a peer: %s%s", one, other, rejections(a), rejections(b))
	}
	for _, direction := range []struct{ from, to *Plan }{{a, b}, {b, a}} {
		if trouble := direction.from.delivers(direction.to); trouble != "" {
			t.Errorf("%v\n%v\n%s\n%s%s", one, other, trouble, direction.from.State(), direction.to.State())
		}
	}
	checkPlanned(t, a)
}

// plan is the n-th host's, which knows of another, or of none.
func (a agent) plan(t testing.TB, n int, known *Plan) (*Plan, error) {
	h, b := a.host(t, n)
	entries := map[string]subnet.Entry{}
	if known != nil {
		l, _ := known.Announce()
		entries[l.Key()] = subnet.Entry{Lease: l, Created: 1}
	}
	return NewPlan(b, h, entries)
}

// delivers says what of the packets from p's host doesn't get through to that of q; "" if all does, and can be answered.
func (p *Plan) delivers(q *Plan) string {
	s, far := p.State(), q.State()
	for prefix, r := range s.Routes {
		if r.Unreachable {
			continue
		}
		back, answered := far.Routes[p.host.Self.Subnet.Of(subnet.FamilyOf(prefix.Addr()))]
		if !answered {
			return fmt.Sprintf("no way back from %s", prefix)
		}
		if !q.takes(s.sends(prefix, r)) {
			return fmt.Sprintf("route %s %s: nobody takes it; back it is %s", prefix, r, back)
		}
	}
	for flood := range s.Floods {
		if !q.takes(hop{KindVXLAN, netip.AddrPortFrom(flood.Dst, s.Links[flood.Dev].VXLAN.Port), MAC{}, Key{}, netip.Prefix{}}) || len(far.Floods) == 0 {
			return fmt.Sprintf("what is flooded to %s is taken by nobody", flood.Dst)
		}
	}
	return ""
}

// hop is what a packet meets on the underlay.
type hop struct {
	kind   Kind // "" for no encapsulation
	to     netip.AddrPort
	mac    MAC
	sender Key          // WireGuard's
	inner  netip.Prefix // where its source has to be
}

// sends is how a route's packets leave.
func (s State) sends(prefix netip.Prefix, r Route) hop {
	inner := s.Firewall.Subnet.Of(subnet.FamilyOf(prefix.Addr()))
	switch l := s.Links[r.Dev]; {
	case l.Kind == KindVXLAN:
		mac := s.Neighbours[NeighbourKey{r.Dev, r.Via}]
		return hop{KindVXLAN, netip.AddrPortFrom(s.FDB[FDBKey{r.Dev, mac}], l.VXLAN.Port), mac, Key{}, inner}
	case s.Tunnels[r.Dev].Key != Secret{}:
		for k, peer := range s.Peers {
			if k.Dev == r.Dev && peer.Allowed.Of(subnet.FamilyOf(prefix.Addr())) == prefix {
				return hop{KindWireGuard, peer.Endpoint, MAC{}, s.Tunnels[r.Dev].Key.Public(), inner}
			}
		}
	case l.Kind == KindTUN:
		return hop{KindTUN, s.Endpoints[EndpointKey{r.Dev, prefix}], MAC{}, Key{}, inner}
	case l.Kind == KindIPIP:
		return hop{KindIPIP, netip.AddrPortFrom(r.Via, 0), MAC{}, Key{}, inner}
	}
	return hop{"", netip.AddrPortFrom(r.Via, 0), MAC{}, Key{}, inner}
}

// takes reports whether a packet that arrives so is taken in.
func (p *Plan) takes(h hop) bool {
	s, outer := p.State(), subnet.FamilyOf(h.to.Addr())
	if !h.to.IsValid() || h.to.Addr() != p.host.Underlay.Public.Of(outer) {
		return false
	}
	for name, l := range s.Links {
		t := s.Tunnels[name]
		switch {
		case h.kind == KindVXLAN && l.Kind == KindVXLAN:
			if l.VXLAN.Local == h.to.Addr() && l.VXLAN.Port == h.to.Port() && (h.mac == l.MAC || h.mac == MAC{}) {
				return true
			}
		case h.kind == KindWireGuard && t.Key != Secret{}:
			peer := s.Peers[PeerKey{name, h.sender}]
			if t.Port == h.to.Port() && peer.Allowed.Of(subnet.FamilyOf(h.inner.Addr())) == h.inner && subnet.FamilyOf(peer.Endpoint.Addr()) == outer {
				return true
			}
		case h.kind == KindTUN && l.Kind == KindTUN:
			if t.Port == h.to.Port() && t.Local.Of(outer) == h.to.Addr() && subnet.FamilyOf(s.Endpoints[EndpointKey{name, h.inner}].Addr()) == outer {
				return true
			}
		case h.kind == KindIPIP && l.Kind == KindIPIP && l.IPIP.Local == h.to.Addr():
			return true
		}
	}
	return h.kind == "" && (len(s.Firewall.From) == 0 || slices.Contains(s.Firewall.From[:], "eth0"))
}

// checkPlanned checks what holds of any plan.
func checkPlanned(t testing.TB, p *Plan) {
	t.Helper()
	s := p.State()
	for prefix, r := range s.Routes {
		if r.Unreachable {
			checkClosed(t, p, prefix)
			continue
		}
		checkRoute(t, p, prefix)
		checkRoom(t, p.host, prefix)
		if via := r.Via; via.IsValid() && subnet.FamilyOf(via) != subnet.FamilyOf(prefix.Addr()) && (via.Is4() || r.Dev != s.Underlay) {
			t.Errorf("route %s %s: the kernel has no such route", prefix, r)
		}
		if s.sends(prefix, r).to.Addr() == (netip.Addr{}) {
			t.Errorf("route %s %s leads nowhere in\n%s", prefix, r, s)
		}
	}
	checkDestinations(t, p)
	for device := range devices(s) {
		if _, made := s.Links[device]; !made && device != s.Underlay {
			t.Errorf("device %s is not there in\n%s", device, s)
		}
	}
	for _, l := range s.Links {
		if l.Kind == KindVXLAN && !l.VXLAN.Local.IsValid() || l.Kind == KindIPIP && !l.IPIP.Local.Is4() {
			t.Errorf("link %s", l)
		}
	}
	for key, r := range p.Rejected() {
		if r.Reason == "" || len(r.Detail) < 8 {
			t.Errorf("%s is left out for %q: %q", key, r.Reason, r.Detail)
		}
		if r.Reason == subnet.OtherFamily && !(strings.Contains(r.Detail, "its host") && strings.Contains(r.Detail, "this host")) {
			t.Errorf("%s: %q does not name both sides", key, r.Detail)
		}
	}
	for key, e := range p.Entries() {
		for _, g := range p.Legs(e.Lease).All() {
			r, routed := s.Routes[g.Subnet]
			if hop := s.sends(g.Subnet, r); routed && p.IsPeer(key, e) && g.To != hop.to.Addr() {
				t.Errorf("%s is told to be sent to %s, and is to %s", g.Subnet, g.To, hop.to)
			}
		}
		if _, left := p.Rejected()[key]; left && p.IsPeer(key, e) {
			t.Errorf("%s is a peer, and left out", key)
		}
	}
	_, _ = s.Outer(), s.String()
}

// checkClosed checks that a range which leads nowhere is the overlay's, and holds nothing that the underlay needs.
func checkClosed(t testing.TB, p *Plan, prefix netip.Prefix) {
	t.Helper()
	if network := p.host.Config.Range.Of(subnet.FamilyOf(prefix.Addr())).Network; prefix != network {
		t.Errorf("%s leads nowhere, and the network is %s", prefix, network)
	}
	for _, u := range p.host.Underlay.OnLink {
		if u.Overlaps(prefix) {
			t.Errorf("%s leads nowhere, and the underlay has %s", prefix, u)
		}
	}
	for _, peer := range p.State().Peers {
		if prefix.Contains(peer.Endpoint.Addr()) {
			t.Errorf("%s leads nowhere, and a peer is reached at %s", prefix, peer.Endpoint)
		}
	}
}

// checkRoute checks that a route leads into a peer's subnet, and covers nothing else.
func checkRoute(t testing.TB, p *Plan, prefix netip.Prefix) {
	t.Helper()
	f := subnet.FamilyOf(prefix.Addr())
	if network := p.host.Config.Range.Of(f).Network; !network.IsValid() || !network.Contains(prefix.Addr()) || prefix.Bits() < network.Bits() {
		t.Errorf("route %s is not inside the network %s", prefix, network)
	}
	for key, e := range p.Entries() {
		if p.IsPeer(key, e) && e.Lease.Subnet.Of(f) == prefix {
			return
		}
	}
	t.Errorf("route %s is no peer's", prefix)
}

// checkRoom checks that a route takes nothing from this host's networks.
func checkRoom(t testing.TB, h Host, prefix netip.Prefix) {
	t.Helper()
	taken := append(slices.Collect(h.elsewhere), h.Underlay.OnLink...)
	for _, own := range h.Self.Subnet.All() {
		taken = append(taken, own)
	}
	for _, u := range taken {
		if prefix.Overlaps(u) {
			t.Errorf("route %s covers %s", prefix, u)
		}
	}
}

// checkDestinations checks that nothing is sent to this host itself, nor to a whole segment, by way of a peer.
func checkDestinations(t testing.TB, p *Plan) {
	t.Helper()
	var to []netip.Addr
	s := p.State()
	for _, a := range s.FDB {
		to = append(to, a)
	}
	for f := range s.Floods {
		to = append(to, f.Dst)
	}
	for _, e := range s.Endpoints {
		to = append(to, e.Addr())
	}
	for _, peer := range s.Peers {
		to = append(to, peer.Endpoint.Addr())
	}
	for _, r := range s.Routes {
		if l := s.Links[r.Dev]; r.Via.IsValid() && l.Kind != KindVXLAN {
			to = append(to, r.Via)
		}
	}
	for _, l := range s.Hooks {
		for _, a := range l.PublicIP.All() {
			to = append(to, a)
		}
	}
	for _, a := range to {
		f, u := subnet.FamilyOf(a), p.host.Underlay
		if a == u.Local.Of(f) || a == u.Public.Of(f) || u.has(a) || p.host.Self.Subnet.Of(f).Contains(a) || u.broadcasts(a) || a.IsMulticast() || a.IsLoopback() {
			t.Errorf("packets are sent to %s:\n%s", a, s)
		}
	}
}

// devices yields those that s needs.
func devices(s State) map[string]bool {
	names := map[string]bool{}
	for a := range s.Addrs {
		names[a.Dev] = true
	}
	for _, r := range s.Routes {
		if !r.Unreachable {
			names[r.Dev] = true
		}
	}
	for k := range s.Neighbours {
		names[k.Dev] = true
	}
	for k := range s.FDB {
		names[k.Dev] = true
	}
	for k := range s.Floods {
		names[k.Dev] = true
	}
	for k := range s.Endpoints {
		names[k.Dev] = true
	}
	for k := range s.Peers {
		names[k.Dev] = true
	}
	for name := range s.Tunnels {
		names[name] = true
	}
	for name := range s.Firewall.From.All() {
		names[name] = true
	}
	return names
}

// choices are made by a fuzzer's bytes; when those are used up, it is always the first.
type choices []byte

func (c *choices) of(n int) int {
	if len(*c) == 0 {
		return 0
	}
	choice := int((*c)[0]) % n
	*c = (*c)[1:]
	return choice
}

func (c *choices) families() subnet.Pair[bool] { return families[c.of(len(families))] }

// garbage is data that no host would write, and addresses and subnets that none has.
var (
	garbage = []string{"", "{}", "[]", `"text"`, "7", `{"VNI":1,"VtepMAC":"01:00:00:00:00:00"}`, `{"PublicKey":"AQ==","Port":51820}`, `{"VNI":1,"Port":-1}`}
	nowhere = []string{"10.5.1.9", "10.5.3.9", "fd12:3456:0:1::9", "fd12:3456:0:3::9", "192.0.2.1", "2001:db8::1", "2001:db8:ff::1", "198.51.100.1",
		"192.0.2.0", "192.0.2.255", "192.0.2.101", "10.5.3.7", "fd12:3456:0:3::7", "10.5.1.1", "10.5.200.1"}
	elsewhere = []string{"10.5.0.0/16", "10.5.3.128/25", "10.6.0.0/24", "192.0.2.0/25", "fd12:3456::/48", "fd12:3456:0:3:8000::/65", "fd12:3457::/64", "2001:db8::/64", "::/0"}
)

// lease is that of one of a few hosts, of some families, or what somebody made of it.
func (c *choices) lease(t testing.TB, carriage string) (l subnet.Lease) {
	n := 1 + c.of(6) // the first is the plan's own
	v6 := !strings.Contains(carriage, "ipip")
	h, b := agent{carriage, subnet.Pair[bool]{V4: true, V6: v6}, subnet.Pair[bool]{V4: true, V6: true}, Both}.host(t, n)
	l, _ = h.Announce(b)
	l.Subnet, l.PublicIP, l.Data = only(subnetsOf(n), c.families()), only(addressesOf(n), c.families()), only(l.Data, c.families())
	for range c.of(4) {
		switch c.of(5) {
		case 0:
			*l.Data.At(subnet.Family(c.of(2))) = garbage[c.of(len(garbage))]
		case 1:
			a := netip.MustParseAddr(nowhere[c.of(len(nowhere))])
			*l.PublicIP.At(subnet.FamilyOf(a)) = a
		case 2:
			p := netip.MustParsePrefix(elsewhere[c.of(len(elsewhere))])
			*l.Subnet.At(subnet.FamilyOf(p.Addr())) = p
		case 3:
			l.Data.V4, l.Data.V6 = l.Data.V6, l.Data.V4
		case 4:
			l.Backend = [...]string{"", "vxlan", "wireguard"}[c.of(3)]
		}
	}
	return l
}

// FuzzMixtures has an agent of some mixture of families learn of leases of others, in some order, and forget them. Nothing of that makes it
// panic, and it knows at each time what it would if it had been told all at once.
func FuzzMixtures(f *testing.F) {
	all := agents()
	for seed := range uint64(300) {
		r, data := rand.New(rand.NewPCG(seed, 0)), make([]byte, 120)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c := choices(data)
		a := all[(c.of(256)<<8+c.of(256))%len(all)]
		h, b := a.host(t, 1)
		if c.of(4) == 0 {
			h.Self.Subnet = only(subnetsOf(1), c.families()) // the config is another than its lease is from
		}
		if c.of(4) == 0 {
			h.Underlay.Public = addressesOf(1) // by a NAT of another family, perhaps
		}
		if c.of(4) == 0 {
			h.Underlay.OnLink = nil
		}
		if c.of(4) == 0 {
			h.Underlay.Others = []Addr{{"docker0", netip.MustParsePrefix("10.5.1.1/24")}, {"eth0", netip.MustParsePrefix("192.0.2.101/24")},
				{"eth1", netip.MustParsePrefix("10.5.3.7/24")}, {"eth1", netip.MustParsePrefix("fd12:3456:0:3::7/64")}}
		}
		p, err := NewPlan(b, h, map[string]subnet.Entry{})
		if err != nil {
			return
		}
		entries := map[string]subnet.Entry{}
		for len(c) > 0 {
			before, changed := clone(p.State()), map[string]subnet.Entry{}
			for range 1 + c.of(3) {
				l := c.lease(t, a.carriage)
				changed[l.Key()] = subnet.Entry{Lease: l, Created: int64(1 + c.of(50)), Reserved: c.of(8) == 0}
				if c.of(3) == 0 {
					changed[l.Key()] = subnet.Entry{}
				}
			}
			entries = subnet.Update{Leases: changed}.Merge(entries)
			changes := p.Update(changed)
			if !checkPlan(t, p, mustPlan(t, b, h, maps.Clone(entries)), before, changes) {
				t.Fatalf("%v after %v", a, changed)
			}
			checkPlanned(t, p)
		}
		_, _ = p.Announce()
	})
}

// FuzzLease has hosts with each type, in each mode, plan with a lease that anybody may have written, beside a sound one.
func FuzzLease(f *testing.F) {
	for i, carriage := range carriages {
		h, b := agent{carriage, families[0], families[1], Both}.host(f, 2)
		l, _ := h.Announce(b)
		f.Add(uint8(i), l.Key(), l.MarshalValue())
		f.Add(uint8(i), "10.5.3.0-24", []byte(strings.ReplaceAll(string(l.MarshalValue()), "192.0.2.2", "192.0.2.1")))
		f.Add(uint8(i), "10.5.2.128-25&fd12:3456:0:3::-64", l.MarshalValue())
	}
	for _, data := range append(garbage, `{"VNI":1e400}`, `"\u0000"`, `"`+strings.Repeat("x", 9000)+`"`, strings.Repeat("[", 9000)) {
		for i, name := range []string{"vxlan", "", "host-gw", "", "", "l2", "extension", "", "ipip", "", "wireguard"} {
			f.Add(uint8(i), "10.5.3.0-24", []byte(`{"PublicIP":"192.0.2.3","BackendType":"`+name+`","BackendData":`+data+`}`))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, key string, value []byte) {
		carriage := carriages[int(which)%len(carriages)]
		a := agent{carriage, subnet.Pair[bool]{V4: true, V6: !strings.Contains(carriage, "ipip")}, subnet.Pair[bool]{V4: true, V6: true}, Both}
		h, b := a.host(t, 1)
		h.Underlay.Others = []Addr{{"docker0", netip.MustParsePrefix("10.5.1.1/24")}, {"eth1", netip.MustParsePrefix("10.5.9.7/24")}}
		other, _ := a.host(t, 2)
		sound, _ := other.Announce(b)
		l, err := subnet.ParseLease(key, value)
		p := mustPlan(t, b, h, map[string]subnet.Entry{sound.Key(): {Lease: sound, Created: 1}})
		before := clone(p.State())
		e := subnet.Entry{Lease: l, Created: 2, Err: err}
		if key == sound.Key() {
			return // it is that lease now, whoever has written it
		}
		p.Update(map[string]subnet.Entry{key: e})
		checkPlanned(t, p)
		if !p.IsPeer(sound.Key(), p.Entries()[sound.Key()]) {
			t.Errorf("a younger lease has made an older one be left out: %v", p.Rejected())
		}
		p.Update(map[string]subnet.Entry{key: {}})
		if after := p.State(); before.String() != after.String() {
			t.Errorf("it leaves something behind:\n%swas\n%s", after, before)
		}
	})
}

// FuzzOptions reads what may be stored as a network's config, and shows it to others without its secret.
func FuzzOptions(f *testing.F) {
	const planted = "cGxhbnRlZC1wbGFudGVkLXBsYW50ZWQtcGxhbnRlZC0="
	for _, carriage := range carriages {
		f.Add(carriage)
	}
	for _, text := range []string{`{"Type":"wireguard","PSK":"PLANTED","psk":"PLANTED"}`, `{"Type":"wireguard","PSK":"PLANTED"},"Backend":{"Type":"wireguard"}`, `{"Type":"wireguard","Pſk":"PLANTED"}`, `{"\u0050SK":"PLANTED"},"backend":{"Type":"wireguard"}`, `{"Type":"vxlan","VNI":-1}`, `{"Type":"vxlan","Port":1e9}`, `{"Type":7}`, `[]`, `null`, `{`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, name := range []string{"PSK", "psk", "Pſk", `\u0050SK`} { // under another name it is no key
			text = strings.ReplaceAll(text, `"`+name+`":"PLANTED"`, `"`+name+`":"`+planted+`"`)
		}
		config := `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12:3456::/48","Backend":` + text + `}`
		c, _, err := subnet.ParseConfig([]byte(config))
		if err != nil {
			return
		}
		b, err := New(c)
		if err != nil {
			if strings.Contains(err.Error(), planted) {
				t.Errorf("the error tells the key: %v", err)
			}
			return
		}
		h, _ := agents()[0].host(t, 1)
		if h.Config = c; b.Needs().WireGuard {
			for _, as := range []string{"", "(hidden)"} {
				if shown := Redact(config, as); strings.Contains(shown, planted) {
					t.Errorf("%s shows the key", shown)
				}
			}
		}
		if p, err := NewPlan(b, h, map[string]subnet.Entry{}); err == nil && strings.Contains(p.State().String(), planted) {
			t.Errorf("the state shows the key")
		}
	})
}
