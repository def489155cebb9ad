package kernel

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// advertisement is the Ethernet frame of a router that advertises itself and a prefix (RFC 4861, 4.2).
func advertisement(prefix string) []byte {
	source, all := netip.MustParseAddr("fe80::1").As16(), netip.MustParseAddr("ff02::1").As16()
	p := netip.MustParseAddr(prefix).As16()
	option := append([]byte{3, 4, 64, 0xc0, 0, 0, 0xe, 0x10, 0, 0, 0xe, 0x10, 0, 0, 0, 0}, p[:]...) // on link, autonomous, an hour
	icmp := append([]byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}, option...)            // for half an hour
	ip := append([]byte{0x60, 0, 0, 0, 0, byte(len(icmp)), unix.IPPROTO_ICMPV6, 255}, append(source[:], all[:]...)...)
	sum := uint32(len(icmp) + unix.IPPROTO_ICMPV6)
	for _, b := range [][]byte{ip[8:], icmp} {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(icmp[2:], ^uint16(sum>>16+sum))
	return slices.Concat([]byte{0x33, 0x33, 0, 0, 0, 1, 2, 0xaa, 0, 0, 0, 1, 0x86, 0xdd}, ip, icmp)
}

// advertise has a router advertise a prefix to a device, at the other end of its wire, until it has an address of it. A device
// that was just set up hears nothing for a moment.
func (s *sandbox) advertise(device, wire, prefix string) {
	s.Helper()
	router := s.packetSocket(wire, unix.ETH_P_IPV6)
	s.eventually("an address as advertised", func() bool {
		if _, err := unix.Write(router, advertisement(prefix+"::")); err != nil {
			s.Fatal(err)
		}
		return strings.Contains(s.run("ip -6 addr show dev %s -tentative", device), prefix+":")
	})
}

// A host whose default route a router has advertised keeps it when it begins to forward, and goes on listening to the router; so does
// one whose underlay is another device.
func TestAdvertisedRoutesStay(t *testing.T) {
	for _, name := range []string{"eth0", "eth0.7"} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			s.run("ip link set eth0 name %s", name)
			s.setup("ip link add eth1 type veth peer name wire1\nip link set eth1 up\nip link set wire1 up\nip route add default via 192.0.2.254")
			for device, wire := range map[string]string{name: "wire", "eth1": "wire1"} {
				s.advertise(device, wire, "2001:db8:1")
			}
			k, dual := s.open(), networks()[1]
			u, err := k.Underlay(backend.Choice{})
			if err != nil || !slices.Equal(u.AcceptRA, []string{name, "eth1"}) && !slices.Equal(u.AcceptRA, []string{"eth1", name}) {
				t.Fatalf("%v, %v", u, err)
			}
			want := s.moved(newPlanOn(t, dual.local, dual.config, 3), func(h *backend.Host) { h.Underlay = u })
			s.apply(k, want)
			s.apply(k, want)
			if got := strings.Count(s.run("ip -6 route show default"), "proto ra"); got != 2 {
				t.Errorf("%d default routes are left of 2", got)
			}
			if now, err := k.Underlay(backend.Choice{}); err != nil || fmt.Sprint(now) != fmt.Sprint(u) {
				t.Errorf("the underlay is %v, it was %v; %v", now, u, err)
			}
			s.advertise(name, "wire", "2001:db8:2")
			if c := s.apply(k, want).Count(); len(c) != 0 {
				t.Errorf("another Apply changed %v", c)
			}
		})
	}
}

// A host that listens to no router is not made to.
func TestNoListeners(t *testing.T) {
	for name, command := range map[string]string{
		"switched off":       "sysctl -qw net.ipv6.conf.eth0.accept_ra=0",
		"forwards already":   "sysctl -qw net.ipv6.conf.all.forwarding=1",
		"another's business": "ip link add eth1 type veth peer name wire1\nsysctl -qw net.ipv6.conf.eth0.accept_ra=0",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			s.setup("ip route add default via 192.0.2.254\n" + command)
			if u, err := s.open().Underlay(backend.Choice{}); err != nil || len(u.AcceptRA) > 0 {
				t.Errorf("%v, %v", u, err)
			}
		})
	}
}

