package doctor

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/probe"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/kernel"
	"github.com/tulle-net/tulle/subnet"
)

const (
	maxPaths   = 16 // peers that are probed, however many there are
	maxLongest = 8  // of them, with long packets, and with and without a checksum
	pings      = 2
	pingSize   = 84 // bytes, as ping(8) has it
)

// lookAtPaths probes some of the peers, side by side, and looks at what the kernel has for those that don't answer.
func (f *Facts) lookAtPaths(ctx context.Context) error {
	if f.Plan == nil {
		return errors.New("without the network's leases no peer is known")
	}
	if why := f.Unseen[PartHost]; why != "" {
		return errors.New(why)
	}
	f.Paths = f.choosePaths()
	if err := f.lookAtWays(); err != nil {
		return err
	}
	h := f.Plan.Host()
	var tries errgroup.Group
	for i := range f.Paths {
		p := &f.Paths[i]
		outside, inside := h.Underlay.Local.Of(p.outerFamily()), f.inside(p.family())
		tries.Go(func() (err error) { p.Underlay, err = answers(ctx, outside, p.Public); return err })
		if p.Inside.IsValid() {
			tries.Go(func() (err error) { p.Overlay, err = answers(ctx, inside, p.Inside); return err })
		}
	}
	if err := tries.Wait(); err != nil {
		return err
	}
	return f.lookAtEntries()
}

// lookAtWays asks the kernel where packets to peers go. One that takes no packet at all says so by a Way without a prefix.
func (f *Facts) lookAtWays() error {
	k, err := kernel.Open()
	if err != nil {
		return err
	}
	defer k.Close()
	h := f.Plan.Host()
	for i := range f.Paths {
		p := &f.Paths[i]
		p.Outer, _ = k.Way(kernel.Flow{Dst: p.Public})
		inner := kernel.Flow{Dst: second(p.Subnet.Addr())}
		if d, ok := f.device(h.Bridge); ok && d.Up && f.Sysctls[forwards.Of(p.family())] == "1" && f.Sysctls[confOf(p.family(), h.Bridge, "forwarding")] == "1" { // else it takes in no such packet
			inner.Src, inner.In = second(h.Self.Subnet.Of(p.family()).Addr()), h.Bridge
		}
		p.Inner, _ = k.Way(inner)
	}
	return nil
}

// lookAtEntries finds the first of the kernel's entries that keeps a peer from being reached, as a trace does.
func (f *Facts) lookAtEntries() error {
	k, err := kernel.Open()
	if err != nil {
		return err
	}
	defer k.Close()
	for i := range f.Paths {
		p := &f.Paths[i]
		t := PathFacts{Address: second(p.Subnet.Addr()), Plan: f.Plan, Agent: f.Absent == "", Links: map[string]backend.Link{}}
		row, ok := t.row()
		if answers := p.Overlay && !row.Flooded; !ok || answers || row.routed() != p.Inner.Ours() { // one answers as long as its MAC is known without flooding
			continue
		}
		for _, dev := range []string{row.Dev, row.Outer.Device} {
			if t.Links[dev], _, err = k.Device(dev); err != nil {
				return err
			}
		}
		t.lookAtRoutes(k, func(string, error) {})
		for _, hop := range t.entries(row) {
			if hop.State == HopWrong && p.Entry == (Hop{}) {
				p.Entry = hop
			}
		}
	}
	return nil
}

// entries judges what the agent makes for a peer beside its route.
func (f *PathFacts) entries(row row) (hops []Hop) {
	if row.routed() && f.Forwarded.Ours() {
		hops = append(hops, f.nexthop(row))
	}
	if row.MAC != (backend.MAC{}) {
		hops = append(hops, f.neighbour(row), f.fdb(row))
	}
	if row.Flooded {
		hops = append(hops, f.flood(row))
	}
	return hops
}

// second is a container's address, most likely: the bridge has the first.
func second(subnet netip.Addr) netip.Addr { return subnet.Next().Next() }

