package udp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketBuffer is how much may wait in a socket, bytes, as with wireguard's conn package.
const socketBuffer = 7 << 20

// listen opens so many sockets on one address and port, between which the kernel shares out the peers. Nobody else gets in: the
// first is bound as if it were to be the only one, which fails if the port is taken, and in the end none is to be shared any more.
func listen(local netip.AddrPort, count int) (list []*net.UDPConn, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(list))
		}
	}()
	for n := range count {
		conn, err := listenOne(local, n > 0)
		if err != nil {
			return list, err
		}
		list = append(list, conn)
		if err := control(conn, func(fd int) error { return share(fd, 1) }); err != nil {
			return list, err
		}
	}
	for _, conn := range list {
		if err := control(conn, func(fd int) error { return share(fd, 0) }); err != nil {
			return list, err
		}
	}
	return list, nil
}

func listenOne(local netip.AddrPort, shared bool) (*net.UDPConn, error) {
	var failed error
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return errors.Join(raw.Control(func(fd uintptr) { failed = prepare(int(fd), shared) }), failed)
	}}
	network := "udp4"
	if local.Addr().Is6() {
		network = "udp6" // alone
	}
	conn, err := c.ListenPacket(context.Background(), network, local.String())
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("UDP port %d is in use: end what uses it (ss -lunp sport = :%d), or give the network another Port: %w", local.Port(), local.Port(), err)
	}
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// prepare sets what is to be set before a socket is bound. Only for sharing is it needed.
func prepare(fd int, shared bool) error {
	for _, option := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} { // by force beyond net.core.rmem_max
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, socketBuffer)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1) // Linux 5.0
	if shared {
		return share(fd, 1)
	}
	return nil
}

func share(fd, on int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, on) }

// control calls f with the file descriptor of an open file.
func control(file syscall.Conn, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	return errors.Join(controlErr, err)
}

func closeAll[F io.Closer](list []F) error {
	var errs []error
	for _, f := range list {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
