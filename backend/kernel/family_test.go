package kernel

import (
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// network is a network of some families on an underlay of some.
type network struct {
	name, config string
	local        subnet.Pair[netip.Addr]
}

func networks() []network {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	only4, only6, both := subnet.PairOf(subnet.IPv4, v4), subnet.PairOf(subnet.IPv6, v6), subnet.Pair[netip.Addr]{V4: v4, V6: v6}
	const ipv4, ipv6 = `"Network":"10.0.0.0/8"`, `"EnableIPv6":true,"IPv6Network":"fd00:5::/32"`
	const no4, hostGW = `"EnableIPv4":false,`, `,"Backend":{"Type":"host-gw"}`
	return []network{
		{"dual on dual", "{" + ipv4 + "," + ipv6 + "}", both},
		{"dual on IPv4", "{" + ipv4 + "," + ipv6 + "}", only4},
		{"dual on IPv6", "{" + ipv4 + "," + ipv6 + "}", only6},
		{"IPv6 on IPv6", "{" + no4 + ipv6 + "}", only6},
		{"IPv6 on IPv4", "{" + no4 + ipv6 + "}", only4},
		{"IPv4 on IPv6", "{" + ipv4 + "}", only6},
		{"host-gw, dual on dual", "{" + ipv4 + "," + ipv6 + hostGW + "}", both},
		{"host-gw, dual on IPv6", "{" + ipv4 + "," + ipv6 + hostGW + "}", only6},
	}
}

// underlay6 gives a sandbox what its underlay needs beside its IPv4 address.
const underlay6 = "ip addr add 2001:db8::1/64 dev eth0 nodad\nip route add 172.20.0.0/16 dev eth0"

// eachNetwork runs test in sandboxes for each network, with nexthop objects and without.
func eachNetwork(t *testing.T, peers int, test func(s *sandbox, p *backend.Plan)) {
	for _, n := range networks() {
		t.Run(n.name, func(t *testing.T) {
			eachMode(t, func(s *sandbox) {
				s.setup(underlay6)
				test(s, newPlanOn(s, n.local, n.config, peers))
			})
		})
	}
}

func TestFamilies(t *testing.T) {
	eachNetwork(t, 20, func(s *sandbox, p *backend.Plan) {
		k, want := s.open(), p.State()
		s.apply(k, want)
		s.converged(k, want)
		s.settle(k, want)
		if !k.Holds(want) {
			s.Error("what was just applied is not held")
		}
		restarted := s.open()
		s.converged(restarted, want)
		few := map[string]subnet.Entry{}
		for n := range 15 {
			e := peer(p.Host().Config, n)
			few[e.Lease.Key()] = subnet.Entry{}
		}
		p.Update(few)
		s.apply(restarted, p.State())
		s.converged(restarted, p.State())
		if _, err := restarted.Cleanup(s.Context()); err != nil {
			s.Error(err)
		}
		s.has()
	})
}

// A golden says what the kernel is to hold, too. A TUN device stands in for what a process is behind, or a kernel may lack.
func TestGoldens(t *testing.T) {
	files, _ := filepath.Glob("../testdata/*.txtar")
	if len(files) == 0 {
		t.Fatal("no files")
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		if strings.Contains(name, "ipip") { // TestIPIP has it
			continue
		}
		t.Run(name, func(t *testing.T) {
			eachMode(t, func(s *sandbox) {
				p := goldenPlan(s, archive)
				u, want := p.Host().Underlay, p.State()
				s.setup(underlay6)
				s.setup(fmt.Sprintf("ip link set eth0 mtu %d", u.MTU))
				for _, prefix := range u.OnLink {
					s.setup(fmt.Sprintf("ip route replace %s dev eth0 protocol kernel", prefix))
				}
				for name, l := range want.Links {
					if l.Kind == backend.KindWireGuard || l.Kind == backend.KindTUN {
						want.Links[name] = backend.Link{Kind: backend.KindTUN, MTU: l.MTU}
						s.run("ip tuntap add %s mode tun", name)
						s.alias(name, backend.Alias)
					}
				}
				k := s.open()
				s.apply(k, want)
				s.has(expected(want)...)
				s.settle(k, want)
			})
		})
	}
}

// goldenPlan plans the host of a golden.
func goldenPlan(s *sandbox, archive *txtar.Archive) *backend.Plan {
	s.Helper()
	section := map[string]string{}
	for _, f := range archive.Files {
		section[f.Name] = string(f.Data)
	}
	cfg, _, err := subnet.ParseConfig([]byte(section["config"]))
	if err != nil {
		s.Fatal(err)
	}
	b, err := backend.New(cfg)
	if err != nil {
		s.Fatal(err)
	}
	p, err := backend.NewPlan(b, goldenHost(s, cfg, section["host"]), goldenLeases(section["leases"]))
	if err != nil {
		s.Fatal(err)
	}
	return p
}

func goldenHost(s *sandbox, cfg subnet.Config, text string) backend.Host {
	s.Helper()
	h := backend.Host{Config: cfg}
	for line := range strings.Lines(text) {
		word, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "device":
			h.Underlay.Device = value
		case "mtu":
			fmt.Sscan(value, &h.Underlay.MTU)
		case "local", "public":
			a := netip.MustParseAddr(value)
			*map[string]*subnet.Pair[netip.Addr]{"local": &h.Underlay.Local, "public": &h.Underlay.Public}[word].At(subnet.FamilyOf(a)) = a
		case "onlink":
			h.Underlay.OnLink = append(h.Underlay.OnLink, netip.MustParsePrefix(value))
		case "subnet":
			p := netip.MustParsePrefix(value)
			*h.Self.Subnet.At(subnet.FamilyOf(p.Addr())) = p
		case "bridge":
			h.Bridge = value
		case "key":
			k, err := backend.ParseKey(value)
			if err != nil {
				s.Fatal(err)
			}
			h.Facts.Key = backend.Secret(k)
		}
	}
	h.Self.PublicIP = h.Underlay.Public
	return h
}

