package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/icmp"
	"golang.org/x/sys/unix"
)

// answerWait is how long an answer may take. What comes later is lost.
const answerWait = 2 * time.Second

// ErrNoAnswer means that nothing came back in time, neither an answer nor an ICMP error.
var ErrNoAnswer = errors.New("no answer")

// TooLongError is a packet that may not be fragmented and is longer than the MTU of the device it would leave by.
type TooLongError struct {
	Size int // of the IP packet, bytes
	MTU  int // the device's, bytes; 0 if the kernel does not say
}

func (e *TooLongError) Error() string {
	return fmt.Sprintf("a packet of %d bytes is longer than this host's device takes (its MTU is %d): use one no longer than that", e.Size, e.MTU)
}

// ICMPError is what came back instead of an answer: some host on the way could not deliver the packet.
type ICMPError struct {
	From netip.Addr // who says so; this host's own address if it found no neighbour
	Type icmp.Type
	Code int
	MTU  int // of the link the packet was too long for, bytes; 0 in other errors
}

func (e *ICMPError) Error() string {
	text := fmt.Sprintf("%s answers with ICMP %s, code %d", e.From, e.Type, e.Code)
	if e.MTU > 0 {
		text += fmt.Sprintf(": the packet is longer than its next link takes, which is %d bytes", e.MTU)
	}
	return text
}

// Ping sends one echo request, and returns how long the answer took. The IP packet has size bytes, or as few as there must be;
// one with dontFragment is as long as that on the whole way, whatever path MTU the kernel has learnt.
//
// The error is an ErrNoAnswer (after 2 s, or when ctx's deadline ends), a *TooLongError, an *ICMPError, or says why there could
// be no ping. It needs CAP_NET_RAW, and sends from the address from, which must be this host's.
func Ping(ctx context.Context, from, to netip.Addr, size int, dontFragment bool) (time.Duration, error) {
	p, err := openPinger(ctx, from, to, dontFragment)
	if err != nil {
		return 0, err
	}
	defer p.Close()
	start := time.Now()
	if err := p.send(0, size); err != nil {
		return 0, err
	}
	deadline := start.Add(answerWait)
	a, err := p.next(ctx, deadline)
	if err != nil {
		return 0, fmt.Errorf("ping %s from %s: %w", to, from, err)
	}
	return time.Since(start), a.err
}

// pinger sends echo requests to one address, and sees its answers and the errors about them.
type pinger struct {
	*net.IPConn
	raw    syscall.RawConn
	family family
	id     int
	nonce  [8]byte     // what our requests are filled with: an identifier alone may be another program's, too
	sent   map[int]int // bytes of data, by sequence number

	packet, control []byte // what is read
}

// answer is what came back for the request with this sequence number.
type answer struct {
	seq int
	err error // an *ICMPError, if it is one
}

