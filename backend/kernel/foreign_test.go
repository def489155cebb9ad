package kernel

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// neighbourhood is what others might have on a host; none of it is ours.
const neighbourhood = `
	ip route add 10.99.0.0/24 via 192.0.2.9
	ip route add 10.5.2.128/25 via 192.0.2.9
	ip route add 10.0.0.0/8 via 192.0.2.9 metric 1000
	ip route add 10.5.3.0/24 via 192.0.2.9 metric 50 protocol bird
	ip route add 10.77.0.0/24 via 192.0.2.9 protocol 84 table 100
	ip route add blackhole 10.98.0.0/16
	ip route add 2001:db8:7::/48 dev eth0
	ip neigh add 192.0.2.9 lladdr 02:aa:00:00:00:09 dev eth0 nud permanent
	ip link add vxlan9 mtu 1400 type vxlan id 9 dev eth0 dstport 4789 nolearning
	ip link set vxlan9 up
	ip neigh add 10.99.1.1 lladdr 02:aa:00:00:00:01 dev vxlan9 nud permanent
	bridge fdb add 02:aa:00:00:00:01 dev vxlan9 dst 192.0.2.9
	ip link add br-other mtu 1480 type bridge
	ip addr add 172.18.0.1/16 dev br-other
	ip link set br-other up
	ip link add tulle9 type bridge
	ip nexthop add id 4242 via 192.0.2.9 dev eth0 protocol static
`

func TestForeignThingsSurvive(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		s.setup(neighbourhood)
		k, want := s.open(), state(s, 10)
		s.apply(k, want)
		s.converged(k, want)
		s.apply(k, state(s, 3))
		s.converged(k, state(s, 3))
		if _, err := s.open().Cleanup(s.Context()); err != nil {
			s.Errorf("Cleanup: %v", err)
		}
		s.has()
	})
}

func TestForeignBridge(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		s.setup(`
			ip link add docker0 mtu 1420 type bridge
			ip addr add 172.17.0.1/16 dev docker0
		`)
		k, want := s.open(), state(s, 3)
		s.apply(k, want)
		s.has(slices.DeleteFunc(expected(want), func(line string) bool { return strings.Contains(line, "docker0") })...)
		s.settle(k, want)
		if _, err := k.Cleanup(s.Context()); err != nil {
			s.Error(err)
		}
		s.has()
	})
}

func TestForeignAddressOnOurBridge(t *testing.T) {
	s := newSandbox(t)
	k, want := s.open(), state(t, 3)
	s.apply(k, want)
	s.run("ip addr add 198.51.100.1/24 dev docker0")
	s.run("ip addr add 10.5.1.200/24 dev docker0")
	s.before = append(s.before, "address 198.51.100.1/24 dev docker0", "address 10.5.1.200/24 dev docker0")
	s.settle(k, want)
	s.converged(s.open(), want)
}

// The IDs that we would take are another's: its objects stay, ours get others.
func TestForeignNexthopIDs(t *testing.T) {
	s := newSandbox(t)
	for n := range 3 {
		for i := range uint32(n + 1) {
			id := nexthopID(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(n + 2), 0}), 24)) + i
			s.setup(fmt.Sprintf("ip nexthop add id %d via 192.0.2.9 dev eth0", id))
		}
	}
	k, want := s.open(), state(t, 3)
	s.apply(k, want)
	s.converged(k, want)
	again := s.open()
	s.apply(again, state(t, 1))
	s.converged(again, state(t, 1))
	if n := s.nexthops(); n != 1 {
		t.Errorf("%d nexthop objects of ours, want 1", n)
	}
}

func TestForeignDeviceOfOurName(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		s.setup(`
			ip link add tulle.1 type vxlan id 77 dev eth0 dstport 8472
			ip link set tulle.1 up
			ip neigh add 10.99.1.1 lladdr 02:aa:00:00:00:01 dev tulle.1 nud permanent
			bridge fdb add 02:aa:00:00:00:01 dev tulle.1 dst 192.0.2.9
		`)
		k, want := s.open(), state(s, 3)
		_, err := k.Apply(s.Context(), want)
		wantError(s, err, "tulle.1", "not ours", "ip link del tulle.1")
		if now := s.objects(); len(without(s.before, now)) > 0 {
			s.Errorf("it was touched: %q", without(s.before, now))
		}
		for _, line := range s.objects() {
			if !slices.Contains(s.before, line) && !strings.Contains(line, "docker0") {
				s.Errorf("on another's device: %s", line)
			}
		}
		s.run("ip link del tulle.1")
		s.before = slices.DeleteFunc(s.before, func(line string) bool { return strings.Contains(line, "tulle.1") })
		s.apply(k, want)
		s.converged(k, want)
	})
}

func TestForeignVXLANInTheWay(t *testing.T) {
	s := newSandbox(t)
	s.setup("ip link add vxlan1 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning")
	k, want := s.open(), state(t, 3)
	_, err := k.Apply(t.Context(), want)
	wantError(t, err, "vxlan1", "VNI 1", "8472", "ip link del vxlan1")
	s.run("ip link del vxlan1")
	s.before = slices.DeleteFunc(s.before, func(line string) bool { return strings.HasPrefix(line, "link vxlan1") })
	s.apply(k, want)
	s.converged(k, want)
}

