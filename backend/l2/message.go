package l2

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// broadcast is every host of a segment. IPv6 has groups instead: a message of it that is sent to this goes to its group.
var broadcast = backend.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

const ethernet = 14 // bytes: two MACs and a type

// message is how a host asks for another's MAC, or tells its own: ARP, or IPv6's neighbour discovery.
type message struct {
	asks   bool // for target's MAC; if not, it tells target
	mac    backend.MAC
	ip     netip.Addr // the sender's, as mac is
	target netip.Addr
}

// announcement tells all that ip has mac.
func announcement(ip netip.Addr, mac backend.MAC) message {
	return message{asks: true, mac: mac, ip: ip, target: ip}
}

// gratuitous reports whether m's sender does not ask, but tells all of itself (RFC 5227, section 3; RFC 4861, 7.2.6).
func (m message) gratuitous() bool { return m.ip == m.target }

// parse reads an Ethernet frame. What is no such message of a host that has an address is not ok: one that only looks whether anybody
// has it is none.
func parse(frame []byte) (m message, ok bool) {
	if len(frame) < ethernet {
		return m, false
	}
	switch packet := frame[ethernet:]; binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_ARP:
		m, ok = parseARP(packet)
	case unix.ETH_P_IPV6:
		m, ok = parseND(packet, backend.MAC(frame[6:12]))
	}
	return m, ok && m.mac.Unicast() && !m.ip.IsUnspecified()
}

// frame is m as an Ethernet frame from one MAC to another, or to all.
func (m message) frame(from, to backend.MAC) []byte {
	kind, packet := uint16(unix.ETH_P_ARP), []byte(nil)
	if m.ip.Is4() {
		packet = m.arp()
	} else {
		kind = unix.ETH_P_IPV6
		packet, to = m.nd(to)
	}
	b := append(append(make([]byte, 0, ethernet+len(packet)), to[:]...), from[:]...)
	return append(binary.BigEndian.AppendUint16(b, kind), packet...)
}
