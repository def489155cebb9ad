package udp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// messagesMost is how many messages are received at a time, each of up to 64 KB.
const messagesMost = 8

// receiver carries packets from peers to a queue of the device.
type receiver struct {
	*datapath
	socket   *ipv4.PacketConn
	queue    *os.File
	messages []ipv4.Message
	merger   merger
}

func (d *datapath) newReceiver(socket *net.UDPConn, queue *os.File) *receiver {
	r := &receiver{datapath: d, socket: ipv4.NewPacketConn(socket), queue: queue, messages: make([]ipv4.Message, messagesMost)}
	for n := range r.messages {
		r.messages[n] = ipv4.Message{Buffers: [][]byte{make([]byte, packetMax)}, OOB: make([]byte, unix.CmsgSpace(4))}
	}
	r.merger = newMerger(r.write, d.device.udp)
	return r
}

func (r *receiver) run() error {
	for {
		n, err := r.socket.ReadBatch(r.messages, 0)
		if err != nil {
			return err
		}
		for _, m := range r.messages[:n] {
			r.take(m.Addr.(*net.UDPAddr).AddrPort().Addr().Unmap(), m.Buffers[0][:m.N], datagramSize(m.OOB[:m.NN]))
		}
		r.merger.flush()
	}
}

// datagramSize is the size of the datagrams that the kernel put together to a message; 0 if it is one (UDP_GRO, udp(7)).
func datagramSize(control []byte) int {
	if len(control) == 0 {
		return 0
	}
	h, data, _, err := unix.ParseOneSocketControlMessage(control)
	if err != nil || h.Level != unix.SOL_UDP || h.Type != unix.UDP_GRO || len(data) < 4 {
		return 0
	}
	return int(binary.NativeEndian.Uint32(data))
}

// take takes a message of datagrams of a size, 0 for one.
func (r *receiver) take(from netip.Addr, data []byte, size int) {
	if size <= 0 {
		size = max(1, len(data))
	}
	for p := range slices.Chunk(data, size) {
		r.accept(from, p)
	}
}

// accept takes a packet. Its source must be an address of the host that it comes from, which is known by its own: a port says
// nothing behind a NAT.
func (r *receiver) accept(from netip.Addr, p []byte) {
	l := layoutOf(p)
	if l == nil {
		r.count.foreign.Add(1)
		return
	}
	if e := r.table.lookup(l.from(p)); e == nil || e.Addr() != from {
		r.count.spoofed.Add(1)
		return
	}
	r.count.received.add(Traffic{1, uint64(len(p))})
	r.merger.add(l, p)
}

// write writes to the device what count packets were put together to. The kernel refuses it if the device is down. If it is gone, the
// sender notices.
func (r *receiver) write(b []byte, count int) {
	if _, err := r.queue.Write(b); err != nil {
		r.count.refused.Add(uint64(count))
	}
}
