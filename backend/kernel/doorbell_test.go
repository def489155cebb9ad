package kernel

import (
	"context"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// listen runs the doorbell until the test ends, rid of what rang before.
func (s *sandbox) listen(k *Kernel) <-chan struct{} {
	s.Helper()
	s.drain(k.bell.socket)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Listen(ctx) }()
	s.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			s.Errorf("Listen: %v", err)
		}
	})
	return k.Doorbell()
}

func (s *sandbox) rings(ring <-chan struct{}) {
	s.Helper()
	select {
	case <-ring:
	case <-time.After(time.Second):
		s.Error("the doorbell was silent")
	}
}

func TestDoorbellOfTheUnderlay(t *testing.T) {
	for name, command := range map[string]string{
		"MTU":                   "ip link set eth0 mtu 1400",
		"down":                  "ip link set eth0 down",
		"deleted":               "ip link del eth0",
		"address added":         "ip addr add 192.0.2.2/24 dev eth0",
		"address deleted":       "ip addr del 192.0.2.1/24 dev eth0",
		"IPv6 address added":    "ip addr add 2001:db8::1/64 dev eth0",
		"default route added":   "ip route add default via 192.0.2.254",
		"default route deleted": "ip route del default via 192.0.2.253",
		"IPv6 default route":    "ip -6 route add default dev eth0",
		"segment added":         "ip route add 203.0.113.0/24 dev eth0",
		"segment deleted":       "ip route del 198.51.100.0/24 dev eth0",
		"our route replaced":    "ip route replace 10.5.2.0/24 via 192.0.2.9",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			s.setup("ip route add default via 192.0.2.253 metric 9")
			s.setup("ip route add 198.51.100.0/24 dev eth0")
			k, want := s.open(), state(t, 3)
			s.apply(k, want)
			s.settle(k, want)
			ring := s.listen(k)
			s.run("%s", command)
			s.rings(ring)
		})
	}
}

// Forwarding switched off by hand is no change of any object, and must be put right at once all the same.
func TestDoorbellOfForwarding(t *testing.T) {
	for path, family := range map[string]byte{"/proc/sys/net/ipv4/ip_forward": unix.AF_INET,
		"/proc/sys/net/ipv4/conf/all/forwarding": unix.AF_INET, "/proc/sys/net/ipv6/conf/all/forwarding": unix.AF_INET6} {
		t.Run(path, func(t *testing.T) {
			s := newSandbox(t)
			s.write(path, "1")
			k, want := s.open(), state(t, 3)
			s.apply(k, want)
			s.settle(k, want)
			ring := s.listen(k)
			messages := s.notifications(func() { s.write(path, "0") })
			s.rings(ring)
			if !slices.ContainsFunc(messages, func(m syscall.NetlinkMessage) bool { // IPv6 rings for its routes too
				return m.Header.Type == unix.RTM_NEWNETCONF && m.Data[0] == family && k.bell.concerns(m.Header.Type, m.Header.Flags, m.Data)
			}) {
				t.Error("it rang for something else")
			}
			s.apply(k, want)
			if now, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); string(now) != "1\n" {
				t.Errorf("ip_forward is %q", now)
			}
		})
	}
}

// What the doorbell waits for may not exist yet.
func TestDoorbellOfTheMissing(t *testing.T) {
	s := newSandbox(t)
	s.run("ip link del eth0")
	k := s.open()
	if _, err := k.Apply(t.Context(), state(t, 3)); err == nil {
		t.Error("no error")
	}
	ring := s.listen(k)
	s.run("ip link add eth0 type veth peer name wire")
	s.rings(ring)
}