func openPinger(ctx context.Context, from, to netip.Addr, dontFragment bool) (*pinger, error) {
	from, to = from.Unmap(), to.Unmap()
	p := &pinger{family: familyOf(to), sent: map[int]int{}, packet: make([]byte, 1<<16), control: make([]byte, 512)}
	_, _ = rand.Read(p.nonce[:]) // it never fails
	p.id = int(binary.NativeEndian.Uint16(p.nonce[:]))
	d := net.Dialer{LocalAddr: &net.IPAddr{IP: from.AsSlice()}, Control: func(_, _ string, c syscall.RawConn) error {
		var optErr error
		err := c.Control(func(fd uintptr) { optErr = p.family.setPing(int(fd), dontFragment) })
		return errors.Join(err, optErr)
	}}
	conn, err := d.DialContext(ctx, p.family.network, to.String())
	if err != nil {
		return nil, refused(fmt.Sprintf("ping %s from %s", to, from), err)
	}
	p.IPConn = conn.(*net.IPConn)
	if p.raw, err = p.SyscallConn(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// refused says what to do about what the kernel won't do for us.
func refused(what string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s: %w: it needs root, or CAP_NET_RAW", what, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%s: %w: it is no address of this host", what, err)
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return fmt.Errorf("%s: %w: this host has no route there", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (f family) setPing(fd int, dontFragment bool) error {
	discover := unix.IP_PMTUDISC_DONT
	if dontFragment {
		discover = unix.IP_PMTUDISC_PROBE // IPv6 has the same numbers
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20) // many long answers at once; less may do
	return errors.Join(unix.SetsockoptInt(fd, f.level, f.discover, discover), unix.SetsockoptInt(fd, f.level, f.errors, 1))
}

// send sends a request. size is the IP packet's in bytes.
func (p *pinger) send(seq, size int) error {
	p.sent[seq] = max(size-p.family.header-icmpHeader, 0)
	request, err := p.family.echo(p.id, seq, p.data(seq))
	if err != nil {
		return err
	}
	for range 4 { // an error about an earlier request is told by whatever call comes next
		if _, err = p.Write(request); err == nil {
			return nil
		}
	}
	switch {
	case errors.Is(err, unix.EMSGSIZE):
		return &TooLongError{size, p.deviceMTU()}
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("ping %s: %w: this host's packet filter drops what it sends there", p.RemoteAddr(), err)
	}
	return refused("ping", err)
}

// data is what the request with this sequence number is filled with.
func (p *pinger) data(seq int) []byte {
	return bytes.Repeat(p.nonce[:], p.sent[seq]/len(p.nonce)+1)[:p.sent[seq]]
}

// next waits for what comes back for any of our requests. It is an ErrNoAnswer if nothing does.
func (p *pinger) next(ctx context.Context, deadline time.Time) (answer, error) {
	if err := p.SetReadDeadline(deadline); err != nil {
		return answer{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var a answer
	err := p.raw.Read(func(fd uintptr) bool {
		var got bool
		for more := true; more && !got; {
			a, got, more = p.read(int(fd))
		}
		return got
	})
	switch {
	case err == nil:
		return a, nil
	case errors.Is(ctx.Err(), context.Canceled):
		return answer{}, ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return answer{}, ErrNoAnswer
	}
	return answer{}, err
}

// read looks at one packet, an error or an answer: whether it is about one of our requests, and whether there may be more.
func (p *pinger) read(fd int) (a answer, ours, more bool) {
	if n, oob, _, _, err := unix.Recvmsg(fd, p.packet, p.control, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT); err == nil {
		seq, ours := p.ours(p.packet[:n], p.family.request)
		e, remote := parseError(p.control[:oob], p.family)
		return answer{seq, e}, ours && remote, true
	}
	n, _, err := unix.Recvfrom(fd, p.packet, unix.MSG_DONTWAIT)
	if err != nil {
		return answer{}, false, !errors.Is(err, unix.EAGAIN) // an error is told once, and the queue of them has more of it
	}
	seq, ours := p.ours(p.family.inIP(p.packet[:n]), p.family.reply)
	return answer{seq: seq}, ours, true
}

// ours tells whether an ICMP message is one of our requests or its answer. An error carries only the first bytes of the request.
func (p *pinger) ours(message []byte, kind byte) (seq int, ok bool) {
	if len(message) < icmpHeader || message[0] != kind || int(binary.BigEndian.Uint16(message[4:])) != p.id {
		return 0, false
	}
	seq = int(binary.BigEndian.Uint16(message[6:]))
	size, sent := p.sent[seq]
	data := message[icmpHeader:]
	if kind == p.family.reply && len(data) != size {
		return 0, false
	}
	return seq, sent && len(data) <= size && bytes.Equal(data, p.data(seq)[:len(data)])
}

// deviceMTU is what the kernel says of the packet that it just would not send.
func (p *pinger) deviceMTU() (mtu int) {
	_ = p.raw.Control(func(fd uintptr) {
		for mtu == 0 {
			_, n, _, _, err := unix.Recvmsg(int(fd), p.packet, p.control, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			if e, ok := extended(p.control[:n], p.family); ok && e.Origin == unix.SO_EE_ORIGIN_LOCAL && e.Errno == uint32(unix.EMSGSIZE) {
				mtu = int(e.Info)
			}
		}
	})
	return mtu
}

// extendedSize is the bytes of a struct sock_extended_err (linux/errqueue.h), after which comes who sent the error.
const extendedSize = int(unsafe.Sizeof(unix.SockExtendedErr{}))

// extended finds the kernel's account of an error among control messages.
func extended(control []byte, f family) (e unix.SockExtendedErr, ok bool) {
	data := controlData(control, f.level, f.errors)
	if len(data) < extendedSize {
		return e, false
	}
	_, err := binary.Decode(data, binary.NativeEndian, &e)
	return e, err == nil
}

// controlData returns the control message of a kind, or nothing.
func controlData(control []byte, level, kind int) []byte {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		if int(m.Header.Level) == level && int(m.Header.Type) == kind {
			return m.Data
		}
	}
	return nil
}

// parseError reads an ICMP error; remote is false for what this host's own kernel has to say.
func parseError(control []byte, f family) (err error, remote bool) {
	e, ok := extended(control, f)
	if !ok || (e.Origin != unix.SO_EE_ORIGIN_ICMP && e.Origin != unix.SO_EE_ORIGIN_ICMP6) {
		return nil, false
	}
	at, size := 4, 4 // of the address in a struct sockaddr_in
	if f.domain == unix.AF_INET6 {
		at, size = 8, 16
	}
	rest := controlData(control, f.level, f.errors)[extendedSize:]
	icmpErr := &ICMPError{Type: icmpType(e.Type, f), Code: int(e.Code)}
	if len(rest) >= at+size {
		icmpErr.From, _ = netip.AddrFromSlice(rest[at : at+size])
	}
	if e.Errno == uint32(unix.EMSGSIZE) {
		icmpErr.MTU = int(e.Info)
	}
	return icmpErr, true
}
