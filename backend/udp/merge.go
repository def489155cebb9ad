package udp

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// TCP's flags push and ack: of a segment that has others nothing is put together.
const push, ack = 8, 16

// merger puts successive segments of a flow together to the super-packets that they were cut from, as the kernel's GRO does
// (tcp_gro_receive, net/ipv4/tcp_offload.c): one write to the device, and one walk through the kernel, for up to 64 packets.
type merger struct {
	write func(b []byte, count int) // of packets, with their vnetHeader
	udp   bool                      // whether the device takes super-packets of UDP

	buffer []byte // room for a vnetHeader, and what was put together
	count  int    // of the packets in it
	first  flow   // of them
	next   uint32 // TCP sequence number that follows
	closed bool   // nothing can follow
}

func newMerger(write func(b []byte, count int), udp bool) merger {
	return merger{write: write, udp: udp, buffer: make([]byte, vnetSize, vnetSize+packetMax)}
}

// flow is a packet that may be part of a super-packet, or one that stays alone.
type flow struct {
	packet  []byte
	ip      *layout
	headers int // length of all headers, bytes; 0 if it stays alone
}

func (f flow) payload() []byte   { return f.packet[f.headers:] }
func (f flow) transport() []byte { return f.packet[f.ip.size:f.headers] } // the header
func (f flow) tcp() bool         { return f.headers > 0 && f.packet[f.ip.protocol] == unix.IPPROTO_TCP }
func (f flow) pushed() bool      { return f.tcp() && f.transport()[13]&push != 0 }

// add takes a packet.
func (m *merger) add(l *layout, p []byte) {
	f := m.parse(l, p)
	if m.follows(f) {
		m.buffer = append(m.buffer, f.payload()...)
		if f.pushed() {
			m.first.transport()[13] |= push
		}
	} else {
		m.flush()
		m.buffer = append(m.buffer[:vnetSize], p...)
		m.first = flow{m.buffer[vnetSize:], l, f.headers}
	}
	m.count++
	m.closed = f.headers == 0 || f.pushed() || len(f.payload()) < len(m.first.payload())
	if f.tcp() {
		m.next = binary.BigEndian.Uint32(f.transport()[4:]) + uint32(len(f.payload()))
	}
}

// parse looks whether a packet can be part of a super-packet: a whole one without IP options, with payload, and with checksums that
// are right. Nobody looks at them again.
func (m *merger) parse(l *layout, p []byte) flow {
	alone := flow{packet: p, ip: l}
	if len(p) <= l.size+udpHeader || !l.whole(p) {
		return alone
	}
	headers, protocol := 0, p[l.protocol]
	switch t := p[l.size:]; {
	case protocol == unix.IPPROTO_TCP && len(t) > tcpHeader && t[13]&^push == ack:
		headers = l.size + max(tcpHeader, int(t[12]>>4)*4)
	case protocol == unix.IPPROTO_UDP && m.udp && int(binary.BigEndian.Uint16(t[4:])) == len(t) && binary.BigEndian.Uint16(t[6:]) != 0:
		headers = l.size + udpHeader
	}
	if headers == 0 || headers >= len(p) || fold(sum(p[l.size:], l.pseudo(p, protocol, len(p)-l.size))) != 0xffff {
		return alone
	}
	return flow{p, l, headers}
}

// follows reports whether f continues what was put together: it has the same headers, but for what each segment has of its own.
func (m *merger) follows(f flow) bool {
	a, b := m.first.packet, f.packet
	if m.count == 0 || m.closed || f.headers != m.first.headers || m.count == datagramsMost ||
		len(f.payload()) > len(m.first.payload()) || len(m.buffer)-vnetSize+len(f.payload()) > lengthMax || !f.ip.alike(a, b) {
		return false
	}
	if !f.tcp() {
		return true
	}
	s, t := m.first.transport(), f.transport()
	return binary.BigEndian.Uint32(t[4:]) == m.next && [5]byte(s[8:]) == [5]byte(t[8:]) && [2]byte(s[14:]) == [2]byte(t[14:]) && bytes.Equal(s[18:], t[18:])
}

// flush writes what was put together.
func (m *merger) flush() {
	if m.count == 0 {
		return
	}
	m.finish().put(m.buffer)
	m.write(m.buffer, m.count)
	m.count = 0
}

// finish gives what was put together its headers.
func (m *merger) finish() vnetHeader {
	f, l, p := m.first, m.first.ip, m.buffer[vnetSize:]
	switch {
	case f.headers == 0:
		return vnetHeader{}
	case m.count == 1:
		return vnetHeader{flags: unix.VIRTIO_NET_HDR_F_DATA_VALID}
	}
	protocol, kind := p[l.protocol], l.tcp
	if !f.tcp() {
		kind = unix.VIRTIO_NET_HDR_GSO_UDP_L4
		binary.BigEndian.PutUint16(f.transport()[4:], uint16(len(p)-l.size))
	}
	l.setLength(p[:l.size], len(p), 0)
	check := checksumAt(protocol)
	binary.BigEndian.PutUint16(f.transport()[check:], fold(l.pseudo(p, protocol, len(p)-l.size))) // the kernel does the rest
	return vnetHeader{unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, kind, uint16(f.headers), uint16(len(f.payload())), uint16(l.size), uint16(check)}
}
