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
	inside, routed := p.Inside(l), false
	for _, prefix := range l.Subnet.All() {
		_, ok := p.routes.total[prefix]
		routed = routed || ok
	}
	for f := range p.host.subnets().All() {
		prefix := l.Subnet.Of(f)
		route, ok := p.routes.total[prefix]
		if !prefix.IsValid() || routed && !ok {
			continue
		}
		outer := p.State().outerBy(route.Dev)
		if !ok {
			outer = p.State().Outer()
		}
		*legs.At(f) = Leg{prefix, inside.Of(f), p.to(l, prefix, route), outer}
	}
	return legs
}

// to is where on the underlay is sent what is for a peer's subnet, which has a route, or the zero Route.
func (p *Plan) to(l subnet.Lease, prefix netip.Prefix, route Route) netip.Addr {
	if mac, ok := p.neighbours.total[NeighbourKey{route.Dev, route.Via}]; ok {
		return p.fdb.total[FDBKey{route.Dev, mac}]
	}
	if end, ok := p.endpoints.total[EndpointKey{route.Dev, prefix}]; ok {
		return end.Addr()
	}
	if route.Via.IsValid() {
		return route.Via
	}
	family := subnet.FamilyOf(prefix.Addr())
	part, _ := p.backend.Peer(p.host, l) // it is not left out
	for _, r := range part.Peers {
		if r.Value.Allowed.Of(family) == prefix {
			return r.Value.Endpoint.Addr()
		}
	}
	for _, r := range part.Floods {
		return r.Key.Dst
	}
	return p.host.nearest(l, family)
}

// nearest is l's address on the underlay that packets are sent to which the backend has no say in: of the family f, if both hosts have that.
func (h Host) nearest(l subnet.Lease, f subnet.Family) netip.Addr {
	if h.Underlay.Local.Of(f).IsValid() && l.PublicIP.Of(f).IsValid() {
		return l.PublicIP.Of(f)
	}
	return l.PublicIP.Of(f.Other())
}
