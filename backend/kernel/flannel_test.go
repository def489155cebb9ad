package kernel

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// flannels puts into the sandbox what a flannel leaves that had the peers of want, under names of its own.
func (s *sandbox) flannels(want backend.State) {
	s.Helper()
	for _, name := range slices.Sorted(maps.Keys(want.Links)) {
		l := want.Links[name]
		if l.Kind != backend.KindVXLAN {
			continue
		}
		s.run("ip link add %s mtu %d address %s type vxlan id %d local %s dev eth0 dstport %d nolearning", theirs(name), l.MTU, l.MAC, l.VXLAN.VNI, l.VXLAN.Local, l.VXLAN.Port)
		s.run("ip link set %s up", theirs(name))
	}
	for a := range want.Addrs {
		if strings.HasPrefix(a.Dev, "tulle") {
			s.run("ip addr add %s dev %s", a.Prefix, theirs(a.Dev))
		}
	}
	for k, dst := range want.FDB {
		s.run("bridge fdb add %s dev %s dst %s", k.MAC, theirs(k.Dev), dst)
	}
	for k, mac := range want.Neighbours {
		s.run("ip neigh add %s lladdr %s dev %s nud permanent", k.IP, mac, theirs(k.Dev))
	}
	for dst, r := range want.Routes {
		s.run("ip route add %s via %s dev %s onlink", dst, r.Via, theirs(r.Dev))
	}
}

func theirs(name string) string { return strings.Replace(name, "tulle", "flannel", 1) }

// indexes are the ifindexes of the VXLAN devices of want, by which a device is known to be the one that it was.
func (s *sandbox) indexes(want backend.State, name func(string) string) (indexes []string) {
	for _, device := range slices.Sorted(maps.Keys(want.Links)) {
		if want.Links[device].Kind == backend.KindVXLAN {
			indexes = append(indexes, strings.Fields(s.run("ip -o link show %s", name(device)))[0])
		}
	}
	return indexes
}

// Where flannel was, its devices become ours with all that hangs on them, and its routes; what it knew of hosts that left goes. And
// the other way round.
func TestFlannelsPlace(t *testing.T) {
	const dualStack = `{"Network": "10.0.0.0/8", "EnableIPv6": true, "IPv6Network": "fd00:5::/32", "Backend": {"Type": "vxlan"}}`
	for _, config := range []string{vxlanConfig, dualStack} {
		eachMode(t, func(s *sandbox) {
			local := subnet.PairOf(subnet.IPv4, netip.MustParseAddr("192.0.2.1"))
			if config == dualStack {
				s.setup("ip addr add 2001:db8::1/64 dev eth0 nodad")
				local.V6 = netip.MustParseAddr("2001:db8::1")
			}
			want := newPlanOn(s, local, config, 5).State()
			s.flannels(newPlanOn(s, local, config, 7).State())
			before := s.indexes(want, theirs)
			k := s.open()
			s.apply(k, want)
			s.converged(k, want)
			if after := s.indexes(want, strings.Clone); !slices.Equal(before, after) {
				s.Errorf("devices %v were made anew, as %v", before, after)
			}
			if _, err := s.open().HandOver(s.Context()); err != nil {
				s.Fatal(err)
			}
			if after := s.indexes(want, theirs); !slices.Equal(before, after) {
				s.Errorf("devices %v were made anew, as %v", before, after)
			}
			var handed []string
			for _, line := range expected(want) {
				handed = append(handed, strings.NewReplacer(" alias tulle", "", "tulle", "flannel", "protocol 84", "protocol 3").Replace(line))
			}
			s.has(handed...)
			if n := s.nexthops(); n != 0 {
				s.Errorf("%d nexthop objects are left", n)
			}
			if removed, err := s.open().Cleanup(s.Context()); err != nil || len(removed) > 0 {
				s.Errorf("cleanup removed %q, %v", removed, err)
			}
			again := s.open() // and back again: the bridge is not ours any more
			s.apply(again, want)
			var back []string
			for _, line := range expected(want) {
				if strings.HasPrefix(line, "link docker0") {
					line = strings.ReplaceAll(line, " alias tulle", "")
				}
				back = append(back, line)
			}
			s.has(back...)
		})
	}
}

// What flannel has beside the place that we need is left alone: another network's device, and a route that leads elsewhere.
func TestFlannelBeside(t *testing.T) {
	s := newSandbox(t)
	s.setup(`
		ip link add flannel.7 type vxlan id 7 local 192.0.2.1 dev eth0 dstport 8472 nolearning
		ip link set flannel.7 up
		ip route add 10.7.2.0/24 via 10.7.2.0 dev flannel.7 onlink
		ip link add flannel.1 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 4789 nolearning
		ip route add 10.5.3.0/24 via 192.0.2.9
	`)
	k, want := s.open(), state(t, 5)
	_, err := k.Apply(t.Context(), want)
	wantError(t, err, "10.5.3.0/24", "not ours", "ip route del 10.5.3.0/24")
	s.has(slices.DeleteFunc(expected(want), func(line string) bool { return strings.HasPrefix(line, "route 10.5.3.0/24") })...)
}

// host-gw has no device of its own: its routes are all there is.
func TestFlannelsRoutes(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		s.setup("ip route add 172.20.0.0/16 dev eth0")
		want := newPlan(s, `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`, 5).State()
		for dst, r := range want.Routes {
			s.run("ip route add %s via %s dev %s", dst, r.Via, r.Dev)
		}
		k := s.open()
		s.apply(k, want)
		s.converged(k, want)
		if _, err := s.open().HandOver(s.Context()); err != nil {
			s.Fatal(err)
		}
		var routes []string
		for dst, r := range want.Routes {
			routes = append(routes, fmt.Sprintf("route %s via %s dev %s protocol 3", dst, r.Via, r.Dev))
		}
		for _, line := range expected(want) {
			if !strings.HasPrefix(line, "route") {
				routes = append(routes, strings.ReplaceAll(line, " alias tulle", ""))
			}
		}
		s.has(routes...)
	})
}
