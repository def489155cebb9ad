package kernel

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

var update = flag.Bool("update", false, "write the transcripts in testdata anew")

const vxlanConfig = `{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}`

// newPlan plans the host of a sandbox, 10.5.1.0/24, with peers 10.5.2.0/24, 10.5.3.0/24 and so on.
func newPlan(t testing.TB, config string, peers int) *backend.Plan {
	t.Helper()
	return newPlanOn(t, subnet.PairOf(subnet.IPv4, netip.MustParseAddr("192.0.2.1")), config, peers)
}

// newPlanOn is newPlan for an underlay where this host has the addresses of local. The IPv6 subnets are fd00:5:0:1::/64 and so on.
func newPlanOn(t testing.TB, local subnet.Pair[netip.Addr], config string, peers int) *backend.Plan {
	t.Helper()
	cfg, _, err := subnet.ParseConfig([]byte(config))
	if err != nil {
		t.Fatal(err)
	}
	b, err := backend.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	onLink := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	if cfg.Backend.Type == "host-gw" {
		onLink = append(onLink, netip.MustParsePrefix("172.20.0.0/16"), netip.MustParsePrefix("2001:db8::/64"))
	}
	host := backend.Host{
		Config:   cfg,
		Self:     subnet.Lease{Subnet: subnetsOf(cfg, 1), PublicIP: local},
		Underlay: backend.Underlay{Device: "eth0", MTU: 1500, Local: local, Public: local, OnLink: onLink},
		Options:  backend.Options{Bridge: "docker0", Masquerade: subnet.PairOf(subnet.IPv4, true), Forward: true},
	}
	entries := map[string]subnet.Entry{}
	for n := range peers {
		e := peer(cfg, n)
		entries[e.Lease.Key()] = e
	}
	p, err := backend.NewPlan(b, host, entries)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Rejected()) > 0 {
		t.Fatalf("rejected: %v", p.Rejected())
	}
	return p
}

// peer is the lease of the n-th peer, counted from 0.
func peer(cfg subnet.Config, n int) subnet.Entry {
	n += 2
	vni := 1
	if _, rest, ok := strings.Cut(cfg.Backend.Options, `"VNI":`); ok {
		fmt.Sscan(rest, &vni)
	}
	hi, lo := byte(n>>8), byte(n)
	data := func(f subnet.Family) string {
		return fmt.Sprintf(`{"VNI":%d,"VtepMAC":"02:00:00:%02x:%02x:%02x"}`, vni, 6*byte(f), hi, lo)
	}
	return subnet.Entry{Created: int64(n), Lease: subnet.Lease{
		Subnet: subnetsOf(cfg, n),
		PublicIP: subnet.Pair[netip.Addr]{V4: netip.AddrFrom4([4]byte{172, 20, hi, lo}),
			V6: netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: hi, 15: lo})},
		Backend: cmp.Or(cfg.Backend.Type, "vxlan"), Data: subnet.Pair[string]{V4: data(subnet.IPv4), V6: data(subnet.IPv6)}}}
}

// subnetsOf are the n-th host's, of the network's families.
func subnetsOf(cfg subnet.Config, n int) (own subnet.Pair[netip.Prefix]) {
	hi, lo := byte(n>>8), byte(n)
	all := subnet.Pair[netip.Prefix]{V4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5 + hi, lo, 0}), 24),
		V6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, 5, 6: hi, 7: lo}), 64)}
	for f := range cfg.Range.All() {
		*own.At(f) = all.Of(f)
	}
	return own
}

func state(t testing.TB, peers int) backend.State { return newPlan(t, vxlanConfig, peers).State() }

func TestApply(t *testing.T) {
	for _, peers := range []int{0, 3, 200} {
		t.Run(fmt.Sprint(peers), func(t *testing.T) {
			eachMode(t, func(s *sandbox) {
				k, want := s.open(), state(s, peers)
				got := s.apply(k, want).Count()
				all := map[string]int{"link": 2, "address": 2, "fdb": peers, "neighbour": peers, "route": peers}
				maps.DeleteFunc(all, func(_ string, n int) bool { return n == 0 })
				if !maps.Equal(got, all) {
					s.Errorf("the first Apply changed %v, want %v", got, all)
				}
				s.converged(k, want)
				objects := 0
				if s.objectsMode() {
					objects = peers
				}
				if n := s.nexthops(); n != objects {
					s.Errorf("%d nexthop objects of ours, want %d", n, objects)
				}
			})
		})
	}
}

// Ours would ring our own doorbell for ever, did an Apply with nothing to do write anything.
func TestApplyAgainIsSilent(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		k, want := s.open(), state(s, 200)
		s.apply(k, want)
		s.settle(k, want)
	})
}

// settle waits until an Apply finds nothing to do and nothing is notified of meanwhile. The kernel still tells of carriers
// a while after a device was set up; an Apply that writes something will never be silent.
func (s *sandbox) settle(k *Kernel, want backend.State) {
	s.Helper()
	s.eventually("an Apply without notifications", func() bool {
		messages := s.notifications(func() {
			if c := s.apply(k, want).Count(); len(c) != 0 {
				s.Fatalf("another Apply changed %v", c)
			}
		})
		return len(messages) == 0
	})
}

