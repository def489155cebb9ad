package doctor

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/vishvananda/netns"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/probe"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/kernel"
	"github.com/tulle-net/tulle/subnet"
)

// PathFacts is what was found on the way to an address, and nothing is made of it yet. Of what could not be looked at Unseen has
// why, by the hop's name.
type PathFacts struct {
	Address netip.Addr
	Plan    *backend.Plan
	View    api.View
	Agent   bool // one runs, and repairs
	Unseen  map[string]error

	Etcd        api.Etcd // asked for the address's lease
	Container   *Inside  // nil for whichever of this host
	Links       map[string]backend.Link
	Bridge      []netip.Prefix // the bridge's addresses
	Forwarding  bool
	Netfiltered bool       // what passes a bridge is asked of the packet filter, too
	Own         kernel.Way // of packets that this host sends to Address
	Forwarded   kernel.Way // of those that containers send
	Nexthop     backend.Route
	MAC         backend.MAC // of the neighbour
	Neighbour   string      // its state; "" for none
	VTEP        netip.Addr  // where the FDB sends to; not valid: nowhere
	Shaken      *time.Time  // WireGuard's last handshake with the peer; nil: not known
	Flood       bool        // the FDB has the peer among those that get a copy
	Underlay    kernel.Way  // to the peer
	Filter      Filter
}

// Inside is what a container's own network has.
type Inside struct {
	Container
	Host    bool       // it is the host's
	Addr    netip.Addr // that it would send from
	Dev     string
	MTU     int
	Way     kernel.Way // to the address
	Gateway bool       // Way's is this host
	Arrives string     // the host's device that its packets come by
	Silent  error      // why the gateway does not answer; nil if it does
}

// Where an address lies.
type place int

const (
	ofPeer    place = iota // or it would be if somebody had leased its subnet
	ofSubnet               // this host's containers have its like
	ofHost                 // this host's own
	ofOutside              // the overlay's range does not cover it
)

func (f *PathFacts) place() place {
	h := f.Plan.Host()
	family := subnet.FamilyOf(f.Address)
	own := h.Self.Subnet.Of(family)
	switch {
	case f.Address == h.Underlay.Local.Of(family), f.Address == f.Plan.Inside(h.Self).Of(family), f.Address == h.BridgeAddrs().Of(family).Addr():
		return ofHost
	case own.Contains(f.Address):
		return ofSubnet
	case h.Config.Range.Of(family).Network.Contains(f.Address):
		return ofPeer
	}
	return ofOutside
}

// peer is the lease that covers the address: one that is planned rather than one that is left out.
func (f *PathFacts) peer() (stored api.StoredLease, lease subnet.Lease, exists bool) {
	for key, e := range f.Plan.Entries() {
		p := e.Lease.Subnet.Of(subnet.FamilyOf(f.Address))
		if l := f.View.Leases[key]; p.Contains(f.Address) && (!exists || l.LeftOut == "") {
			stored, lease, exists = l, e.Lease, true
		}
	}
	return stored, lease, exists
}

// row is what is planned for packets to the address; false if nothing.
func (f *PathFacts) row() (row, bool) {
	if stored, _, _ := f.peer(); stored.LeftOut != "" {
		return row{}, false
	}
	return rowFor(f.Plan, f.Address)
}

// source is an address that a packet from a container may have.
func (f *PathFacts) source() netip.Addr {
	if f.Container != nil && f.Container.Addr.IsValid() {
		return f.Container.Addr
	}
	return f.Plan.Host().BridgeAddrs().Of(subnet.FamilyOf(f.Address)).Addr().Next()
}

// arrives is the device by which a container's packets come; "" if there is none.
func (f *PathFacts) arrives() string {
	if f.Container != nil {
		return f.Container.Arrives
	}
	return f.Plan.Host().Bridge
}

