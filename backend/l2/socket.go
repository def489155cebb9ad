package l2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// socket sends Ethernet frames by a device, and receives from it what hosts say of their addresses.
type socket struct{ *os.File }

// openSocket opens a socket on a device of the calling thread's network namespace. A bridge takes packets from its ports before a
// socket for one protocol sees them, and there are two: a filter has to find what is meant among all that comes in.
func openSocket(device int) (socket, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return socket{}, fmt.Errorf("open a packet socket: %w", err)
	}
	err = onlyMessages(fd)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: device})
	}
	if err != nil {
		return socket{}, errors.Join(fmt.Errorf("listen for ARP and neighbour discovery: %w", err), unix.Close(fd))
	}
	return socket{os.NewFile(uintptr(fd), "neighbours")}, nil
}

// address is the device's own MAC, which may change: a bridge's does with its ports.
func (s socket) address() (mac backend.MAC) {
	raw, err := s.SyscallConn()
	if err != nil {
		return mac
	}
	_ = raw.Control(func(fd uintptr) {
		bound, _ := unix.Getsockname(int(fd))
		if l, ok := bound.(*unix.SockaddrLinklayer); ok {
			copy(mac[:], l.Addr[:l.Halen])
		}
	})
	return mac
}

// networkOrder is n with its bytes in network order, whichever order this machine has.
func networkOrder(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

// onlyMessages has a socket see nothing but ARP and neighbour discovery that come in.
func onlyMessages(fd int) error {
	const kind, next, icmp = 12, ethernet + 6, ethernet + ipv6Size // offsets: of the frame's type, the packet's and the message's
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 8},
		bpf.LoadAbsolute{Off: kind, Size: 2}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_ARP, SkipTrue: 7},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IPV6, SkipTrue: 5},
		bpf.LoadAbsolute{Off: next, Size: 1}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 3},
		bpf.LoadAbsolute{Off: icmp, Size: 1}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: solicitation, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: advertisement, SkipTrue: 1}, bpf.RetConstant{Val: 0}, bpf.RetConstant{Val: 1 << 16}})
	if err != nil {
		return err
	}
	// Spares the kernel a copy of each packet that goes out, for the filter to look at. Linux ≥ 4.20.
	_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	program := unix.SockFprog{Len: uint16(len(raw)), Filter: (*unix.SockFilter)(unsafe.Pointer(&raw[0]))}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program)
}

// listen hands all messages that come in to f, until the socket is closed or its device goes down or away.
func (s socket) listen(f func(message)) {
	buffer := make([]byte, 2048)
	for {
		n, err := s.Read(buffer)
		if err != nil {
			return
		}
		if m, ok := parse(buffer[:n]); ok {
			f(m)
		}
	}
}

// send sends m from the device's own MAC. What can't be sent is lost, as on any wire: whoever waits for an answer waits in vain.
func (s socket) send(m message, to backend.MAC) { _, _ = s.Write(m.frame(s.address(), to)) }

// relay sends m to all as if its sender had.
func (s socket) relay(m message) { _, _ = s.Write(m.frame(m.mac, broadcast)) }
