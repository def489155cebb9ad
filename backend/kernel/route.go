package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// Nexthop objects (linux/nexthop.h, Linux ≥ 5.3), which neither the netlink library nor x/sys/unix name.
const (
	rtmNewNexthop = 104
	rtmDelNexthop = 105
	rtmGetNexthop = 106
	nhaID         = 1
	nhaGroup      = 2
	nhaOIF        = 5
	nhaGateway    = 6
	rtaNexthopID  = 30
)

// hasNexthops reports whether the kernel has nexthop objects.
func (c conn) hasNexthops() bool {
	return !errors.Is(c.dump(rtmGetNexthop, nhmsg(unix.AF_UNSPEC, 0), func([]byte) {}), unix.EOPNOTSUPP)
}

// nhmsg is a struct nhmsg. Its protocol must be 0 in a dump request.
func nhmsg(family uint8, protocol uint8) message {
	return message{family, unix.RT_SCOPE_UNIVERSE, protocol, 0, 0, 0, 0, 0}
}

// rtmsg is a struct rtmsg for a unicast route of ours in the main table.
func rtmsg(dst netip.Prefix, flags uint32) message {
	m := make(message, unix.SizeofRtMsg)
	m[0], m[1] = family(dst.Addr()), uint8(dst.Bits())
	m[4], m[5], m[6], m[7] = unix.RT_TABLE_MAIN, protocol, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST
	binary.NativeEndian.PutUint32(m[8:], flags)
	return m
}

// hop is a nexthop object as the kernel lists it.
type hop struct {
	index    int
	gateway  netip.Addr
	flags    uint32 // RTNH_F_…
	protocol uint8
	member   uint32 // of a group, the first object's ID
}

func (c conn) listNexthops() (map[uint32]hop, error) {
	hops := map[uint32]hop{}
	err := c.dump(rtmGetNexthop, nhmsg(unix.AF_UNSPEC, 0), func(entry []byte) {
		h, id := hop{protocol: entry[2], flags: number(entry[4:])}, uint32(0)
		for kind, value := range attributes(entry, 8) {
			switch kind {
			case nhaID:
				id = number(value)
			case nhaOIF:
				h.index = int(number(value))
			case nhaGateway:
				h.gateway = address(value)
			case nhaGroup: // an array of struct nexthop_grp, which begins with the ID
				h.member = number(value)
			}
		}
		hops[id] = h
	})
	return hops, err
}

// observeRoutes lists our routes, and notes the nexthop object that each goes through and the objects that none does.
// Ours: protocol 84, main table.
func (k *Kernel) observeRoutes() (map[netip.Prefix]backend.Route, error) {
	hops, err := k.conn.listNexthops() // also without new ones: an earlier life may have made some
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, err
	}
	names := map[int]string{}
	for name, index := range k.devices {
		names[index] = name
	}
	list, err := k.conn.listRoutes(protocol, unix.AF_INET, unix.AF_INET6)
	if err != nil {
		return nil, err
	}
	routes := map[netip.Prefix]backend.Route{}
	clear(k.routes)
	k.strays = map[netip.Prefix][]route{}
	for _, r := range list {
		if r.stray() {
			k.strays[r.dst] = append(k.strays[r.dst], r)
			continue
		}
		h := hop{index: r.index, gateway: r.gateway, flags: r.flags}
		if r.nexthop != 0 {
			h = hops[r.nexthop]
		}
		routes[r.dst] = backend.Route{Via: h.gateway, Dev: names[h.index], OnLink: h.flags&unix.RTNH_F_ONLINK != 0}
		k.routes[r.dst] = r.nexthop
	}
	for dst := range k.strays { // whatever else is there: it must be set, or deleted
		routes[dst] = backend.Route{}
	}
	used := map[uint32]bool{}
	for _, id := range k.routes {
		used[id] = true
	}
	k.orphans = k.orphans[:0]
	for id, h := range hops {
		if h.protocol == protocol && !used[id] {
			k.orphans = append(k.orphans, id)
		}
	}
	return routes, nil
}

