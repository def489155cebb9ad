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

// socket sends Ethernet frames by a device, and receives ARP from it.
type socket struct{ *os.File }

// openSocket opens a socket on a device of the calling thread's network namespace. A bridge takes packets from its ports before a
// socket for one protocol sees them, so on a port a filter has to find ARP among all that comes in.
func openSocket(device int, port bool) (socket, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return socket{}, fmt.Errorf("open a packet socket: %w", err)
	}
	protocol := uint16(unix.ETH_P_ARP)
	if port {
		err, protocol = onlyARP(fd), unix.ETH_P_ALL
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(protocol), Ifindex: device})
	}
	if err != nil {
		return socket{}, errors.Join(fmt.Errorf("listen for ARP: %w", err), unix.Close(fd))
	}
	return socket{os.NewFile(uintptr(fd), "ARP")}, nil
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

// onlyARP has a socket see nothing but ARP that comes in.
func onlyARP(fd int) error {
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 3},
		bpf.LoadAbsolute{Off: 12, Size: 2}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_ARP, SkipTrue: 1}, bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0}})
	if err != nil {
		return err
	}
	// Spares the kernel a copy of each packet that goes out, for the filter to look at. Linux ≥ 4.20.
	_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	program := unix.SockFprog{Len: uint16(len(raw)), Filter: (*unix.SockFilter)(unsafe.Pointer(&raw[0]))}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program)
}

// listen hands all ARP that comes in to f, until the socket is closed or its device goes down or away.
func (s socket) listen(f func(arp)) {
	buffer := make([]byte, 2048)
	for {
		n, err := s.Read(buffer)
		if err != nil {
			return
		}
		if a, ok := parse(buffer[:n]); ok {
			f(a)
		}
	}
}

// send sends a from the device's own MAC. What can't be sent is lost, as on any wire: whoever waits for an answer waits in vain.
func (s socket) send(a arp, to backend.MAC) { _, _ = s.Write(a.frame(s.address(), to)) }

// relay sends a as if its sender had.
func (s socket) relay(a arp) { _, _ = s.Write(a.frame(a.mac, broadcast)) }
