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