// listRoutes lists the main table's routes of a protocol; of all, if that is RTPROT_UNSPEC.
func (c conn) listRoutes(protocol uint8, families ...uint8) ([]route, error) {
	var list []route
	for _, f := range families {
		filter := make(message, unix.SizeofRtMsg)
		filter[0], filter[5] = f, protocol
		err := c.dump(unix.RTM_GETROUTE, filter, func(entry []byte) {
			r, ok := parseRoute(entry)
			if ok && r.table == unix.RT_TABLE_MAIN && (protocol == unix.RTPROT_UNSPEC || r.protocol == protocol) {
				list = append(list, r)
			}
		}, uint32Attr(unix.RTA_TABLE, unix.RT_TABLE_MAIN))
		if err != nil && !errors.Is(err, unix.ENOENT) { // ENOENT: a table that does not exist
			return nil, err
		}
	}
	return list, nil
}

// route is a route as the kernel lists it; of several nexthops, the first.
type route struct {
	dst             netip.Prefix
	protocol, scope uint8
	tos             uint8
	kind            uint8 // RTN_…
	table, priority uint32
	index           int
	gateway         netip.Addr
	flags           uint32 // RTNH_F_…
	nexthop         uint32 // object's ID, 0 for none
}

// stray reports whether a route of our protocol is one that the kernel tells from ours to the same prefix: by its metric or
// its TOS. Somebody else has made it, in our name.
func (r route) stray() bool {
	metric := uint32(0)
	if r.dst.Addr().Is6() {
		metric = 1024 // IP6_RT_PRIO_USER, linux/ipv6_route.h: what no metric means
	}
	return r.priority != metric || r.tos != 0
}

func parseRoute(entry []byte) (route, bool) {
	r := route{tos: entry[3], table: uint32(entry[4]), protocol: entry[5], scope: entry[6], kind: entry[7], flags: number(entry[8:])}
	dst := netip.IPv4Unspecified()
	if entry[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	for kind, value := range attributes(entry, unix.SizeofRtMsg) {
		switch kind {
		case unix.RTA_DST:
			dst = address(value)
		case unix.RTA_TABLE:
			r.table = number(value)
		case unix.RTA_PRIORITY:
			r.priority = number(value)
		case unix.RTA_OIF:
			r.index = int(number(value))
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			r.gateway = gateway(kind, value)
		case rtaNexthopID:
			r.nexthop = number(value)
		case unix.RTA_MULTIPATH:
			if len(value) >= unix.SizeofRtNexthop {
				r.index = int(number(value[4:]))
				first := value[:min(int(binary.NativeEndian.Uint16(value)), len(value))]
				for kind, value := range attributes(first, unix.SizeofRtNexthop) {
					if kind == unix.RTA_GATEWAY || kind == unix.RTA_VIA {
						r.gateway = gateway(kind, value)
					}
				}
			}
		}
	}
	r.dst = netip.PrefixFrom(dst, int(entry[1]))
	return r, r.dst.IsValid() && entry[0] != unix.AF_BRIDGE
}

// gateway reads RTA_GATEWAY, or RTA_VIA: a struct rtvia, which has a family before the address, since it is not the route's.
func gateway(kind uint16, value []byte) netip.Addr {
	if kind == unix.RTA_VIA {
		value = value[min(2, len(value)):]
	}
	return address(value)
}

// setRoute adds a route, or changes ours. A route of somebody else's to the same prefix is left alone, and is an error.
//
// Each route goes through a nexthop object of its own, where the kernel has them: routes that share a device but not a
// gateway then cost the same however many there are, which plain ones do not (fib_info hashes by device, not by gateway:
// net/ipv4/fib_semantics.c). A change of the object moves its route at once, no packet lost.
func (k *Kernel) setRoute(dst netip.Prefix, r backend.Route) error {
	index, err := k.device(r.Dev)
	if err != nil {
		return err
	}
	h := hop{index: index, gateway: r.Via}
	if r.OnLink {
		h.flags = unix.RTNH_F_ONLINK
	}
	if err := k.deleteStrays(dst); err != nil {
		return err
	}
	id, ours := k.routes[dst]
	how := unix.NLM_F_EXCL
	if ours {
		how = unix.NLM_F_REPLACE
	}
	switch {
	case ours && id != 0:
		return k.setNexthop(id, h, unix.NLM_F_REPLACE)
	case !k.objects:
		return k.setPlainRoute(dst, h, how)
	}
	if id, err = k.addNexthop(dst, h); err != nil {
		return fmt.Errorf("nexthop object: %w", err)
	}
	err = k.changeRoute(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|how, dst, 0, uint32Attr(rtaNexthopID, id))
	if err != nil {
		return errors.Join(foreign(dst, err), k.deleteNexthop(id))
	}
	k.routes[dst] = id
	return nil
}

func (k *Kernel) setPlainRoute(dst netip.Prefix, h hop, how int) error {
	err := k.changeRoute(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|how, dst, h.flags,
		uint32Attr(unix.RTA_OIF, uint32(h.index)), addrAttr(unix.RTA_GATEWAY, h.gateway))
	if err != nil {
		return foreign(dst, err)
	}
	k.routes[dst] = 0
	return nil
}

// foreign names the route that is in the way.
func foreign(dst netip.Prefix, err error) error {
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("another route to %s exists that is not ours: remove it (ip route del %s), or take the subnet out of the network's range", dst, dst)
	}
	return err
}

