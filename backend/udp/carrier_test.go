package udp

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// transfer sends data from one host's container to another's over TCP, and checks that it arrives as it was sent.
func transfer(from, to *host, bytes int) error {
	return transferTo(from, to, fmt.Sprintf("10.5.%d.2:0", to.n), bytes)
}

// transferTo is transfer to an address of the container's.
func transferTo(from, to *host, address string, bytes int) error {
	var l net.Listener
	err := to.container.in(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		return err
	}
	defer l.Close()
	data := make([]byte, bytes)
	_, _ = rand.NewChaCha8([32]byte{byte(bytes)}).Read(data)
	var tasks errgroup.Group
	tasks.Go(func() error {
		return from.container.in(func() error {
			d := net.Dialer{Timeout: 10 * time.Second}
			conn, err := d.Dial("tcp", l.Addr().String())
			if err != nil {
				return errors.Join(err, l.Close())
			}
			defer conn.Close()
			_, err = conn.Write(data)
			return err
		})
	})
	conn, err := l.Accept()
	if err != nil {
		return errors.Join(err, tasks.Wait())
	}
	defer conn.Close()
	h := sha256.New()
	_, err = io.Copy(h, conn)
	if err == nil && [32]byte(h.Sum(nil)) != sha256.Sum256(data) {
		err = errors.New("what arrived is not what was sent")
	}
	return errors.Join(err, conn.SetDeadline(time.Now()), tasks.Wait())
}

func TestTransfer(t *testing.T) {
	hosts := newHosts(t, 3)
	up(hosts)
	var tasks errgroup.Group
	for _, from := range hosts {
		for _, to := range hosts {
			if from != to {
				tasks.Go(func() error { return transfer(from, to, 8<<20+17) })
			}
		}
	}
	if err := tasks.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		c := h.carrier.Counters()
		if c.Sent.Bytes < 16<<20 || c.Received.Bytes < 16<<20 || c.Sent.Packets < 16<<20/1472 || c.Refused+c.Spoofed+c.Strayed != 0 {
			t.Errorf("host %d counts %+v", h.n, c)
		}
	}
}

// TestSmallerUnderlay has the kernel refuse to cut messages up, since the pieces would not fit.
func TestSmallerUnderlay(t *testing.T) {
	hosts := newHosts(t, 2)
	up(hosts)
	hosts[0].run("ip link set eth0 mtu 1400")
	if err := transfer(hosts[0], hosts[1], 1<<20); err != nil {
		t.Fatal(err)
	}
	if c := hosts[0].carrier.Counters(); c.Refused != 0 || c.Sent.Bytes < 1<<20 {
		t.Errorf("counted: %+v", c)
	}
}

// TestWalk checks that the inner packet arrives as large as the MTU says, and that only the two hosts' forwarding takes from its time
// to live.
func TestWalk(t *testing.T) {
	hosts := newHosts(t, 2)
	up(hosts)
	const most = 1472 - ip4Header - udpHeader
	there, here := hosts[1].container.listen("10.5.2.2:9"), hosts[0].container.listen("10.5.1.2:9")
	option(t, there, unix.SOL_IP, unix.IP_RECVTTL, 1)
	option(t, here, unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	to := netip.MustParseAddrPort("10.5.2.2:9")
	if _, err := here.WriteToUDPAddrPort(make([]byte, most+1), to); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("a packet that is too large by a byte: %v", err)
	}
	if _, err := here.WriteToUDPAddrPort(make([]byte, most), to); err != nil {
		t.Fatal(err)
	}
	data, oob := make([]byte, 2000), make([]byte, 100)
	n, oobn, _, from, err := there.ReadMsgUDPAddrPort(data, oob)
	if err != nil {
		t.Fatal(err)
	}
	_, ttl, _, err := unix.ParseOneSocketControlMessage(oob[:oobn])
	if err != nil || n != most || from != netip.MustParseAddrPort("10.5.1.2:9") || ttl[0] != 62 {
		t.Errorf("%d bytes from %s with a time to live of %d (%v)", n, from, ttl[0], err)
	}
}

func option(t *testing.T, conn syscall.Conn, level, name, value int) {
	t.Helper()
	if err := control(conn, func(fd int) error { return unix.SetsockoptInt(fd, level, name, value) }); err != nil {
		t.Fatal(err)
	}
}

