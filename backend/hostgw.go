package backend

import (
	"net/netip"

	"github.com/tulle-net/tulle/subnet"
)

// hostGW carries packets as they are: peers are gateways on the same segment. It is flannel's host-gw.
type hostGW struct{}

func (hostGW) Needs() Needs { return Needs{} }

func (hostGW) Announce(Underlay, Facts) (string, subnet.Pair[string]) {
	return "host-gw", subnet.Pair[string]{}
}

func (hostGW) Inside(l subnet.Lease) subnet.Pair[netip.Addr] { return second(l) }

func (hostGW) Fixed(h Host) (State, error) {
	mtu, err := h.inner(0, 0, "it")
	if err != nil {
		return State{}, err
	}
	return h.common(mtu), nil
}

func (hostGW) Peer(h Host, l subnet.Lease) (Part, error) {
	if err := h.accept(l); err != nil {
		return Part{}, err
	}
	if err := carriedBy("host-gw", l); err != nil {
		return Part{}, err
	}
	if !h.Underlay.reaches(l.PublicIP.V4) {
		return Part{}, subnet.Rejectf(subnet.NotOnLink, "%s is not on the segment of %s, so it can't be a gateway: host-gw needs all hosts on one segment; vxlan with DirectRouting tunnels to the others",
			l.PublicIP.V4, h.Underlay.Device)
	}
	return direct(h, l), nil
}
