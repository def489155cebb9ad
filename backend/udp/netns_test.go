package udp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/e2e/netnstest"
	"github.com/tulle-net/tulle/subnet"
)

// dev is the device of all tests, and port its peers'.
const (
	dev  = "tulle-udp"
	port = 8285
)

// space is a network namespace of a test's own.
type space struct {
	*netnstest.Namespace
}

// newSpace makes a namespace, whose name on the machine is tulle-udp-, the process's number and name.
func newSpace(t testing.TB, name string) *space {
	t.Helper()
	s := &space{netnstest.New(t, fmt.Sprintf("tulle-udp-%d-%s", os.Getpid(), name))}
	s.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 net.ipv4.ip_forward=1")
	return s
}

func (s *space) run(format string, args ...any) string { s.Helper(); return s.Run(format, args...) }

func (s *space) in(f func() error) error { return s.In(f) }

// listen opens a UDP socket in the namespace.
func (s *space) listen(address string) *net.UDPConn {
	s.Helper()
	var conn *net.UDPConn
	err := s.in(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)))
		return err
	})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		s.Fatal(err)
	}
	return conn
}

// host is host number n of the network 10.5.0.0/16: its subnet is 10.5.n.0/24, its underlay address 192.0.2.n, and it has a container
// 10.5.n.2.
type host struct {
	*space
	n         int
	container *space
	carrier   *Carrier
	stop      func() // the agent
}

// newHosts makes hosts on one underlay; none runs an agent yet.
func newHosts(t testing.TB, count int) []*host {
	t.Helper()
	wire := newSpace(t, "wire")
	wire.run("ip link add br0 type bridge")
	wire.run("ip link set br0 up")
	var hosts []*host
	for n := 1; n <= count; n++ {
		h := &host{space: newSpace(t, fmt.Sprintf("h%d", n)), n: n, container: newSpace(t, fmt.Sprintf("c%d", n))}
		h.run("ip link add eth0 type veth peer name p%d netns %s", n, wire.Netns)
		wire.run("ip link set p%d up master br0", n)
		h.run("ip link set eth0 up")
		h.run("ip addr add 192.0.2.%d/24 dev eth0", n)
		h.run("ip link add docker0 mtu 1472 type veth peer name eth0 mtu 1472 netns %s", h.container.Netns)
		h.run("ip link set docker0 up")
		h.run("ip addr add 10.5.%d.1/24 dev docker0", n)
		h.container.run("ip link set eth0 up")
		h.container.run("ip addr add 10.5.%d.2/24 dev eth0", n)
		h.container.run("ip route add default via 10.5.%d.1", n)
		hosts = append(hosts, h)
	}
	return hosts
}

// state is what h's agent wants, with so many hosts.
func (h *host) state(hosts int) backend.State {
	s := backend.NewState()
	s.Links[dev] = backend.Link{Kind: backend.KindTUN, MTU: 1472}
	s.Tunnels = map[string]backend.Tunnel{dev: {Port: port, Local: subnet.PairOf(subnet.IPv4, netip.AddrFrom4([4]byte{192, 0, 2, byte(h.n)}))}}
	s.Endpoints = map[backend.EndpointKey]netip.AddrPort{}
	for n := 1; n <= hosts; n++ {
		if n != h.n {
			s.Endpoints[peer(n)] = endpointOf(n)
		}
	}
	return s
}

func peer(n int) backend.EndpointKey {
	return backend.EndpointKey{Dev: dev, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(n), 0}), 24)}
}

func endpointOf(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), port)
}

// start starts an agent's carrier. The test stops it, if nobody else does.
func (h *host) start() {
	h.carrier = New(slog.New(slog.DiscardHandler))
	h.carrier.queues = 2 // as on a host of four cores
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.carrier.Run(ctx) }()
	h.stop = func() {
		cancel()
		if err, running := <-done; running && err != nil {
			h.Error(err)
		}
		close(done)
		h.stop = func() {}
	}
	h.Cleanup(func() { h.stop() })
}

// apply does what an agent's loop does, and package kernel.
func (h *host) apply(want backend.State) backend.Changes {
	h.Helper()
	if err := h.in(func() error { return h.carrier.Open(h.Context(), want) }); err != nil {
		h.Fatal(err)
	}
	changes, err := h.carrier.Apply(h.Context(), want)
	if err != nil {
		h.Fatal(err)
	}
	return changes
}

// program is package kernel's part.
func (h *host) program(hosts int) {
	h.Helper()
	h.run("ip link set %s mtu 1472 up", dev)
	h.run("ip addr replace 10.5.%d.0/32 dev %s", h.n, dev)
	for n := 1; n <= hosts; n++ {
		if n != h.n {
			h.run("ip route replace 10.5.%d.0/24 dev %s", n, dev)
		}
	}
}

// up starts agents on all hosts.
func up(hosts []*host) {
	for _, h := range hosts {
		h.Helper()
		h.start()
		h.apply(h.state(len(hosts)))
		h.program(len(hosts))
	}
}

// eventually waits for a condition that comes about by itself.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		runtime.Gosched()
	}
}