// Containers that come and go are a busy host's daily life, and must cost nothing.
func TestDoorbellIsQuiet(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		s.setup(`
			ip link add br-other type bridge
			ip link set br-other up
		`)
		k, want := s.open(), state(s, 3)
		s.apply(k, want)
		s.setupPort() // from now on docker0 has a carrier, which comes and goes with its first and last port
		s.run("ip link set veth1 up")
		s.run("ip link set inside up")
		s.eventually("docker0 has a carrier", func() bool { return strings.Contains(s.run("ip -br link show docker0"), " UP ") })
		s.apply(k, want)
		s.settle(k, want)
		// Without a word from the bell it can't be told from one that has not listened yet: ask it what it thinks of each
		// notification instead.
		netconf := false // among them must be what each new device tells of its own forwarding
		for _, m := range s.notifications(func() {
			for line := range strings.Lines(`
				ip link add veth2 type veth peer name inside2
				ip link set veth2 master docker0
				ip link set veth2 up
				ip link set inside2 up
				ip addr add 10.5.1.7/24 dev inside2
				ip neigh add 10.5.1.9 lladdr 02:cc:00:00:00:01 dev docker0
				ip neigh add 192.0.2.9 lladdr 02:cc:00:00:00:01 dev eth0
				ip neigh add ff02::16 lladdr 33:33:00:00:00:16 dev tulle.1 nud noarp
				ip neigh del ff02::16 dev tulle.1
				bridge fdb add 02:cc:00:00:00:02 dev veth2 master
				ip link set veth2 master br-other
				ip link del veth2
				ip addr add 172.19.0.1/16 dev br-other
				ip route add 10.99.0.0/24 via 192.0.2.9
				ip route del 10.99.0.0/24
				ip nexthop add id 7 via 192.0.2.9 dev eth0
				ip nexthop del id 7
				ip link set br-other down
				ip link del br-other
			`) {
				if line = strings.TrimSpace(line); line != "" {
					s.run("%s", line)
				}
			}
		}) {
			netconf = netconf || m.Header.Type == unix.RTM_NEWNETCONF
			if k.bell.concerns(m.Header.Type, m.Header.Flags, m.Data) {
				s.Errorf("would ring for %s", describeMessage(m))
			}
		}
		if !netconf {
			s.Error("no device told of its forwarding")
		}
	})
}

// What we change ourselves is no reason to look at everything: a join among ten thousand must cost one peer's work.
func TestDoorbellOfOurOwn(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		k, few, more := s.open(), state(s, 3), state(s, 9)
		moved := state(s, 9)
		for key := range moved.FDB {
			moved.FDB[key] = netip.MustParseAddr("192.0.2.200")
		}
		s.apply(k, few)
		clear(k.bell.wrote) // nobody has listened yet
		for _, step := range []struct {
			what     string
			from, to backend.State
		}{{"join", few, more}, {"change", more, moved}, {"leave", moved, few}, {"return", few, more}} {
			messages := s.notifications(func() {
				if err := k.Change(s.Context(), backend.Diff(step.from, step.to)); err != nil {
					s.Fatal(err)
				}
			})
			if len(messages) < 6 {
				s.Errorf("%s: only %d notifications", step.what, len(messages))
			}
			for _, m := range messages {
				if k.bell.news(m) {
					s.Errorf("%s: would ring for %s, %x", step.what, describeMessage(m), m.Data)
				}
			}
			if n := len(k.bell.wrote); n > 0 {
				s.Errorf("%s: %d notifications are still expected, which takes memory", step.what, n)
			}
		}
		// What we did once is news if somebody else undoes it, and does it again.
		for _, m := range s.notifications(func() { s.run("ip neigh flush dev tulle.1 nud permanent") }) {
			if m.Header.Type == unix.RTM_DELNEIGH && !k.bell.news(m) {
				s.Errorf("would not ring for %s", describeMessage(m))
			}
		}
	})
}

// A lease that is renewed, or a router that says again what it has said, makes the kernel tell of an address as it was.
func TestDoorbellOfAnAddressAsItWas(t *testing.T) {
	s := newSandbox(t)
	k, want := s.open(), state(t, 3)
	s.apply(k, want)
	s.settle(k, want)
	for n, step := range []struct {
		command string
		news    bool
	}{
		{"ip addr add 2001:db8::7/64 dev eth0 nodad valid_lft 900 preferred_lft 900", true},
		{"ip addr change 2001:db8::7/64 dev eth0 nodad valid_lft 1800 preferred_lft 1800", false},
		{"ip addr change 2001:db8::7/64 dev eth0 nodad valid_lft 1800 preferred_lft 0", true},
		{"ip addr del 2001:db8::7/64 dev eth0", true},
		{"ip addr add 2001:db8::7/64 dev eth0 nodad valid_lft 900 preferred_lft 900", true},
	} {
		news, count := false, 0
		s.eventually("a notification of the address", func() bool { // a new address is told of once more when it counts as unique
			for _, m := range s.notifications(func() { s.run("%s", step.command); step.command = "true" }) {
				if m.Header.Type == unix.RTM_NEWADDR || m.Header.Type == unix.RTM_DELADDR {
					news, count = news || k.bell.news(m), count+1
				}
			}
			return count > 0
		})
		if news != step.news {
			t.Errorf("step %d: news: %v", n, news)
		}
	}
}

