package probe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Checksummed is what becomes of packets whose checksum is left to the sending device.
type Checksummed int

// What Checksum finds.
const (
	ChecksumUnknown Checksummed = iota // it answers neither those with a checksum nor those without
	ChecksumFine
	ChecksumBroken // only those without a checksum arrive: transmit checksum offload is broken on this host
)

func (c Checksummed) String() string { return [...]string{"unknown", "fine", "broken"}[c] }

const (
	refusalWait = 300 * time.Millisecond
	// errorInterval is how seldom a kernel sends ICMP errors to one host after the first six, with something to spare
	// (icmp_ratelimit, Documentation/networking/ip-sysctl.rst).
	errorInterval = 1100 * time.Millisecond
	firstOpenPort = 61001 // above the ports that kernels give to clients (ip_local_port_range)
)

// Checksum finds out whether UDP from the address from, which must be this host's, arrives at to when its checksum is left to the
// device, and else whether it does without a checksum. What arrives is told by the port being closed. A sound path takes one
// round trip, a broken one 4 s, and a host that answers nothing 2 s. IPv6 is never broken, but unknown: it has no UDP without
// checksum (RFC 8200).
func Checksum(ctx context.Context, from, to netip.Addr) (Checksummed, error) {
	c := closed{from.Unmap(), to.Unmap()}
	bare := 0 // answers to packets without checksum
	for range 3 {
		if bare > 0 { // or it would be the peer's limit that keeps it from answering
			select {
			case <-ctx.Done():
				return ChecksumUnknown, ctx.Err()
			case <-time.After(errorInterval):
			}
		}
		arrived, err := c.try(ctx, true)
		switch {
		case err != nil:
			return ChecksumUnknown, err
		case arrived:
			return ChecksumFine, nil
		case c.to.Is6():
			continue
		}
		if arrived, err = c.try(ctx, false); err != nil {
			return ChecksumUnknown, err
		}
		if arrived {
			bare++
		}
	}
	if bare > 1 {
		return ChecksumBroken, nil
	}
	return ChecksumUnknown, nil
}

// closed is a host whose high ports are closed, mostly.
type closed struct{ from, to netip.Addr }

// try sends a packet to such a port, and tells whether the host says that it is closed.
func (c closed) try(ctx context.Context, checksum bool) (bool, error) {
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: c.from.AsSlice()}, Control: func(_, _ string, raw syscall.RawConn) error {
		if checksum {
			return nil
		}
		var optErr error
		err := raw.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) })
		return errors.Join(err, optErr)
	}}
	port := uint16(firstOpenPort + rand.IntN(1<<16-firstOpenPort))
	conn, err := d.DialContext(ctx, "udp", netip.AddrPortFrom(c.to, port).String())
	if err != nil {
		return false, refused("checksum probe to "+c.to.String(), err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(refusalWait)); err != nil {
		return false, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write([]byte("tulle checksum probe")); err != nil {
		return false, refused("checksum probe to "+c.to.String(), err)
	}
	_, err = conn.Read(make([]byte, 1))
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return true, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	case err == nil, errors.Is(err, os.ErrDeadlineExceeded): // who answers has got it, but may be anybody
		return false, nil
	}
	return false, fmt.Errorf("checksum probe to %s: %w", c.to, err)
}
