package probe

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

var (
	near  = netip.MustParseAddr("192.0.2.1")
	far   = netip.MustParseAddr("198.51.100.2")
	near6 = netip.MustParseAddr("2001:db8:1::1")
	far6  = netip.MustParseAddr("2001:db8:2::2")
)

// routed makes two hosts with a router between them.
func routed(t *testing.T) (a, router, b *host) {
	t.Helper()
	a, router, b = newHost(t, "a"), newHost(t, "router"), newHost(t, "b")
	join(a, "eth0", router, "left")
	join(b, "eth0", router, "right")
	router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	router.run("ip addr add 192.0.2.254/24 dev left")
	router.run("ip addr add 2001:db8:1::fe/64 dev left nodad")
	router.run("ip addr add 198.51.100.254/24 dev right")
	router.run("ip addr add 2001:db8:2::fe/64 dev right nodad")
	a.run("ip addr add 192.0.2.1/24 dev eth0")
	a.run("ip addr add 2001:db8:1::1/64 dev eth0 nodad")
	a.run("ip route add default via 192.0.2.254")
	a.run("ip route add default via 2001:db8:1::fe")
	b.run("ip addr add 198.51.100.2/24 dev eth0")
	b.run("ip addr add 2001:db8:2::2/64 dev eth0 nodad")
	b.run("ip route add default via 198.51.100.254")
	b.run("ip route add default via 2001:db8:2::fe")
	return a, router, b
}

func (h *host) ping(ctx context.Context, from, to netip.Addr, size int, dontFragment bool) (trip time.Duration, err error) {
	err = h.in(func() (err error) { trip, err = Ping(ctx, from, to, size, dontFragment); return err })
	return trip, err
}