// inside is the address of a family that this host has inside the overlay, for peers to answer to; not valid if it has none now.
func (f *Facts) inside(family subnet.Family) netip.Addr {
	a := f.Plan.Inside(f.Plan.Host().Self).Of(family)
	if !slices.ContainsFunc(f.Devices, func(d Device) bool { return d.has(a) }) {
		return netip.Addr{}
	}
	return a
}

// choosePaths chooses paths to peers that the agent can't reach, and some of all the others.
func (f *Facts) choosePaths() []Path {
	said := map[string]api.Peer{}
	for _, p := range f.Peers {
		said[p.Key] = p
	}
	var bad, good []Path
	for key, e := range f.Plan.Entries() {
		if !f.Plan.IsPeer(key, e) {
			continue
		}
		for family, leg := range f.Plan.Legs(e.Lease).All() {
			p, state := f.path(said[key], family, leg)
			if p.Key = key; state == api.Unreachable {
				bad = append(bad, p)
			} else {
				good = append(good, p)
			}
		}
	}
	byKey := func(a, b Path) int { return a.Subnet.Compare(b.Subnet) }
	slices.SortFunc(bad, byKey)
	slices.SortFunc(good, byKey)
	chosen := spread(bad, maxPaths/2)
	return append(chosen, spread(good, maxPaths-len(chosen))...)
}

// path is a leg to a peer, and what the agent says of it.
func (f *Facts) path(said api.Peer, family subnet.Family, leg backend.Leg) (Path, api.State) {
	p := Path{Public: leg.To, Subnet: leg.Subnet, Carrier: leg.Outer, Heard: said.Overlay, Shaken: said.Handshake}
	if f.inside(family).IsValid() {
		p.Inside = leg.Inside
	}
	for _, by := range said.Families {
		if by.Family == family.String() {
			p.Heard, said.State = by.Overlay, by.State
		}
	}
	return p, said.State
}

// spread takes n of a list, or all, at even distances.
func spread[T any](list []T, n int) (some []T) {
	n = min(n, len(list))
	for i := range n {
		some = append(some, list[i*len(list)/n])
	}
	return some
}

// answers pings. Its error says why it could not.
func answers(ctx context.Context, from, to netip.Addr) (bool, error) {
	for range pings {
		_, err := probe.Ping(ctx, from, to, pingSize, false)
		if err == nil {
			return true, nil
		}
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || ctx.Err() != nil {
			return false, err
		}
	}
	return false, nil
}

// reached are the paths that packets were found to pass, as many as are to be tried with more. Its error says why none is known.
func (f *Facts) reached() (paths []*Path, err error) {
	if why := f.Unseen[PartPaths]; why != "" {
		return nil, errors.New(why)
	}
	for i := range f.Paths {
		if f.Paths[i].Overlay && len(paths) < maxLongest {
			paths = append(paths, &f.Paths[i])
		}
	}
	return paths, nil
}

// lookAtLongest finds the longest packet that gets through to a peer and back.
func (f *Facts) lookAtLongest(ctx context.Context) error {
	paths, err := f.reached()
	if err != nil {
		return err
	}
	var tries errgroup.Group
	for _, p := range paths {
		tries.Go(func() (err error) {
			p.Longest, err = probe.PathMTU(ctx, f.inside(p.family()), p.Inside, f.Plan.State().MTU)
			if errors.Is(err, probe.ErrNoAnswer) { // it answered before
				err = nil
			}
			return err
		})
	}
	return tries.Wait()
}

// lookAtChecksums finds out whether packets arrive whose checksum is left to the device.
func (f *Facts) lookAtChecksums(ctx context.Context) error {
	paths, err := f.reached()
	if err != nil {
		return err
	}
	var tries errgroup.Group
	for _, p := range paths {
		tries.Go(func() (err error) {
			p.Checksum, err = probe.Checksum(ctx, f.inside(p.family()), p.Inside)
			return err
		})
	}
	if err := tries.Wait(); err != nil {
		return err
	}
	known := slices.ContainsFunc(paths, func(p *Path) bool { return p.Checksum != probe.ChecksumUnknown })
	if len(paths) > 0 && !known {
		return errors.New("no peer says that a UDP port is closed: their packet filters drop what comes to closed ports, or that answer")
	}
	return nil
}
