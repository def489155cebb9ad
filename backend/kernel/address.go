package kernel

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// ifaProto is IFA_PROTO (linux/if_addr.h): who set an address. Linux ≥ 5.18; before that addresses carry no mark, and an
// earlier life's are left where they are.
const ifaProto = 11

// ifaddrmsg is a struct ifaddrmsg.
func ifaddrmsg(family uint8, bits, index int) message {
	m := newMessage(unix.SizeofIfAddrmsg)
	m[0], m[1], m[3] = family, uint8(bits), unix.RT_SCOPE_UNIVERSE
	binary.NativeEndian.PutUint32(m[4:], uint32(index))
	return m
}

// ifAddr is an address as the kernel lists it.
type ifAddr struct {
	index    int
	prefix   netip.Prefix
	scope    uint8
	flags    uint32 // IFA_F_…
	protocol uint8
}

// listAddrs lists all addresses of the namespace.
func (c conn) listAddrs() ([]ifAddr, error) {
	var list []ifAddr
	err := again(func() error {
		list = nil
		return c.dump(unix.RTM_GETADDR, ifaddrmsg(unix.AF_UNSPEC, 0, 0), func(entry []byte) {
			list = append(list, parseAddr(entry))
		})
	})
	return list, err
}

func parseAddr(entry []byte) ifAddr {
	a := ifAddr{index: int(number(entry[4:])), scope: entry[3], flags: uint32(entry[2])}
	var local, peer netip.Addr
	for kind, value := range attributes(entry, 8) {
		switch kind {
		case unix.IFA_LOCAL:
			local = address(value)
		case unix.IFA_ADDRESS:
			peer = address(value)
		case unix.IFA_FLAGS:
			a.flags = number(value)
		case ifaProto:
			a.protocol = value[0]
		}
	}
	if !local.IsValid() { // IPv6 has IFA_LOCAL only on point-to-point links
		local = peer
	}
	a.prefix = netip.PrefixFrom(local, int(entry[1]))
	return a
}

// compareAddrs compares our addresses with want. Ours: protocol 84, and those wanted, whoever set them. One that is wanted but
// has lost its connected route counts as missing: it doesn't do what it is wanted for.
func (k *Kernel) compareAddrs(want map[backend.Addr]struct{}) (backend.Delta[backend.Addr, struct{}], error) {
	c := backend.Compare(want)
	list, err := k.conn.listAddrs()
	if err != nil {
		return c.Delta, err
	}
	routes, err := k.conn.listRoutes(unix.RTPROT_KERNEL, unix.AF_INET) // after the addresses that they follow from
	if err != nil {
		return c.Delta, err
	}
	names, connected := k.names(), map[backend.Addr]bool{}
	for _, r := range routes {
		if r.scope == unix.RT_SCOPE_LINK {
			connected[backend.Addr{Dev: names[r.index], Prefix: r.dst}] = true
		}
	}
	for _, a := range list {
		addr := backend.Addr{Dev: names[a.index], Prefix: a.prefix}
		_, wanted := want[addr]
		lacking := connects(a.prefix) && a.flags&unix.IFA_F_NOPREFIXROUTE == 0 &&
			!connected[backend.Addr{Dev: addr.Dev, Prefix: a.prefix.Masked()}]
		if wanted && !lacking || !wanted && a.protocol == protocol {
			c.See(addr, struct{}{})
		}
	}
	return c.Delta, nil
}

// connects reports whether the kernel makes a route to an address's prefix that we look after.
func connects(p netip.Prefix) bool { return p.Addr().Is4() && !p.IsSingleIP() }

// setAddr adds an address, or to one that is there the connected route that it has lost.
func (k *Kernel) setAddr(a backend.Addr, _ struct{}) error {
	err := k.changeAddr(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, a)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if !connects(a.Prefix) {
		return nil
	}
	return k.setConnectedRoute(a)
}

// setConnectedRoute makes the route as the kernel did when the address was set (fib_add_ifaddr, net/ipv4/fib_frontend.c).
func (k *Kernel) setConnectedRoute(a backend.Addr) error {
	index, err := k.device(a.Dev)
	if err != nil {
		return err
	}
	dst := a.Prefix.Masked()
	m := rtmsg(dst, 0).uint32(unix.RTA_OIF, uint32(index)).addr(unix.RTA_PREFSRC, a.Prefix.Addr())
	m[5], m[6] = unix.RTPROT_KERNEL, unix.RT_SCOPE_LINK
	err = k.conn.do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, m)
	if errors.Is(err, unix.EEXIST) { // the kernel made it meanwhile
		return nil
	}
	return err
}

func (k *Kernel) deleteAddr(a backend.Addr, _ struct{}) error {
	return gone(k.changeAddr(unix.RTM_DELADDR, 0, a))
}

func (k *Kernel) changeAddr(kind, flags int, a backend.Addr) error {
	index, err := k.device(a.Dev)
	if err != nil {
		return err
	}
	addr := a.Prefix.Addr()
	return k.conn.do(kind, flags, ifaddrmsg(family(addr), a.Prefix.Bits(), index).
		addr(unix.IFA_LOCAL, addr).addr(unix.IFA_ADDRESS, addr).attr(ifaProto, []byte{protocol}))
}

// Addresses lists a device's addresses; none if there is no such device.
func (k *Kernel) Addresses(device string) ([]netip.Prefix, error) {
	link, err := k.links.LinkByName(device)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := k.conn.listAddrs()
	var addrs []netip.Prefix
	for _, a := range list {
		if a.index == link.Attrs().Index && !a.prefix.Addr().IsLinkLocalUnicast() {
			addrs = append(addrs, a.prefix)
		}
	}
	return addrs, err
}
