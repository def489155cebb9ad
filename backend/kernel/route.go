package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"

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
	m := newMessage(8)
	m[0], m[1], m[2] = family, unix.RT_SCOPE_UNIVERSE, protocol
	return m
}

// rtmsg is a struct rtmsg for a route of ours to dst in the main table, and dst; kind is RTN_…, flags are RTNH_F_….
func rtmsg(dst netip.Prefix, kind uint8, flags uint32) message {
	m := newMessage(unix.SizeofRtMsg)
	m[0], m[1] = family(dst.Addr()), uint8(dst.Bits())
	m[4], m[5], m[6], m[7] = unix.RT_TABLE_MAIN, protocol, unix.RT_SCOPE_UNIVERSE, kind
	binary.NativeEndian.PutUint32(m[8:], flags)
	return m.addr(unix.RTA_DST, dst.Addr())
}

// hop is a nexthop object as the kernel lists it.
type hop struct {
	index    int
	gateway  netip.Addr
	flags    uint32 // RTNH_F_…
	protocol uint8
	member   uint32 // of a group, the first object's ID
}

// listNexthops lists all nexthop objects, of which there are about as many as expected.
func (c conn) listNexthops(expected int) (map[uint32]hop, error) {
	var hops map[uint32]hop
	err := again(func() error {
		hops = make(map[uint32]hop, expected)
		return c.dump(rtmGetNexthop, nhmsg(unix.AF_UNSPEC, 0), func(entry []byte) {
			id, h := parseNexthop(entry)
			hops[id] = h
		})
	})
	return hops, err
}

func parseNexthop(entry []byte) (id uint32, h hop) {
	h = hop{protocol: entry[2], flags: number(entry[4:])}
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
	return id, h
}

// compareRoutes compares our routes with want, and notes the nexthop object that each goes through and the objects that none
// does. Ours: protocol 84, main table.
func (k *Kernel) compareRoutes(want map[netip.Prefix]backend.Route) (backend.Delta[netip.Prefix, backend.Route], error) {
	hops, err := k.conn.listNexthops(len(k.routes)) // also without new ones: an earlier life may have made some
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return backend.Delta[netip.Prefix, backend.Route]{}, err
	}
	names := k.names()
	delta, err := compareTable(want, func(c *backend.Comparison[netip.Prefix, backend.Route]) error {
		k.strays = map[netip.Prefix][]route{}
		clear(k.routes)
		err := k.conn.eachRoute(protocol, func(r route) {
			if r.stray() {
				k.strays[r.dst] = append(k.strays[r.dst], r)
				return
			}
			h := hop{index: r.index, gateway: r.gateway, flags: r.flags}
			if r.nexthop != 0 {
				h = hops[r.nexthop]
			}
			k.routes[r.dst] = r.nexthop
			if r.kind == unix.RTN_UNREACHABLE {
				c.See(r.dst, backend.Route{Unreachable: true})
				return
			}
			if r.several { // IPv6 makes routes of one metric to one (fib6_add_rt2node, net/ipv6/ip6_fib.c)
				c.See(r.dst, backend.Route{})
				return
			}
			c.See(r.dst, backend.Route{Via: h.gateway, Dev: names[h.index], OnLink: h.flags&unix.RTNH_F_ONLINK != 0})
		}, unix.AF_INET, unix.AF_INET6)
		for dst := range k.strays { // whatever else is there: it must be set, or deleted
			c.See(dst, backend.Route{})
		}
		return err
	})
	for _, id := range k.routes {
		delete(hops, id)
	}
	k.orphans = k.orphans[:0]
	for id, h := range hops {
		if h.protocol == protocol {
			k.orphans = append(k.orphans, id)
		}
	}
	return delta, err
}

// names are the devices' names by their ifindexes.
func (k *Kernel) names() map[int]string {
	names := map[int]string{}
	for name, index := range k.devices {
		names[index] = name
	}
	return names
}

// eachRoute hands f the main table's routes of a protocol; those of all but ours, if that is RTPROT_UNSPEC.
func (c conn) eachRoute(p uint8, f func(route), families ...uint8) error {
	for _, family := range families {
		filter := newMessage(unix.SizeofRtMsg)
		filter[0], filter[5] = family, p
		err := c.dump(unix.RTM_GETROUTE, filter.uint32(unix.RTA_TABLE, unix.RT_TABLE_MAIN), func(entry []byte) {
			if p != unix.RTPROT_UNSPEC && entry[5] != p || p == unix.RTPROT_UNSPEC && entry[5] == protocol {
				return
			}
			if entry[0] != family || number(entry[8:])&unix.RTM_F_CLONED != 0 { // IPv6 keeps path MTUs and redirects as routes
				return
			}
			if r, ok := parseRoute(entry); ok && r.table == unix.RT_TABLE_MAIN {
				f(r)
			}
		})
		if err != nil && !errors.Is(err, unix.ENOENT) { // ENOENT: a table that does not exist
			return err
		}
	}
	return nil
}

