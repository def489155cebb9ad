package backend

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/tulle-net/tulle/subnet"
)

// Outer is how packets to peers look on the underlay. The zero Outer: as they are, from container to container.
type Outer struct {
	Device string // that encapsulates them
	Kind   Kind   // Device's
	Port   uint16 // UDP destination; 0 for IPIP
}

// Outers is how the packets look that s has encapsulated, by each of its devices: where there is one for each family of the underlay,
// IPv4's first.
func (s State) Outers() (all []Outer) {
	for name := range s.Links {
		if o := s.outerBy(name); o != (Outer{}) {
			all = append(all, o)
		}
	}
	slices.SortFunc(all, func(a, b Outer) int { return cmp.Compare(len(a.Device), len(b.Device)) })
	return all
}

// Outer is the first of Outers; the zero Outer if there is none.
func (s State) Outer() Outer {
	for _, o := range s.Outers() {
		return o
	}
	return Outer{}
}

// outerBy is how packets look that the device encapsulates.
func (s State) outerBy(device string) Outer {
	switch l := s.Links[device]; l.Kind {
	case KindVXLAN:
		return Outer{device, l.Kind, l.VXLAN.Port}
	case KindIPIP:
		return Outer{device, l.Kind, 0}
	case KindWireGuard, KindTUN:
		return Outer{device, l.Kind, s.Tunnels[device].Port}
	}
	return Outer{}
}

// String is what must be let pass between hosts, as in "UDP port 8472".
func (o Outer) String() string {
	switch {
	case o.Kind == KindIPIP:
		return "IP protocol 4 (IPIP)"
	case o.Port != 0:
		return fmt.Sprintf("UDP port %d", o.Port)
	}
	return "packets with containers' addresses"
}

// Leg is how packets of one family get to a peer's host.
type Leg struct {
	Subnet netip.Prefix // the peer's
	Inside netip.Addr   // where its host itself answers inside the overlay; not valid: nowhere
	To     netip.Addr   // its host's address on the underlay that they are sent to
	Outer  Outer
}

// Legs are those to l's host, which is a peer, by the family inside: of each that both hosts have there and packets are carried of.
func (p *Plan) Legs(l subnet.Lease) (legs subnet.Pair[Leg]) {
	part, err := p.backend.Peer(p.host, l)
	if err != nil {
		return legs
	}
	inside := p.Inside(l)
	for f := range p.host.subnets().All() {
		prefix := l.Subnet.Of(f)
		if route, carried := part.route(prefix); carried {
			*legs.At(f) = Leg{prefix, inside.Of(f), cmp.Or(part.to(prefix, route), p.host.nearest(l, f)), p.State().outerBy(cmp.Or(route.Dev, p.State().Outer().Device))}
		}
	}
	return legs
}

// route is the one to a peer's subnet: the zero Route where there are none at all, and false where there are others only.
func (p Part) route(prefix netip.Prefix) (Route, bool) {
	for _, r := range p.Routes {
		if r.Key == prefix {
			return r.Value, true
		}
	}
	return Route{}, prefix.IsValid() && len(p.Routes) == 0
}

// to is where on the underlay what has a route is sent; not valid if p does not say.
func (p Part) to(prefix netip.Prefix, route Route) netip.Addr {
	for _, r := range p.FDB {
		if r.Key.Dev == route.Dev {
			return r.Value
		}
	}
	for _, r := range p.Endpoints {
		if r.Key.Prefix == prefix {
			return r.Value.Addr()
		}
	}
	for _, r := range p.Peers {
		if r.Value.Allowed.Of(subnet.FamilyOf(prefix.Addr())) == prefix {
			return r.Value.Endpoint.Addr()
		}
	}
	for _, r := range p.Floods {
		return r.Key.Dst
	}
	return route.Via
}

// nearest is l's address on the underlay that packets are sent to which the backend has no say in: of the family f, if both hosts have that.
func (h Host) nearest(l subnet.Lease, f subnet.Family) netip.Addr {
	if h.Underlay.Local.Of(f).IsValid() && l.PublicIP.Of(f).IsValid() {
		return l.PublicIP.Of(f)
	}
	return l.PublicIP.Of(f.Other())
}