// datagram makes an inner packet.
func datagram(from, to string, payload string) []byte {
	a, b := netip.MustParseAddr(from), netip.MustParseAddr(to)
	first, l, ttl := byte(0x45), &ipv4Layout, 8
	if a.Is6() {
		first, l, ttl = 0x60, &ipv6Layout, 7
	}
	p := make([]byte, l.size+udpHeader, 100)
	p[0], p[ttl], p[l.protocol] = first, 64, unix.IPPROTO_UDP
	copy(p[l.source:], slices.Concat(a.AsSlice(), b.AsSlice()))
	p[l.size+1], p[l.size+3], p[l.size+5] = 9, 9, byte(udpHeader+len(payload))
	p = append(p, payload...)
	l.setLength(p[:l.size], len(p), 7)
	finish(p[l.size:], 6, l.pseudo(p, unix.IPPROTO_UDP, len(p)-l.size))
	return p
}

// TestWire checks what flannel would see, and what it would send: its host is a plain socket.
func TestWire(t *testing.T) {
	hosts := newHosts(t, 3)
	up(hosts[:1])
	hosts[0].program(3)
	hosts[0].apply(hosts[0].state(3))
	flannel, inside := hosts[1].listen("192.0.2.2:8285"), hosts[0].container.listen("10.5.1.2:9")

	option(t, inside, unix.SOL_UDP, unix.UDP_SEGMENT, 5)
	if _, err := inside.WriteToUDPAddrPort([]byte("first2nd..3rd"), netip.MustParseAddrPort("10.5.2.2:9")); err != nil {
		t.Fatal(err)
	}
	for _, payload := range []string{"first", "2nd..", "3rd"} {
		p := make([]byte, 2000)
		n, from, err := flannel.ReadFromUDPAddrPort(p)
		if err != nil || from != endpointOf(1) {
			t.Fatalf("from %s: %v", from, err)
		}
		p = p[:n]
		if layoutOf(p) != &ipv4Layout || !sound(p) || p[8] != 63 || ipv4Layout.from(p) != netip.MustParseAddr("10.5.1.2") || string(p[ip4Header+udpHeader:]) != payload {
			t.Errorf("for %q came %x", payload, p)
		}
	}

	for _, p := range [][]byte{
		datagram("10.5.3.2", "10.5.1.2", "another host's"), datagram("10.9.9.9", "10.5.1.2", "nobody's"),
		datagram("10.5.1.3", "10.5.1.2", "our own"), append([]byte{5 << 4}, make([]byte, 60)...), {}, {0x45},
		datagram("10.5.2.0", "10.5.1.2", "flannel's host"), datagram("10.5.2.2", "10.5.1.2", "flannel's container"),
	} {
		if _, err := flannel.WriteToUDPAddrPort(p, endpointOf(1)); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"flannel's host", "flannel's container"} {
		b := make([]byte, 100)
		if n, _, err := inside.ReadFromUDPAddrPort(b); err != nil || string(b[:n]) != want {
			t.Fatalf("%q, %v; want %q", b[:n], err, want)
		}
	}
	if c := hosts[0].carrier.Counters(); c.Spoofed != 3 || c.Foreign != 2 || c.Received.Packets != 2 {
		t.Errorf("counted: %+v", c)
	}
}

// TestStray sends to where no peer is.
func TestStray(t *testing.T) {
	h := newHosts(t, 1)[0]
	up([]*host{h})
	h.program(2)
	conn := h.container.listen("10.5.1.2:9")
	if _, err := conn.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort("10.5.2.2:9")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the packet is counted", func() bool { return h.carrier.Counters().Strayed == 1 })
}

func TestApply(t *testing.T) {
	h := newHosts(t, 1)[0]
	h.start()
	want := h.state(3)
	if n := h.apply(want).Endpoints.Len(); n != 2 {
		t.Errorf("the first Apply changed %d endpoints", n)
	}
	if c := h.apply(want).Count(); len(c) != 0 {
		t.Errorf("another Apply changed %v", c)
	}
	want.Endpoints[peer(2)] = endpointOf(9)
	delete(want.Endpoints, peer(3))
	if d := h.apply(want).Endpoints; len(d.Set) != 1 || len(d.Del) != 1 || d.Was[peer(2)] != endpointOf(2) {
		t.Errorf("changed: %+v", d)
	}
	if e := h.carrier.table.lookup(netip.MustParseAddr("10.5.2.77")); e == nil || e.AddrPort != endpointOf(9) {
		t.Errorf("10.5.2.77 is at %v", e)
	}
	change := backend.Changes{Endpoints: backend.Delta[backend.EndpointKey, netip.AddrPort]{
		Set: map[backend.EndpointKey]netip.AddrPort{peer(4): endpointOf(4)}, Del: map[backend.EndpointKey]netip.AddrPort{peer(2): endpointOf(9)}}}
	if err := h.carrier.Change(t.Context(), change); err != nil {
		t.Fatal(err)
	}
	if e := h.carrier.table.lookup(netip.MustParseAddr("10.5.2.77")); e != nil {
		t.Errorf("10.5.2.77 is at %v", e)
	}
	if e := h.carrier.table.lookup(netip.MustParseAddr("10.5.4.77")); e == nil || e.AddrPort != endpointOf(4) {
		t.Errorf("10.5.4.77 is at %v", e)
	}
}

