package udp

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// dual gives hosts IPv6 as well: 2001:db8::n on the underlay, fd00:5:0:n::/64 for containers.
func dual(hosts []*host) {
	for _, h := range hosts {
		for _, s := range []*space{h.space, h.container} {
			s.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=0 net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")
		}
		h.run("sysctl -qw net.ipv6.conf.all.forwarding=1")
		h.run("ip addr add 2001:db8::%d/64 dev eth0 nodad", h.n)
		h.run("ip addr add fd00:5:0:%d::1/64 dev docker0 nodad", h.n)
		h.container.run("ip addr add fd00:5:0:%d::2/64 dev eth0 nodad", h.n)
		h.container.run("ip route add default via fd00:5:0:%d::1", h.n)
	}
}

// families are those that hosts have inside, and on the underlay.
type families struct{ inner, outer []subnet.Family }

// local is host n's address on the underlay.
func local(n int, f subnet.Family) netip.Addr {
	if f == subnet.IPv6 {
		return netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", n))
	}
	return endpointOf(n).Addr()
}

// prefix is host n's subnet.
func prefix(n int, f subnet.Family) netip.Prefix {
	if f == subnet.IPv6 {
		return netip.MustParsePrefix(fmt.Sprintf("fd00:5:0:%d::/64", n))
	}
	return peer(n).Prefix
}

// stateOf is what h's agent wants, with so many hosts. What is inside goes over the same family, where there is that.
func (h *host) stateOf(hosts int, c families) backend.State {
	s := h.state(0)
	t := backend.Tunnel{Port: port}
	for _, f := range c.outer {
		*t.Local.At(f) = local(h.n, f)
	}
	s.Tunnels[dev] = t
	for n := 1; n <= hosts; n++ {
		for _, f := range c.inner {
			outer := f
			if !t.Local.Of(f).IsValid() {
				outer = f.Other()
			}
			if n != h.n {
				s.Endpoints[backend.EndpointKey{Dev: dev, Prefix: prefix(n, f)}] = netip.AddrPortFrom(local(n, outer), port)
			}
		}
	}
	return s
}

// upWith starts agents on all hosts, with families.
func upWith(hosts []*host, c families) {
	dual(hosts)
	for _, h := range hosts {
		h.Helper()
		h.start()
		h.apply(h.stateOf(len(hosts), c))
		h.run("ip link set %s mtu 1452 addrgenmode none up", dev)
		for _, f := range c.inner {
			h.run("ip addr replace %s/%d dev %s", prefix(h.n, f).Addr(), f.Bits(), dev)
			for n := range hosts {
				if n+1 != h.n {
					h.run("ip route replace %s dev %s", prefix(n+1, f), dev)
				}
			}
		}
	}
}

var mixtures = map[string]families{
	"dual on dual": {[]subnet.Family{subnet.IPv4, subnet.IPv6}, []subnet.Family{subnet.IPv4, subnet.IPv6}},
	"dual on IPv4": {[]subnet.Family{subnet.IPv4, subnet.IPv6}, []subnet.Family{subnet.IPv4}},
	"dual on IPv6": {[]subnet.Family{subnet.IPv4, subnet.IPv6}, []subnet.Family{subnet.IPv6}},
	"IPv6 on IPv6": {[]subnet.Family{subnet.IPv6}, []subnet.Family{subnet.IPv6}},
}

// address is that of h's container.
func (h *host) address(f subnet.Family) netip.Addr { return prefix(h.n, f).Addr().Next().Next() }

// TestFamilies sends streams of both families, cut up and put together on the way, over underlays of either.
func TestFamilies(t *testing.T) {
	for name, c := range mixtures {
		t.Run(name, func(t *testing.T) {
			hosts := newHosts(t, 2)
			upWith(hosts, c)
			var tasks errgroup.Group
			for _, f := range c.inner {
				tasks.Go(func() error {
					return transferTo(hosts[0], hosts[1], netip.AddrPortFrom(hosts[1].address(f), 0).String(), 8<<20+17)
				})
				tasks.Go(func() error {
					return transferTo(hosts[1], hosts[0], netip.AddrPortFrom(hosts[0].address(f), 0).String(), 1<<20+3)
				})
			}
			if err := tasks.Wait(); err != nil {
				t.Fatal(err)
			}
			for _, h := range hosts {
				if c := h.carrier.Counters(); c.Refused+c.Spoofed+c.Strayed != 0 || c.Sent.Bytes < 1<<20 || c.Received.Bytes < 1<<20 {
					t.Errorf("host %d counts %+v", h.n, c)
				}
			}
		})
	}
}

