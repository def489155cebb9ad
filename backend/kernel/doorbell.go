package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// bell turns kernel notifications into rings. It says that something may have changed, never what: the loop looks itself.
type bell struct {
	c      chan struct{} // capacity one: rings in a row are one ring
	socket *nl.NetlinkSocket
	self   uint32 // the port that our own requests come from

	mu      sync.Mutex
	wrote   map[deed]bool   // see expect
	names   map[string]bool // devices of interest, also while they don't exist
	indexes map[int]bool
	tunnels map[int]bool     // those of them whose neighbours and FDB are ours; true if the kernel adds to it by itself
	addrs   map[place]ifAddr // as they were last told of, on devices of interest
}

// place is where an address is.
type place struct {
	index  int
	prefix netip.Prefix
}

// Netconf messages (linux/netconf.h), which x/sys/unix doesn't name.
const (
	netconfaIfindex    = 1
	netconfaForwarding = 2
	netconfaIfindexAll = -1
)

// Setting a device down removes its routes and neighbours without a word about them; the link group tells of it. FDB
// entries come with the neighbours.
var groups = []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEXTHOP,
	unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF}

func newBell() (*bell, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, groups...)
	if err != nil {
		return nil, fmt.Errorf("subscribe to rtnetlink: %w", err)
	}
	// A burst of changes must not overflow the socket; if it does all the same (the limit needs CAP_NET_ADMIN), that rings.
	_ = s.SetReceiveBufferSize(8<<20, true)
	return &bell{c: make(chan struct{}, 1), socket: s, names: map[string]bool{}, wrote: map[deed]bool{}, addrs: map[place]ifAddr{}}, nil
}

func (b *bell) close() { b.socket.Close() }

func (b *bell) ring() {
	select {
	case b.c <- struct{}{}:
	default:
	}
}

// watch says which devices are of interest: those that want has, and those that they run over.
func (b *bell) watch(devices map[string]int, want backend.State) {
	names, indexes, tunnels := map[string]bool{want.Underlay: true}, map[int]bool{}, map[int]bool{}
	for name, l := range want.Links {
		names[name] = true
		if l.Parent() != "" {
			names[l.Parent()] = true
			tunnels[devices[name]] = l.VXLAN.Learning
		}
	}
	for name := range names {
		indexes[devices[name]] = true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.names, b.indexes, b.tunnels, b.wrote = names, indexes, tunnels, map[deed]bool{} // what was done before is looked at now
}

// listen rings until ctx ends. It fails only if the socket does.
func (b *bell) listen(ctx context.Context) error {
	stop := context.AfterFunc(ctx, b.close)
	defer stop()
	for {
		messages, _, err := b.socket.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // some were lost: any of them could have been of interest
			b.ring()
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		case err != nil:
			return fmt.Errorf("receive from rtnetlink: %w", err)
		}
		for _, m := range messages {
			if b.news(m) {
				b.ring()
			}
		}
	}
}

// news reports whether a notification is a reason to look: what we did ourselves is none.
func (b *bell) news(m syscall.NetlinkMessage) bool {
	return b.concerns(m.Header.Type, m.Header.Flags, m.Data) && m.Header.Pid != b.self // in this order: what is expected is over once it was seen
}

// deed is a change of a neighbour or an FDB entry. The kernel tells of some of them without saying whose they are
// (vxlan_fdb_notify, drivers/net/vxlan/vxlan_core.c; neigh_cleanup_and_release, net/core/neighbour.c).
type deed struct {
	kind   uint16 // RTM_NEWNEIGH or RTM_DELNEIGH
	family uint8
	index  int
	dst    netip.Addr
	mac    backend.MAC // not of a neighbour that is deleted: it has none any more
}

func (d deed) of(kind uint16) deed {
	if d.kind = kind; kind == unix.RTM_DELNEIGH && d.family != unix.AF_BRIDGE {
		d.mac = backend.MAC{}
	}
	return d
}

// expect says that we are about to do d, so that its notification is no news.
func (b *bell) expect(d deed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	undone := map[uint16]uint16{unix.RTM_NEWNEIGH: unix.RTM_DELNEIGH, unix.RTM_DELNEIGH: unix.RTM_NEWNEIGH}[d.kind]
	delete(b.wrote, d.of(undone))
	b.wrote[d.of(d.kind)] = true
}

