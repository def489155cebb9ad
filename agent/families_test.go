package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/probe"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

const (
	dualStack = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12:3456::/48","Backend":{"Type":"vxlan"}}`
	onlyIPv6  = `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd12:3456::/48","Backend":{"Type":"vxlan"}}`
)

// both gives the rig's host an IPv6 address beside its own.
func (r *rig) both() {
	local := subnet.Pair[netip.Addr]{V4: netip.MustParseAddr("192.0.2.1"), V6: netip.MustParseAddr("2001:db8::1")}
	r.kernel.mu.Lock()
	defer r.kernel.mu.Unlock()
	r.kernel.underlay.Local, r.kernel.underlay.Public = local, local
}

// peer6 is peer(n) with fd12:3456:0:N::/64 and 2001:db8::N, too.
func peer6(n int) subnet.Entry {
	e := peer(n)
	e.Lease.Subnet.V6 = netip.MustParsePrefix(fmt.Sprintf("fd12:3456:0:%x::/64", n))
	e.Lease.PublicIP.V6 = netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", n))
	e.Lease.Data.V6 = fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:00:06:%02x"}`, n)
	return e
}

// What is said of a network with both families, and of its hosts, names all that they have.
func TestSayBothFamilies(t *testing.T) {
	bubble(t, func(r *rig) {
		r.both()
		r.list(dualStack)
		lease := r.store.lastWant().Lease(peer6(1).Lease.Subnet)
		r.own(func(o *subnet.Own) { *o = subnet.Own{Lease: lease, Revision: 7} })
		const key = "10.5.1.0-24&fd12:3456:0:1::-64"
		r.wantReady(true, key+", 0 peers")
		r.put(peer6(2), peer(3))
		moved := peer6(2)
		moved.Lease.PublicIP.V6 = netip.MustParseAddr("2001:db8::22")
		r.put(moved)
		r.remove(moved.Lease.Key())
		got := r.log.take()
		for _, want := range []string{
			`msg="network config" network="10.5.0.0/16, fd12:3456::/48" subnet-length="24, 64" backend=vxlan`,
			`msg=underlay device=eth0 mtu=1500 address="192.0.2.1, 2001:db8::1" public-ip="192.0.2.1, 2001:db8::1"`,
			`msg="lease held" subnet="10.5.1.0/24, fd12:3456:0:1::/64" public-ip="192.0.2.1, 2001:db8::1"`,
			`msg="peer 10.5.2.0/24, fd12:3456:0:2::/64 (192.0.2.2, 2001:db8::2) joined" lease=10.5.2.0-24&fd12:3456:0:2::-64 public-ip="192.0.2.2, 2001:db8::2"`,
			`msg="peer 10.5.3.0/24 (192.0.2.3) joined" lease=10.5.3.0-24 public-ip=192.0.2.3`,
			`(192.0.2.2, 2001:db8::22) has come from 192.0.2.2, 2001:db8::2"`,
			`(192.0.2.2, 2001:db8::22) left"`,
		} {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in\n%s", want, got)
			}
		}
	})
}

// Each family inside is probed, at the address that its packets are sent to on the underlay; what fails by one of them is told of that.
func TestProbeBothFamilies(t *testing.T) {
	bubble(t, func(r *rig) {
		r.both()
		r.list(dualStack)
		lease := r.store.lastWant().Lease(peer6(1).Lease.Subnet)
		r.own(func(o *subnet.Own) { *o = subnet.Own{Lease: lease, Revision: 7} })
		overIPv4 := peer6(3)
		overIPv4.Lease.PublicIP.V6, overIPv4.Lease.Data.V6 = netip.Addr{}, ""
		r.put(peer6(2), overIPv4, peer(4))
		var aimed []string
		for _, e := range []subnet.Entry{peer6(2), overIPv4, peer(4)} {
			for _, result := range r.agent.prober.Results(e.Lease.Key()) {
				aimed = append(aimed, fmt.Sprintf("%s at %s", result.Target.Overlay, result.Target.Underlay))
			}
		}
		if got, want := strings.Join(aimed, ", "), "10.5.2.0 at 192.0.2.2, fd12:3456:0:2:: at 2001:db8::2, 10.5.3.0 at 192.0.2.3, fd12:3456:0:3:: at 192.0.2.3, 10.5.4.0 at 192.0.2.4"; got != want {
			t.Errorf("probed are %s, want %s", got, want)
		}
		if p := r.agent.Peers().Peers; len(p) != 3 || len(p[0].Families) != 2 || p[0].Families[1].Family != "IPv6" || p[0].Families[1].To.String() != "2001:db8::2" ||
			p[0].Families[1].State != api.Unknown || p[2].Families != nil {
			t.Errorf("%+v", p)
		}
		r.log.take()
		down := r.agent.prober.Results(peer6(2).Lease.Key())[1]
		down.State = probe.Unreachable
		r.agent.turned(peer6(2).Lease.Key(), down)
		if got := r.log.take(); !strings.Contains(got, `"peer 10.5.2.0/24, fd12:3456:0:2::/64 (192.0.2.2, 2001:db8::2) is unreachable: it answers neither`) {
			t.Errorf("logged %s", got)
		}
	})
}