// listRoutes lists what eachRoute hands out.
func (c conn) listRoutes(p uint8, families ...uint8) ([]route, error) {
	var list []route
	err := again(func() error {
		list = nil
		return c.eachRoute(p, func(r route) { list = append(list, r) }, families...)
	})
	return list, err
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
	several         bool   // nexthops
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
				r.several = len(first) < len(value)
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

// via appends the gateway of a route to dst, which may be of the other family (Linux ≥ 5.2).
func (m message) via(dst netip.Prefix, gateway netip.Addr) message {
	switch {
	case !gateway.IsValid():
		return m
	case gateway.Is4() == dst.Addr().Is4():
		return m.addr(unix.RTA_GATEWAY, gateway)
	}
	rtvia := binary.NativeEndian.AppendUint16(nil, uint16(family(gateway)))
	return m.attr(unix.RTA_VIA, append(rtvia, gateway.AsSlice()...))
}

// setRoutes adds routes, or changes ours. A route of somebody else's to the same prefix is left alone, and is an error.
//
// Each route goes through a nexthop object of its own, where the kernel has them: routes that share a device but not a
// gateway then cost the same however many there are, which plain ones do not (fib_info hashes by device, not by gateway:
// net/ipv4/fib_semantics.c). A change of the object moves its route at once, no packet lost.
//
// A route without a gateway is a plain one: all of them share one fib_info, and it stays when its device loses its carrier, which an
// object does not (nh_netdev_event, net/ipv4/nexthop.c). That happens to a tunnel whenever the process behind it restarts, and packets
// would take the default route meanwhile, unencrypted.
func (k *Kernel) setRoutes(w *work, routes map[netip.Prefix]backend.Route) {
	through := map[netip.Prefix]uint32{} // what each route that is not there yet is to go through; 0 for no object
	bulk(w, step{"set", "route"}, routes, func(dst netip.Prefix, want backend.Route) (request, error) {
		h, err := k.hop(want)
		if err == nil {
			err = k.deleteStrays(dst)
		}
		id, ours := k.routes[dst]
		switch {
		case err != nil:
			return request{}, err
		case ours && id != 0 && want.Via.IsValid():
			return k.insist(setNexthop(id, h, unix.NLM_F_REPLACE), h), nil
		case !k.objects, !want.Via.IsValid(): // also the one that leads nowhere
			through[dst] = 0
			return request{}, nil
		}
		id = nexthopID(dst)
		r := setNexthop(id, h, unix.NLM_F_EXCL)
		r.done = func(err error) error {
			if errors.Is(err, unix.EEXIST) {
				id, err = k.addNexthop(id, h)
			}
			if err != nil {
				return fmt.Errorf("nexthop object: %w", err)
			}
			through[dst] = id
			return nil
		}
		return k.insist(r, h), nil
	})
	bulk(w, step{"set", "route"}, through, func(dst netip.Prefix, id uint32) (request, error) {
		return k.setRoute(dst, id, routes[dst])
	})
}

// setRoute asks for a route through a nexthop object, or for a plain one.
func (k *Kernel) setRoute(dst netip.Prefix, id uint32, r backend.Route) (request, error) {
	h, err := k.hop(r)
	if err != nil {
		return request{}, err
	}
	m := rtmsg(dst, unix.RTN_UNICAST, 0).uint32(rtaNexthopID, id)
	switch {
	case r.Unreachable:
		m = rtmsg(dst, unix.RTN_UNREACHABLE, 0)
	case id == 0:
		m = rtmsg(dst, unix.RTN_UNICAST, h.flags).uint32(unix.RTA_OIF, uint32(h.index)).via(dst, h.gateway)
	}
	flags := unix.NLM_F_CREATE | unix.NLM_F_EXCL
	before, ours := k.routes[dst]
	if ours {
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	return k.insist(request{kind: unix.RTM_NEWROUTE, flags: flags, message: m, done: func(err error) error {
		if err == nil {
			if k.routes[dst] = id; before != 0 && id == 0 { // it went through an object, and no longer does
				err = k.deleteNexthop(before)
			}
		} else if err = foreign(dst, err); id != 0 {
			err = errors.Join(err, k.deleteNexthop(id))
		}
		return err
	}}, h), nil
}

// insist makes a request again that IPv6 refuses because another route leads to the gateway elsewhere, "onlink" or not
// (ip6_route_check_nh_onlink, net/ipv6/route.c): the one that is to be changed, when a peer moves to another device, or somebody's
// to a range that the overlay is part of. It looks only then, so a route that says where the gateway is need not stay.
func (k *Kernel) insist(r request, h hop) request {
	if !h.gateway.Is6() || h.flags&unix.RTNH_F_ONLINK == 0 {
		return r
	}
	again, done := r, r.done
	again.done = nil
	r.done = func(err error) error {
		if errors.Is(err, unix.EINVAL) {
			there := rtmsg(netip.PrefixFrom(h.gateway, h.gateway.BitLen()), unix.RTN_UNICAST, 0).uint32(unix.RTA_OIF, uint32(h.index))
			if err = k.conn.do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, there); err == nil {
				err = errors.Join(k.conn.doAll([]request{again})[0], k.conn.do(unix.RTM_DELROUTE, 0, there))
			}
		}
		if done != nil {
			err = done(err)
		}
		return err
	}
	return r
}

// hop is where a route leads.
func (k *Kernel) hop(r backend.Route) (hop, error) {
	if r.Unreachable {
		return hop{}, nil
	}
	index, err := k.device(r.Dev)
	h := hop{index: index, gateway: r.Via}
	if r.OnLink {
		h.flags = unix.RTNH_F_ONLINK
	}
	return h, err
}

// foreign names the route that is in the way.
func foreign(dst netip.Prefix, err error) error {
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("another route to %s exists that is not ours: remove it (ip route del %s), or take the subnet out of the network's range", dst, dst)
	}
	return err
}

