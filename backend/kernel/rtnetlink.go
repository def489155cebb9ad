package kernel

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// timeout bounds a single rtnetlink request. The kernel answers in microseconds; a dump of 10,000 entries takes 0.1 s.
const timeout = 10 * time.Second

// conn is an rtnetlink socket in the network namespace of the thread that opened it. It carries the messages that the
// netlink library has no types for, or whose types lack what we need: nexthop objects, an address's protocol, and entries
// by the ten thousand.
type conn struct {
	socket *nl.SocketHandle
	buffer []byte               // what is received; the kernel fills 32 KiB at most (netlink_recvmsg, net/netlink/af_netlink.c)
	fault  func(kind int) error // what tests make a request of a kind fail with
}

func dial() (conn, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return conn{}, fmt.Errorf("rtnetlink: %w", err)
	}
	limit := unix.NsecToTimeval(timeout.Nanoseconds())
	err = errors.Join(s.SetSendTimeout(&limit), s.SetReceiveTimeout(&limit), s.SetExtAck(true))
	if err != nil {
		s.Close()
		return conn{}, fmt.Errorf("rtnetlink: %w", err)
	}
	// Since Linux 4.20 the kernel filters dumps; an older one sends everything, which is why every reader filters too.
	_ = unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return conn{socket: &nl.SocketHandle{Socket: s}, buffer: make([]byte, 64<<10)}, nil
}

func (c conn) close() { c.socket.Socket.Close() }

// request asks for a change.
type request struct {
	kind, flags int
	message     message
	done        func(error) error // what to make of what becomes of it; nil to take it as it is
}

// do sends one request and waits for its acknowledgement.
func (c conn) do(kind, flags int, m message) error {
	return c.doAll([]request{{kind: kind, flags: flags, message: m}})[0]
}

// doAll sends requests in one packet, and returns what became of each. The kernel takes them in order and goes on past one
// that fails. It answers those, and the last: an answer to each costs as much as what it is asked for (BenchmarkApply).
func (c conn) doAll(requests []request) []error {
	errs := make([]error, len(requests))
	c.exchange(requests, errs)
	for i, r := range requests {
		if r.done != nil {
			errs[i] = r.done(errs[i])
		}
	}
	return errs
}

// exchange is doAll as far as the kernel is concerned.
func (c conn) exchange(requests []request, errs []error) {
	var packet []byte
	var last int // where in packet the last message begins
	waiting := map[uint32]int{}
	seq := uint32(0)
	for i, r := range requests {
		if errs[i] = c.failing(r.kind); errs[i] == nil {
			seq, last = c.next(), len(packet)
			waiting[seq] = i
			packet = r.appendTo(packet, seq)
		}
	}
	if len(waiting) == 0 {
		return
	}
	flags := packet[last+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	err := c.send(packet)
	if err == nil {
		err = c.receive(seq, waiting, errs)
	}
	if err != nil {
		for _, i := range waiting { // what became of these isn't known
			errs[i] = err
		}
	}
}

// appendTo appends r behind a struct nlmsghdr. Its length is a multiple of 4, as those of headers and attributes are.
func (r request) appendTo(packet []byte, seq uint32) []byte {
	packet = binary.NativeEndian.AppendUint32(packet, uint32(unix.SizeofNlMsghdr+len(r.message)))
	packet = binary.NativeEndian.AppendUint16(packet, uint16(r.kind))
	packet = binary.NativeEndian.AppendUint16(packet, uint16(unix.NLM_F_REQUEST|r.flags))
	packet = binary.NativeEndian.AppendUint32(packet, seq)
	packet = binary.NativeEndian.AppendUint32(packet, 0)
	return append(packet, r.message...)
}

// receive puts the answers to what is waited for into errs, until the last one's.
func (c conn) receive(last uint32, waiting map[uint32]int, errs []error) error {
	return c.each(func(h syscall.NlMsghdr, data []byte) bool {
		i, ours := waiting[h.Seq]
		if !ours || h.Type != unix.NLMSG_ERROR { // the rest of a listing that broke off
			return true
		}
		errs[i] = failure(h, data)
		if h.Seq != last {
			delete(waiting, h.Seq)
		}
		return h.Seq != last
	})
}

// each reads messages until f returns false. What it hands to f stays as it is only until f returns.
func (c conn) each(f func(h syscall.NlMsghdr, data []byte) bool) error {
	fd := c.socket.Socket.GetFd()
	for {
		n, _, err := unix.Recvfrom(fd, c.buffer, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(timeout.Milliseconds()))
			if ready == 0 && err == nil {
				return unix.EAGAIN
			}
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		}
		for b := c.buffer[:n]; len(b) >= unix.SizeofNlMsghdr; {
			h := syscall.NlMsghdr{Len: number(b), Type: binary.NativeEndian.Uint16(b[4:]), Flags: binary.NativeEndian.Uint16(b[6:]), Seq: number(b[8:])}
			if h.Len < unix.SizeofNlMsghdr || int(h.Len) > len(b) {
				return unix.EBADMSG
			}
			if !f(h, b[unix.SizeofNlMsghdr:h.Len]) {
				return nil
			}
			b = b[min(int(h.Len+3)&^3, len(b)):]
		}
	}
}