// Holds sees what concerns the host alone, and never looks at what may be ten thousands.
func TestHolds(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		k, want := s.open(), state(s, 3)
		if k.Holds(want) {
			s.Error("nothing is there yet")
		}
		s.apply(k, want)
		for _, change := range []string{
			"ip link set tulle.1 down", "ip link set tulle.1 mtu 1400", "ip link set tulle.1 name other", "ip link del tulle.1", "ip addr flush dev tulle.1",
			"ip addr del 10.5.1.1/24 dev docker0", "ip route del 10.5.1.0/24 dev docker0", "ip link del docker0", "sysctl -qw net.ipv4.ip_forward=0",
		} {
			s.run("%s", change)
			if k.Holds(want) {
				s.Errorf("after %s all is held", change)
			}
			s.apply(k, want)
			if !k.Holds(want) {
				s.Errorf("after %s and an Apply not all is held", change)
			}
		}
		s.run("ip route del 10.5.2.0/24")
		asked := map[int]bool{}
		k.conn.fault = func(kind int) error { asked[kind] = true; return nil }
		if !k.Holds(want) {
			s.Error("a peer's route counts")
		}
		if asked[unix.RTM_GETNEIGH] || asked[rtmGetNexthop] || !asked[unix.RTM_GETLINK] {
			s.Errorf("asked for %v", asked)
		}
		k.conn.fault = always(unix.RTM_GETADDR, unix.EPERM)
		if k.Holds(want) {
			s.Error("what can't be seen is held")
		}
	})
}

// TestTranscript compares what an operator sees with testdata.
func TestTranscript(t *testing.T) {
	commands := []string{
		"ip -br link show type vxlan",
		"ip -4 -br addr show dev tulle.1",
		"ip -4 -br addr show dev docker0",
		"ip neigh show dev tulle.1",
		"bridge fdb show dev tulle.1",
		"ip nexthop show protocol 84",
		"ip route show",
	}
	eachMode(t, func(s *sandbox) {
		s.apply(s.open(), state(s, 3))
		var got strings.Builder
		for _, command := range commands {
			fmt.Fprintf(&got, "# %s\n", command)
			for _, line := range steady(s.run("%s", command)) {
				fmt.Fprintln(&got, line)
			}
		}
		_, mode, _ := strings.Cut(s.Name(), "/")
		golden(s, "testdata/"+mode+".txt", got.String())
	})
}

// steady sorts lines and leaves out what tells of a carrier, which follows a moment later.
func steady(output string) []string {
	var lines []string
	for line := range strings.Lines(output) {
		words := slices.DeleteFunc(strings.Fields(line), func(w string) bool {
			return w == "linkdown" || w == "DOWN" || w == "UNKNOWN"
		})
		lines = append(lines, strings.Join(words, " "))
	}
	slices.Sort(lines)
	return lines
}

func golden(t testing.TB, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s has\n%s\nbut the namespace has\n%s", path, want, got)
	}
}

// An agent that was upgraded, or whose kernel was, finds routes of the other sort.
func TestSwitchMode(t *testing.T) {
	for name, modes := range map[string][2][]Option{
		"to plain":    {nil, {WithoutNexthops}},
		"to nexthops": {{WithoutNexthops}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t, modes[0]...)
			s.apply(s.open(), state(s, 20))
			s.options = modes[1]
			k := s.open()
			s.apply(k, state(s, 20))
			s.converged(k, state(s, 20))
			s.apply(k, state(s, 5))
			s.converged(k, state(s, 5))
			s.apply(k, state(s, 30))
			s.converged(k, state(s, 30))
		})
	}
}

func TestRestartedAgentSweeps(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		s.apply(s.open(), state(s, 20))
		s.run("ip link add tulle.7 type vxlan id 7 dev eth0 dstport 8472")
		s.run("ip link set tulle.7 alias tulle up")
		s.run("ip route add 10.9.0.0/24 via 10.9.0.0 dev tulle.7 onlink protocol 84")
		s.run("ip nexthop add id 77 via 10.5.3.0 dev tulle.1 onlink protocol 84") // its route was never made
		k, want := s.open(), state(s, 5)
		got := s.apply(k, want).Count()
		if got["link"] != 1 || got["fdb"] != 15 || got["neighbour"] != 15 || got["route"] < 15 {
			s.Errorf("changed %v", got)
		}
		s.converged(k, want)
	})
}

// An orphaned nexthop object is swept also if its ID is just what a new peer's route asks for.
func TestOrphanInTheWay(t *testing.T) {
	s := newSandbox(t)
	k := s.open()
	s.apply(k, state(s, 2))
	s.run("ip nexthop add id %d via 10.5.9.0 dev tulle.1 onlink protocol 84", nexthopID(netip.MustParsePrefix("10.5.4.0/24")))
	s.apply(k, state(s, 3))
	s.converged(k, state(s, 3))
}

