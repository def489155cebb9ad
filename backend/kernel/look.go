package kernel

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// Flow is what the kernel chooses a route by.
type Flow struct {
	Dst netip.Addr
	Src netip.Addr // not valid: this host's own, as the kernel chooses it
	In  string     // the device that it came by, if it is not this host's own; then Src must be given
}

// Way is the route that a packet takes.
type Way struct {
	Prefix   netip.Prefix // the route's; not valid if there is none
	Type     string       // as `ip route` spells it: unicast, local, broadcast, blackhole, unreachable, prohibit…
	Via      netip.Addr   // not valid: directly
	Dev      string
	OnLink   bool
	Nexthop  uint32 // object's ID, 0 for none: then Via, Dev and OnLink are the route's own
	Protocol uint8
	Table    uint32 // 0 for main and local, which are one as long as there is no policy rule but the kernel's
	Metric   uint32
}

// Ours reports whether the route is an agent's.
func (w Way) Ours() bool { return w.Protocol == protocol && w.Table == 0 }

// String prints the route as `ip route` does.
func (w Way) String() string {
	if !w.Prefix.IsValid() {
		return "no route"
	}
	text := w.Prefix.String()
	if w.Prefix.Bits() == 0 {
		text = "default"
	}
	if w.Type != "unicast" {
		text = w.Type + " " + text
	}
	if w.Via.IsValid() {
		text += " via " + w.Via.String()
	}
	if w.Dev != "" {
		text += " dev " + w.Dev
	}
	if w.Table != 0 {
		text += fmt.Sprintf(" table %d", w.Table)
	}
	text += " proto " + protocolName(w.Protocol)
	if w.Metric != 0 {
		text += fmt.Sprintf(" metric %d", w.Metric)
	}
	if w.OnLink {
		text += " onlink"
	}
	return text
}

// routeTypes are the names of RTN_….
var routeTypes = [...]string{"unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit", "throw", "nat", "xresolve"}

func protocolName(p uint8) string {
	names := map[uint8]string{unix.RTPROT_REDIRECT: "redirect", unix.RTPROT_KERNEL: "kernel", unix.RTPROT_BOOT: "boot",
		unix.RTPROT_STATIC: "static", unix.RTPROT_DHCP: "dhcp"}
	return cmp.Or(names[p], fmt.Sprint(p))
}

// Way asks the kernel for the route that a packet takes, all rules and tables considered. No route is a Way without Prefix. The
// error says why the kernel does not take the packet at all: because it forwards nothing, say, or not from there.
func (k *Kernel) Way(f Flow) (Way, error) {
	if err := k.indexDevices(); err != nil {
		return Way{}, err
	}
	m := newMessage(unix.SizeofRtMsg)
	m[0], m[1] = family(f.Dst), uint8(f.Dst.BitLen())
	flags := uint32(unix.RTM_F_FIB_MATCH) // the route itself, not what follows from it; Linux ≥ 4.13
	if f.Dst.Is4() {
		flags |= unix.RTM_F_LOOKUP_TABLE // IPv6 tells of the table by itself, and refuses to be asked (inet6_rtm_valid_getroute_req, net/ipv6/route.c)
	}
	binary.NativeEndian.PutUint32(m[8:], flags)
	m = m.addr(unix.RTA_DST, f.Dst)
	if f.Src.IsValid() {
		m[2] = uint8(f.Src.BitLen())
		m = m.addr(unix.RTA_SRC, f.Src)
	}
	if f.In != "" {
		index, err := k.device(f.In)
		if err != nil {
			return Way{}, err
		}
		m = m.uint32(unix.RTA_IIF, uint32(index))
	}
	var r route
	err := k.conn.ask(request{kind: unix.RTM_GETROUTE, message: m}, func(entry []byte) { r, _ = parseRoute(entry) })
	switch {
	case errors.Is(err, unix.ENETUNREACH):
		return Way{}, nil
	case err != nil:
		return k.refusal(f, err)
	}
	list := []route{r}
	if err := k.conn.resolve(list); err != nil {
		return Way{}, fmt.Errorf("list nexthop objects: %w", err)
	}
	return k.way(list[0]), nil
}

// refusals are the errors that a lookup ends with at a route of a kind that leads nowhere (fib_props, net/ipv4/fib_semantics.c).
var refusals = map[error]uint8{unix.EINVAL: unix.RTN_BLACKHOLE, unix.EHOSTUNREACH: unix.RTN_UNREACHABLE, unix.EACCES: unix.RTN_PROHIBIT}