func TestForeignRouteInTheWay(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		s.setup("ip route add 10.5.3.0/24 via 192.0.2.9")
		k, want := s.open(), state(s, 5)
		for range 2 {
			_, err := k.Apply(s.Context(), want)
			wantError(s, err, "10.5.3.0/24", "not ours", "ip route del 10.5.3.0/24")
			s.has(slices.DeleteFunc(expected(want), func(line string) bool { return strings.HasPrefix(line, "route 10.5.3.0/24") })...)
		}
		s.run("ip route del 10.5.3.0/24")
		s.before = slices.DeleteFunc(s.before, func(line string) bool { return strings.HasPrefix(line, "route 10.5.3.0/24") })
		if c := s.apply(k, want).Count(); c["route"] != 1 || len(c) != 1 {
			s.Errorf("changed %v, want one route", c)
		}
		s.converged(k, want)
	})
}

// One peer whose route is another's is one error and one peer without a route, however many others there are.
func TestForeignRouteAmongAThousand(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		s.setup("ip route add 10.5.77.0/24 via 192.0.2.9")
		k, want := s.open(), state(s, 1000)
		_, err := k.Apply(s.Context(), want)
		wantError(s, err, "10.5.77.0/24", "not ours")
		if strings.Contains(err.Error(), "\n") {
			s.Errorf("more than one error: %v", err)
		}
		s.has(slices.DeleteFunc(expected(want), func(line string) bool { return strings.HasPrefix(line, "route 10.5.77.0/24") })...)
	})
}

// A peer whose route is another's leaves again; the other's route is none of our business even then.
func TestForeignRouteSurvivesItsRival(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		s.setup("ip route add 10.5.2.0/24 via 192.0.2.9")
		k, p := s.open(), newPlan(s, vxlanConfig, 1)
		if _, err := k.Apply(s.Context(), p.State()); err == nil {
			s.Error("no error")
		}
		key := peer(p.Host().Config, 0).Lease.Key()
		if err := k.Change(s.Context(), p.Update(map[string]subnet.Entry{key: {}})); err != nil {
			s.Error(err)
		}
		s.converged(k, p.State())
	})
}

func TestUnderlayIsMissing(t *testing.T) {
	s := newSandbox(t)
	s.run("ip link del eth0")
	_, err := s.open().Apply(t.Context(), state(t, 3))
	wantError(t, err, "set link tulle.1", "underlay device eth0")
}

func TestCleanup(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		k, want := s.open(), state(s, 2)
		s.apply(k, want)
		s.run("ip nexthop add id 77 via 10.5.9.0 dev tulle.1 onlink protocol 84")
		removed, err := s.open().Cleanup(s.Context())
		if err != nil {
			s.Error(err)
		}
		l := want.Links
		for i, line := range []string{
			fmt.Sprintf("link docker0 %s", l["docker0"]),
			fmt.Sprintf("link tulle.1 %s", l["tulle.1"]),
			"nexthop object 77",
			"route 10.5.2.0/24 via 10.5.2.0 dev tulle.1 onlink",
			"route 10.5.3.0/24 via 10.5.3.0 dev tulle.1 onlink",
		} {
			if i >= len(removed) || removed[i] != line {
				s.Errorf("lists %q, without %q", removed, line)
			}
		}
		s.has()
		if removed, err := s.open().Cleanup(s.Context()); err != nil || len(removed) > 0 {
			s.Errorf("again: %q, %v", removed, err)
		}
		s.apply(k, want)
		s.converged(k, want)
	})
}

func wantError(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not say %q", err, word)
		}
	}
}

// What the kernel refuses is said with what is missing, and what to do. A kernel without vxlan can't be had on demand, so this
// is the one thing here that is not asked of a kernel.
func TestExplain(t *testing.T) {
	want := backend.Link{Kind: backend.KindVXLAN, VXLAN: backend.VXLAN{VNI: 1, Port: 8472, Local: netip.MustParseAddr("192.0.2.1")}}
	for err, text := range map[error]string{
		unix.EOPNOTSUPP: "this kernel has no vxlan: load or build the module (modprobe vxlan; CONFIG_VXLAN)",
		unix.EPERM:      "not permitted: run as root, or with CAP_NET_ADMIN",
		unix.EEXIST:     "device flannel.1 already has VNI 1 on port 8472: remove it (ip link del flannel.1)",
		unix.ENOMEM:     "cannot allocate memory",
	} {
		have := linkTable{all: map[string]netlink.Link{
			"flannel.1":    &netlink.Vxlan{VxlanId: 1, Port: 8472, SrcAddr: net.IPv4(192, 0, 2, 1)},
			"flannel-v6.1": &netlink.Vxlan{VxlanId: 1, Port: 8472, SrcAddr: net.ParseIP("2001:db8::1")},
		}}
		if got := explain(err, want, have); got.Error() != text {
			t.Errorf("%v: %q, want %q", err, got, text)
		}
	}
}
