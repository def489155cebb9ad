package udp

import (
	"encoding/binary"
	"errors"
	"slices"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// Limits of a message that the kernel cuts into datagrams (udp_send_skb, net/ipv4/udp.c).
const (
	datagramsMost = 64                                // UDP_MAX_SEGMENTS of Linux 4.18; later 128
	payloadMost   = lengthMax - ip4Header - udpHeader // bytes; IPv6 has room for a few more
)

// batch is what is to be sent next. Packets that follow each other share a message if they go to the same endpoint and are of one
// size, the last of them or a smaller one: the kernel cuts it into datagrams (UDP_SEGMENT).
type batch struct {
	data     []byte // all packets
	groups   []group
	messages []ipv4.Message // as many as there ever were groups
	single   bool           // no two packets may share a message
}

// group is what shares a message.
type group struct {
	to         *endpoint
	start, end int // in data
	size       int // of each packet, but maybe the last, bytes
	count      int // of packets
}

func (b *batch) reset() { b.data, b.groups = b.data[:0], b.groups[:0] }

// add appends a packet, and returns it as it is to be sent.
func (b *batch) add(to *endpoint, header, payload []byte) []byte {
	start := len(b.data)
	b.data = append(append(b.data, header...), payload...)
	size := len(b.data) - start
	if n := len(b.groups); n == 0 || b.single || !b.groups[n-1].takes(to, size) {
		b.groups = append(b.groups, group{to: to, start: start, end: start, size: size})
	}
	g := &b.groups[len(b.groups)-1]
	g.end, g.count = g.end+size, g.count+1
	return b.data[start:]
}

func (g group) takes(to *endpoint, size int) bool {
	full := g.end-g.start == g.count*g.size // none was smaller so far
	return g.to == to && full && size <= g.size && g.count < datagramsMost && g.end-g.start+size <= payloadMost
}

// traffic is what the batch holds.
func (b *batch) traffic() (t Traffic) {
	for _, g := range b.groups {
		t.Packets += uint64(g.count)
	}
	t.Bytes = uint64(len(b.data))
	return t
}

// send sends all, and returns what of it the kernel refused.
func (b *batch) send(conn *ipv4.PacketConn) (lost Traffic) {
	for n := range b.groups {
		b.seal(n)
	}
	for done := 0; done < len(b.groups); {
		n, err := conn.WriteBatch(b.messages[done:len(b.groups)], 0)
		if err != nil {
			lost.add(b.retry(conn, b.groups[done], err))
			n = 1
		}
		done += n
	}
	return lost
}

// seal makes the message of a group.
func (b *batch) seal(n int) {
	if n == len(b.messages) {
		b.messages = append(b.messages, ipv4.Message{Buffers: make([][]byte, 1), OOB: make([]byte, unix.CmsgSpace(2))})
	}
	g, m := b.groups[n], &b.messages[n]
	m.Addr, m.Buffers[0], m.OOB = g.to.socket, b.data[g.start:g.end], m.OOB[:0]
	if g.count > 1 {
		m.OOB = cutInto(g.size, m.OOB[:cap(m.OOB)])
	}
}

// retry sends what the kernel refused packet by packet, if it was refused for being cut up: the way there has got a smaller MTU (the
// kernel fragments single packets), or is by a device that makes no checksums (EIO; it will be the same with the next).
func (b *batch) retry(conn *ipv4.PacketConn, g group, err error) (lost Traffic) {
	b.single = b.single || errors.Is(err, unix.EIO)
	if g.count == 1 || !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EMSGSIZE) {
		return Traffic{uint64(g.count), uint64(g.end - g.start)}
	}
	for p := range slices.Chunk(b.data[g.start:g.end], g.size) {
		if _, err := conn.WriteTo(p, nil, g.to.socket); err != nil {
			lost.add(Traffic{1, uint64(len(p))})
		}
	}
	return lost
}

// cutInto writes to b the control message that has the kernel cut a message into datagrams of a size (udp(7)).
func cutInto(size int, b []byte) []byte {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(b[unix.CmsgLen(0):], uint16(size))
	return b
}