// deleteRoute deletes our route to dst, if it is still there, and its nexthop object.
func (k *Kernel) deleteRoute(dst netip.Prefix, _ backend.Route) error {
	if err := k.deleteStrays(dst); err != nil {
		return err
	}
	id, ours := k.routes[dst]
	if !ours {
		return nil
	}
	if err := gone(k.changeRoute(unix.RTM_DELROUTE, 0, dst, 0)); err != nil {
		return err
	}
	if id != 0 {
		if err := k.deleteNexthop(id); err != nil {
			return err
		}
	}
	delete(k.routes, dst)
	return nil
}

// deleteStrays deletes routes to dst that stand beside ours in our name.
func (k *Kernel) deleteStrays(dst netip.Prefix) error {
	for _, r := range k.strays[dst] {
		header := rtmsg(dst, 0)
		header[3], header[6] = r.tos, unix.RT_SCOPE_NOWHERE // whatever scope it has
		err := k.conn.do(unix.RTM_DELROUTE, 0, header, addrAttr(unix.RTA_DST, dst.Addr()), uint32Attr(unix.RTA_PRIORITY, r.priority))
		if err := gone(err); err != nil {
			return fmt.Errorf("the one with metric %d: %w", r.priority, err)
		}
	}
	delete(k.strays, dst)
	return nil
}

// changeRoute sends a request about our route to dst; hopFlags are RTNH_F_….
func (k *Kernel) changeRoute(kind, flags int, dst netip.Prefix, hopFlags uint32, attrs ...*nl.RtAttr) error {
	return k.conn.do(kind, flags, rtmsg(dst, hopFlags), append(attrs, addrAttr(unix.RTA_DST, dst.Addr()))...)
}

// addNexthop makes a nexthop object for the route to dst. Its ID follows from dst, so that it is easily found by eye, and
// is the next free one if others took that.
func (k *Kernel) addNexthop(dst netip.Prefix, h hop) (uint32, error) {
	id := nexthopID(dst)
	for range 64 {
		err := k.setNexthop(id, h, unix.NLM_F_EXCL)
		if !errors.Is(err, unix.EEXIST) {
			return id, err
		}
		if id++; id == 0 {
			id++
		}
	}
	return 0, fmt.Errorf("64 IDs up to %d are all taken", id)
}

// nexthopID is where to begin to look for a free ID: an IPv4 subnet's own address, or a hash of an IPv6 one.
func nexthopID(dst netip.Prefix) uint32 {
	if dst.Addr().Is4() {
		b := dst.Addr().As4()
		return max(1, binary.BigEndian.Uint32(b[:]))
	}
	hash := fnv.New32a()
	hash.Write(dst.Addr().AsSlice())
	return max(1, hash.Sum32())
}

func (k *Kernel) setNexthop(id uint32, h hop, flags int) error {
	header := nhmsg(family(h.gateway), protocol)
	binary.NativeEndian.PutUint32(header[4:], h.flags)
	return k.conn.do(rtmNewNexthop, unix.NLM_F_CREATE|flags, header,
		uint32Attr(nhaID, id), uint32Attr(nhaOIF, uint32(h.index)), addrAttr(nhaGateway, h.gateway))
}

func (k *Kernel) deleteNexthop(id uint32) error {
	return gone(k.conn.do(rtmDelNexthop, 0, nhmsg(unix.AF_UNSPEC, 0), uint32Attr(nhaID, id)))
}

// sweepNexthops deletes objects of ours that no route goes through: what remains if an agent is killed between the two, or
// if somebody deletes the route.
func (k *Kernel) sweepNexthops() error {
	var errs errorList
	for _, id := range k.orphans {
		if err := k.deleteNexthop(id); err != nil {
			errs.add(fmt.Errorf("delete nexthop object %d: %w", id, err))
		}
	}
	k.orphans = k.orphans[:0]
	return errs.join()
}
