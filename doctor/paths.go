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
		tries.Go(func() (err error) { p.Underlay, err = answers(ctx, h.Underlay.Local.V4, p.Public); return err })
		tries.Go(func() (err error) { p.Overlay, err = answers(ctx, backend.VTEPs(h.Self).V4, p.VTEP); return err })
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
		inner := kernel.Flow{Dst: second(p.VTEP)}
		if d, ok := f.device(h.Bridge); ok && d.Up && f.Sysctls[ipForward] == "1" && f.Sysctls[conf(h.Bridge, "forwarding")] == "1" { // else it takes in no such packet
			inner.Src, inner.In = second(backend.VTEPs(h.Self).V4), h.Bridge
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
		if p.Overlay || !p.Inner.Ours() {
			continue
		}
		t := PathFacts{Address: second(p.VTEP), Plan: f.Plan, Agent: f.Absent == "", Links: map[string]backend.Link{}}
		row, ok := t.row()
		if t.Links[row.Dev], _, err = k.Device(row.Dev); err != nil || !ok {
			continue
		}
		t.lookAtRoutes(k, func(string, error) {})
		for _, hop := range []Hop{t.nexthop(row), t.neighbour(row), t.fdb(row)} {
			if hop.State == HopWrong && p.Entry == (Hop{}) && (row.Tunnelled || !p.Direct) {
				p.Entry = hop
			}
		}
	}
	return nil
}

// second is a container's address, most likely: the bridge has the first.
func second(subnet netip.Addr) netip.Addr { return subnet.Next().Next() }

// choosePaths chooses peers that the agent can't reach, and some of all the others.
func (f *Facts) choosePaths() []Path {
	said := map[string]api.Peer{}
	for _, p := range f.Peers {
		said[p.Key] = p
	}
	var bad, good []Path
	for key, e := range f.Plan.Entries() {
		route, programmed := f.Plan.State().Routes[e.Lease.Subnet.V4]
		if _, left := f.Plan.Rejected()[key]; left || !programmed || key == f.Plan.Host().Self.Key() {
			continue
		}
		p := Path{Key: key, Public: e.Lease.PublicIP.V4, VTEP: e.Lease.Subnet.V4.Addr(), Direct: !route.OnLink, Heard: said[key].Overlay}
		if said[key].State == api.Unreachable {
			bad = append(bad, p)
		} else {
			good = append(good, p)
		}
	}
	byKey := func(a, b Path) int { return a.VTEP.Compare(b.VTEP) }
	slices.SortFunc(bad, byKey)
	slices.SortFunc(good, byKey)
	chosen := spread(bad, maxPaths/2)
	return append(chosen, spread(good, maxPaths-len(chosen))...)
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
			p.Longest, err = probe.PathMTU(ctx, backend.VTEPs(f.Plan.Host().Self).V4, p.VTEP, f.Plan.State().MTU)
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
			p.Checksum, err = probe.Checksum(ctx, backend.VTEPs(f.Plan.Host().Self).V4, p.VTEP)
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