// look fills in all that can be known without sending a packet, but for a ping to the container's gateway.
func (f *PathFacts) look(ctx context.Context, r Request) error {
	k, err := kernel.Open()
	if err != nil {
		return err
	}
	defer k.Close()
	note := func(hop string, err error) {
		if err != nil && f.Unseen[hop] == nil {
			f.Unseen[hop] = err
		}
	}
	key := f.View.Self.Key
	if stored, _, ok := f.peer(); ok {
		key = stored.Key
	}
	if f.Etcd, err = r.Source.Etcd(ctx, key); err != nil {
		note(hopLease, err)
	}
	if r.From != nil {
		f.Container = &Inside{Container: *r.From}
		if err := f.Container.look(ctx, k, f.Address); err != nil {
			return err
		}
	}
	f.Shaken, err = r.shaken(ctx, key)
	note(hopEndpoint, err)
	f.Links = map[string]backend.Link{}
	names := []string{f.Plan.Host().Bridge, f.arrives()}
	for _, o := range f.Plan.State().Outers() {
		names = append(names, o.Device)
	}
	for _, name := range names {
		link, _, err := k.Device(name)
		note(hopDevice, err)
		f.Links[name] = link
	}
	if bridge := f.Plan.Host().Bridge; bridge != "" {
		f.Bridge, err = k.Addresses(bridge)
		note(hopBridge, err)
	}
	f.lookAtRoutes(k, note)
	f.Filter, err = ReadFilter(ctx)
	note(hopFirewall, err)
	note(hopFirewall, f.Filter.addOwn(f.Plan.State().Firewall))
	return nil
}

// lookAtRoutes looks at what the kernel has for the address, and for its host.
func (f *PathFacts) lookAtRoutes(k *kernel.Kernel, note func(string, error)) {
	family := subnet.FamilyOf(f.Address)
	value, err := readSysctl(forwards.Of(family))
	note(hopForwarding, err)
	f.Forwarding = value != "0"
	value, err = readSysctl(bridgeAsks.Of(family))
	f.Netfiltered = err == nil && value != "0" // without the module there is no such file
	f.Own, err = k.Way(kernel.Flow{Dst: f.Address})
	note(hopRoute, err)
	f.Forwarded = f.Own
	if in := f.arrives(); f.Links[in].Kind != "" && !f.Links[in].Down && f.Forwarding {
		f.Forwarded, err = k.Way(kernel.Flow{Dst: f.Address, Src: f.source(), In: in})
		note(hopRoute, err)
	}
	f.Nexthop = backend.Route{Via: f.Forwarded.Via, Dev: f.Forwarded.Dev, OnLink: f.Forwarded.OnLink}
	if id := f.Forwarded.Nexthop; id != 0 {
		f.Nexthop, _, err = k.Nexthop(id)
		note(hopNexthop, err)
	}
	row, ok := f.row()
	if !ok {
		return
	}
	f.MAC, f.Neighbour, err = k.Neighbour(backend.NeighbourKey{Dev: row.Dev, IP: row.Via})
	note(hopNeighbour, err)
	f.VTEP, _, err = k.FDB(backend.FDBKey{Dev: row.Dev, MAC: row.MAC})
	note(hopFDB, err)
	f.Flood, err = k.Floods(backend.Flood{Dev: row.Outer.Device, Dst: row.Public})
	note(hopFlood, err)
	f.Underlay, err = k.Way(kernel.Flow{Dst: row.Public, Src: f.Plan.Host().Underlay.Local.Of(subnet.FamilyOf(row.Public))})
	note(hopUnderlay, err)
}

// within runs what on a thread in the network namespace that a path leads to.
func within(path string, what func() error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", path, err)
	}
	defer ns.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, in that namespace
		err := netns.Set(ns)
		if err == nil {
			err = what()
		}
		done <- err
	}()
	return <-done
}