// deleteRoutes deletes our routes, those that are still there, and their nexthop objects.
func (k *Kernel) deleteRoutes(w *work, routes map[netip.Prefix]backend.Route) {
	objects := map[netip.Prefix]uint32{}
	bulk(w, step{"delete", "route"}, routes, func(dst netip.Prefix, _ backend.Route) (request, error) {
		id, ours := k.routes[dst]
		if err := k.deleteStrays(dst); err != nil || !ours {
			return request{}, err
		}
		return request{kind: unix.RTM_DELROUTE, message: rtmsg(dst, unix.RTN_UNSPEC, 0), done: func(err error) error {
			if err = gone(err); err == nil {
				objects[dst] = id
			}
			return err
		}}, nil
	})
	bulk(w, step{"delete", "route"}, objects, func(dst netip.Prefix, id uint32) (request, error) {
		if id == 0 {
			k.forget(dst)
			return request{}, nil
		}
		return request{kind: rtmDelNexthop, message: nexthop(id), done: func(err error) error {
			if err = gone(err); err == nil {
				k.forget(dst)
			}
			return err
		}}, nil
	})
}

// forget notes that our route to dst is gone. Now and then it makes the table anew, because a map keeps the room of the most it
// ever held.
func (k *Kernel) forget(dst netip.Prefix) {
	delete(k.routes, dst)
	if k.forgotten++; k.forgotten > len(k.routes)/8+1000 {
		k.routes, k.forgotten = maps.Collect(maps.All(k.routes)), 0
	}
}

// deleteStrays deletes routes to dst that stand beside ours in our name.
func (k *Kernel) deleteStrays(dst netip.Prefix) error {
	for _, r := range k.strays[dst] {
		m := rtmsg(dst, unix.RTN_UNSPEC, 0).uint32(unix.RTA_PRIORITY, r.priority)
		m[3], m[6] = r.tos, unix.RT_SCOPE_NOWHERE // whatever scope it has
		if err := gone(k.conn.do(unix.RTM_DELROUTE, 0, m)); err != nil {
			return fmt.Errorf("the one with metric %d: %w", r.priority, err)
		}
	}
	delete(k.strays, dst)
	return nil
}

// addNexthop makes a nexthop object under the next free ID, after one that others have taken.
func (k *Kernel) addNexthop(id uint32, h hop) (uint32, error) {
	const tries = 64
	for range tries {
		id = max(1, id+1)
		err := k.conn.doAll([]request{k.insist(setNexthop(id, h, unix.NLM_F_EXCL), h)})[0]
		if !errors.Is(err, unix.EEXIST) {
			return id, err
		}
	}
	return 0, fmt.Errorf("%d IDs up to %d are all taken", tries, id)
}

// nexthopID is the ID of the nexthop object for the route to dst, unless others have it: an IPv4 subnet's own address, so that
// it is easily found by eye, or a hash of an IPv6 one.
func nexthopID(dst netip.Prefix) uint32 {
	if dst.Addr().Is4() {
		b := dst.Addr().As4()
		return max(1, binary.BigEndian.Uint32(b[:]))
	}
	hash := fnv.New32a()
	hash.Write(dst.Addr().AsSlice())
	return max(1, hash.Sum32())
}

func setNexthop(id uint32, h hop, flags int) request {
	m := nhmsg(family(h.gateway), protocol).uint32(nhaID, id).uint32(nhaOIF, uint32(h.index)).addr(nhaGateway, h.gateway)
	binary.NativeEndian.PutUint32(m[4:], h.flags)
	return request{kind: rtmNewNexthop, flags: unix.NLM_F_CREATE | flags, message: m}
}

// nexthop names a nexthop object.
func nexthop(id uint32) message { return nhmsg(unix.AF_UNSPEC, 0).uint32(nhaID, id) }

func (k *Kernel) deleteNexthop(id uint32) error {
	return gone(k.conn.do(rtmDelNexthop, 0, nexthop(id)))
}

// sweepNexthops deletes objects of ours that no route goes through: what remains if an agent is killed between the two, or
// if somebody deletes the route.
func (k *Kernel) sweepNexthops() error {
	var errs errorList
	for _, id := range k.orphans {
		if err := k.deleteNexthop(id); err != nil {
			errs.add("route", fmt.Errorf("delete nexthop object %d: %w", id, err))
		}
	}
	k.orphans = k.orphans[:0]
	return errs.join()
}