func TestUnbornLinkOfAnEarlierLife(t *testing.T) {
	for _, when := range []string{"before the first link", "beside the finished ones"} {
		t.Run(when, func(t *testing.T) {
			s := newSandbox(t)
			k := s.open()
			if when != "before the first link" {
				s.apply(k, state(s, 3))
			}
			s.run("ip link add tulle-new type bridge")
			s.apply(k, state(s, 3))
			s.converged(k, state(s, 3))
		})
	}
}

// What a vxlan device can't change needs a new one; everything that hung on the old must be back after one Apply.
func TestImmutableLinkChange(t *testing.T) {
	for name, config := range map[string]string{
		"VNI":      `{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan", "VNI": 9}}`,
		"port":     `{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan", "Port": 4789}}`,
		"learning": `{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan", "Learning": true}}`,
		"GBP":      `{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan", "GBP": true}}`,
	} {
		t.Run(name, func(t *testing.T) {
			eachMode(t, func(s *sandbox) {
				k := s.open()
				s.apply(k, state(s, 10))
				want := newPlan(s, config, 10).State()
				s.apply(k, want)
				s.converged(k, want)
			})
		})
	}
	for name, change := range map[string]func(*backend.Host){
		"local":  func(h *backend.Host) { h.Underlay.Local.V4 = netip.MustParseAddr("192.0.2.77") },
		"parent": func(h *backend.Host) { h.Underlay.Device = "wire" },
		"MTU":    func(h *backend.Host) { h.Underlay.MTU = 1400 },
		"subnet": func(h *backend.Host) { h.Self.Subnet.V4 = netip.MustParsePrefix("10.5.200.0/24") },
	} {
		t.Run(name, func(t *testing.T) {
			eachMode(t, func(s *sandbox) {
				k, p := s.open(), newPlan(s, vxlanConfig, 10)
				s.apply(k, p.State())
				want := s.moved(p, change)
				s.apply(k, want)
				s.converged(k, want)
			})
		})
	}
}

// Change is what a join costs: it must do exactly what a whole Apply would.
func TestChange(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		k, p := s.open(), newPlan(s, vxlanConfig, 10)
		s.apply(k, p.State())
		cfg := p.Host().Config
		steps := []struct {
			name   string
			peer   int
			change func(*subnet.Entry)
			count  map[string]int
		}{
			{"joins", 10, func(*subnet.Entry) {}, map[string]int{"fdb": 1, "neighbour": 1, "route": 1}},
			{"has a new MAC", 10, func(e *subnet.Entry) { e.Lease.Data.V4 = strings.Replace(e.Lease.Data.V4, "02:00", "02:99", 1) },
				map[string]int{"fdb": 2, "neighbour": 1}},
			{"has a new address", 3, func(e *subnet.Entry) { e.Lease.PublicIP.V4 = netip.MustParseAddr("172.21.0.1") },
				map[string]int{"fdb": 1}},
			{"leaves", 5, func(e *subnet.Entry) { *e = subnet.Entry{} }, map[string]int{"fdb": 1, "neighbour": 1, "route": 1}},
			{"comes back", 5, func(*subnet.Entry) {}, map[string]int{"fdb": 1, "neighbour": 1, "route": 1}},
		}
		for _, step := range steps {
			e := peer(cfg, step.peer)
			key := e.Lease.Key()
			step.change(&e)
			c := p.Update(map[string]subnet.Entry{key: e})
			if got := c.Count(); !maps.Equal(got, step.count) {
				s.Errorf("a peer %s: planned %v, want %v", step.name, got, step.count)
			}
			if err := k.Change(s.Context(), c); err != nil {
				s.Errorf("a peer %s: %v", step.name, err)
			}
			s.has(expected(p.State())...)
		}
		s.converged(k, p.State())
	})
}

func TestChangeStopsWithItsContext(t *testing.T) {
	s := newSandbox(t)
	k, p := s.open(), newPlan(t, vxlanConfig, 3)
	s.apply(k, p.State())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e := peer(p.Host().Config, 3)
	if err := k.Change(ctx, p.Update(map[string]subnet.Entry{e.Lease.Key(): e})); err == nil {
		t.Error("no error")
	}
	s.has(expected(state(t, 3))...)
}

func TestSysctl(t *testing.T) {
	const path = "/proc/sys/net/ipv4/ip_forward"
	s := newSandbox(t)
	s.write(path, "0")
	s.apply(s.open(), state(t, 0))
	if now, _ := os.ReadFile(path); string(now) != "1\n" {
		t.Errorf("ip_forward is %q", now)
	}
}

// A container's veth must not raise a new bridge's MTU to its own.
func TestNewBridgeKeepsItsMTU(t *testing.T) {
	s := newSandbox(t)
	k, want := s.open(), state(t, 0)
	s.apply(k, want)
	s.setupPort()
	s.converged(k, want)
}

// setupPort hangs a container's veth on docker0.
func (s *sandbox) setupPort() {
	s.Helper()
	ours := s.objects()
	s.run("ip link add veth1 mtu 1500 type veth peer name inside")
	added := without(s.objects(), ours)
	s.run("ip link set veth1 master docker0")
	s.before = append(s.before, added...)
}
