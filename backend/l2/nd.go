package l2

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// Neighbour discovery (RFC 4861).
const (
	ipv6Size      = 40 // bytes, without extension headers
	hops          = 255
	ndSize        = 24 // bytes, without options
	ndUnit        = 8  // bytes, of options: one has room for a MAC
	solicitation  = 135
	advertisement = 136
	solicited     = 1 << 6 // flags of an advertisement
	override      = 1 << 5
)

// allNodes is the group of every host of a segment (RFC 4291, 2.7.1).
var allNodes = netip.MustParseAddr("ff02::1")

// parseND reads an IPv6 packet in a frame of that sender's, whose MAC counts where the message does not say it: an answer to one alone
// need not. All of its hops left say that it comes from the segment.
func parseND(p []byte, from backend.MAC) (m message, ok bool) {
	if len(p) < ipv6Size+ndSize || p[0]>>4 != 6 || p[6] != unix.IPPROTO_ICMPV6 || p[7] != hops {
		return m, false
	}
	end := ipv6Size + int(binary.BigEndian.Uint16(p[4:]))
	if end > len(p) || end < ipv6Size+ndSize || ndChecksum(p[:end]) != 0 {
		return m, false
	}
	src, dst, body := netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40])), p[ipv6Size:end]
	about, kind := netip.AddrFrom16([16]byte(body[8:24])), body[0]
	switch {
	case body[1] != 0 || about.IsMulticast() || src.IsMulticast():
		return m, false
	case kind == solicitation:
		m = message{asks: true, mac: from, ip: src, target: about}
	case kind == advertisement && body[4]&solicited != 0:
		m = message{mac: from, ip: about, target: dst}
	case kind == advertisement:
		m = message{mac: from, ip: about, target: about}
	default:
		return m, false
	}
	return m, m.readOptions(body[ndSize:], optionOf(kind))
}

// optionOf is the option of a message of a kind that has its sender's MAC.
func optionOf(kind byte) byte { return kind - solicitation + 1 }

// readOptions takes the MAC from an option, if it is there.
func (m *message) readOptions(options []byte, kind byte) (ok bool) {
	for len(options) > 0 {
		if len(options) < ndUnit || options[1] == 0 || len(options) < int(options[1])*ndUnit {
			return false
		}
		if options[0] == kind && options[1] == 1 {
			m.mac = backend.MAC(options[2:8])
		}
		options = options[int(options[1])*ndUnit:]
	}
	return true
}

// nd is m as an IPv6 packet, and the MAC that it goes to.
func (m message) nd(to backend.MAC) ([]byte, backend.MAC) {
	kind, flags, about, dst := byte(advertisement), byte(solicited|override), m.ip, m.target
	switch {
	case m.gratuitous():
		flags, dst = override, allNodes
	case m.asks:
		kind, flags, about = solicitation, 0, m.target
	}
	if to == broadcast {
		dst, to = group(dst)
	}
	b := append(make([]byte, 0, ipv6Size+ndSize+ndUnit), 6<<4, 0, 0, 0, 0, ndSize+ndUnit, unix.IPPROTO_ICMPV6, hops)
	b = append(append(b, m.ip.AsSlice()...), dst.AsSlice()...)
	b = append(append(b, kind, 0, 0, 0, flags, 0, 0, 0), about.AsSlice()...)
	b = append(append(b, optionOf(kind), 1), m.mac[:]...)
	binary.BigEndian.PutUint16(b[ipv6Size+2:], ndChecksum(b))
	return b, to
}

// group is the group that a host with the address a listens to, with its MAC (RFC 4291, 2.7.1; RFC 2464, section 7).
func group(a netip.Addr) (netip.Addr, backend.MAC) {
	last := a.As16()
	if !a.IsMulticast() {
		last = [16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: last[13], 14: last[14], 15: last[15]}
	}
	return netip.AddrFrom16(last), backend.MAC{0x33, 0x33, last[12], last[13], last[14], last[15]}
}

// ndChecksum is that of an ICMPv6 packet (RFC 4443, 2.3); 0 for one that has it already.
func ndChecksum(p []byte) uint16 {
	sum := uint32(len(p)-ipv6Size) + unix.IPPROTO_ICMPV6
	for i, b := range p[8:] {
		sum += uint32(b) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
