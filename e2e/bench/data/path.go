package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/tulle-net/tulle/e2e/lab"
)

// path leads from one host, or its container, to the other.
type path struct {
	Name string
	MTU  int // bytes

	from, to string // namespaces
	address  netip.Addr
}

// row is one line of the table: a figure of all paths.
type row struct {
	Name, Unit string
	Samples    map[string][]float64 // by path's name
}

// figure is what one measurement says.
type figure struct {
	name, unit string // of the row it belongs to
	value      float64
}

// probe measures something on a path.
type probe func(ctx context.Context, p path, seconds int) ([]figure, error)

// between leads from one container to the other.
func between(name string, l *lab.Lab) (path, error) {
	a, b := l.Nodes[0].Container, l.Nodes[1].Container
	return path{Name: name, from: a.Namespace, to: b.Namespace, address: b.Address}.withMTU()
}

// below leads from one host to the other, without the overlay.
func below(name string, l *lab.Lab) (path, error) {
	a, b := l.Nodes[0], l.Nodes[1]
	return path{Name: name, from: a.Namespace, to: b.Namespace, address: b.Address}.withMTU()
}

func (p path) withMTU() (path, error) {
	err := lab.In(p.from, func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err == nil {
			p.MTU = eth0.MTU
		}
		return err
	})
	return p, err
}

// survey is what is measured along some paths.
type survey struct {
	Paths []path
	Rows  []*row
}

// measurePaths does one round.
func (b *bench) measurePaths(ctx context.Context) error {
	whole := b.measure(ctx, &b.Overlay, "", tcp(1), tcp(4), udp(64), udp(0), echo)
	frames, err := b.asFrames(ctx)
	if err == nil {
		err = b.measure(ctx, &b.Overlay, ", in frames", tcp(1), tcp(4))
	}
	return errors.Join(whole, err, frames.undo(ctx))
}

// measure tries each probe on all paths in turn, so that whatever else the machine does meets all of them alike.
func (b *bench) measure(ctx context.Context, s *survey, suffix string, probes ...probe) error {
	var errs []error
	for _, probe := range probes {
		for _, p := range s.Paths {
			figures, err := probe(ctx, p, b.Seconds)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", p.Name, err))
			}
			for _, f := range figures {
				b.say("%-9s  %s%s: %s %s", p.Name, f.name, suffix, number(f.value), f.unit)
				r := s.row(f.name+suffix, f.unit)
				r.Samples[p.Name] = append(r.Samples[p.Name], f.value)
			}
		}
	}
	return errors.Join(errs...)
}

// row returns the row of a name and unit, a new one if there is none.
func (s *survey) row(name, unit string) *row {
	for _, r := range s.Rows {
		if r.Name == name && r.Unit == unit {
			return r
		}
	}
	r := &row{name, unit, map[string][]float64{}}
	s.Rows = append(s.Rows, r)
	return r
}

// asFrames turns the underlay into a wire. As the lab makes it, packets cross it in segments of up to 64 KB, as they do
// between virtual machines on one host; now they cross it in frames that fit its MTU, cut by what is before it and put
// together again by what is behind it, as between two machines whose network cards have these offloads.
func (b *bench) asFrames(ctx context.Context) (changes, error) {
	var done changes
	for _, l := range b.labs[:2] {
		for _, h := range l.Nodes {
			cut, err := turn(ctx, false, device{l.Underlay(), h.Name}, tso, tunnel, tunnelChecksum, "tx-udp-segmentation")
			done = append(done, cut...)
			if err != nil {
				return done, err
			}
			join, err := turn(ctx, true, device{h.Namespace, "eth0"}, gro)
			done = append(done, join...)
			if err != nil {
				return done, err
			}
		}
	}
	return done, nil
}