// expected reports whether a notification is of what we did.
func (b *bell) expected(kind uint16, data []byte) bool {
	n := parseNeighbour(data)
	d := deed{kind, n.family, n.index, n.dst, n.mac}.of(kind)
	if !b.wrote[d] {
		return false
	}
	if delete(b.wrote, d); len(b.wrote) == 0 {
		b.wrote = map[deed]bool{} // a map keeps the room of the most it ever held
	}
	return true
}

// concerns reports whether a notification can be about something that Apply or Underlay looks at. Containers that come and
// go on a busy host are not.
func (b *bell) concerns(kind, flags uint16, data []byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch kind {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return len(data) >= unix.SizeofIfInfomsg && (b.indexes[int(number(data[4:]))] || b.names[ifName(data)])
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return len(data) >= 8 && b.indexes[int(number(data[4:]))] && b.changes(kind, parseAddr(data))
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return len(data) >= 12 && b.ours(data) && !b.expected(kind, data)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE: // ours; one that may have taken ours' place; the default route, which chooses the underlay; what tells who is on its segment
		return len(data) >= unix.SizeofRtMsg && (data[5] == protocol || flags&unix.NLM_F_REPLACE != 0 || data[1] == 0 ||
			kind == unix.RTM_DELROUTE && data[5] == unix.RTPROT_KERNEL && b.connects(data) || b.reaches(data))
	case rtmNewNexthop, rtmDelNexthop:
		return len(data) >= 8 && data[2] == protocol
	case unix.RTM_NEWNETCONF:
		return switchesForwarding(data)
	}
	return false
}

// changes reports whether an address is not as it was told of before. With each lease that is renewed, and each time that a router
// says what it has said before, the kernel tells of it.
func (b *bell) changes(kind uint16, a ifAddr) bool {
	at := place{a.index, a.prefix}
	if kind == unix.RTM_DELADDR {
		delete(b.addrs, at)
		return true
	}
	before := b.addrs[at]
	b.addrs[at] = a
	return a != before
}

// ours reports whether a notification of a neighbour or FDB entry may be of one of ours: not if the kernel learned it, or forgot it,
// nor if it is of a group, as the kernel makes them for what IPv6 says to routers, and collects them when there are many neighbours.
func (b *bell) ours(data []byte) bool {
	if parseNeighbour(data).dst.IsMulticast() {
		return false
	}
	learns, watched := b.tunnels[int(number(data[4:]))]
	permanent := binary.NativeEndian.Uint16(data[8:])&unix.NUD_PERMANENT != 0
	return watched && (permanent || data[0] != unix.AF_BRIDGE || !learns)
}

// connects reports whether a route leads to a device of interest: the kernel's own there are the connected ones.
func (b *bell) connects(data []byte) bool {
	r, _ := parseRoute(data)
	return b.indexes[r.index]
}

// reaches reports whether a route of an operator's says what the underlay reaches without a gateway. The kernel's own come and go with
// addresses.
func (b *bell) reaches(data []byte) bool {
	if data[5] == unix.RTPROT_KERNEL || data[7] != unix.RTN_UNICAST {
		return false
	}
	r, _ := parseRoute(data)
	return b.indexes[r.index] && !r.gateway.IsValid()
}

// switchesForwarding reports whether forwarding was switched on or off for the host. Every new device tells of its own.
func switchesForwarding(data []byte) bool {
	all, forwarding := false, false
	for kind, value := range attributes(data, 4) { // behind a struct netconfmsg
		switch kind {
		case netconfaIfindex:
			all = int32(number(value)) == netconfaIfindexAll
		case netconfaForwarding:
			forwarding = true
		}
	}
	return all && forwarding
}

// ifName is the device's name in a link notification.
func ifName(data []byte) string {
	for kind, value := range attributes(data, unix.SizeofIfInfomsg) {
		if kind == unix.IFLA_IFNAME {
			return strings.TrimRight(string(value), "\x00")
		}
	}
	return ""
}
