package kernel

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
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
	sockets map[int]*nl.SocketHandle
	fault   func(kind int) error // what tests make a request of a kind fail with
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
	return conn{sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

func (c conn) close() { c.sockets[unix.NETLINK_ROUTE].Socket.Close() }

// do sends one request and waits for its acknowledgement.
func (c conn) do(kind, flags int, header message, attrs ...*nl.RtAttr) error {
	if err := c.failing(kind); err != nil {
		return err
	}
	_, err := c.request(kind, flags|unix.NLM_F_ACK, header, attrs).Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// dump asks for a table and hands each of its entries to f, the header first. What f sees is a whole table: of a dump that
// failed it sees nothing.
func (c conn) dump(kind int, header message, f func(entry []byte), attrs ...*nl.RtAttr) error {
	var entries [][]byte
	err := again(func() (err error) {
		entries, err = c.request(kind, unix.NLM_F_DUMP, header, attrs).Execute(unix.NETLINK_ROUTE, 0)
		return cmp.Or(err, c.failing(kind))
	})
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if len(entry) >= header.Len() {
			f(entry)
		}
	}
	return nil
}

// again repeats a listing that failed for what passes: a change meanwhile (EINTR, which netlink.ErrDumpInterrupted is too),
// a kernel short of memory (ENOBUFS), or a listing before it that broke off and isn't over in the kernel (EBUSY).
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

func (c conn) request(kind, flags int, header message, attrs []*nl.RtAttr) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = c.sockets
	req.AddData(header)
	for _, a := range attrs {
		req.AddData(a)
	}
	return req
}

// message is a fixed header as bytes: ifinfomsg, ifaddrmsg, ndmsg, rtmsg or nhmsg (linux/rtnetlink.h, if_addr.h,
// neighbour.h, nexthop.h).
type message []byte

func (m message) Len() int          { return len(m) }
func (m message) Serialize() []byte { return m }

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

func addrAttr(kind int, a netip.Addr) *nl.RtAttr { return nl.NewRtAttr(kind, a.AsSlice()) }

func uint32Attr(kind int, v uint32) *nl.RtAttr { return nl.NewRtAttr(kind, nl.Uint32Attr(v)) }

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
