package kernel

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
)

// drift is what somebody else does to our objects, and how many entries of each table that concerns. There are 3 peers.
type drift struct {
	name, commands string
	count          map[string]int
	objects, plain bool // only where there are nexthop objects; takes plain routes along
}

type count = map[string]int

func drifts() []drift {
	id := nexthopID(netip.MustParsePrefix("10.5.2.0/24"))
	all := count{"link": 1, "address": 1, "fdb": 3, "neighbour": 3, "route": 3}
	return []drift{
		{"route deleted", "ip route del 10.5.2.0/24", count{"route": 1}, false, false},
		{"route altered", "ip route replace 10.5.2.0/24 via 10.5.9.0 dev tulle.1 onlink protocol 84", count{"route": 1}, false, false},
		{"route added", "ip route add 10.5.9.0/24 via 10.5.9.0 dev tulle.1 onlink protocol 84", count{"route": 1}, false, false},
		{"nexthop deleted", fmt.Sprintf("ip nexthop del id %d", id), count{"route": 1}, true, false},
		{"nexthop altered", fmt.Sprintf("ip nexthop replace id %d via 10.5.9.0 dev tulle.1 onlink protocol 84", id), count{"route": 1}, true, false},
		{"nexthop of another device", fmt.Sprintf("ip nexthop replace id %d via 192.0.2.9 dev eth0 protocol 84", id), count{"route": 1}, true, false},
		{"neighbour deleted", "ip neigh del 10.5.2.0 dev tulle.1", count{"neighbour": 1}, false, false},
		{"neighbour altered", "ip neigh replace 10.5.2.0 lladdr 02:bb:00:00:00:01 dev tulle.1 nud permanent", count{"neighbour": 1}, false, false},
		{"neighbour not permanent", "ip neigh replace 10.5.2.0 lladdr 02:00:00:00:00:02 dev tulle.1 nud reachable", count{"neighbour": 1}, false, false},
		{"neighbour added", "ip neigh add 10.5.9.0 lladdr 02:bb:00:00:00:01 dev tulle.1 nud permanent", count{"neighbour": 1}, false, false},
		{"IPv6 neighbour added", "ip neigh add fd00::1 lladdr 02:bb:00:00:00:01 dev tulle.1 nud permanent", count{"neighbour": 1}, false, false},
		{"fdb deleted", "bridge fdb del 02:00:00:00:00:02 dev tulle.1 dst 172.20.0.2", count{"fdb": 1}, false, false},
		{"fdb altered", "bridge fdb replace 02:00:00:00:00:02 dev tulle.1 dst 172.20.9.9", count{"fdb": 1}, false, false},
		{"fdb added", "bridge fdb add 02:bb:00:00:00:01 dev tulle.1 dst 172.20.9.9", count{"fdb": 1}, false, false},
		{"VTEP address deleted", "ip addr del 10.5.1.0/32 dev tulle.1", count{"address": 1, "neighbour": 3}, false, true},
		{"bridge address deleted", "ip addr del 10.5.1.1/24 dev docker0", count{"address": 1}, false, false},
		{"connected route deleted", "ip route del 10.5.1.0/24 dev docker0", count{"address": 1}, false, false},
		{"device down", "ip link set tulle.1 down", count{"link": 1, "neighbour": 3, "route": 3}, false, false},
		{"device down and up", "ip link set tulle.1 down\nip link set tulle.1 up", count{"neighbour": 3, "route": 3}, false, false},
		{"bridge down", "ip link set docker0 down", count{"link": 1}, false, false},
		{"device MTU", "ip link set tulle.1 mtu 1300", count{"link": 1}, false, false},
		{"bridge MTU", "ip link set docker0 mtu 1300", count{"link": 1}, false, false},
		{"device MAC", "ip link set tulle.1 address 02:bb:00:00:00:01", count{"link": 1, "neighbour": 3}, false, false},
		{"bridge MAC", "ip link set docker0 address 02:bb:00:00:00:01", count{"link": 1}, false, false},
		{"device deleted", "ip link del tulle.1", all, false, false},
		{"device renamed", "ip link set tulle.1 down\nip link set tulle.1 name lost\nip link set lost up",
			count{"link": 1, "neighbour": 3, "route": 3}, false, false},
		{"bridge renamed", "ip link set docker0 down\nip link set docker0 name lost", count{"link": 1}, false, false},
		{"device replaced", "ip link del tulle.1\nip link add tulle.1 type bridge\nip link set tulle.1 alias tulle up", all, false, false},
		{"bridge deleted", "ip link del docker0", count{"link": 1, "address": 1}, false, false},
		{"all deleted", "ip link del tulle.1\nip link del docker0", count{"link": 2, "address": 2, "fdb": 3, "neighbour": 3, "route": 3}, false, false},
	}
}

// One Apply puts right whatever somebody did to our objects, and the doorbell asks for it.
func TestDrift(t *testing.T) {
	for _, d := range drifts() {
		t.Run(d.name, func(t *testing.T) {
			eachMode(t, func(s *sandbox) {
				if d.objects && !s.objectsMode() {
					s.Skip("no nexthop objects")
				}
				k, want := s.open(), state(s, 3)
				s.apply(k, want)
				s.settle(k, want)
				ring := s.listen(k)
				for line := range strings.Lines(d.commands) {
					s.run("%s", line)
				}
				s.rings(ring)
				count := maps.Clone(d.count)
				if d.plain && !s.objectsMode() {
					count["route"] = 3
				}
				if got := s.apply(k, want).Count(); !maps.Equal(got, count) {
					s.Errorf("changed %v, want %v", got, count)
				}
				s.converged(k, want)
			})
		})
	}
}