// Whoever is in the overlay may send what he likes: to our devices he is no router.
func TestTunnelTakesNoAdvertisements(t *testing.T) {
	s := newSandbox(t)
	k, want := s.open(), state(t, 3)
	s.apply(k, want)
	s.settle(k, want)
	conn, err := net.Dial("udp4", "192.0.2.1:8472")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	heard := 0
	hear := func(prefix string) {
		t.Helper()
		if _, err := conn.Write(append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, advertisement(prefix)...)); err != nil {
			t.Fatal(err)
		}
		heard++
		s.eventually("the advertisement has come", func() bool { return s.advertisements("tulle.1") == heard })
	}
	hear("2001:db8:1::")
	s.write("/proc/sys/net/ipv6/conf/tulle.1/accept_ra", "1")
	if k.Holds(want) {
		t.Error("it does not matter that the device listens")
	}
	hear("2001:db8:2::")
	s.eventually("an address of what was advertised while it listened", func() bool { return strings.Contains(s.run("ip -6 addr show dev tulle.1"), "2001:db8:2:") })
	if got := s.apply(k, want).Count(); !maps.Equal(got, count{"link": 1}) {
		t.Errorf("changed %v, want the link", got)
	}
	hear("2001:db8:3::")
	if now := s.run("ip -6 addr show dev tulle.1"); strings.Contains(now, "2001:db8:1:") || strings.Contains(now, "2001:db8:3:") {
		t.Errorf("it has %s", now)
	}
}

// advertisements is how many router advertisements have come to a device.
func (s *sandbox) advertisements(device string) (n int) {
	s.Helper()
	text, err := os.ReadFile("/proc/thread-self/net/dev_snmp6/" + device)
	if err != nil {
		s.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Icmp6InRouterAdvertisements"); ok {
			fmt.Sscan(rest, &n)
		}
	}
	return n
}

// Without link-local addresses the tunnel's devices solicit no routers. The bridge has the one that it is given.
func TestNoLinkLocalAddresses(t *testing.T) {
	s := newSandbox(t)
	dual := networks()[0]
	s.setup(underlay6)
	k, want := s.open(), newPlanOn(t, dual.local, dual.config, 3).State()
	s.apply(k, want)
	s.settle(k, want)
	for name := range want.Links {
		given := 0
		for a := range want.Addrs {
			if a.Dev == name && a.Prefix.Addr().IsLinkLocalUnicast() {
				given++
			}
		}
		if addrs := s.run("ip -6 addr show dev %s scope link", name); strings.Count(addrs, "inet6") != given {
			t.Errorf("%s has %s", name, addrs)
		}
	}
}

func TestSysctlPath(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward":            "/proc/sys/net/ipv4/ip_forward",
		"net/ipv6/conf/eth0.7/accept_ra": "/proc/sys/net/ipv6/conf/eth0.7/accept_ra",
	} {
		if got := sysctlPath(name); got != want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// A host where IPv6 is off unless somebody wants it gets it on our devices.
func TestIPv6OffByDefault(t *testing.T) {
	s := newSandbox(t)
	s.write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
	dual := networks()[1]
	k, want := s.open(), newPlanOn(t, dual.local, dual.config, 3).State()
	s.apply(k, want)
	s.converged(k, want)
}

// An address of ours that somebody else has set is under duplicate address detection, on a bridge without ports for ever.
func TestUnprovenAddress(t *testing.T) {
	s := newSandbox(t)
	s.write("/proc/sys/net/ipv6/conf/default/accept_dad", "1")
	s.write("/proc/sys/net/ipv6/conf/default/dad_transmits", "1")
	dual := networks()[1]
	k, want := s.open(), newPlanOn(t, dual.local, dual.config, 3).State()
	s.apply(k, want)
	s.run("ip addr del fd00:5:0:1::1/64 dev docker0")
	s.run("ip addr add fd00:5:0:1::1/64 dev docker0")
	if now := s.run("ip addr show dev docker0 tentative"); !strings.Contains(now, "fd00:5:0:1::1/64") {
		t.Fatalf("it is not tentative: %s", now)
	}
	if got := s.apply(k, want).Count(); !maps.Equal(got, count{"address": 1}) {
		t.Errorf("changed %v, want the address", got)
	}
	s.converged(k, want)
}

// A kernel that was booted without IPv6 can't be had on demand: a test refuses in its place.
func TestNoIPv6InTheKernel(t *testing.T) {
	s := newSandbox(t)
	dual := networks()[1]
	k, want := s.open(), newPlanOn(t, dual.local, dual.config, 0).State()
	k.conn.fault = always(unix.RTM_NEWADDR, unix.EOPNOTSUPP)
	_, err := k.Apply(t.Context(), want)
	wantError(t, err, "this kernel has no IPv6: boot it without ipv6.disable=1")
}
