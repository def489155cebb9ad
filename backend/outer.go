package backend

import (
	"fmt"

	"github.com/tulle-net/tulle/subnet"
)

// Outer is how packets to peers look on the underlay. The zero Outer: as they are, from container to container.
type Outer struct {
	Device string // that encapsulates them
	Kind   Kind   // Device's
	Port   uint16 // UDP destination; 0 for IPIP
}

// Outer is how the packets look that s has encapsulated. Where there is a device for each family of the underlay it is IPv4's.
func (s State) Outer() (o Outer) {
	for name := range s.Links {
		if n := s.outerBy(name); n != (Outer{}) && (o.Device == "" || len(name) < len(o.Device)) {
			o = n
		}
	}
	return o
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

// Outer is how packets to l's host look, of the first of its families: with DirectRouting, they are encapsulated for some peers and
// not for others.
func (p *Plan) Outer(l subnet.Lease) Outer {
	for _, prefix := range l.Subnet.All() {
		if route, routed := p.routes.total[prefix]; routed {
			return p.State().outerBy(route.Dev)
		}
	}
	return p.State().Outer()
}
