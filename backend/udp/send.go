package udp

import (
	"errors"
	"net"
	"os"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// batchBytes is how much is read from the device, if there is so much, before it is sent. It should fit into a core's cache.
const batchBytes = 3 << 16

// sender carries packets from a queue of the device to peers.
type sender struct {
	*datapath
	queue  *os.File
	socket *ipv4.PacketConn
	buffer []byte // of one read
	batch  batch
	broken error // why the queue can't be read any more
}

func (d *datapath) newSender(queue *os.File, socket *net.UDPConn) *sender {
	return &sender{datapath: d, queue: queue, socket: ipv4.NewPacketConn(socket), buffer: make([]byte, vnetSize+packetMax)}
}

func (s *sender) run() error {
	queue, err := s.queue.SyscallConn()
	if err != nil {
		return err
	}
	for fill := s.fill; ; {
		s.batch.reset()
		if err := queue.Read(fill); err != nil {
			return err
		}
		sent, lost := s.batch.traffic(), s.batch.send(s.socket)
		s.count.sent.add(Traffic{sent.Packets - lost.Packets, sent.Bytes - lost.Bytes})
		s.count.refused.Add(lost.Packets)
		if s.broken != nil {
			return s.broken
		}
	}
}

// fill reads what there is into the batch. It returns false if that is nothing: it is called again when there is.
func (s *sender) fill(fd uintptr) bool {
	for len(s.batch.data) < batchBytes {
		switch n, err := unix.Read(int(fd), s.buffer); {
		case err == nil:
			s.take(s.buffer[:n])
		case errors.Is(err, unix.EAGAIN):
			return len(s.batch.data) > 0
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

// take puts a packet of the kernel's into the batch.
func (s *sender) take(b []byte) {
	if len(b) < vnetSize || !isIPv4(b[vnetSize:]) {
		s.count.foreign.Add(1)
		return
	}
	h, p := parseVnet(b), b[vnetSize:]
	to := s.table.lookup(destination(p))
	if to == nil {
		s.count.strayed.Add(1)
		return
	}
	if err := s.batch.split(h, p, to); err != nil { // by a kernel that hands over what it was not asked for
		s.count.refused.Add(1)
	}
}
