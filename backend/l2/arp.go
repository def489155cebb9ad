package l2

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// ARP (RFC 826).
const (
	arpSize    = 28 // bytes, for Ethernet and IPv4
	arpRequest = 1  // ar_op
	arpReply   = 2
)

// arpKind is what ARP packets for Ethernet and IPv4 begin with: hardware type, protocol type, and the lengths of their addresses.
const arpKind uint64 = 1<<32 | unix.ETH_P_IP<<16 | 6<<8 | 4

func parseARP(p []byte) (m message, ok bool) {
	if len(p) < arpSize || binary.BigEndian.Uint64(p)>>16 != arpKind {
		return m, false
	}
	operation := binary.BigEndian.Uint16(p[6:])
	m = message{asks: operation == arpRequest, mac: backend.MAC(p[8:14]), ip: netip.AddrFrom4([4]byte(p[14:18])), target: netip.AddrFrom4([4]byte(p[24:28]))}
	return m, operation == arpRequest || operation == arpReply
}

// arp is m as an ARP packet. An announcement is a request, which is what more hosts take for one than a reply (RFC 5227, section 3).
func (m message) arp() []byte {
	operation := uint64(arpReply)
	if m.asks || m.gratuitous() {
		operation = arpRequest
	}
	b := binary.BigEndian.AppendUint64(make([]byte, 0, arpSize), arpKind<<16|operation)
	b = append(append(b, m.mac[:]...), m.ip.AsSlice()...)
	return append(append(b, make([]byte, 6)...), m.target.AsSlice()...)
}