// failure reads a struct nlmsgerr, and the kernel's own words if it added some (linux/netlink.h).
func failure(h syscall.NlMsghdr, data []byte) error {
	code := int32(number(data))
	if code == 0 {
		return nil
	}
	err, words := error(syscall.Errno(-code)), 4+unix.SizeofNlMsghdr
	if h.Flags&unix.NLM_F_ACK_TLVS == 0 || len(data) < words {
		return err
	}
	if h.Flags&unix.NLM_F_CAPPED == 0 { // the request is repeated whole
		words = 4 + (int(number(data[4:]))+3)&^3
	}
	for kind, value := range attributes(data, words) {
		if kind == nl.NLMSGERR_ATTR_MSG {
			err = fmt.Errorf("%w: %s", err, unix.ByteSliceToString(value))
		}
	}
	return err
}

// dump asks for a table and hands each of its entries to f, the header first, as they come: ten thousands need not be held at
// once. After an error f has not seen the whole table: see again.
func (c conn) dump(kind int, m message, f func(entry []byte)) error {
	return c.ask(request{kind: kind, flags: unix.NLM_F_DUMP, message: m}, f)
}

// ask makes a request that is answered with entries.
func (c conn) ask(r request, f func(entry []byte)) error {
	const header = 12 // the longest of those listed here, and shorter than any entry
	if err := c.failing(r.kind); err != nil {
		return err
	}
	seq := c.next()
	if err := c.send(r.appendTo(nil, seq)); err != nil {
		return err
	}
	var failed error
	interrupted := false
	err := c.each(func(h syscall.NlMsghdr, data []byte) (more bool) {
		if h.Seq != seq {
			return true
		}
		interrupted = interrupted || h.Flags&unix.NLM_F_DUMP_INTR != 0
		switch {
		case h.Type == unix.NLMSG_ERROR:
			failed = failure(h, data)
			return false
		case h.Type == unix.NLMSG_DONE:
			if code := int32(number(data)); code < 0 {
				failed = syscall.Errno(-code)
			}
			return false
		case len(data) >= header:
			f(data)
		}
		return h.Flags&unix.NLM_F_MULTI != 0
	})
	if err = cmp.Or(err, failed); err == nil && interrupted {
		err = unix.EINTR
	}
	return err
}

func (c conn) next() uint32 {
	c.socket.Seq++
	return c.socket.Seq
}

func (c conn) send(packet []byte) error {
	return unix.Sendto(c.socket.Socket.GetFd(), packet, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// again repeats a listing, which must begin anew each time, if it failed for what passes: a change meanwhile (EINTR, which
// netlink.ErrDumpInterrupted is too), a kernel short of memory (ENOBUFS), or a listing before it that broke off and isn't over
// in the kernel (EBUSY).
func again(list func() error) error {
	var err error
	for range 5 {
		if err = list(); !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return err
}

func (c conn) failing(kind int) error {
	if c.fault == nil {
		return nil
	}
	return c.fault(kind)
}

// message is a fixed header: ifinfomsg, ifaddrmsg, ndmsg, rtmsg or nhmsg (linux/rtnetlink.h, if_addr.h, neighbour.h,
// nexthop.h), and attributes behind it.
type message []byte

// newMessage returns a message with an empty header, and room for a few attributes.
func newMessage(header int) message { return make(message, header, header+64) }

// attr appends an attribute.
func (m message) attr(kind int, value []byte) message {
	m = binary.NativeEndian.AppendUint16(m, uint16(unix.SizeofRtAttr+len(value)))
	m = binary.NativeEndian.AppendUint16(m, uint16(kind))
	m = append(m, value...)
	return append(m, make([]byte, -len(value)&3)...)
}

func (m message) addr(kind int, a netip.Addr) message {
	b := a.As16()
	if a.Is4() {
		return m.attr(kind, b[12:])
	}
	return m.attr(kind, b[:])
}

func (m message) uint32(kind int, v uint32) message {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], v)
	return m.attr(kind, b[:])
}

// attributes yields an entry's attributes behind its header of the given length. Flags in the type's upper bits are cut off.
func attributes(entry []byte, header int) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for b := entry[min(header, len(entry)):]; len(b) >= unix.SizeofRtAttr; {
			length := int(binary.NativeEndian.Uint16(b))
			if length < unix.SizeofRtAttr || length > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&0x3fff, b[unix.SizeofRtAttr:length]) {
				return
			}
			b = b[min((length+3)&^3, len(b)):]
		}
	}
}

// address reads an attribute's address; the zero Addr if it isn't one.
func address(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

func number(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// family is a's address family as rtnetlink numbers it.
func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// gone turns the errors of deleting what is not there into success.
func gone(err error) error {
	for _, absent := range []error{unix.ESRCH, unix.ENOENT, unix.ENODEV, unix.EADDRNOTAVAIL} {
		if errors.Is(err, absent) {
			return nil
		}
	}
	return err
}