// TestClose wants nothing any more, and then another port.
func TestClose(t *testing.T) {
	h := newHosts(t, 1)[0]
	h.start()
	h.apply(h.state(2))
	if c := h.apply(backend.NewState()); c.Endpoints.Len() != 1 {
		t.Errorf("changed: %v", c.Count())
	}
	h.listen("192.0.2.1:8285").Close()
	want := h.state(2)
	h.apply(want)
	want.Tunnels[dev] = backend.Tunnel{Port: 9999}
	h.apply(want)
	h.listen("192.0.2.1:8285").Close()
	if err := h.in(func() error { _, err := net.ListenPacket("udp4", "127.0.0.1:9999"); return err }); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("port 9999 on an address: %v", err)
	}
}

func TestRestart(t *testing.T) {
	hosts := newHosts(t, 2)
	up(hosts)
	const look = "ip -o link show dev " + dev
	index, _, _ := strings.Cut(hosts[0].run(look), ":")
	hosts[0].stop()
	if routes := hosts[0].run("ip route show dev " + dev); !strings.Contains(routes, "10.5.2.0/24") {
		t.Errorf("routes while no agent runs: %q", routes)
	}
	hosts[0].start()
	hosts[0].apply(hosts[0].state(2))
	if now, _, _ := strings.Cut(hosts[0].run(look), ":"); now != index {
		t.Errorf("the device had number %s, and has %s", index, now)
	}
	if err := transfer(hosts[0], hosts[1], 1<<20); err != nil {
		t.Error(err)
	}
}

func TestDeviceDeleted(t *testing.T) {
	hosts := newHosts(t, 2)
	up(hosts)
	h := hosts[0]
	if err := transfer(h, hosts[1], 1<<20); err != nil {
		t.Fatal(err)
	}
	h.run("ip link del " + dev)
	select {
	case <-h.carrier.Doorbell():
	case <-time.After(10 * time.Second):
		t.Fatal("nobody noticed")
	}
	h.apply(h.state(2))
	h.program(2)
	if err := transfer(h, hosts[1], 1<<20); err != nil {
		t.Error(err)
	}
}

// TestForeign leaves alone what is not ours: package kernel says why.
func TestForeign(t *testing.T) {
	h := newHosts(t, 1)[0]
	h.run("ip tuntap add %s mode tun", dev)
	before := h.run("ip -d link show " + dev)
	h.start()
	h.apply(h.state(2))
	if now := h.run("ip -d link show " + dev); now != before || h.carrier.open != nil {
		t.Errorf("before:\n%snow:\n%s", before, now)
	}
	h.run("ip link set %s alias %s", dev, backend.Alias)
	err := h.in(func() error { return h.carrier.Open(t.Context(), h.state(2)) })
	if err == nil || !strings.Contains(err.Error(), "ip link del "+dev) {
		t.Errorf("a device of one queue: %v", err)
	}
}

func TestPortInUse(t *testing.T) {
	h := newHosts(t, 1)[0]
	h.start()
	h.apply(h.state(2))
	another := New(slog.New(slog.DiscardHandler))
	err := h.in(func() error { return another.Open(t.Context(), h.state(2)) })
	if err == nil || !strings.Contains(err.Error(), "UDP port 8285 is in use") {
		t.Errorf("another agent: %v", err)
	}
	h.sharing(func(err error) {
		if !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("another program that would share: %v", err)
		}
	})
	h.apply(backend.NewState())
	h.sharing(func(err error) {
		if err != nil {
			t.Fatal(err)
		}
		if err = h.in(func() error { return h.carrier.Open(t.Context(), h.state(2)) }); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("beside a program that shares: %v", err)
		}
	})
}

// sharing calls f while a program has the port that lets in others, or with why it can't have it.
func (h *host) sharing(f func(err error)) {
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = share(int(fd), 1) })
	}}
	_ = h.in(func() error {
		conn, err := c.ListenPacket(h.Context(), "udp4", "192.0.2.1:8285")
		if err == nil {
			defer conn.Close()
		}
		f(err)
		return nil
	})
}

func TestNoTUN(t *testing.T) {
	h := newHosts(t, 1)[0]
	h.start()
	err := h.in(func() error {
		if err := errors.Join(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
			unix.Mount("none", "/dev/net", "tmpfs", 0, "")); err != nil {
			return err
		}
		return h.carrier.Open(t.Context(), h.state(2))
	})
	if err == nil || !strings.Contains(err.Error(), "modprobe tun") {
		t.Error(err)
	}
	h.listen("192.0.2.1:8285")
}