// refusal finds the route that a lookup has failed at, which the kernel does not say: the most specific of that kind.
func (k *Kernel) refusal(f Flow, err error) (Way, error) {
	for errno, kind := range refusals {
		if !errors.Is(err, errno) {
			continue
		}
		var best route
		filter := newMessage(unix.SizeofRtMsg)
		filter[0] = family(f.Dst)
		listErr := k.conn.dump(unix.RTM_GETROUTE, filter, func(entry []byte) {
			r, ok := parseRoute(entry)
			if ok && r.kind == kind && r.dst.Contains(f.Dst) && (!best.dst.IsValid() || r.dst.Bits() > best.dst.Bits()) {
				best = r
			}
		})
		if listErr == nil && best.dst.IsValid() {
			return k.way(best), nil
		}
	}
	return Way{}, fmt.Errorf("the kernel takes no packet to %s: %w", f.Dst, err)
}

func (k *Kernel) way(r route) Way {
	w := Way{Prefix: r.dst, Type: fmt.Sprint(r.kind), Via: r.gateway, Dev: k.names()[r.index], OnLink: r.flags&unix.RTNH_F_ONLINK != 0,
		Nexthop: r.nexthop, Protocol: r.protocol, Table: r.table, Metric: r.priority}
	if int(r.kind) < len(routeTypes) {
		w.Type = routeTypes[r.kind]
	}
	if r.table == unix.RT_TABLE_MAIN || r.table == unix.RT_TABLE_LOCAL {
		w.Table = 0
	}
	return w
}

// Nexthop returns where a nexthop object leads. There need not be one.
func (k *Kernel) Nexthop(id uint32) (r backend.Route, exists bool, err error) {
	if err := k.indexDevices(); err != nil {
		return r, false, err
	}
	hops, err := k.conn.listNexthops(len(k.devices))
	if err != nil {
		return r, false, fmt.Errorf("list nexthop objects: %w", err)
	}
	h, exists := hops[id]
	return backend.Route{Via: h.gateway, Dev: k.names()[h.index], OnLink: h.flags&unix.RTNH_F_ONLINK != 0}, exists, nil
}

// Neighbour returns the link-layer address that a device's neighbour has, and its state as `ip neigh` spells it. Without a
// neighbour the state is "".
func (k *Kernel) Neighbour(key backend.NeighbourKey) (mac backend.MAC, state string, err error) {
	err = k.lookUp(family(key.IP), key.Dev, func(dst netip.Addr, m backend.MAC, nud uint16) {
		if dst == key.IP {
			mac, state = m, neighbourState(nud)
		}
	})
	return mac, state, err
}

// FDB returns where a VXLAN device sends frames to a MAC. There need not be an entry; of several the first counts.
func (k *Kernel) FDB(key backend.FDBKey) (dst netip.Addr, exists bool, err error) {
	err = k.lookUp(unix.AF_BRIDGE, key.Dev, func(a netip.Addr, mac backend.MAC, _ uint16) {
		if mac == key.MAC && !exists {
			dst, exists = a, true
		}
	})
	return dst, exists, err
}

// Floods reports whether a VXLAN device sends a host a copy of what it knows no one destination for.
func (k *Kernel) Floods(flood backend.Flood) (exists bool, err error) {
	err = k.lookUp(unix.AF_BRIDGE, flood.Dev, func(a netip.Addr, mac backend.MAC, _ uint16) {
		exists = exists || mac == backend.MAC{} && a == flood.Dst
	})
	return exists, err
}

// lookUp hands f a device's entries; none if there is no such device.
func (k *Kernel) lookUp(family uint8, dev string, f func(dst netip.Addr, mac backend.MAC, state uint16)) error {
	err := k.indexDevices()
	if err != nil {
		return err
	}
	index, exists := k.devices[dev]
	if !exists {
		return nil
	}
	if err := k.conn.listNeighbours(family, index, func(n neighbour) { f(n.dst, n.mac, n.state) }); err != nil {
		return fmt.Errorf("list the neighbours of %s: %w", dev, err)
	}
	return nil
}

func neighbourState(nud uint16) string {
	names := map[uint16]string{unix.NUD_INCOMPLETE: "INCOMPLETE", unix.NUD_REACHABLE: "REACHABLE", unix.NUD_STALE: "STALE", unix.NUD_DELAY: "DELAY",
		unix.NUD_PROBE: "PROBE", unix.NUD_FAILED: "FAILED", unix.NUD_NOARP: "NOARP", unix.NUD_PERMANENT: "PERMANENT"}
	return cmp.Or(names[nud], "NONE")
}

// Device returns a link as it is now; ours, if it has our mark. Without such a link its Kind is "".
func (k *Kernel) Device(name string) (l backend.Link, ours bool, err error) {
	table, err := k.observeLinks()
	if err != nil {
		return l, false, fmt.Errorf("list links: %w", err)
	}
	link, exists := table.all[name]
	if !exists {
		return l, false, nil
	}
	names := map[int]string{}
	for name, l := range table.all {
		names[l.Attrs().Index] = name
	}
	_, ours = table.own[name]
	l, err = k.observeLink(link, names)
	return l, ours, err
}
