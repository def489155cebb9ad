// Package l2 keeps ARP and IPv6's neighbour discovery off the wire in a network whose hosts are one segment. The bridge answers what
// this host's containers ask from its neighbour table, if it is not to send it by its VXLAN port (neigh_suppress): this package learns
// what belongs into the table from what comes in from peers, and sees to it that an answer given in another's name is right. It owns
// what was learned, and nothing that was planned: the port and where it floods to are package kernel's.
package l2

import (
	"context"
	"fmt"
	"net"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/kernel"
	"github.com/tulle-net/tulle/subnet"
)

// Carrier is an agent's.
type Carrier struct {
	learned *kernel.Learned
	opened  chan *segment
	bell    chan struct{}

	segment *segment // nil while the network is not one segment
	swept   bool     // nothing was learned since all was forgotten
}

// New returns a Carrier for the calling thread's network namespace.
func New() (*Carrier, error) {
	learned, err := kernel.OpenLearned()
	if err != nil {
		return nil, err
	}
	return &Carrier{learned: learned, opened: make(chan *segment, 1), bell: make(chan struct{}, 1)}, nil
}

// Close gives the socket back. What was learned stays: the bridge goes on answering.
func (c *Carrier) Close() { c.learned.Close() }

// Prepare does nothing: no fact is this package's to know.
func (c *Carrier) Prepare(context.Context, backend.Needs, *backend.Facts) error { return nil }

// Open does nothing: the port is the kernel's own.
func (c *Carrier) Open(context.Context, backend.State) error { return nil }

// Apply begins to learn where want is one segment, and forgets all where it is not. What was learned is nothing that a State
// wants, so there are no changes.
func (c *Carrier) Apply(_ context.Context, want backend.State) (backend.Changes, error) {
	p, whole := locate(want)
	if c.segment != nil && (p != c.segment.place || c.segment.over()) {
		c.segment.close()
		c.segment = nil
	}
	switch {
	case !whole:
		return backend.Changes{}, c.sweep()
	case c.segment == nil:
		s, err := openSegment(p, c.learned)
		if err != nil {
			return backend.Changes{}, fmt.Errorf("learn what peers tell of their containers: %w", err)
		}
		c.segment, c.swept = s, false
		c.offer(s)
	}
	return backend.Changes{}, c.segment.compare(want.Floods)
}

// locate finds the port that answers for others. There need not be one: want may ask for none, or package kernel could not make
// it, which it says itself.
func locate(want backend.State) (p place, whole bool) {
	for name, l := range want.Links {
		if !l.Suppress {
			continue
		}
		port, portErr := net.InterfaceByName(name)
		bridge, bridgeErr := net.InterfaceByName(l.Master)
		if portErr != nil || bridgeErr != nil {
			return place{}, false
		}
		p = place{port: port.Index, bridge: bridge.Index, network: want.Firewall.Network, own: want.Firewall.Subnet}
		for a := range want.Addrs {
			if f := subnet.FamilyOf(a.Prefix.Addr()); a.Dev == l.Master && p.own.Of(f).Contains(a.Prefix.Addr()) {
				*p.gateway.At(f) = a.Prefix.Addr()
			}
		}
		return p, true
	}
	return place{}, false
}

// sweep forgets what was learned, in this life or another.
func (c *Carrier) sweep() error {
	if c.swept {
		return nil
	}
	err := c.learned.Sweep()
	c.swept = err == nil
	return err
}

// offer gives Run a segment in place of any that it has not taken yet.
func (c *Carrier) offer(s *segment) {
	select {
	case <-c.opened:
	default:
	}
	c.opened <- s
}

// Change takes in which peers came and went.
func (c *Carrier) Change(_ context.Context, changes backend.Changes) error {
	if c.segment == nil {
		return nil
	}
	return c.segment.change(changes.Floods)
}

// Doorbell receives when a device that was learned from has gone away.
func (c *Carrier) Doorbell() <-chan struct{} { return c.bell }

// Run learns until ctx ends.
func (c *Carrier) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-c.opened:
			s.run(ctx)
		}
		select {
		case c.bell <- struct{}{}:
		default:
		}
	}
}
