package doctor

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// Source tells of the network: an agent (api.Client), or etcd itself where none runs.
type Source interface {
	// View is what an agent of this host plans from; if address is not "", without the leases that don't cover it.
	View(ctx context.Context, address string) (api.View, error)
	// Etcd is what etcd says at this moment, also of a key below subnets/, unless that is "".
	Etcd(ctx context.Context, key string) (api.Etcd, error)
}

// Plan makes the plan that the agent makes of v. If v has not all leases, the plan may let one in that the agent leaves out for
// another's sake: StoredLease.LeftOut knows.
func Plan(v api.View) (*backend.Plan, error) {
	config, _, err := subnet.ParseConfig([]byte(v.Config))
	if err != nil {
		return nil, fmt.Errorf("the network's config: %w", err)
	}
	b, _, err := backend.New(config)
	if err != nil {
		return nil, fmt.Errorf("the network's config: %w", err)
	}
	self, err := subnet.ParseLease(v.Self.Key, []byte(v.Self.Value))
	if err != nil {
		return nil, fmt.Errorf("this host's own lease %q: %w", v.Self.Key, err)
	}
	entries := make(map[string]subnet.Entry, len(v.Leases))
	for key, stored := range v.Leases {
		e := subnet.Entry{Created: stored.Created, Reserved: stored.Reserved}
		e.Lease, e.Err = subnet.ParseLease(key, []byte(stored.Value))
		entries[key] = e
	}
	return backend.NewPlan(b, backend.Host{Config: config, Self: self, Underlay: v.Underlay, Options: v.Options}, entries)
}

// row is what a plan has for one subnet of a peer's.
type row struct {
	Prefix netip.Prefix
	backend.Route
	Tunnelled bool // through the overlay's device: then there is a MAC, and the VTEP behind it
	MAC       backend.MAC
	VTEP      netip.Addr // on the underlay
}

// rowFor returns what p has for packets to a; false if nothing.
func rowFor(p *backend.Plan, a netip.Addr) (row, bool) {
	s := p.State()
	for prefix, route := range s.Routes {
		if !prefix.Contains(a) {
			continue
		}
		mac, tunnelled := s.Neighbours[backend.NeighbourKey{Dev: route.Dev, IP: route.Via}]
		return row{prefix, route, tunnelled, mac, s.FDB[backend.FDBKey{Dev: route.Dev, MAC: mac}]}, true
	}
	return row{}, false
}

// tunnelOf is the device that p's packets are encapsulated by.
func tunnelOf(p *backend.Plan) (name string, link backend.Link) {
	for name, link := range p.State().Links {
		if link.Kind == backend.KindVXLAN {
			return name, link
		}
	}
	return "", link
}