// look looks around in the container. host is the kernel of this host.
func (i *Inside) look(ctx context.Context, host *kernel.Kernel, address netip.Addr) error {
	if i.Host = sameFile(i.Netns, "/proc/self/ns/net"); i.Host {
		return nil
	}
	err := within(i.Netns, func() error {
		k, err := kernel.Open()
		if err != nil {
			return err
		}
		defer k.Close()
		if i.Way, err = k.Way(kernel.Flow{Dst: address}); err != nil || !i.Way.Prefix.IsValid() {
			return err
		}
		link, _, err := k.Device(i.Way.Dev)
		i.Dev, i.MTU = i.Way.Dev, link.MTU
		i.Addr = sender(ctx, address)
		return err
	})
	if err != nil || !i.Addr.IsValid() {
		return err
	}
	way, err := host.Way(kernel.Flow{Dst: i.Addr})
	if err != nil {
		return err
	}
	i.Arrives = way.Dev
	if !i.Way.Via.IsValid() {
		return nil
	}
	way, err = host.Way(kernel.Flow{Dst: i.Way.Via})
	i.Gateway = way.Type == "local"
	i.Silent = within(i.Netns, func() error {
		_, err := probe.Ping(ctx, i.Addr, i.Way.Via, 0, false)
		return err
	})
	return err
}

func sameFile(a, b string) bool {
	first, errA := os.Stat(a)
	second, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(first, second)
}

// sender is the address that the kernel would send from; not valid if it would not.
func sender(ctx context.Context, to netip.Addr) netip.Addr {
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", netip.AddrPortFrom(to, 9).String()) // it sends nothing
	if err != nil {
		return netip.Addr{}
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
}

// Pings are what came of probing a path. Of what was not probed the pointer is nil.
type Pings struct {
	Underlay, Overlay, Address *Pinged
	MTU                        int   // the longest packet that gets to the peer over the overlay, bytes; 0 if not probed
	MTUErr                     error // why that is not known
}

// Pinged is one ping.
type Pinged struct {
	To    netip.Addr
	Trip  time.Duration
	Error error // why there is no answer; nil if there is one
}

func ping(ctx context.Context, from, to netip.Addr) *Pinged {
	trip, err := probe.Ping(ctx, from, to, 0, false)
	return &Pinged{to, trip, err}
}

// inside is where this host sends from into the overlay: its address there, or if it has none the underlay's.
func (f *PathFacts) inside() netip.Addr {
	h, family := f.Plan.Host(), subnet.FamilyOf(f.Address)
	bridge, inside := h.BridgeAddrs().Of(family), f.Plan.Inside(h.Self).Of(family)
	if !inside.IsValid() || inside == bridge.Addr() && !slices.Contains(f.Bridge, bridge) {
		return h.Underlay.Local.Of(family)
	}
	return inside
}

// probe pings what is on the way: all of it only if the way is there.
func (f *PathFacts) probe(ctx context.Context, r Request, whole bool) (p Pings) {
	h, family := f.Plan.Host(), subnet.FamilyOf(f.Address)
	own := f.inside()
	switch f.place() {
	case ofHost:
		return p
	case ofPeer:
		row, ok := f.row()
		if !ok {
			return p
		}
		p.Underlay = ping(ctx, h.Underlay.Local.Of(subnet.FamilyOf(row.Public)), row.Public)
		if !whole {
			return p
		}
		if !row.Inside.IsValid() {
			break
		}
		for _, to := range slices.Compact([]netip.Addr{row.Inside, row.Prefix.Addr().Next()}) { // old kernels take the subnet's first for a broadcast
			if p.Overlay = ping(ctx, own, to); p.Overlay.Error == nil {
				break
			}
		}
		if p.Overlay.Error != nil {
			return p
		}
		if p.MTU, p.MTUErr = probe.PathMTU(ctx, own, p.Overlay.To, f.Plan.State().MTU); p.MTUErr != nil {
			p.MTU = 0
		}
	case ofSubnet:
		own = h.BridgeAddrs().Of(family).Addr()
	case ofOutside:
		own = sender(ctx, f.Address)
	}
	switch {
	case !whole:
	case r.From != nil && !f.Container.Host:
		if err := within(r.From.Netns, func() error { p.Address = ping(ctx, f.Container.Addr, f.Address); return nil }); err != nil {
			p.Address = &Pinged{To: f.Address, Error: err}
		}
	default:
		p.Address = ping(ctx, own, f.Address)
	}
	return p
}
