package kernel

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/backend"
)

// tunnel is a State with a VXLAN device and one peer.
func tunnel() backend.State {
	s := backend.NewState()
	s.Links["tulle.1"] = backend.Link{Kind: backend.KindVXLAN, MAC: backend.MAC{2, 0, 0, 0, 0, 1}, MTU: 1450,
		VXLAN: backend.VXLAN{VNI: 1, Port: 8472, Local: netip.MustParseAddr("192.0.2.1"), Parent: "eth0"}}
	s.Links["docker0"] = backend.Link{Kind: backend.KindBridge, MAC: backend.MAC{2, 0, 0, 0, 0, 9}, MTU: 1450}
	s.Addrs[backend.Addr{Dev: "tulle.1", Prefix: netip.MustParsePrefix("10.5.1.0/32")}] = struct{}{}
	s.Addrs[backend.Addr{Dev: "docker0", Prefix: netip.MustParsePrefix("10.5.1.1/24")}] = struct{}{}
	vtep := netip.MustParseAddr("10.5.2.0")
	s.FDB[backend.FDBKey{Dev: "tulle.1", MAC: backend.MAC{2, 0, 0, 0, 0, 2}}] = netip.MustParseAddr("192.0.2.2")
	s.Neighbours[backend.NeighbourKey{Dev: "tulle.1", IP: vtep}] = backend.MAC{2, 0, 0, 0, 0, 2}
	s.Routes[netip.MustParsePrefix("10.5.2.0/24")] = backend.Route{Via: vtep, Dev: "tulle.1", OnLink: true}
	s.Sysctls["net.ipv4.ip_forward"] = "1"
	return s
}

// TestWay asks for routes of every kind, for packets of the host's own and for forwarded ones.
func TestWay(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		k := s.open()
		s.apply(k, tunnel())
		const ours = "10.5.2.0/24 via 10.5.2.0 dev tulle.1 proto 84 onlink"
		container := Flow{Src: netip.MustParseAddr("10.5.1.2"), In: "docker0"}
		for _, test := range []struct {
			setup, dst string
			flow       Flow
			want       string // "" for an error
		}{
			{"", "10.5.2.7", Flow{}, ours},
			{"", "10.5.2.7", container, ours},
			{"", "10.5.2.7", Flow{Src: netip.MustParseAddr("10.5.1.0")}, ours},
			{"", "198.51.100.7", Flow{}, "no route"},
			{"", "198.51.100.7", container, "no route"},
			{"", "192.0.2.1", Flow{}, "local 192.0.2.1/32 dev eth0 proto kernel"},
			{"", "10.5.1.7", Flow{}, "10.5.1.0/24 dev docker0 proto kernel"},
			{"ip route add default via 192.0.2.9 metric 7 proto dhcp", "198.51.100.7", Flow{}, "default via 192.0.2.9 dev eth0 proto dhcp metric 7"},
			{"ip route add blackhole 10.5.2.16/28", "10.5.2.17", Flow{}, "blackhole 10.5.2.16/28 proto boot"},
			{"ip route add unreachable 10.5.2.32/28 proto static", "10.5.2.33", container, "unreachable 10.5.2.32/28 proto static"},
			{"ip route add prohibit 10.5.2.48/28 table 100", "10.5.2.49", container, ours},
			{"ip rule add from 10.5.1.0/24 lookup 100", "10.5.2.49", container, "prohibit 10.5.2.48/28 table 100 proto boot"},
			{"", "10.5.2.49", Flow{}, ours},
			{"ip route add 10.5.2.7/32 via 192.0.2.9 table 100", "10.5.2.7", container, "10.5.2.7/32 via 192.0.2.9 dev eth0 table 100 proto boot"},
			{"ip rule add to 10.5.2.99 unreachable", "10.5.2.99", Flow{}, "no route"},
			{"ip rule add to 10.5.2.98 prohibit", "10.5.2.98", Flow{}, ""},
			{"", "10.5.2.7", Flow{In: "nosuch", Src: container.Src}, ""},
			{"sysctl -qw net.ipv4.ip_forward=0", "10.5.2.8", container, ""},
		} {
			if test.setup != "" {
				s.run("%s", test.setup)
			}
			test.flow.Dst = netip.MustParseAddr(test.dst)
			way, err := k.Way(test.flow)
			if (err != nil) != (test.want == "") || err == nil && way.String() != test.want {
				s.Errorf("after %q, %+v takes %q, %v; want %q", test.setup, test.flow, way, err, test.want)
			}
			if way.Ours() != (test.want == ours) {
				s.Errorf("%s: ours is %t", way, way.Ours())
			}
			if hasObject := way.Nexthop != 0; hasObject != (way.Ours() && s.objectsMode()) {
				s.Errorf("%s: nexthop object %d", way, way.Nexthop)
			}
		}
	})
}