func TestPing(t *testing.T) {
	a, router, b := routed(t)
	for _, test := range []struct {
		from, to netip.Addr
		size     int
	}{{near, far, 0}, {near, far, 28}, {near, far, 1400}, {near, far, 9000}, {near6, far6, 100}, {near6, far6, 9000}} {
		start := time.Now()
		trip, err := a.ping(t.Context(), test.from, test.to, test.size, false)
		if err != nil || trip <= 0 || trip > time.Since(start) {
			t.Errorf("%s, %d bytes: %v, %v", test.to, test.size, trip, err)
		}
	}
	for _, from := range []netip.Addr{near, near6} {
		to := map[netip.Addr]netip.Addr{near: far, near6: far6}[from]
		if _, err := a.ping(t.Context(), from, to, 1500, true); err != nil {
			t.Errorf("to %s, as long as the MTU: %v", to, err)
		}
		_, err := a.ping(t.Context(), from, to, 1501, true)
		if long := (*TooLongError)(nil); !errors.As(err, &long) || *long != (TooLongError{1501, 1500}) {
			t.Errorf("to %s, longer than the device's MTU: %v", to, err)
		}
	}

	router.run("ip link set right mtu 1300")
	_, err := a.ping(t.Context(), near, far, 1400, true)
	want := ICMPError{netip.MustParseAddr("192.0.2.254"), ipv4.ICMPTypeDestinationUnreachable, 4, 1300}
	if told := (*ICMPError)(nil); !errors.As(err, &told) || *told != want {
		t.Errorf("longer than a router's next link: %v", err)
	}
	_, err = a.ping(t.Context(), near6, far6, 1400, true)
	if told := (*ICMPError)(nil); !errors.As(err, &told) || told.MTU != 1300 || told.From != netip.MustParseAddr("2001:db8:1::fe") {
		t.Errorf("longer than a router's next link: %v", err)
	}
	router.run("ip route add prohibit 198.51.100.7")
	_, err = a.ping(t.Context(), near, netip.MustParseAddr("198.51.100.7"), 100, false)
	if told := (*ICMPError)(nil); !errors.As(err, &told) || told.Code != 13 || told.MTU != 0 {
		t.Errorf("prohibited by a router: %v", err)
	}

	b.run("iptables -A INPUT -p icmp -j DROP")
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.ping(short, near, far, 100, false); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("no answer: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.ping(gone, near, far, 100, false); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestPingRefused(t *testing.T) {
	a, _, _ := routed(t)
	for _, test := range []struct{ setup, from, to, words string }{
		{"true", "192.0.2.9", "198.51.100.2", "no address of this host"},
		{"ip route del default", "192.0.2.1", "198.51.100.2", "no route"},
		{"iptables -A OUTPUT -p icmp -j DROP", "192.0.2.1", "192.0.2.254", "packet filter"},
		{"true", "192.0.2.1", "192.0.2.254", "packet filter"},
	} {
		a.run("%s", test.setup)
		_, err := a.ping(t.Context(), netip.MustParseAddr(test.from), netip.MustParseAddr(test.to), 100, false)
		if err == nil || !strings.Contains(err.Error(), test.words) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

func TestPathMTU(t *testing.T) {
	a, router, b := routed(t)
	for _, test := range []struct {
		name, setup string
		from, to    netip.Addr
		limit, want int
	}{
		{"all of it", "true", near, far, 1500, 1500},
		{"less than the device takes", "true", near, far, 1450, 1450},
		{"more than the device takes", "true", near, far, 9000, 1500},
		{"IPv6", "true", near6, far6, 9000, 1500},
		{"a router drops silently", "iptables -I FORWARD -m length --length 1381:65535 -j DROP", near, far, 1500, 1380},
		{"more yet", "iptables -I FORWARD -m length --length 577:65535 -j DROP", near, far, 1500, 576},
		{"nearly all", "iptables -I FORWARD -m length --length 501:65535 -j DROP", near, far, 1500, 500},
		{"a router says so", "iptables -F FORWARD", near6, far6, 1500, 1300},
		{"and in IPv4", "true", near, far, 1500, 1300},
		{"short limit", "true", near, far, 100, 100},
	} {
		if test.name == "a router says so" {
			router.run("ip link set right mtu 1300")
		}
		router.run("%s", test.setup)
		start := time.Now()
		err := a.in(func() error {
			got, err := PathMTU(t.Context(), test.from, test.to, test.limit)
			if err != nil || got != test.want {
				t.Errorf("%s: %d, %v", test.name, got, err)
			}
			return nil
		})
		if took := time.Since(start); err != nil || took > 3*time.Second {
			t.Errorf("%s: took %v, %v", test.name, took, err)
		}
		t.Logf("%s: took %v", test.name, time.Since(start))
	}
	b.run("iptables -A INPUT -p icmp -j DROP")
	start := time.Now()
	err := a.in(func() error { _, err := PathMTU(t.Context(), near, far, 1500); return err })
	if !errors.Is(err, ErrNoAnswer) || !strings.Contains(err.Error(), "not even to packets of 68 bytes") || time.Since(start) > 3*time.Second {
		t.Errorf("no answer at all: %v, after %v", err, time.Since(start))
	}
}

func TestBetween(t *testing.T) {
	for _, r := range [][2]int{{68, 70}, {68, 69}, {576, 1501}, {1280, 65536}, {68, 86}} {
		last := r[0]
		for _, n := range between(r[0], r[1]) {
			if n <= last || n >= r[1] {
				t.Errorf("between %v: %d after %d", r, n, last)
			}
			last = n
		}
		if rounds(r[0], r[1]) > 4 {
			t.Errorf("between %v takes %d rounds, for which there is no time", r, rounds(r[0], r[1]))
		}
	}
}

// rounds is how many rounds it takes at most to know the answer.
func rounds(low, high int) (n int) {
	for high-low > 1 {
		last, widest := low, 0
		for _, s := range append(between(low, high), high) {
			widest, last = max(widest, s-last), s
		}
		low, high = 0, widest
		n++
	}
	return n
}

// relay passes Ethernet frames between two devices as a bridge of the worst kind does: without the metadata that says which
// checksums are still to be filled in, so that nobody does.
func (h *host) relay(a, b string) {
	h.Helper()
	fds := map[string]int{}
	err := h.in(func() error {
		for _, dev := range []string{a, b} {
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			request, _ := unix.NewIfreq(dev)
			if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request); err != nil {
				return err
			}
			all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8) // network byte order
			if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: int(request.Uint32())}); err != nil {
				return err
			}
			limit := unix.NsecToTimeval((20 * time.Millisecond).Nanoseconds())
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
				return err
			}
			fds[dev] = fd
		}
		return nil
	})
	if err != nil {
		h.Fatal(err)
	}
	stop := make(chan struct{})
	for from, to := range map[string]string{a: b, b: a} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			pass(fds[from], fds[to], stop)
		}()
		h.Cleanup(func() { <-done; unix.Close(fds[from]) })
	}
	h.Cleanup(func() { close(stop) }) // the first to be called
}

func pass(from, to int, stop chan struct{}) {
	frame := make([]byte, 1<<16)
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, sender, err := unix.Recvfrom(from, frame, 0)
		if s, ok := sender.(*unix.SockaddrLinklayer); err == nil && ok && s.Pkttype != unix.PACKET_OUTGOING {
			_, _ = unix.Write(to, frame[:n])
		}
	}
}

func TestChecksum(t *testing.T) {
	a, wire, b := newHost(t, "a"), newHost(t, "wire"), newHost(t, "b")
	join(a, "eth0", wire, "left")
	join(b, "eth0", wire, "right")
	wire.relay("left", "right")
	peer := netip.MustParseAddr("192.0.2.2")
	a.run("ip addr add 192.0.2.1/24 dev eth0")
	b.run("ip addr add 192.0.2.2/24 dev eth0")
	check := func(want Checksummed) {
		t.Helper()
		start := time.Now()
		err := a.in(func() error {
			got, err := Checksum(t.Context(), near, peer)
			if got != want || err != nil {
				t.Errorf("%s, %v, instead of %s", got, err, want)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		t.Logf("%s: took %v", want, time.Since(start))
	}
	check(ChecksumBroken)
	a.checksumByDevice("eth0", 0)
	check(ChecksumFine)
	b.run("iptables -A INPUT -p udp -j DROP")
	check(ChecksumUnknown)

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	err := a.in(func() error { _, err := Checksum(gone, near, peer); return err })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
