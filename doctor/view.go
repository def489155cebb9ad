package doctor

import (
	"cmp"
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
	b, err := backend.New(config)
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
	return backend.NewPlan(b, backend.Host{Config: config, Self: self, Underlay: v.Underlay, Facts: backend.Facts{Userspace: v.Userspace}, Options: v.Options}, entries)
}

// row is what a plan has for packets to a peer.
type row struct {
	Prefix        netip.Prefix  // its subnet
	Public        netip.Addr    // its host, on the underlay
	Inside        netip.Addr    // where its host answers inside the overlay; not valid: nowhere
	backend.Route               // the zero Route where the agent makes none
	Outer         backend.Outer // the zero Outer: they leave as they are
	MAC           backend.MAC   // behind which Outer.Device has Public; zero if it does not go by MACs of leases
	Endpoint      netip.AddrPort
	Flooded       bool // Outer.Device sends to Public what it knows no host for
}

// routed tells that the agent makes a route: with l2 all hosts are one segment, and for some backends that is the operator's business.
func (r row) routed() bool { return r.Route != (backend.Route{}) }

// tunnelled tells that there is a device which encapsulates.
func (r row) tunnelled() bool { return r.Outer != (backend.Outer{}) }

// rowFor returns what p has for packets to a; false if a is no peer's, or of a family that is not carried there.
func rowFor(p *backend.Plan, a netip.Addr) (row, bool) {
	family := subnet.FamilyOf(a)
	for key, e := range p.Entries() {
		if e.Lease.Subnet.Of(family).Contains(a) && p.IsPeer(key, e) {
			r := rowOf(p, e.Lease, family)
			return r, r.Prefix.IsValid()
		}
	}
	return row{}, false
}

func rowOf(p *backend.Plan, l subnet.Lease, family subnet.Family) row {
	s, leg := p.State(), p.Legs(l).Of(family)
	r := row{Prefix: leg.Subnet, Public: leg.To, Inside: leg.Inside, Outer: leg.Outer}
	r.Route = s.Routes[r.Prefix]
	r.MAC = s.Neighbours[backend.NeighbourKey{Dev: r.Dev, IP: r.Via}]
	r.Endpoint = s.Endpoints[backend.EndpointKey{Dev: r.Dev, Prefix: r.Prefix}]
	for k, peer := range s.Peers {
		if k.Dev == r.Dev && peer.Allowed.Of(family) == r.Prefix {
			r.Endpoint = peer.Endpoint
		}
	}
	_, r.Flooded = s.Floods[backend.Flood{Dev: r.Outer.Device, Dst: r.Public}]
	return r
}

// carriage is the network's backend.
func carriage(p *backend.Plan) string { return cmp.Or(p.Host().Config.Backend.Type, "vxlan") }

// byOperator tells that what leads to peers is the operator's business.
func byOperator(p *backend.Plan) bool { return carriage(p) == "extension" || carriage(p) == "alloc" }

// bridged tells that all hosts' bridges are one segment.
func bridged(p *backend.Plan) bool { return carriage(p) == "l2" }