func goldenLeases(text string) map[string]subnet.Entry {
	entries := map[string]subnet.Entry{}
	for line := range strings.Lines(text) {
		line, reserved := strings.CutPrefix(strings.TrimSpace(line), "reserved ")
		key, value, _ := strings.Cut(line, " ")
		l, err := subnet.ParseLease(key, []byte(value))
		entries[key] = subnet.Entry{Lease: l, Created: int64(len(entries) + 1), Reserved: reserved, Err: err}
	}
	return entries
}

// What others do to any of what is IPv6's: see TestDrift for IPv4.
func TestDriftOfIPv6(t *testing.T) {
	dual := networks()[0]
	for _, d := range []drift{
		{name: "route deleted", commands: "ip route del fd00:5:0:2::/64", count: count{"route": 1}},
		{name: "route altered", commands: "ip route replace fd00:5:0:2::/64 via fd00:5:0:9:: dev tulle-v6.1 onlink protocol 84", count: count{"route": 1}},
		{name: "route of another metric", commands: "ip route add fd00:5:0:2::/64 dev tulle.1 metric 7 protocol 84", count: count{"route": 1}},
		{name: "route beside", commands: "ip route append fd00:5:0:2::/64 via fd00:5:0:9:: dev tulle-v6.1 onlink protocol 84", count: count{"route": 1}},
		{name: "route added", commands: "ip route add fd00:5:0:9::/64 via fd00:5:0:9:: dev tulle-v6.1 onlink protocol 84", count: count{"route": 1}},
		{name: "neighbour deleted", commands: "ip neigh del fd00:5:0:2:: dev tulle-v6.1", count: count{"neighbour": 1}},
		{name: "neighbour altered", commands: "ip neigh replace fd00:5:0:2:: lladdr 02:bb:00:00:00:01 dev tulle-v6.1 nud permanent", count: count{"neighbour": 1}},
		{name: "fdb deleted", commands: "bridge fdb del 02:00:00:06:00:02 dev tulle-v6.1 dst 2001:db8::2", count: count{"fdb": 1}},
		{name: "VTEP address deleted", commands: "ip addr del fd00:5:0:1::/128 dev tulle-v6.1", count: count{"address": 1}},
		{name: "bridge address deleted", commands: "ip addr del fd00:5:0:1::1/64 dev docker0", count: count{"address": 1}},
		{name: "connected route deleted", commands: "ip route del fd00:5:0:1::/64 dev docker0", count: count{"address": 1}},
		{name: "device down", commands: "ip link set tulle-v6.1 down", count: count{"link": 1, "address": 1, "neighbour": 3, "route": 3}},
		{name: "device down and up", commands: "ip link set tulle-v6.1 down\nip link set tulle-v6.1 up", count: count{"address": 1, "neighbour": 3, "route": 3}},
		{name: "bridge down and up", commands: "ip link set docker0 down\nip link set docker0 up", count: count{"address": 2}},
		{name: "IPv6 off", commands: "sysctl -qw net/ipv6/conf/tulle-v6.1/disable_ipv6=1", count: count{"address": 1, "neighbour": 3}, plain: true},
		{name: "link-local addresses", commands: "ip link set tulle-v6.1 addrgenmode random", count: count{"link": 1}},
		{name: "device MTU too small for IPv6", commands: "ip link set tulle-v6.1 mtu 1000", count: count{"link": 1, "address": 1, "neighbour": 3}, plain: true},
		{name: "device deleted", commands: "ip link del tulle-v6.1", count: count{"link": 1, "address": 2, "fdb": 3, "neighbour": 3, "route": 3}},
	} {
		t.Run(d.name, func(t *testing.T) {
			eachMode(t, func(s *sandbox) {
				s.setup(underlay6)
				k, want := s.open(), newPlanOn(s, dual.local, dual.config, 3).State()
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

// A peer that loses one family of its underlay is reached by the other: its routes move, and none is gone meanwhile.
func TestRoutesMoveToTheOtherFamily(t *testing.T) {
	for _, n := range []network{networks()[0], networks()[6]} {
		for _, lost := range []subnet.Family{subnet.IPv4, subnet.IPv6} {
			t.Run(fmt.Sprintf("%s, without %s", n.name, lost), func(t *testing.T) {
				eachMode(t, func(s *sandbox) {
					s.setup(underlay6)
					k, p := s.open(), newPlanOn(s, n.local, n.config, 3)
					s.apply(k, p.State())
					e := peer(p.Host().Config, 0)
					for _, public := range []netip.Addr{{}, e.Lease.PublicIP.Of(lost)} { // and back
						*e.Lease.PublicIP.At(lost) = public
						messages := s.notifications(func() {
							if err := k.Change(s.Context(), p.Update(map[string]subnet.Entry{e.Lease.Key(): e})); err != nil {
								s.Fatal(err)
							}
						})
						s.converged(k, p.State())
						for _, m := range messages {
							r, _ := parseRoute(m.Data)
							if _, stays := p.State().Routes[r.dst]; m.Header.Type == unix.RTM_DELROUTE && stays {
								s.Errorf("the route to %s was deleted", r.dst)
							}
						}
					}
				})
			})
		}
	}
}

// What others have of IPv6 is not ours, and stays.
func TestForeignIPv6Survives(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		s.setup(underlay6)
		s.setup(`
			ip -6 route add default via fe80::1 dev eth0 metric 1024 proto ra
			ip route add 2001:db8:9::/48 via 2001:db8::9
			ip route add fd00::/16 via 2001:db8::9
			ip route add fd00:5:0:3::/64 via 2001:db8::9 metric 7
			ip route add fd00:5:0:4::/64 via 2001:db8::9 metric 2048
			ip route add fd00:5:0:9::/64 via 2001:db8::9 protocol static
			ip nexthop add id 77 via 2001:db8::9 dev eth0
			ip neigh add 2001:db8::9 lladdr 02:aa:00:00:00:09 dev eth0 nud permanent
		`)
		dual := networks()[0]
		k, p := s.open(), newPlanOn(s, dual.local, dual.config, 5)
		s.apply(k, p.State())
		s.converged(k, p.State())
		few := newPlanOn(s, dual.local, dual.config, 1).State()
		s.apply(k, few)
		s.converged(k, few)
		if _, err := s.open().Cleanup(s.Context()); err != nil {
			s.Error(err)
		}
		s.has()
	})
}

// A route of somebody else's to a peer's IPv6 subnet is in the way, and named.
func TestForeignIPv6RouteInTheWay(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		s.setup(underlay6)
		s.setup("ip route add fd00:5:0:3::/64 via 2001:db8::9")
		dual := networks()[0]
		k, want := s.open(), newPlanOn(s, dual.local, dual.config, 3).State()
		for range 2 {
			_, err := k.Apply(s.Context(), want)
			wantError(s, err, "fd00:5:0:3::/64", "not ours")
			s.has(slices.DeleteFunc(expected(want), func(line string) bool { return strings.HasPrefix(line, "route fd00:5:0:3::/64") })...)
		}
		s.run("ip route del fd00:5:0:3::/64")
		s.before = slices.DeleteFunc(s.before, func(line string) bool { return strings.HasPrefix(line, "route fd00:5:0:3::/64") })
		s.apply(k, want)
		s.converged(k, want)
	})
}
