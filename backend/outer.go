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

// Outer is how the packets look that s has encapsulated.
func (s State) Outer() (o Outer) {
	for name, l := range s.Links {
		switch l.Kind {
		case KindVXLAN:
			o = Outer{name, l.Kind, l.VXLAN.Port}
		case KindIPIP:
			o = Outer{name, l.Kind, 0}
		case KindWireGuard, KindTUN:
			o = Outer{name, l.Kind, s.Tunnels[name].Port}
		}
	}
	return o
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

// Outer is how packets to l's host look: with DirectRouting, they are encapsulated for some peers and not for others.
func (p *Plan) Outer(l subnet.Lease) Outer {
	if route, routed := p.routes.total[l.Subnet.V4]; routed && route.Dev == p.host.Underlay.Device {
		return Outer{}
	}
	return p.State().Outer()
}
