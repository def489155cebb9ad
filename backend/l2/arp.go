package l2

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// broadcast is every host of a segment.
var broadcast = backend.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

const (
	ethernet = 14 // bytes: two MACs and a type
	arpSize  = 28 // bytes, for Ethernet and IPv4
	request  = 1  // ar_op
	reply    = 2
)

// kind is what ARP packets for Ethernet and IPv4 begin with: hardware type, protocol type, and the lengths of their addresses.
const kind uint64 = 1<<32 | unix.ETH_P_IP<<16 | 6<<8 | 4

// arp is an ARP packet (RFC 826).
type arp struct {
	operation uint16 // request or reply
	mac       backend.MAC
	ip        netip.Addr // the sender's, as mac is
	targetMAC backend.MAC
	target    netip.Addr
}

// parse reads an Ethernet frame. What is no ARP packet of a host that has an address is not ok.
func parse(frame []byte) (a arp, ok bool) {
	if len(frame) < ethernet+arpSize || binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_ARP {
		return a, false
	}
	p := frame[ethernet:]
	if binary.BigEndian.Uint64(p)>>16 != kind {
		return a, false
	}
	a = arp{operation: binary.BigEndian.Uint16(p[6:]), mac: backend.MAC(p[8:14]), ip: netip.AddrFrom4([4]byte(p[14:18])),
		targetMAC: backend.MAC(p[18:24]), target: netip.AddrFrom4([4]byte(p[24:28]))}
	return a, (a.operation == request || a.operation == reply) && a.mac.Unicast() && !a.ip.IsUnspecified()
}

// gratuitous reports whether a's sender does not ask, but tells all of itself (RFC 5227, section 3).
func (a arp) gratuitous() bool { return a.ip == a.target }

// frame is a as an Ethernet frame from one MAC to another.
func (a arp) frame(from, to backend.MAC) []byte {
	b := make([]byte, 0, ethernet+arpSize)
	b = append(append(b, to[:]...), from[:]...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_ARP)
	b = binary.BigEndian.AppendUint64(b, kind<<16|uint64(a.operation))
	b = append(append(b, a.mac[:]...), a.ip.AsSlice()...)
	return append(append(b, a.targetMAC[:]...), a.target.AsSlice()...)
}

// announcement tells all that ip has mac: a request, which is what more hosts take for one than a reply (RFC 5227, section 3).
func announcement(ip netip.Addr, mac backend.MAC) arp {
	return arp{operation: request, mac: mac, ip: ip, target: ip}
}
