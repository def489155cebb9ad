package kernel

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/backend"
)

// A route that its device alone leads stays when the device loses its carrier, as a tunnel does when the process behind it ends, also
// if it had a gateway before, and so a nexthop object.
func TestRouteWithoutCarrier(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		k, want := s.open(), backend.NewState()
		dst := netip.MustParsePrefix("10.5.2.0/24")
		want.Routes[dst] = backend.Route{Dev: "eth0", Via: netip.MustParseAddr("192.0.2.2")}
		s.apply(k, want)
		want.Routes[dst] = backend.Route{Dev: "eth0"}
		s.apply(k, want)
		if c := s.apply(k, want).Count(); len(c) > 0 {
			s.Errorf("another Apply changed %v", c)
		}
		if n := s.nexthops(); n > 0 {
			s.Errorf("%d nexthop objects, want none", n)
		}
		s.run("ip link set wire down")
		s.eventually("eth0 has lost its carrier", func() bool { return strings.Contains(s.run("ip link show eth0"), "NO-CARRIER") })
		if routes := s.run("ip route"); !strings.Contains(routes, "10.5.2.0/24 dev eth0") {
			s.Error(routes)
		}
		if c := s.apply(k, want).Count(); len(c) > 0 {
			s.Errorf("without a carrier Apply changed %v", c)
		}
		want.Routes[dst] = backend.Route{Dev: "eth0", Via: netip.MustParseAddr("192.0.2.2")}
		s.run("ip link set wire up")
		s.eventually("eth0 has its carrier", func() bool { return !strings.Contains(s.run("ip link show eth0"), "NO-CARRIER") })
		s.apply(k, want)
		s.nexthopsPaired()
		delete(want.Routes, dst)
		s.apply(k, want)
		if routes := s.run("ip route"); strings.Contains(routes, "10.5.2.0/24") {
			s.Error(routes)
		}
	})
}

// What goes to a range that leads nowhere goes nowhere, but for what more specific routes say; and it gives way, and comes back, like
// any route.
func TestRouteToNowhere(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		s.run("ip addr add 2001:db8::1/64 dev eth0 nodad")
		s.run("ip route add default via 192.0.2.254")
		s.run("ip route add default via 2001:db8::fe")
		k, want := s.open(), backend.NewState()
		peer := netip.MustParsePrefix("10.5.2.0/24")
		want.Routes[peer] = backend.Route{Dev: "eth0", Via: netip.MustParseAddr("192.0.2.2")}
		ranges := []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("fd12:3456::/48")}
		outside := []string{"10.5.3.3", "fd12:3456:0:3::3"}
		closed := func() bool {
			for _, address := range outside {
				if way, err := k.Way(Flow{Dst: netip.MustParseAddr(address)}); err != nil || way.Type != "unreachable" {
					s.Logf("%s: %s, %v", address, way, err)
					return false
				}
			}
			return true
		}
		for _, dst := range ranges {
			want.Routes[dst] = backend.Route{Unreachable: true}
		}
		for range 2 {
			s.apply(k, want)
			s.settle(k, want)
			if !closed() {
				s.Fatal(s.run("ip route"), s.run("ip -6 route"))
			}
			if route := s.run("ip route get 10.5.2.2"); !strings.Contains(route, "via 192.0.2.2") {
				s.Error(route)
			}
			s.run("ip route del unreachable 10.5.0.0/16 proto 84")
			s.run("ip -6 route del unreachable fd12:3456::/48 proto 84")
			if c := s.apply(k, want).Count(); c["route"] != 2 {
				s.Errorf("repaired %v", c)
			}
			for _, dst := range ranges[:1] { // another kind of route to the same range, and back in the next round
				want.Routes[dst] = backend.Route{Dev: "eth0"}
			}
			s.apply(k, want)
			s.settle(k, want)
			if closed() {
				s.Error("a route to the range leads nowhere")
			}
			for _, dst := range ranges {
				want.Routes[dst] = backend.Route{Unreachable: true}
			}
		}
		want.Routes = map[netip.Prefix]backend.Route{}
		s.apply(k, want)
		if left := s.run("ip route show proto 84") + s.run("ip -6 route show proto 84"); left != "" {
			s.Error(left)
		}
	})
}