// IPv6 is asked for in another way, and says more: each route has a metric.
func TestWayIPv6(t *testing.T) {
	s := newSandbox(t)
	k := s.open()
	s.run("sysctl -qw net.ipv6.conf.all.forwarding=1")
	s.run("ip link add docker0 type bridge")
	s.run("ip link set docker0 up")
	s.run("ip addr add fd12::1:0:0:0:1/64 dev docker0 nodad")
	s.run("ip addr add 2001:db8::1/64 dev eth0 nodad")
	s.run("ip route add fd12::2:0:0:0:0/64 via 2001:db8::2 dev eth0 proto 84")
	s.run("ip route add blackhole fd12::3:0:0:0:0/64")
	container := Flow{Src: netip.MustParseAddr("fd12::1:0:0:0:2"), In: "docker0"}
	s.eventually("the kernel takes packets to the new address", func() bool {
		way, err := k.Way(Flow{Dst: netip.MustParseAddr("fd12::1:0:0:0:1")})
		return err == nil && way.Type == "local"
	})
	for _, test := range []struct {
		setup, dst string
		flow       Flow
		want       string
	}{
		{"", "fd12::2:0:0:0:7", Flow{}, "fd12:0:0:2::/64 via 2001:db8::2 dev eth0 proto 84 metric 1024"},
		{"", "fd12::2:0:0:0:7", container, "fd12:0:0:2::/64 via 2001:db8::2 dev eth0 proto 84 metric 1024"},
		{"", "fd12::3:0:0:0:7", container, "blackhole fd12:0:0:3::/64 dev lo proto boot metric 1024"},
		{"", "fd12::4:0:0:0:7", container, "no route"},
		{"", "fd12::1:0:0:0:1", Flow{}, "local fd12:0:0:1::1/128 dev docker0 proto kernel"},
		{"ip route add default via 2001:db8::9 metric 7", "fd12::4:0:0:0:7", Flow{}, "default via 2001:db8::9 dev eth0 proto boot metric 7"},
		{"ip route add fd12::2:0:0:0:7/128 via 2001:db8::9 table 100", "fd12::2:0:0:0:7", container, "fd12:0:0:2::/64 via 2001:db8::2 dev eth0 proto 84 metric 1024"},
		{"ip -6 rule add from fd12::1:0:0:0:0/64 lookup 100", "fd12::2:0:0:0:7", container, "fd12:0:0:2::7/128 via 2001:db8::9 dev eth0 table 100 proto boot metric 1024"},
	} {
		if test.setup != "" {
			s.run("%s", test.setup)
		}
		test.flow.Dst = netip.MustParseAddr(test.dst)
		if way, err := k.Way(test.flow); err != nil || way.String() != test.want {
			s.Errorf("after %q, %+v takes %q, %v; want %q", test.setup, test.flow, way, err, test.want)
		}
	}
}

