package udp

import (
	"errors"
	"net"
	"os"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/subnet"
)

// batchBytes is how much is read from the device, if there is so much, before it is sent. It should fit into a core's cache.
const batchBytes = 3 << 16

// sender carries packets from a queue of the device to peers.
type sender struct {
	*datapath
	queue  *os.File
	lanes  subnet.Pair[*lane] // by family of the underlay
	buffer []byte             // of one read
	read   int                // bytes that wait in the lanes
	broken error              // why the queue can't be read any more
}

// lane is what is sent by one socket.
type lane struct {
	socket *ipv4.PacketConn // takes IPv6's addresses as well: all it does here is to send many messages at a time
	batch  batch
}

func (d *datapath) newSender(queue *os.File, sockets subnet.Pair[*net.UDPConn]) *sender {
	s := &sender{datapath: d, queue: queue, buffer: make([]byte, vnetSize+packetMax)}
	for f, socket := range sockets.All() {
		*s.lanes.At(f) = &lane{socket: ipv4.NewPacketConn(socket)}
	}
	return s
}

func (s *sender) run() error {
	queue, err := s.queue.SyscallConn()
	if err != nil {
		return err
	}
	for fill := s.fill; ; {
		s.read = 0
		if err := queue.Read(fill); err != nil {
			return err
		}
		for _, l := range s.lanes.All() {
			sent, lost := l.batch.traffic(), l.batch.send(l.socket)
			s.count.sent.add(Traffic{sent.Packets - lost.Packets, sent.Bytes - lost.Bytes})
			s.count.refused.Add(lost.Packets)
			l.batch.reset()
		}
		if s.broken != nil {
			return s.broken
		}
	}
}

// fill reads what there is into the lanes. It returns false if that is nothing: it is called again when there is.
func (s *sender) fill(fd uintptr) bool {
	for s.read < batchBytes {
		switch n, err := unix.Read(int(fd), s.buffer); {
		case err == nil:
			s.take(s.buffer[:n])
		case errors.Is(err, unix.EAGAIN):
			return s.read > 0
		case errors.Is(err, unix.EBADFD):
			s.broken = errGone
			return true
		case !errors.Is(err, unix.EINTR):
			s.broken = os.NewSyscallError("read", err)
			return true
		}
	}
	return true
}

// take puts a packet of the kernel's into the lane of who it is for.
func (s *sender) take(b []byte) {
	p := b[min(vnetSize, len(b)):]
	l := layoutOf(p)
	if l == nil {
		s.count.foreign.Add(1)
		return
	}
	to := s.table.lookup(l.to(p))
	if to == nil || s.lanes.Of(to.outer) == nil {
		if !l.to(p).IsMulticast() { // as with what IPv6 tells routers of itself
			s.count.strayed.Add(1)
		}
		return
	}
	s.read += len(p)
	if err := s.lanes.Of(to.outer).batch.split(parseVnet(b), l, p, to); err != nil { // by a kernel that hands over what it was not asked for
		s.count.refused.Add(1)
	}
}