// A join is one peer's work whatever its families.
func TestDoorbellOfOurOwnFamilies(t *testing.T) {
	eachNetwork(t, 9, func(s *sandbox, p *backend.Plan) {
		k, more := s.open(), p.State()
		leave := map[string]subnet.Entry{}
		for n := 3; n < 9; n++ {
			e := peer(p.Host().Config, n)
			leave[e.Lease.Key()] = subnet.Entry{}
		}
		p.Update(leave)
		few := p.State()
		s.apply(k, few)
		told := map[place]bool{}
		s.eventually("all addresses are told of", func() bool { // those of IPv6 a moment later, and not as ours
			for _, m := range s.drain(k.bell.socket) {
				if k.bell.news(m); m.Header.Type == unix.RTM_NEWADDR {
					a := parseAddr(m.Data)
					told[place{a.index, a.prefix}] = true
				}
			}
			return !slices.ContainsFunc(slices.Collect(maps.Keys(few.Addrs)), func(a backend.Addr) bool { return !told[place{k.devices[a.Dev], a.Prefix}] })
		})
		clear(k.bell.wrote) // nobody has listened yet
		for _, step := range [][2]backend.State{{few, more}, {more, few}, {few, more}} {
			for _, m := range s.notifications(func() {
				if err := k.Change(s.Context(), backend.Diff(step[0], step[1])); err != nil {
					s.Fatal(err)
				}
			}) {
				if k.bell.news(m) {
					s.Errorf("would ring for %s, %x", describeMessage(m), m.Data)
				}
			}
			if n := len(k.bell.wrote); n > 0 {
				s.Errorf("%d notifications are still expected", n)
			}
		}
		s.converged(k, more)
	})
}

func describeMessage(m syscall.NetlinkMessage) string {
	return strings.TrimSpace(strings.Join([]string{
		map[uint16]string{unix.RTM_NEWLINK: "new link", unix.RTM_DELLINK: "deleted link", unix.RTM_NEWADDR: "new address",
			unix.RTM_DELADDR: "deleted address", unix.RTM_NEWNEIGH: "new neighbour", unix.RTM_DELNEIGH: "deleted neighbour",
			unix.RTM_NEWROUTE: "new route", unix.RTM_DELROUTE: "deleted route", unix.RTM_NEWNETCONF: "netconf"}[m.Header.Type],
		ifName(m.Data)}, " "))
}

// Lost notifications ring: any of them could have been of interest.
func TestDoorbellOverflow(t *testing.T) {
	s := newSandbox(t)
	k := s.open()
	s.apply(k, state(t, 0))
	s.drain(k.bell.socket)
	if err := k.bell.socket.SetReceiveBufferSize(1, true); err != nil {
		t.Fatal(err)
	}
	for range 20 { // of no interest
		s.run("ip link set wire mtu 1400")
		s.run("ip link set wire mtu 1500")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Listen(ctx) }()
	s.rings(k.Doorbell())
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Listen: %v", err)
	}
}

// Messages come from the kernel, but from kernels that are older and newer than this code.
func TestDoorbellTakesAnything(t *testing.T) {
	b := &bell{c: make(chan struct{}, 1), addrs: map[place]ifAddr{}}
	b.watch(map[string]int{"tulle.1": 5}, backend.State{Links: map[string]backend.Link{"tulle.1": {Kind: backend.KindVXLAN}}})
	for kind := range uint16(200) {
		for n := range 40 {
			b.concerns(kind, unix.NLM_F_REPLACE, make([]byte, n))
		}
	}
}
