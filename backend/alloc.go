package backend

import (
	"net/netip"

	"github.com/tulle-net/tulle/subnet"
)

// alloc leases a subnet and carries nothing: how packets get to peers is the operator's business. It is flannel's alloc.
type alloc struct{}

func (alloc) Needs() Needs { return Needs{} }

func (alloc) Announce(h Host) subnet.Lease { return subnet.Lease{PublicIP: h.Public()} }

func (alloc) Inside(subnet.Lease) (none subnet.Pair[netip.Addr]) { return none }

func (alloc) Fixed(h Host) (State, error) {
	s := NewState()
	s.MTU = h.Underlay.MTU
	return s, nil
}

func (alloc) Peer(h Host, l subnet.Lease) (Part, error) {
	if err := h.accept(l); err != nil {
		return Part{}, err
	}
	return Part{}, carriedBy("", l)
}
