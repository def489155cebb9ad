package netfilter

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// lab is a host, which is the sandbox, between a container and everything else: another machine on the underlay,
// 203.0.113.2, and behind the same wire a peer's container, 10.5.2.2. Everything else knows a way to all containers: a packet
// that should have been masqueraded and was not arrives all the same.
type lab struct {
	sandbox
	host, container, world netns.NsHandle
}

func newLab(s sandbox) *lab {
	s.Helper()
	l := &lab{sandbox: s}
	l.host = l.handle(netns.Get())
	l.container = l.handle(netns.New())
	l.world = l.handle(netns.New())
	l.in(l.host, func() {
		s.runAll(fmt.Sprintf(`
			ip link add docker0 type veth peer name eth0 netns %[1]s
			ip link add eth0 type veth peer name eth0 netns %[2]s
			ip addr add 10.5.1.1/24 dev docker0
			ip addr add 203.0.113.1/24 dev eth0
			ip addr add 198.51.100.1/32 dev lo
			ip link set docker0 up
			ip link set eth0 up
			ip route add 10.5.2.0/24 via 203.0.113.2
		`, l.path(l.container), l.path(l.world)))
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			l.Fatal(err)
		}
	})
	l.in(l.container, func() {
		s.runAll(`
			ip addr add 10.5.1.2/24 dev eth0
			ip link set eth0 up
			ip route add default via 10.5.1.1
		`)
	})
	l.in(l.world, func() {
		s.runAll(`
			ip addr add 203.0.113.2/24 dev eth0
			ip addr add 10.5.2.2/24 dev eth0
			ip link set eth0 up
			ip route add default via 203.0.113.1
		`)
	})
	return l
}

func (l *lab) handle(ns netns.NsHandle, err error) netns.NsHandle {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { ns.Close() })
	return ns
}

// path names a namespace to the ip command, which finds it under its parent, this process.
func (l *lab) path(ns netns.NsHandle) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns) }

// in calls f with the thread in another namespace. Sockets stay in the namespace that they were made in.
func (l *lab) in(ns netns.NsHandle, f func()) {
	l.Helper()
	if err := netns.Set(ns); err != nil {
		l.Fatal(err)
	}
	f()
	if err := netns.Set(l.host); err != nil {
		l.Fatal(err)
	}
}

func (l *lab) listen(ns netns.NsHandle, addr string) (c *net.UDPConn) {
	l.Helper()
	l.in(ns, func() {
		var err error
		if c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr))); err != nil {
			l.Fatal(err)
		}
	})
	l.Cleanup(func() { c.Close() })
	return c
}

// source sends a packet and returns the source address that it arrives with; the zero Addr if it does not arrive within
// the wait.
func (l *lab) source(from netns.NsHandle, src string, to netns.NsHandle, dst string, wait time.Duration) netip.Addr {
	l.Helper()
	receiver := l.listen(to, dst)
	defer receiver.Close()
	sender := l.listen(from, src+":0") // another port each time, or conntrack would remember
	defer sender.Close()
	if _, err := sender.WriteToUDPAddrPort([]byte("?"), netip.MustParseAddrPort(dst)); err != nil {
		l.Fatal(err)
	}
	if err := receiver.SetReadDeadline(time.Now().Add(wait)); err != nil {
		l.Fatal(err)
	}
	_, addr, err := receiver.ReadFromUDPAddrPort(make([]byte, 8))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		l.Fatal(err)
	}
	return addr.Addr().Unmap()
}

// arrives checks what source a packet has when it arrives.
func (l *lab) arrives(from netns.NsHandle, src string, to netns.NsHandle, dst string, want string) {
	l.Helper()
	if got := l.source(from, src, to, dst, 5*time.Second); got != netip.MustParseAddr(want) {
		l.Errorf("%s → %s: arrives from %s, want %s", src, dst, got, want)
	}
}

func TestPackets(t *testing.T) {
	eachVariant(t, func(s sandbox) {
		// Docker's policy, which ours must prevail over. Its masquerading of docker0 is off, as the env file says.
		s.runAll(`
			iptables -w -P FORWARD DROP
			iptables -w -t mangle -A PREROUTING -p udp -m udp --dport 4000 -j MARK --set-xmark 0x4000/0x4000
		`)
		l := newLab(s)
		s.apply(firewall(true, true))

		// Nothing between two members of the overlay is masqueraded.
		l.arrives(l.container, "10.5.1.2", l.world, "10.5.2.2:9", "10.5.1.2")
		l.arrives(l.world, "10.5.2.2", l.container, "10.5.1.2:9", "10.5.2.2")
		// Between the overlay and elsewhere what leaves the host is, what comes to its own containers is not.
		l.arrives(l.container, "10.5.1.2", l.world, "203.0.113.2:9", "203.0.113.1")
		l.arrives(l.world, "203.0.113.2", l.container, "10.5.1.2:9", "203.0.113.2")
		l.arrives(l.host, "198.51.100.1", l.world, "10.5.2.2:9", "203.0.113.1")
		l.arrives(l.host, "10.5.1.1", l.world, "10.5.2.2:9", "10.5.1.1")
		// What has nothing to do with the overlay is left alone.
		l.arrives(l.host, "198.51.100.1", l.world, "203.0.113.2:9", "198.51.100.1")

		l.arrives(l.container, "10.5.1.2", l.world, "203.0.113.2:4000", "10.5.1.2") // marked to be exempt
		s.apply(firewall(false, true))
		l.arrives(l.container, "10.5.1.2", l.world, "203.0.113.2:9", "10.5.1.2")

		s.apply(firewall(false, false))
		if got := l.source(l.container, "10.5.1.2", l.world, "203.0.113.2:9", 200*time.Millisecond); got.IsValid() {
			s.Errorf("without forwarding rules, under a policy of DROP, a packet from %s arrived", got)
		}
	})
}

// A dockerd that was not told --ip-masq=false masquerades its bridge. It must not hide containers from their peers.
func TestDockersMasquerading(t *testing.T) {
	eachVariant(t, func(s sandbox) {
		l := newLab(s)
		s.run("iptables -w -t nat -A POSTROUTING -s 10.5.1.0/24 ! -o docker0 -j MASQUERADE")
		s.apply(firewall(true, true))
		l.arrives(l.container, "10.5.1.2", l.world, "10.5.2.2:9", "10.5.1.2")
		l.arrives(l.container, "10.5.1.2", l.world, "203.0.113.2:9", "203.0.113.1")
	})
}

// What an operator drops stays dropped: our forwarding rules come after all others.
func TestOperatorsDropPrevails(t *testing.T) {
	eachVariant(t, func(s sandbox) {
		l := newLab(s)
		s.apply(firewall(true, true))
		s.run("iptables -w -I FORWARD -p udp -m udp --dport 9 -j DROP")
		s.apply(firewall(true, true))
		if got := l.source(l.container, "10.5.1.2", l.world, "10.5.2.2:9", 200*time.Millisecond); got.IsValid() {
			s.Error("a dropped packet arrived")
		}
		l.arrives(l.container, "10.5.1.2", l.world, "10.5.2.2:10", "10.5.1.2")
	})
}
