package doctor

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/net/ipv4"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/probe"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/kernel"
	"github.com/tulle-net/tulle/subnet"
)

// healthy is what is found on the way from the host of view to 10.5.2.7 if nothing is wrong, and what pings say then.
func healthy(t *testing.T, address string, config string) (*PathFacts, *Pings) {
	t.Helper()
	v := view(config)
	if len(underlays[config]) > 0 {
		v = sixView(config)
	}
	p, err := Plan(v)
	if err != nil {
		t.Fatal(err)
	}
	f := &PathFacts{Address: netip.MustParseAddr(address), Plan: p, View: v, Unseen: map[string]error{}, Forwarding: true,
		Links: maps.Clone(p.State().Links), Flood: true, Netfiltered: true}
	for _, a := range p.Host().BridgeAddrs().All() {
		f.Bridge = append(f.Bridge, a)
	}
	f.Links["docker0"] = backend.Link{Kind: backend.KindBridge, MTU: p.State().MTU}
	key, _, _ := f.peer()
	stored := v.Leases[key.Key]
	f.Etcd = api.Etcd{Lease: &stored, TTL: 80000, Revision: 9}
	if row, ok := f.row(); ok {
		f.Own = kernel.Way{Prefix: row.Prefix, Type: "unicast", Via: row.Via, Dev: row.Dev, OnLink: row.OnLink, Nexthop: 168100352, Protocol: 84}
		if f.Agent = row.Outer.Kind == backend.KindTUN; bridged(p) {
			f.Own = way("10.5.0.0/16", "", "docker0", 2)
		} else if !row.routed() {
			f.Own = way("10.5.2.0/24", "192.0.2.2", "eth0", 4)
		}
		f.Nexthop, f.MAC, f.Neighbour, f.VTEP = row.Route, row.MAC, "PERMANENT", row.Public
	}
	f.Forwarded = f.Own
	public := netip.MustParseAddr("192.0.2.2")
	if row, ok := f.row(); ok {
		public = row.Public
	}
	f.Underlay = kernel.Way{Prefix: v.Underlay.OnLink[0], Type: "unicast", Dev: "eth0", Protocol: 2}
	if public.Is6() {
		f.Underlay.Prefix = v.Underlay.OnLink[1]
	}
	f.Filter = ParseFilter("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:TULLE-FORWARD - [0:0]\n-A FORWARD -j TULLE-FORWARD\n-A TULLE-FORWARD -s 10.5.0.0/16 -j ACCEPT\nCOMMIT\n")
	answer := func(a string) *Pinged { return &Pinged{To: netip.MustParseAddr(a), Trip: 300 * time.Microsecond} }
	inside := "10.5.2.0"
	if row, ok := f.row(); ok && row.Inside.IsValid() {
		inside = row.Inside.String()
	}
	return f, &Pings{Underlay: answer(public.String()), Overlay: answer(inside), Address: answer(address), MTU: p.State().MTU}
}

// filter replaces the packet filter.
func (f *PathFacts) filter(table, rules string) {
	f.Filter = ParseFilter("*" + table + "\n" + rules + "\nCOMMIT\n")
}

func inside(f *PathFacts) *Inside {
	return &Inside{Container: Container{Name: "web"}, Addr: netip.MustParseAddr("10.5.1.9"), Dev: "eth0", MTU: 1450, Gateway: true, Arrives: "docker0",
		Way: kernel.Way{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Type: "unicast", Via: netip.MustParseAddr("10.5.1.1"), Dev: "eth0", Protocol: 3}}
}

// way is a route of a protocol by number.
func way(prefix, via, dev string, protocol uint8) kernel.Way {
	w := kernel.Way{Prefix: netip.MustParsePrefix(prefix), Type: "unicast", Dev: dev, Protocol: protocol}
	w.Via, _ = netip.ParseAddr(via)
	return w
}

// typed is a route that leads to no device.
func typed(w kernel.Way, kind string) kernel.Way {
	w.Type, w.Dev = kind, ""
	return w
}

