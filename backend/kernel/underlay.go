package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// ErrNoUnderlay says that no device fits. One may appear later.
var ErrNoUnderlay = errors.New("no underlay device")

// device is what choosing needs to know of one.
type device struct {
	name  string
	index int
	mtu   int
	addrs []ifAddr // best first
}

// Underlay observes the device that carries the overlay. It fails with ErrNoUnderlay if none fits.
func (k *Kernel) Underlay(c backend.Choice) (backend.Underlay, error) {
	devices, err := k.underlayDevices()
	if err != nil {
		return backend.Underlay{}, err
	}
	routes, err := k.conn.listForeignRoutes()
	if err != nil {
		return backend.Underlay{}, fmt.Errorf("list routes: %w", err)
	}
	d, local, err := choose(c, devices, routes, k.conn.outputDevice)
	if err != nil {
		return backend.Underlay{}, err
	}
	u := describe(d, local, c.Public, routes)
	u.Others = others(devices, u.Local)
	u.AcceptRA, err = k.listeners(d, devices, routes)
	return u, err
}

// listeners are the devices that take routers' word now, as far as something depends on it: of the underlay's device addresses
// and routes of either sort, of others routes.
func (k *Kernel) listeners(underlay device, devices []device, routes []route) (names []string, err error) {
	for _, d := range devices {
		advertised := func(r route) bool { return r.index == d.index && r.protocol == unix.RTPROT_RA }
		if d.index != underlay.index && !slices.ContainsFunc(routes, advertised) {
			continue
		}
		err := k.conn.link(d.index, func(entry []byte) {
			if parseInet6(entry).listens() {
				names = append(names, d.name)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return names, nil
}

// underlayDevices lists the devices that aren't ours, with their addresses, the best first.
func (k *Kernel) underlayDevices() ([]device, error) {
	table, err := k.observeLinks()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	addrs, err := k.conn.listAddrs()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var devices []device
	for name, link := range table.all {
		attrs := link.Attrs()
		if _, ours := table.own[name]; ours {
			continue
		}
		d := device{name: name, index: attrs.Index, mtu: attrs.MTU}
		for _, a := range addrs {
			if a.index == d.index && a.usable() {
				d.addrs = append(d.addrs, a)
			}
		}
		slices.SortStableFunc(d.addrs, ifAddr.order)
		devices = append(devices, d)
	}
	slices.SortFunc(devices, func(a, b device) int { return a.index - b.index })
	return devices, nil
}

// usable leaves out addresses that are on their way out, not there yet, or made to be short-lived (RFC 8981).
func (a ifAddr) usable() bool {
	const unusable = unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	temporary := a.prefix.Addr().Is6() && a.flags&unix.IFA_F_TEMPORARY != 0
	return a.prefix.IsValid() && a.flags&unusable == 0 && !temporary
}

// order puts the oldest of equal addresses first, so that none that comes later, as a service's does, takes its place: the kernel
// lists those of IPv6 the newest first.
func (a ifAddr) order(b ifAddr) int {
	return cmp.Or(a.rank()-b.rank(), cmp.Compare(a.created, b.created))
}

// rank orders addresses: global before link-local, permanent before dynamic.
func (a ifAddr) rank() int {
	rank := 0
	if a.scope != unix.RT_SCOPE_UNIVERSE || a.prefix.Addr().IsLinkLocalUnicast() {
		rank += 2
	}
	if a.flags&unix.IFA_F_PERMANENT == 0 {
		rank++
	}
	return rank
}

// choose returns the device to use, and the address if the choice named one. reach says which device, by index, leads to an
// address.
func choose(c backend.Choice, devices []device, routes []route, reach func(netip.Addr) (int, error)) (device, netip.Addr, error) {
	for _, want := range c.Ifaces {
		addr, _ := netip.ParseAddr(want)
		for _, d := range devices {
			if d.name == want || addr.IsValid() && d.has(addr) {
				return d, addr, nil
			}
		}
	}
	for _, re := range c.Regexes {
		for _, d := range devices {
			for _, a := range d.addrs {
				if re.MatchString(a.prefix.Addr().String()) {
					return d, a.prefix.Addr(), nil
				}
			}
		}
		for _, d := range devices {
			if re.MatchString(d.name) {
				return d, netip.Addr{}, nil
			}
		}
	}
	if c.CanReach.IsValid() {
		index, err := reach(c.CanReach)
		if err != nil {
			return device{}, netip.Addr{}, fmt.Errorf("%w: no route to %s, which --iface-can-reach names: %w", ErrNoUnderlay, c.CanReach, err)
		}
		return find(devices, index, "leads to "+c.CanReach.String())
	}
	if len(c.Ifaces)+len(c.Regexes) > 0 {
		return device{}, netip.Addr{}, fmt.Errorf("%w: none matches --iface or --iface-regex; there are %s", ErrNoUnderlay, names(devices))
	}
	if r, ok := defaultRoute(routes); ok {
		return find(devices, r.index, "carries the default route")
	}
	return device{}, netip.Addr{}, fmt.Errorf("%w: there is no default route to choose it by: name one with --iface; there are %s", ErrNoUnderlay, names(devices))
}

func (d device) has(a netip.Addr) bool {
	return slices.ContainsFunc(d.addrs, func(i ifAddr) bool { return i.prefix.Addr() == a })
}

func find(devices []device, index int, why string) (device, netip.Addr, error) {
	for _, d := range devices {
		if d.index == index {
			return d, netip.Addr{}, nil
		}
	}
	return device{}, netip.Addr{}, fmt.Errorf("%w: no device %s; there are %s", ErrNoUnderlay, why, names(devices))
}

func names(devices []device) string {
	var list []string
	for _, d := range devices {
		list = append(list, d.name)
	}
	return strings.Join(list, ", ")
}

// defaultRoute returns the default route of the lowest metric, IPv4 before IPv6.
func defaultRoute(routes []route) (best route, found bool) {
	for _, r := range routes {
		if r.dst.Bits() != 0 || r.index == 0 || r.kind != unix.RTN_UNICAST {
			continue
		}
		better := r.priority < best.priority
		if r.dst.Addr().Is4() != best.dst.Addr().Is4() {
			better = r.dst.Addr().Is4()
		}
		if !found || better {
			best, found = r, true
		}
	}
	return best, found
}

// describe says of the chosen device what planners want to know. local is its address if that was chosen too.
func describe(d device, local netip.Addr, public subnet.Pair[netip.Addr], routes []route) backend.Underlay {
	u := backend.Underlay{Device: d.name, MTU: d.mtu}
	if local.IsValid() {
		*u.Local.At(subnet.FamilyOf(local)) = local
	}
	for _, a := range d.addrs {
		addr := a.prefix.Addr()
		if f := subnet.FamilyOf(addr); !u.Local.Of(f).IsValid() && a.scope == unix.RT_SCOPE_UNIVERSE {
			*u.Local.At(f) = addr
		}
		u.OnLink = append(u.OnLink, a.prefix.Masked())
	}
	u.Public = u.Local
	for f, a := range public.All() {
		*u.Public.At(f) = a
	}
	for _, r := range routes {
		switch {
		case r.index != d.index || r.kind != unix.RTN_UNICAST:
		case r.gateway.IsValid():
			u.OnLink = append(u.OnLink, netip.PrefixFrom(r.gateway, r.gateway.BitLen()))
		case r.dst.Bits() > 0:
			u.OnLink = append(u.OnLink, r.dst)
		}
	}
	// No peer is reached by a link-local address, and every device has the same.
	u.OnLink = slices.DeleteFunc(u.OnLink, func(p netip.Prefix) bool {
		return p.Addr().Is6() && (p.Addr().IsLinkLocalUnicast() || p.Addr().IsMulticast())
	})
	slices.SortFunc(u.OnLink, netip.Prefix.Compare)
	u.OnLink = slices.Compact(u.OnLink)
	return u
}

// others are all addresses that the devices have beside those that the overlay is sent from.
func others(devices []device, local subnet.Pair[netip.Addr]) (list []backend.Addr) {
	for _, d := range devices {
		for _, a := range d.addrs {
			if addr := a.prefix.Addr(); addr != local.Of(subnet.FamilyOf(addr)) && !addr.IsLinkLocalUnicast() && !addr.IsLoopback() {
				list = append(list, backend.Addr{Dev: d.name, Prefix: a.prefix})
			}
		}
	}
	slices.SortFunc(list, func(a, b backend.Addr) int { return cmp.Or(strings.Compare(a.Dev, b.Dev), a.Prefix.Compare(b.Prefix)) })
	return list
}

// listForeignRoutes lists the main table's routes that aren't ours.
func (c conn) listForeignRoutes() ([]route, error) {
	list, err := c.listRoutes(unix.RTPROT_UNSPEC, unix.AF_INET, unix.AF_INET6)
	if err != nil {
		return nil, err
	}
	return list, c.resolve(list)
}

// resolve fills in where routes through nexthop objects lead, which the kernel leaves out if net.ipv4.nexthop_compat_mode
// is 0.
func (c conn) resolve(list []route) error {
	unresolved := func(r route) bool { return r.nexthop != 0 && r.index == 0 }
	if !slices.ContainsFunc(list, unresolved) {
		return nil
	}
	hops, err := c.listNexthops(0)
	if err != nil {
		return err
	}
	for i, r := range list {
		if unresolved(r) {
			h := hops[r.nexthop]
			if h.member != 0 {
				h = hops[h.member]
			}
			list[i].index, list[i].gateway = h.index, h.gateway
		}
	}
	return nil
}

// outputDevice returns the index of the device that the kernel sends to a from.
func (c conn) outputDevice(a netip.Addr) (int, error) {
	m := newMessage(unix.SizeofRtMsg)
	m[0], m[1] = family(a), uint8(a.BitLen())
	index := 0
	err := c.ask(request{kind: unix.RTM_GETROUTE, message: m.addr(unix.RTA_DST, a)}, func(entry []byte) {
		if r, ok := parseRoute(entry); ok {
			index = r.index
		}
	})
	if err == nil && index == 0 {
		err = unix.ENETUNREACH
	}
	return index, err
}
