package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
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
	created  uint32 // hundredths of a second since the host was started
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
		case unix.IFA_CACHEINFO: // struct ifa_cacheinfo, linux/if_addr.h
			a.created = number(value[min(8, len(value)):])
		}
	}
	if !local.IsValid() { // IPv6 has IFA_LOCAL only on point-to-point links
		local = peer
	}
	a.prefix = netip.PrefixFrom(local, int(entry[1]))
	return a
}

// compareAddrs compares our addresses with want. Ours: protocol 84, and those wanted, whoever set them. One that is wanted but
// has lost its connected route counts as missing, and one that IPv6 doesn't use because somebody else may have it: they don't do
// what they are wanted for.
func (k *Kernel) compareAddrs(want map[backend.Addr]struct{}) (backend.Delta[backend.Addr, struct{}], error) {
	c := backend.Compare(want)
	list, err := k.conn.listAddrs()
	if err != nil {
		return c.Delta, err
	}
	routes, err := k.conn.listRoutes(unix.RTPROT_KERNEL, unix.AF_INET, unix.AF_INET6) // after the addresses that they follow from
	if err != nil {
		return c.Delta, err
	}
	names, connected := k.names(), map[backend.Addr]bool{}
	for _, r := range routes {
		if r.connected() {
			connected[backend.Addr{Dev: names[r.index], Prefix: r.dst}] = true
		}
	}
	for _, a := range list {
		addr := backend.Addr{Dev: names[a.index], Prefix: a.prefix}
		_, wanted := want[addr]
		lacking := a.unproven() || !a.prefix.IsSingleIP() && a.flags&unix.IFA_F_NOPREFIXROUTE == 0 &&
			!connected[backend.Addr{Dev: addr.Dev, Prefix: a.prefix.Masked()}]
		if wanted && !lacking || !wanted && a.protocol == protocol {
			c.See(addr, struct{}{})
		}
	}
	return c.Delta, nil
}

// unproven reports whether duplicate address detection keeps an address from being used (RFC 4862). On a bridge without ports it
// goes on for ever.
func (a ifAddr) unproven() bool {
	return a.prefix.Addr().Is6() && a.flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0
}

// connected reports whether a route of the kernel's own is one to the prefix of an address.
func (r route) connected() bool {
	return r.scope == unix.RT_SCOPE_LINK || r.dst.Addr().Is6() && !r.gateway.IsValid()
}

// setAddr adds an address, or mends one that is there.
func (k *Kernel) setAddr(a backend.Addr, _ struct{}) error {
	err := k.addAddr(a)
	switch {
	case errors.Is(err, unix.EEXIST):
		return k.mendAddr(a)
	case errors.Is(err, unix.EACCES): // net.ipv6.conf.default.disable_ipv6 is 1 on many hosts
		if err := setSysctl("net/ipv6/conf/"+a.Dev+"/disable_ipv6", "0"); err != nil {
			return err
		}
		return k.addAddr(a)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("this kernel has no %s: boot it without ipv6.disable=1", subnet.FamilyOf(a.Prefix.Addr()))
	}
	return err
}

func (k *Kernel) addAddr(a backend.Addr) error {
	return k.changeAddr(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, a)
}

// mendAddr sets an address anew that can't be used, and gives back the connected route to one that has lost it.
func (k *Kernel) mendAddr(a backend.Addr) error {
	there, err := k.conn.findAddr(k.devices[a.Dev], a.Prefix)
	switch {
	case err != nil:
		return err
	case there.unproven():
		if err := k.deleteAddr(a, struct{}{}); err != nil {
			return err
		}
		return k.addAddr(a)
	case a.Prefix.IsSingleIP():
		return nil
	}
	return k.setConnectedRoute(a)
}

// findAddr returns a device's address as it is now; the zero one if there is none.
func (c conn) findAddr(index int, p netip.Prefix) (ifAddr, error) {
	list, err := c.listAddrs()
	for _, a := range list {
		if a.index == index && a.prefix == p {
			return a, err
		}
	}
	return ifAddr{}, err
}

// setConnectedRoute makes the route as the kernel did when the address was set (fib_add_ifaddr, net/ipv4/fib_frontend.c;
// addrconf_prefix_route, net/ipv6/addrconf.c, which knows neither scope nor source).
func (k *Kernel) setConnectedRoute(a backend.Addr) error {
	index, err := k.device(a.Dev)
	if err != nil {
		return err
	}
	dst := a.Prefix.Masked()
	m := rtmsg(dst, unix.RTN_UNICAST, 0).uint32(unix.RTA_OIF, uint32(index))
	if dst.Addr().Is4() {
		m = m.addr(unix.RTA_PREFSRC, a.Prefix.Addr())
	} else {
		m = m.uint32(unix.RTA_PRIORITY, 256) // IP6_RT_PRIO_ADDRCONF, linux/ipv6_route.h
	}
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
	return k.conn.do(kind, flags, ourAddr(index, a.Prefix))
}

// ourAddr is an address with our mark.
func ourAddr(index int, p netip.Prefix) message {
	a := p.Addr()
	m := ifaddrmsg(family(a), p.Bits(), index)
	if a.Is6() {
		m[2] = unix.IFA_F_NODAD // nobody else has our addresses, so the kernel need not ask before it uses them
	}
	return m.addr(unix.IFA_LOCAL, a).addr(unix.IFA_ADDRESS, a).attr(ifaProto, []byte{protocol})
}

// refreshIPv6 has the kernel look up again all IPv6 routes that it remembers, with the source address that they were for: it does
// when an address comes or goes (rt_genid_bump_ipv6 in __ipv6_ifa_notify, net/ipv6/addrconf.c).
func (c conn) refreshIPv6(index int) error {
	m := ourAddr(index, netip.MustParsePrefix("fe80::54/128"))
	if err := c.do(unix.RTM_NEWADDR, unix.NLM_F_CREATE, m); err != nil {
		return err
	}
	return c.do(unix.RTM_DELADDR, 0, m)
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