// What an Apply has set is what the lookups find, and nothing once it is gone.
func TestLookups(t *testing.T) {
	s := newSandbox(t)
	k := s.open()
	s.apply(k, tunnel())
	vtep, mac := backend.NeighbourKey{Dev: "tulle.1", IP: netip.MustParseAddr("10.5.2.0")}, backend.MAC{2, 0, 0, 0, 0, 2}
	way, err := k.Way(Flow{Dst: netip.MustParseAddr("10.5.2.7")})
	if err != nil {
		t.Fatal(err)
	}
	if r, exists, err := k.Nexthop(way.Nexthop); err != nil || !exists || r.String() != "via 10.5.2.0 dev tulle.1 onlink" {
		t.Errorf("nexthop object %d leads %s, %t, %v", way.Nexthop, r, exists, err)
	}
	if _, exists, err := k.Nexthop(77); err != nil || exists {
		t.Errorf("nexthop object 77: %t, %v", exists, err)
	}
	if got, state, err := k.Neighbour(vtep); err != nil || got != mac || state != "PERMANENT" {
		t.Errorf("neighbour %s %s, %v", got, state, err)
	}
	s.run("ip neigh replace 10.5.2.0 lladdr 02:00:00:00:00:02 dev tulle.1 nud stale")
	if _, state, _ := k.Neighbour(vtep); state != "STALE" {
		t.Errorf("a stale neighbour is %s", state)
	}
	s.run("ip neigh del 10.5.2.0 dev tulle.1")
	if _, state, err := k.Neighbour(vtep); err != nil || state != "" {
		t.Errorf("a neighbour that is gone is %s, %v", state, err)
	}
	for _, test := range []struct {
		key backend.FDBKey
		dst string
	}{
		{backend.FDBKey{Dev: "tulle.1", MAC: mac}, "192.0.2.2"},
		{backend.FDBKey{Dev: "tulle.1", MAC: backend.MAC{2, 7}}, "invalid IP"},
		{backend.FDBKey{Dev: "nosuch", MAC: mac}, "invalid IP"},
	} {
		if dst, exists, err := k.FDB(test.key); err != nil || dst.String() != test.dst || exists != dst.IsValid() {
			t.Errorf("FDB %+v: %s, %t, %v", test.key, dst, exists, err)
		}
	}
	for name, want := range map[string]string{"tulle.1": tunnel().Links["tulle.1"].String(), "docker0": tunnel().Links["docker0"].String(), "eth0": "type veth", "nosuch": "type  mtu 0"} {
		l, ours, err := k.Device(name)
		if err != nil || !strings.HasPrefix(l.String(), want) || ours != (l.Kind == backend.KindVXLAN || l.Kind == backend.KindBridge) {
			t.Errorf("%s is %s, ours %t, %v", name, l, ours, err)
		}
	}
}

// What an Apply has set of a segment is what the lookups find: the port as it was wanted, and those that get copies.
func TestSegmentLookups(t *testing.T) {
	s := newSandbox(t)
	k, want := s.open(), segment(t, 2)
	s.apply(k, want)
	if l, ours, err := k.Device("tulle.1"); err != nil || !ours || l != want.Links["tulle.1"] {
		t.Errorf("the port is %s, ours %t, %v; want %s", l, ours, err, want.Links["tulle.1"])
	}
	for dst, floods := range map[string]bool{"172.20.0.2": true, "172.20.0.3": true, "172.20.0.4": false} {
		if got, err := k.Floods(backend.Flood{Dev: "tulle.1", Dst: netip.MustParseAddr(dst)}); err != nil || got != floods {
			t.Errorf("floods to %s: %t, %v", dst, got, err)
		}
	}
	s.run("bridge fdb del 00:00:00:00:00:00 dev tulle.1 dst 172.20.0.2")
	if got, err := k.Floods(backend.Flood{Dev: "tulle.1", Dst: netip.MustParseAddr("172.20.0.2")}); err != nil || got {
		t.Errorf("floods to one that was deleted: %t, %v", got, err)
	}
	if got, err := k.Floods(backend.Flood{Dev: "nosuch", Dst: netip.MustParseAddr("172.20.0.2")}); err != nil || got {
		t.Errorf("no device floods: %t, %v", got, err)
	}
}
