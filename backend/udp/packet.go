package udp

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Sizes of headers without options, bytes (RFC 791, RFC 9293, RFC 768), and the most that an IPv4 packet can be.
const (
	ipHeader  = 20
	tcpHeader = 20
	udpHeader = 8
	packetMax = 1<<16 - 1
)

// isIPv4 reports whether p is long enough for an IPv4 packet, and says that it is one. The rest is checked by the kernel.
func isIPv4(p []byte) bool { return len(p) >= ipHeader && p[0]>>4 == 4 }

func source(p []byte) netip.Addr      { return netip.AddrFrom4([4]byte(p[12:16])) }
func destination(p []byte) netip.Addr { return netip.AddrFrom4([4]byte(p[16:20])) }

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

// pseudo is the sum of the pseudo-header of a packet that carries so many bytes of its protocol.
func pseudo(p []byte, length int) uint64 {
	var rest [4]byte
	rest[1] = p[9]
	binary.BigEndian.PutUint16(rest[2:], uint16(length))
	return sum(rest[:], sum(p[12:20], 0))
}

// setIP gives an IPv4 header a packet's length and identification, and its checksum.
func setIP(header []byte, length int, id uint16) {
	binary.BigEndian.PutUint16(header[2:], uint16(length))
	binary.BigEndian.PutUint16(header[4:], id)
	header[10], header[11] = 0, 0
	binary.BigEndian.PutUint16(header[10:], ^fold(sum(header, 0)))
}

// checksumAt is where in a TCP or UDP header its checksum is.
func checksumAt(protocol byte) int {
	if protocol == unix.IPPROTO_TCP {
		return 16
	}
	return 6
}