// TestSmallerIPv6Underlay has the kernel refuse to cut messages up, and fragment them itself instead.
func TestSmallerIPv6Underlay(t *testing.T) {
	hosts := newHosts(t, 2)
	upWith(hosts, mixtures["IPv6 on IPv6"])
	hosts[0].run("ip link set eth0 mtu 1400")
	if err := transferTo(hosts[0], hosts[1], "[fd00:5:0:2::2]:0", 1<<20); err != nil {
		t.Fatal(err)
	}
	if c := hosts[0].carrier.Counters(); c.Refused != 0 || c.Sent.Bytes < 1<<20 {
		t.Errorf("counted: %+v", c)
	}
}

// TestWireIPv6 checks what another host would see of IPv6 on IPv6, and what it may send: that host is a plain socket.
func TestWireIPv6(t *testing.T) {
	hosts := newHosts(t, 3)
	dual(hosts[1:])
	upWith(hosts[:1], mixtures["IPv6 on IPv6"])
	hosts[0].apply(hosts[0].stateOf(3, mixtures["IPv6 on IPv6"]))
	hosts[0].run("ip route replace fd00:5:0:2::/64 dev %s", dev)
	other, inside := hosts[1].listen("[2001:db8::2]:8285"), hosts[0].container.listen("[fd00:5:0:1::2]:9")

	option(t, inside, unix.SOL_UDP, unix.UDP_SEGMENT, 5)
	if _, err := inside.WriteToUDPAddrPort([]byte("first2nd..3rd"), netip.MustParseAddrPort("[fd00:5:0:2::2]:9")); err != nil {
		t.Fatal(err)
	}
	for _, payload := range []string{"first", "2nd..", "3rd"} {
		p := make([]byte, 2000)
		n, from, err := other.ReadFromUDPAddrPort(p)
		if err != nil || from != netip.MustParseAddrPort("[2001:db8::1]:8285") {
			t.Fatalf("from %s: %v", from, err)
		}
		p = p[:n]
		if l := layoutOf(p); l != &ipv6Layout || !sound(p) || p[7] != 63 || l.from(p) != hosts[0].address(subnet.IPv6) || !bytes.HasSuffix(p, []byte(payload)) {
			t.Errorf("for %q came %x", payload, p)
		}
	}

	for _, p := range [][]byte{
		datagram("fd00:5:0:3::2", "fd00:5:0:1::2", "another host's"), datagram("fd00:9::9", "fd00:5:0:1::2", "nobody's"),
		datagram("fd00:5:0:1::3", "fd00:5:0:1::2", "our own"), datagram("fe80::1", "ff02::1", "link-local"),
		datagram("10.5.2.2", "10.5.1.2", "of a family that is not ours"), append([]byte{6 << 4}, make([]byte, 30)...),
		datagram("fd00:5:0:2::2", "fd00:5:0:1::2", "its own"),
	} {
		if _, err := other.WriteToUDPAddrPort(p, netip.MustParseAddrPort("[2001:db8::1]:8285")); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 100)
	if n, _, err := inside.ReadFromUDPAddrPort(b); err != nil || string(b[:n]) != "its own" {
		t.Fatalf("%q, %v", b[:n], err)
	}
	if c := hosts[0].carrier.Counters(); c.Spoofed != 5 || c.Foreign != 1 || c.Received.Packets != 1 {
		t.Errorf("counted: %+v", c)
	}
}

// TestFamilyOfUnderlayComes has hosts get IPv6 on their underlay while they run: the device stays.
func TestFamilyOfUnderlayComes(t *testing.T) {
	hosts := newHosts(t, 2)
	upWith(hosts, mixtures["dual on IPv4"])
	for _, name := range []string{"dual on dual", "dual on IPv6", "dual on IPv4"} {
		for _, h := range hosts {
			h.apply(h.stateOf(2, mixtures[name]))
		}
		for _, to := range []string{"10.5.2.2:0", "[fd00:5:0:2::2]:0"} {
			if err := transferTo(hosts[0], hosts[1], to, 1<<20); err != nil {
				t.Fatalf("%s, to %s: %v", name, to, err)
			}
		}
	}
}