func TestWhyOneFamily(t *testing.T) {
	t.Parallel()
	leg := func(p, to, device string) backend.Leg {
		return backend.Leg{Subnet: netip.MustParsePrefix(p), To: netip.MustParseAddr(to), Outer: backend.Outer{Device: device, Kind: backend.KindVXLAN, Port: 8472}}
	}
	four, six := leg("10.5.2.0/24", "192.0.2.2", "tulle.1"), leg("fd12::/64", "2001:db8::2", "tulle-v6.1")
	sixOverFour := leg("fd12::/64", "192.0.2.2", "tulle.1")
	up, down := probe.Result{State: probe.Reachable}, probe.Result{State: probe.Unreachable}
	for _, c := range []struct {
		results   []probe.Result
		four, six backend.Leg
		about     subnet.Family
		want      string
	}{
		{[]probe.Result{up, down}, four, six, subnet.IPv6, "IPv4 gets through, IPv6 does not: why"},
		{[]probe.Result{down, up}, four, six, subnet.IPv4, "IPv6 gets through, IPv4 does not: why"},
		{[]probe.Result{up, down}, four, sixOverFour, subnet.IPv6, "IPv4 gets through, IPv6 does not: what carries both is the same, so something inside is in its way, here or there: a packet filter, or what forwards"},
		{[]probe.Result{down, down}, four, six, subnet.IPv4, "why"},
		{[]probe.Result{down}, four, backend.Leg{}, subnet.IPv4, "why"},
	} {
		legs := subnet.Pair[backend.Leg]{V4: c.four, V6: c.six}
		if got := byFamily(c.results, legs, legs.Of(c.about), "why"); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// A network gets IPv6 while its hosts run: that is no other subnet, but one more.
func TestSecondFamily(t *testing.T) {
	bubble(t, func(r *rig) {
		r.both()
		r.ready()
		r.setConfig(dualStack)
		r.log.take()
		lease := r.store.lastWant().Lease(peer6(1).Lease.Subnet)
		r.own(func(o *subnet.Own) { o.Lease = lease })
		r.wantReady(true, "10.5.1.0-24&fd12:3456:0:1::-64, 0 peers")
		got := r.log.take()
		if want := `level=WARN msg="this host has a subnet of another family, too: restart Docker, so that its containers get addresses of it" subnet="10.5.1.0/24, fd12:3456:0:1::/64" before=10.5.1.0/24`; !strings.Contains(got, want) || strings.Contains(got, "level=ERROR") {
			t.Errorf("logged\n%s", got)
		}
	})
}

// What the underlay lacks for the network is said once, with both sides, and is why the agent is not ready.
func TestUnderlayWithoutFamily(t *testing.T) {
	bubble(t, func(r *rig) {
		config := strings.Replace(onlyIPv6, "vxlan", "host-gw", 1)
		r.list(config)
		r.own(func(o *subnet.Own) {
			*o = subnet.Own{Lease: subnet.Lease{Subnet: subnet.PairOf(subnet.IPv6, netip.MustParsePrefix("fd12:3456:0:1::/64")), PublicIP: r.kernel.underlay.Public, Backend: "host-gw"}, Revision: 7}
		})
		const why = "device eth0 has no IPv6 address that peers could send to, and IPv6 can't be routed by way of an IPv4 gateway"
		r.pass(retryMax)
		if s := r.agent.Status(); s.Ready || !strings.Contains(s.Reason, why) {
			t.Errorf("ready %t: %s", s.Ready, s.Reason)
		}
		if got := r.log.take(); strings.Count(got, why) != 1 {
			t.Errorf("logged\n%s", got)
		}
	})
}

// A lease of another family only is left out, counted by that reason, and on this host alone.
func TestOtherFamilyCounted(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		other := peer6(2)
		other.Lease.Subnet.V4 = netip.Prefix{}
		elsewhere := peer(3)
		elsewhere.Lease.PublicIP = subnet.PairOf(subnet.IPv6, netip.MustParseAddr("2001:db8::3"))
		r.put(other, elsewhere, peer(4))
		if s := r.agent.Status(); s.LeftOut["other-family"] != 2 || s.Peers.Total != 1 {
			t.Errorf("%+v", s)
		}
		if got := r.metric("tulle_leases_rejected other-family"); got != 2 {
			t.Errorf("%v are counted", got)
		}
	})
}
