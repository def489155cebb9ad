package udp

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Sizes of headers without options, bytes (RFC 791, RFC 8200, RFC 9293, RFC 768), and the most that a packet can be: IPv6 doesn't
// count its own header.
const (
	ip4Header = 20
	ip6Header = 40
	tcpHeader = 20
	udpHeader = 8
	lengthMax = 1<<16 - 1
	packetMax = lengthMax + ip6Header
)

// layout is what an IP header looks like.
type layout struct {
	size     int   // without options, bytes
	protocol int   // where it says what follows
	source   int   // where the source address is; the destination follows
	address  int   // bytes
	tcp      uint8 // VIRTIO_NET_HDR_GSO_… of TCP behind it

	whole     func(p []byte) bool                           // p has a header without options, and is all of a packet
	alike     func(a, b []byte) bool                        // a and b differ in nothing but what each packet of a flow has of its own
	setLength func(header []byte, length int, count uint16) // of the whole packet; count is for those that are told apart by a number
}

var ipv4Layout = layout{size: ip4Header, protocol: 9, source: 12, address: 4, tcp: unix.VIRTIO_NET_HDR_GSO_TCPV4,
	whole: func(p []byte) bool {
		const moreOrOffset = 0x3fff // of a fragment
		return p[0] == 4<<4|ip4Header/4 && int(binary.BigEndian.Uint16(p[2:])) == len(p) && binary.BigEndian.Uint16(p[6:])&moreOrOffset == 0 &&
			fold(sum(p[:ip4Header], 0)) == 0xffff
	},
	alike: func(a, b []byte) bool { // version, type of service, fragmentation, time to live and protocol, addresses and ports
		return [2]byte(a) == [2]byte(b) && a[6] == b[6] && [2]byte(a[8:]) == [2]byte(b[8:]) && [12]byte(a[12:]) == [12]byte(b[12:])
	},
	setLength: func(header []byte, length int, count uint16) {
		binary.BigEndian.PutUint16(header[2:], uint16(length))
		binary.BigEndian.PutUint16(header[4:], binary.BigEndian.Uint16(header[4:])+count)
		header[10], header[11] = 0, 0
		binary.BigEndian.PutUint16(header[10:], ^fold(sum(header, 0)))
	},
}

var ipv6Layout = layout{size: ip6Header, protocol: 6, source: 8, address: 16, tcp: unix.VIRTIO_NET_HDR_GSO_TCPV6,
	whole: func(p []byte) bool { return int(binary.BigEndian.Uint16(p[4:])) == len(p)-ip6Header },
	alike: func(a, b []byte) bool { // version, class and flow label; what follows, hop limit, addresses and ports
		return [4]byte(a) == [4]byte(b) && [38]byte(a[6:]) == [38]byte(b[6:])
	},
	setLength: func(header []byte, length int, _ uint16) {
		binary.BigEndian.PutUint16(header[4:], uint16(length-ip6Header))
	},
}

// layoutOf returns the layout of the IP packet that p says it is; nil if it is none, or too short. The rest is checked by the kernel.
func layoutOf(p []byte) *layout {
	switch {
	case len(p) >= ip4Header && p[0]>>4 == 4:
		return &ipv4Layout
	case len(p) >= ip6Header && p[0]>>4 == 6:
		return &ipv6Layout
	}
	return nil
}

// header is how long p's header is, with options.
func (l *layout) header(p []byte) int {
	if l == &ipv4Layout {
		return int(p[0]&15) * 4
	}
	return l.size
}

func (l *layout) from(p []byte) netip.Addr { return l.read(p[l.source:]) }
func (l *layout) to(p []byte) netip.Addr   { return l.read(p[l.source+l.address:]) }

func (l *layout) read(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b[:l.address])
	return a
}

// sum adds b to a ones' complement sum (RFC 1071), in this machine's byte order, which makes no difference to it. It is two
// sums, so that neither waits for the other's carry. What comes before b must be of even length.
func sum(b []byte, s uint64) uint64 {
	var t, carry uint64
	n := binary.NativeEndian
	for ; len(b) >= 128; b = b[128:] {
		s, carry = bits.Add64(s, n.Uint64(b), 0)
		s, carry = bits.Add64(s, n.Uint64(b[8:]), carry)
		s, carry = bits.Add64(s, n.Uint64(b[16:]), carry)
		s, carry = bits.Add64(s, n.Uint64(b[24:]), carry)
		s, carry = bits.Add64(s, n.Uint64(b[32:]), carry)
		s, carry = bits.Add64(s, n.Uint64(b[40:]), carry)
		s, carry = bits.Add64(s, n.Uint64(b[48:]), carry)
		s, carry = bits.Add64(s, n.Uint64(b[56:]), carry)
		s += carry
		t, carry = bits.Add64(t, n.Uint64(b[64:]), 0)
		t, carry = bits.Add64(t, n.Uint64(b[72:]), carry)
		t, carry = bits.Add64(t, n.Uint64(b[80:]), carry)
		t, carry = bits.Add64(t, n.Uint64(b[88:]), carry)
		t, carry = bits.Add64(t, n.Uint64(b[96:]), carry)
		t, carry = bits.Add64(t, n.Uint64(b[104:]), carry)
		t, carry = bits.Add64(t, n.Uint64(b[112:]), carry)
		t, carry = bits.Add64(t, n.Uint64(b[120:]), carry)
		t += carry
	}
	for ; len(b) >= 8; b = b[8:] {
		t, carry = bits.Add64(t, n.Uint64(b), 0)
		t += carry
	}
	if len(b) > 0 {
		var rest [8]byte
		copy(rest[:], b)
		t, carry = bits.Add64(t, n.Uint64(rest[:]), 0)
		t += carry
	}
	s, carry = bits.Add64(s, t, 0)
	return s + carry
}

// fold makes 16 bits of a sum, in network byte order.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], uint16(s))
	return binary.BigEndian.Uint16(b[:])
}

// pseudo is the sum of the pseudo-header of a packet that carries so many bytes of a protocol. Of IPv6 it has the same sum as of IPv4.
func (l *layout) pseudo(p []byte, protocol byte, length int) uint64 {
	var rest [4]byte
	rest[1] = protocol
	binary.BigEndian.PutUint16(rest[2:], uint16(length))
	return sum(rest[:], sum(p[l.source:l.source+2*l.address], 0))
}

// checksumAt is where in a TCP or UDP header its checksum is.
func checksumAt(protocol byte) int {
	if protocol == unix.IPPROTO_TCP {
		return 16
	}
	return 6
}
