package probe

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// socket sends and receives ICMP of one family. Nobody is woken by what arrives: the kernel notes the time, and all is read at
// the next tick. What answers there are, and what others ask, wait apart: a flood of requests, which anybody may send, takes no
// room from answers.
type socket struct {
	family
	replies, requests int // file descriptors
	data, control     []byte
}

// drainMost is how many packets are read at a tick. There are about twenty, and the kernel has room for a few hundred.
const drainMost = 500

func openSocket(f family, id uint16) (*socket, error) {
	s := &socket{family: f, replies: -1, requests: -1, data: make([]byte, 60+icmpHeader+messageMost+1), control: make([]byte, 128)}
	var err error
	if s.replies, err = f.listen(f.filter(f.reply, &id)); err == nil {
		s.requests, err = f.listen(f.filter(f.request, nil))
	}
	if err != nil {
		s.close()
		return nil, refused("probe peers: open a raw ICMP socket", err)
	}
	return s, nil
}

func (s *socket) close() {
	for _, fd := range []int{s.replies, s.requests} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// listen opens a raw socket that lets in what passes the filter.
func (f family) listen(filter []bpf.Instruction) (int, error) {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(f.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, f.protocol)
	if err != nil {
		return -1, err
	}
	program := unix.SockFprog{Len: uint16(len(raw)), Filter: (*unix.SockFilter)(unsafe.Pointer(&raw[0]))}
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptInt(fd, f.level, f.discover, unix.IP_PMTUDISC_DONT))
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// filter lets ICMP messages of a type in whose data begins with our magic, and if id is not nil, which have this identifier. See
// family.inIP for where a message begins.
func (f family) filter(kind byte, id *uint16) []bpf.Instruction {
	const accept, drop = 1 << 16, 0
	var start bpf.Instruction = bpf.LoadMemShift{Off: 0} // X is the length of the IPv4 header
	if f.domain == unix.AF_INET6 {
		start = bpf.LoadConstant{Dst: bpf.RegX, Val: 0}
	}
	program := []bpf.Instruction{start,
		bpf.LoadIndirect{Off: 0, Size: 1}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(kind), SkipTrue: 1}, bpf.RetConstant{Val: drop},
		bpf.LoadIndirect{Off: icmpHeader, Size: 4}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: magic, SkipTrue: 1}, bpf.RetConstant{Val: drop}}
	if id != nil {
		program = append(program,
			bpf.LoadIndirect{Off: 4, Size: 2}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(*id), SkipTrue: 1}, bpf.RetConstant{Val: drop})
	}
	return append(program, bpf.RetConstant{Val: accept})
}

// send sends an ICMP message from an address of this host.
func (s *socket) send(from, to netip.Addr, message []byte) error {
	var source []byte
	var dest unix.Sockaddr
	if s.domain == unix.AF_INET {
		source = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4()})
		dest = &unix.SockaddrInet4{Addr: to.As4()}
	} else {
		source = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: from.As16()})
		dest = &unix.SockaddrInet6{Addr: to.As16()}
	}
	return unix.Sendmsg(s.replies, message, source, dest, 0)
}

// packet is an ICMP message that arrived, at a time by the wall clock.
type packet struct {
	from    netip.Addr
	message []byte
	at      time.Time
}

// drain hands over what has arrived at one of the two. A packet is valid during the call.
func (s *socket) drain(fd int, handle func(packet)) {
	for range drainMost {
		n, oob, _, from, err := unix.Recvmsg(fd, s.data, s.control, 0)
		if err != nil {
			return // there is nothing any more
		}
		p := packet{message: s.inIP(s.data[:n])}
		switch a := from.(type) {
		case *unix.SockaddrInet4:
			p.from = netip.AddrFrom4(a.Addr)
		case *unix.SockaddrInet6:
			p.from = netip.AddrFrom16(a.Addr)
		}
		var stamp unix.Timespec
		if _, err := binary.Decode(controlData(s.control[:oob], unix.SOL_SOCKET, unix.SCM_TIMESTAMPNS), binary.NativeEndian, &stamp); err == nil {
			p.at = time.Unix(stamp.Unix())
		}
		if len(p.message) >= icmpHeader { // what came before there was a filter may be anything
			handle(p)
		}
	}
}

func (p packet) seq() uint16 { return binary.BigEndian.Uint16(p.message[6:]) }