// onTheWay is what may be wrong on the way to a peer's container.
var onTheWay = []struct {
	name   string
	change func(f *PathFacts, p *Pings)
}{
	{"clean", func(f *PathFacts, p *Pings) {}},
	{"clean from a container", func(f *PathFacts, p *Pings) { f.Container = inside(f) }},
	{"lease: gone from etcd", func(f *PathFacts, p *Pings) { f.Etcd.Lease = nil }},
	{"lease: another value in etcd", func(f *PathFacts, p *Pings) { f.Etcd.Lease.Value = `{"PublicIP":"192.0.2.5"}` }},
	{"lease: nobody renews it", func(f *PathFacts, p *Pings) { f.Etcd.TTL = 600 }},
	{"lease: etcd is away", func(f *PathFacts, p *Pings) { f.Etcd = api.Etcd{Error: "no connection to etcd"} }},
	{"lease: the agent can't ask", func(f *PathFacts, p *Pings) { f.Unseen[hopLease] = errors.New("the agent hangs") }},
	{"device: gone, with all that hangs on it", func(f *PathFacts, p *Pings) {
		delete(f.Links, "tulle.1")
		f.Own, f.Forwarded = kernel.Way{}, kernel.Way{}
	}},
	{"device: down", func(f *PathFacts, p *Pings) { l := f.Links["tulle.1"]; l.Down = true; f.Links["tulle.1"] = l }},
	{"device: another MTU", func(f *PathFacts, p *Pings) { l := f.Links["tulle.1"]; l.MTU = 1500; f.Links["tulle.1"] = l }},
	{"forwarding", func(f *PathFacts, p *Pings) { f.Forwarding = false }},
	{"route: none", func(f *PathFacts, p *Pings) { f.Own, f.Forwarded = kernel.Way{}, kernel.Way{} }},
	{"route: an agent puts it back", func(f *PathFacts, p *Pings) { f.Agent, f.Own, f.Forwarded = true, kernel.Way{}, kernel.Way{} }},
	{"route: the default one", func(f *PathFacts, p *Pings) { f.Forwarded = way("0.0.0.0/0", "192.0.2.254", "eth0", 16) }},
	{"route: somebody's to the same subnet", func(f *PathFacts, p *Pings) { f.Forwarded = way("10.5.2.0/24", "192.0.2.254", "eth0", 4) }},
	{"route: somebody's more specific one, of the host's packets only", func(f *PathFacts, p *Pings) { f.Own = way("10.5.2.0/25", "", "wg0", 4) }},
	{"route: a policy", func(f *PathFacts, p *Pings) { f.Forwarded = way("0.0.0.0/0", "", "wg0", 4); f.Forwarded.Table = 51820 }},
	{"route: blackhole", func(f *PathFacts, p *Pings) { f.Forwarded = typed(way("10.5.2.0/24", "", "", 4), "blackhole") }},
	{"route: the kernel does not say", func(f *PathFacts, p *Pings) { f.Unseen[hopRoute] = errors.New("operation not permitted") }},
	{"nexthop", func(f *PathFacts, p *Pings) { f.Nexthop.Via = netip.MustParseAddr("10.5.9.0") }},
	{"nexthop: of a plain route", func(f *PathFacts, p *Pings) { f.Forwarded.Nexthop, f.Nexthop.Dev = 0, "eth0" }},
	{"neighbour: none", func(f *PathFacts, p *Pings) { f.Neighbour = "" }},
	{"neighbour: another MAC", func(f *PathFacts, p *Pings) { f.MAC[5] = 9 }},
	{"neighbour: not permanent", func(f *PathFacts, p *Pings) { f.Neighbour = "STALE" }},
	{"fdb: none", func(f *PathFacts, p *Pings) { f.VTEP = netip.Addr{} }},
	{"fdb: another host", func(f *PathFacts, p *Pings) { f.VTEP = netip.MustParseAddr("192.0.2.66") }},
	{"underlay: no route", func(f *PathFacts, p *Pings) { f.Underlay = kernel.Way{} }},
	{"underlay: blackhole", func(f *PathFacts, p *Pings) { f.Underlay = typed(way("192.0.2.2/32", "", "", 4), "blackhole") }},
	{"underlay: through the overlay", func(f *PathFacts, p *Pings) { f.Underlay = way("192.0.2.0/24", "10.5.2.0", "tulle.1", 4) }},
	{"underlay: this host itself", func(f *PathFacts, p *Pings) { f.Underlay = typed(way("192.0.2.2/32", "", "", 2), "local") }},
	{"underlay: another device", func(f *PathFacts, p *Pings) { f.Underlay.Dev = "eth1" }},
	{"firewall: not read", func(f *PathFacts, p *Pings) { f.Unseen[hopFirewall] = errors.New("iptables is not installed") }},
	{"forward: policy", func(f *PathFacts, p *Pings) { f.filter("filter", ":FORWARD DROP [0:0]") }},
	{"forward: a rule", func(f *PathFacts, p *Pings) {
		f.filter("filter", "-A FORWARD -s 10.5.0.0/16 -i docker0 -j REJECT --reject-with icmp-port-unreachable")
	}},
	{"forward: Docker's rule", func(f *PathFacts, p *Pings) {
		f.filter("filter", "-A FORWARD -j DOCKER\n-A DOCKER ! -i tulle.1 -o tulle.1 -j DROP")
	}},
	{"forward: a rule that is not understood", func(f *PathFacts, p *Pings) { f.filter("filter", "-A FORWARD -m set --match-set bad src -j DROP") }},
	{"forward: dropped unless a rule is understood", func(f *PathFacts, p *Pings) {
		f.filter("filter", ":FORWARD DROP [0:0]\n-A FORWARD -m set --match-set good src -j ACCEPT")
	}},
	{"forward: marked and dropped", func(f *PathFacts, p *Pings) {
		f.filter("mangle", "-A PREROUTING -i docker0 -j MARK --set-xmark 0x9/0xffffffff\nCOMMIT\n*filter\n-A FORWARD -m mark --mark 0x9 -j DROP")
	}},
	{"masquerade", func(f *PathFacts, p *Pings) {
		f.filter("nat", "-A POSTROUTING -s 10.5.1.0/24 ! -o docker0 -j MASQUERADE")
	}},
	{"output", func(f *PathFacts, p *Pings) { f.filter("filter", ":OUTPUT DROP [0:0]\n-A OUTPUT -p tcp -j ACCEPT") }},
	{"input", func(f *PathFacts, p *Pings) {
		f.filter("filter", ":INPUT DROP [0:0]\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
	}},
	{"return: Docker 28 in raw", func(f *PathFacts, p *Pings) { f.filter("raw", "-A PREROUTING -d 10.5.1.2/32 ! -i docker0 -j DROP") }},
	{"return: forward", func(f *PathFacts, p *Pings) {
		f.filter("filter", "-A FORWARD -i tulle.1 -m conntrack --ctstate ESTABLISHED -j DROP")
	}},
	{"container: in the host's network", func(f *PathFacts, p *Pings) {
		f.Container = inside(f)
		f.Container.Host = true
		f.Container.Way = kernel.Way{}
	}},
	{"container: no route", func(f *PathFacts, p *Pings) { f.Container = &Inside{Container: Container{Name: "web"}} }},
	{"container: a route to nowhere", func(f *PathFacts, p *Pings) {
		f.Container = inside(f)
		f.Container.Way = typed(way("10.5.0.0/16", "", "", 4), "unreachable")
	}},
	{"container: MTU", func(f *PathFacts, p *Pings) { f.Container = inside(f); f.Container.MTU = 1500 }},
	{"container: of another network", func(f *PathFacts, p *Pings) {
		f.Container = inside(f)
		f.Container.Addr, f.Container.Arrives = netip.MustParseAddr("172.18.0.2"), "br-1"
		f.Container.MTU = 1500
		f.filter("nat", "-A POSTROUTING -s 172.18.0.0/16 ! -o br-1 -j MASQUERADE")
	}},
	{"gateway: not this host", func(f *PathFacts, p *Pings) { f.Container = inside(f); f.Container.Gateway = false }},
	{"gateway: silent", func(f *PathFacts, p *Pings) { f.Container = inside(f); f.Container.Silent = probe.ErrNoAnswer }},
	{"peer host: down", func(f *PathFacts, p *Pings) { p.Underlay.Error, p.Overlay.Error = probe.ErrNoAnswer, probe.ErrNoAnswer }},
	{"peer host: answers no pings", func(f *PathFacts, p *Pings) { p.Underlay.Error = probe.ErrNoAnswer }},
	{"peer host: no ping can be sent", func(f *PathFacts, p *Pings) {
		p.Underlay.Error = errors.New("it needs root")
		*p = Pings{Underlay: p.Underlay, Overlay: &Pinged{To: f.Address, Error: errors.New("it needs root")}}
	}},
	{"overlay: blocked", func(f *PathFacts, p *Pings) { p.Overlay.Error = probe.ErrNoAnswer }},
	{"path MTU", func(f *PathFacts, p *Pings) { p.MTU = 1230 }},
	{"path MTU: not known", func(f *PathFacts, p *Pings) { p.MTU, p.MTUErr = 0, errors.New("interrupted") }},
	{"address: silent", func(f *PathFacts, p *Pings) { p.Address.Error = probe.ErrNoAnswer }},
	{"address: refused", func(f *PathFacts, p *Pings) {
		p.Address.Error = fmt.Errorf("ping: %w", &probe.ICMPError{From: netip.MustParseAddr("10.5.2.1"), Type: ipv4.ICMPTypeDestinationUnreachable, Code: 1})
	}},
}

// toOthers is the same on the way to other addresses, or in another network.
var toOthers = []struct {
	name, address, config string
	change                func(f *PathFacts, p *Pings)
}{
	{"own subnet", "10.5.1.7", "", func(f *PathFacts, p *Pings) { f.Own = way("10.5.1.0/24", "", "docker0", 2) }},
	{"own subnet: the bridge has another address", "10.5.1.7", "", func(f *PathFacts, p *Pings) {
		f.Own, f.Bridge = way("0.0.0.0/0", "192.0.2.254", "eth0", 3), []netip.Prefix{netip.MustParsePrefix("172.17.0.1/16")}
	}},
	{"own subnet: no route", "10.5.1.7", "", func(f *PathFacts, p *Pings) { f.Own = way("0.0.0.0/0", "192.0.2.254", "eth0", 3) }},
	{"own subnet: the route is taken", "10.5.1.7", "", func(f *PathFacts, p *Pings) { f.Own = way("10.5.1.0/24", "", "br-1", 3) }},
	{"own subnet: the bridge is down", "10.5.1.7", "", func(f *PathFacts, p *Pings) { l := f.Links["docker0"]; l.Down = true; f.Links["docker0"] = l }},
	{"own subnet: the bridge is gone", "10.5.1.7", "", func(f *PathFacts, p *Pings) { delete(f.Links, "docker0") }},
	{"own subnet: nobody has it", "10.5.1.7", "", func(f *PathFacts, p *Pings) {
		f.Own, p.Address.Error = way("10.5.1.0/24", "", "docker0", 2), probe.ErrNoAnswer
	}},
	{"own address", "10.5.1.1", "", func(f *PathFacts, p *Pings) { f.Own = typed(way("10.5.1.1/32", "", "", 2), "local") }},
	{"own address: lost", "10.5.1.0", "", func(f *PathFacts, p *Pings) { f.Own = way("0.0.0.0/0", "192.0.2.254", "eth0", 2) }},
	{"nobody's", "10.5.7.7", "", func(f *PathFacts, p *Pings) { f.Etcd.Lease = nil }},
	{"left out", "10.5.9.7", "", func(f *PathFacts, p *Pings) {}},
	{"left out, as only the agent knows", "10.5.2.7", "", func(f *PathFacts, p *Pings) {
		l := f.View.Leases["10.5.2.0-24"]
		l.LeftOut = "overlap: 10.5.2.0/24 overlaps 10.5.2.0/25, which an older lease holds"
		f.View.Leases["10.5.2.0-24"] = l
	}},
	{"outside", "198.51.100.7", "", func(f *PathFacts, p *Pings) { f.Forwarded = way("0.0.0.0/0", "192.0.2.254", "eth0", 3) }},
	{"outside: no way", "198.51.100.7", "", func(f *PathFacts, p *Pings) { f.Forwarded = kernel.Way{} }},
	{"outside: silent", "198.51.100.7", "", func(f *PathFacts, p *Pings) {
		f.Forwarded, p.Address.Error = way("0.0.0.0/0", "192.0.2.254", "eth0", 3), probe.ErrNoAnswer
	}},
	{"outside: another family", "2001:db8::7", "", func(f *PathFacts, p *Pings) { f.Forwarded = kernel.Way{} }},
	{"clean with DirectRouting", "10.5.2.7", direct, func(f *PathFacts, p *Pings) {}},
	{"overlay: with DirectRouting", "10.5.2.7", direct, func(f *PathFacts, p *Pings) { p.Overlay.Error = probe.ErrNoAnswer }},
	{"path MTU: with DirectRouting", "10.5.2.7", direct, func(f *PathFacts, p *Pings) { p.MTU = 1300 }},

	{"clean with both families, to IPv6", "fd12:3456:0:2::7", dualStack, none},
	{"clean with both families, to IPv4", "10.5.2.7", dualStack, func(f *PathFacts, p *Pings) {
		f.filter("filter", ":FORWARD ACCEPT [0:0]")
	}},
	{"clean, IPv6 over IPv4", "fd12:3456:0:2::7", onlyIPv6, none},
	{"clean, IPv4 over IPv6", "10.5.2.7", overIPv6, func(f *PathFacts, p *Pings) { f.filter("filter", ":FORWARD ACCEPT [0:0]") }},
	{"clean by host-gw, to IPv6", "fd12:3456:0:2::7", dualGW, none},
	{"IPv6: forwarding", "fd12:3456:0:2::7", dualStack, func(f *PathFacts, p *Pings) { f.Forwarding = false }},
	{"IPv6: route missing", "fd12:3456:0:2::7", dualStack, func(f *PathFacts, p *Pings) {
		f.Own, f.Forwarded = way("::/0", "fe80::1", "eth0", 9), way("::/0", "fe80::1", "eth0", 9)
	}},
	{"IPv6: device of the other family gone", "fd12:3456:0:2::7", dualStack, func(f *PathFacts, p *Pings) { delete(f.Links, "tulle.1") }},
	{"IPv6: device gone", "fd12:3456:0:2::7", dualStack, func(f *PathFacts, p *Pings) {
		delete(f.Links, "tulle-v6.1")
		f.Own, f.Forwarded = kernel.Way{}, kernel.Way{}
	}},
	{"IPv6: neighbour", "fd12:3456:0:2::7", dualStack, func(f *PathFacts, p *Pings) { f.Neighbour = "" }},
	{"IPv6: fdb", "fd12:3456:0:2::7", dualStack, func(f *PathFacts, p *Pings) { f.VTEP = netip.Addr{} }},
	{"IPv6: path MTU", "fd12:3456:0:2::7", dualStack, func(f *PathFacts, p *Pings) { p.MTU = 1300 }},
	{"IPv6 over IPv4: path MTU", "fd12:3456:0:2::7", onlyIPv6, func(f *PathFacts, p *Pings) { p.MTU = 1300 }},
	{"IPv6 over IPv4: not let in", "fd12:3456:0:2::7", onlyIPv6, func(f *PathFacts, p *Pings) { f.filter("filter", ":INPUT DROP [0:0]") }},
	{"IPv6: not let in", "fd12:3456:0:2::7", dualStack, func(f *PathFacts, p *Pings) {
		f.Filter.sets = append(f.Filter.sets, parseRules(subnet.IPv6, "*filter\n:INPUT DROP [0:0]\nCOMMIT\n"))
	}},
	{"IPv6: not forwarded by a rule", "fd12:3456:0:2::7", dualStack, func(f *PathFacts, p *Pings) {
		f.Filter.sets = append(f.Filter.sets, parseRules(subnet.IPv6, "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -s fd12:3456::/48 -p ipv6-icmp -j DROP\nCOMMIT\n"))
	}},
	{"IPv6: own subnet, without its address on the bridge", "fd12:3456:0:1::7", dualStack, func(f *PathFacts, p *Pings) {
		f.Own, f.Bridge = way("::/0", "fe80::1", "eth0", 9), f.Bridge[:1]
	}},
	{"IPv6: own address", "fd12:3456:0:1::1", dualStack, func(f *PathFacts, p *Pings) { f.Own = typed(way("fd12:3456:0:1::1/128", "", "", 2), "local") }},
	{"IPv6: own address, the subnet's first", "fd12:3456:0:1::", dualStack, func(f *PathFacts, p *Pings) { f.Own = typed(way("fd12:3456:0:1::/128", "", "", 2), "anycast") }},
	{"IPv6: nobody's", "fd12:3456:0:7::7", dualStack, func(f *PathFacts, p *Pings) { f.Etcd.Lease = nil }},
	{"IPv6: by a gateway that has IPv4 only", "fd12:3456:0:2::7", dualGW, func(f *PathFacts, p *Pings) {
		const key = "10.5.2.0-24&fd12:3456:0:2::-64"
		l := api.StoredLease{Key: key, Value: leased("192.0.2.2", "host-gw"), Created: 2}
		f.View.Leases[key], f.Etcd.Lease = l, &l
		f.Plan, _ = Plan(f.View)
	}},

	{"clean by host-gw", "10.5.2.7", by(hostGW), none},
	{"clean by host-gw, this host's bridge", "10.5.1.1", by(hostGW), func(f *PathFacts, p *Pings) { f.Own = typed(way("10.5.1.1/32", "", "", 2), "local") }},
	{"host-gw: no route", "10.5.2.7", by(hostGW), func(f *PathFacts, p *Pings) { f.Own, f.Forwarded = kernel.Way{}, kernel.Way{} }},
	{"host-gw: the peer is another's", "10.5.2.7", by(hostGW), func(f *PathFacts, p *Pings) { f.Nexthop.Via = netip.MustParseAddr("192.0.2.66") }},
	{"host-gw: silent inside", "10.5.2.7", by(hostGW), func(f *PathFacts, p *Pings) { p.Overlay.Error = probe.ErrNoAnswer }},
	{"host-gw: path MTU", "10.5.2.7", by(hostGW), func(f *PathFacts, p *Pings) { p.MTU = 1400 }},
	{"clean by ipip", "10.5.2.7", by(overIPIP), none},
	{"ipip: not let in", "10.5.2.7", by(overIPIP), func(f *PathFacts, p *Pings) { f.filter("filter", ":INPUT DROP [0:0]\n-A INPUT -p udp -j ACCEPT") }},
	{"ipip: device gone", "10.5.2.7", by(overIPIP), func(f *PathFacts, p *Pings) {
		delete(f.Links, "tulle-ipip")
		f.Own, f.Forwarded = kernel.Way{}, kernel.Way{}
	}},
	{"ipip: blocked", "10.5.2.7", by(overIPIP), func(f *PathFacts, p *Pings) { p.Overlay.Error = probe.ErrNoAnswer }},
	{"clean by udp", "10.5.2.7", by(overUDP), none},
	{"udp: no agent", "10.5.2.7", by(overUDP), func(f *PathFacts, p *Pings) { f.Agent = false }},
	{"udp: blocked", "10.5.2.7", by(overUDP), func(f *PathFacts, p *Pings) { p.Overlay.Error = probe.ErrNoAnswer }},
	{"udp: path MTU", "10.5.2.7", by(overUDP), func(f *PathFacts, p *Pings) { p.MTU = 1400 }},
	{"clean by wireguard", "10.5.2.7", by(overWG), none},
	{"wireguard: blocked", "10.5.2.7", by(overWG), func(f *PathFacts, p *Pings) { p.Overlay.Error = probe.ErrNoAnswer }},
	{"clean by wireguard, after a handshake", "10.5.2.7", by(overWG), func(f *PathFacts, p *Pings) { f.Shaken = &now }},
	{"wireguard: no handshake yet", "10.5.2.7", by(overWG), func(f *PathFacts, p *Pings) { f.Shaken = &time.Time{} }},
	{"clean by l2", "10.5.2.7", by(oneL2), none},
	{"clean by l2, from a container", "10.5.2.7", by(oneL2), func(f *PathFacts, p *Pings) { f.Container = neighbouring(f) }},
	{"l2: not netfiltered", "10.5.2.7", by(oneL2), func(f *PathFacts, p *Pings) { f.Netfiltered = false; f.filter("filter", ":FORWARD DROP [0:0]") }},
	{"l2: no flooding entry", "10.5.2.7", by(oneL2), func(f *PathFacts, p *Pings) { f.Flood = false }},
	{"l2: not a port of the bridge", "10.5.2.7", by(oneL2), func(f *PathFacts, p *Pings) { l := f.Links["tulle.1"]; l.Master = ""; f.Links["tulle.1"] = l }},
	{"l2: the bridge has a slice's address", "10.5.2.7", by(oneL2), func(f *PathFacts, p *Pings) {
		f.Own, f.Bridge = way("0.0.0.0/0", "192.0.2.254", "eth0", 3), []netip.Prefix{netip.MustParsePrefix("10.5.1.1/24")}
	}},
	{"l2: bridged packets dropped", "10.5.2.7", by(oneL2), func(f *PathFacts, p *Pings) {
		f.filter("filter", "-A FORWARD -m physdev --physdev-is-bridged -j DROP")
	}},
	{"clean by alloc", "10.5.2.7", by(leaseOnly), none},
	{"alloc: no way", "10.5.2.7", by(leaseOnly), func(f *PathFacts, p *Pings) { f.Own, f.Forwarded = kernel.Way{}, kernel.Way{} }},
	{"alloc: silent", "10.5.2.7", by(leaseOnly), func(f *PathFacts, p *Pings) { p.Address.Error = probe.ErrNoAnswer }},
	{"clean by an extension", "10.5.2.7", by(commands), none},
	{"extension: no way", "10.5.2.7", by(commands), func(f *PathFacts, p *Pings) { f.Own, f.Forwarded = kernel.Way{}, kernel.Way{} }},
	{"extension: silent inside", "10.5.2.7", by(commands), func(f *PathFacts, p *Pings) { p.Overlay.Error = probe.ErrNoAnswer }},
}

// TestJudge breaks what a path depends on, one thing at a time: what is said of it is in testdata. Each case is what is wrong
// with a healthy path; the pings that would not be sent are not there.
func TestJudge(t *testing.T) {
	t.Parallel()
	got := &txtar.Archive{Comment: []byte("What is said of a path from 10.5.1.0/24 to 10.5.2.7, or another address, with one thing broken. Hops that are ok are left out.\n")}
	section := func(name, address, config string, change func(f *PathFacts, p *Pings)) {
		f, p := healthy(t, address, config)
		change(f, p)
		got.Files = append(got.Files, txtar.File{Name: name, Data: []byte(judged(t, f, p, strings.HasPrefix(name, "clean")))})
	}
	for _, c := range onTheWay {
		section(c.name, "10.5.2.7", "", c.change)
	}
	for _, c := range toOthers {
		section(c.name, c.address, c.config, c.change)
	}
	compareText(t, "testdata/judge.txtar", string(txtar.Format(got)))
}

const direct = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`

// by is the config of a network with a Backend object.
func by(object string) string { return `{"Network":"10.5.0.0/16","Backend":` + object + `}` }

func none(*PathFacts, *Pings) {}

// neighbouring is a container where all hosts' are one segment.
func neighbouring(f *PathFacts) *Inside {
	i := inside(f)
	i.Way = kernel.Way{Prefix: netip.MustParsePrefix("10.5.0.0/16"), Type: "unicast", Dev: "eth0", Protocol: 2}
	return i
}

// judged prints what is said of a path: of all hops, or of those only that there is something to say of.
func judged(t *testing.T, f *PathFacts, p *Pings, all bool) string {
	t.Helper()
	trace := Trace{Address: f.Address, Hops: f.Judge()}
	if _, planned := f.row(); f.place() == ofPeer && !planned || f.place() == ofHost {
		*p = Pings{}
	} else if f.place() != ofPeer {
		*p = Pings{Address: p.Address}
	}
	if row, _ := f.row(); f.place() == ofPeer && !row.Inside.IsValid() {
		p.Overlay, p.MTU = nil, 0
	}
	if trace.broken() {
		*p = Pings{Underlay: p.Underlay}
	} else if p.Overlay != nil && p.Overlay.Error != nil {
		p.MTU, p.Address = 0, nil
	}
	trace.Hops = append(trace.Hops, p.Judge(*f)...)
	trace.conclude()
	var b strings.Builder
	for _, h := range trace.Hops {
		if h.State == HopWrong && (h.Why == "" || h.Fix == "") || h.State == HopUnknown && h.Why == "" || h.Name == "" || strings.Contains(h.What+h.Why+h.Fix, "invalid") {
			t.Errorf("%+v lacks something", h)
		}
		if all || h.State != HopOK || h.Why != "" {
			fmt.Fprintf(&b, "%s %s: %s\n", h.State, h.Name, h.What)
		}
		if h.Why != "" {
			fmt.Fprintf(&b, "  why %s\n", h.Why)
		}
		if h.Fix != "" {
			fmt.Fprintf(&b, "  fix %s\n", h.Fix)
		}
	}
	return fmt.Sprintf("%s%d, %s\n", b.String(), trace.Code(), trace.Verdict)
}

// compareText compares a file with what came out, or writes it.
func compareText(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s: got\n%s\nwant\n%s", file, got, want)
	}
}
