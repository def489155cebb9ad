package backend

import (
	"fmt"
	"net/netip"

	"github.com/tulle-net/tulle/subnet"
)

// hostGW carries packets as they are: peers are gateways on the same segment. It is flannel's host-gw.
type hostGW struct{}

func (hostGW) Needs() Needs { return Needs{} }

func (hostGW) Announce(h Host) subnet.Lease {
	return subnet.Lease{Backend: "host-gw", PublicIP: h.Public()}
}

func (hostGW) Inside(l subnet.Lease) subnet.Pair[netip.Addr] { return second(l) }

func (hostGW) Fixed(h Host) (State, error) {
	mtu, err := h.inner(0, subnet.Pair[int]{}, "it")
	if err != nil {
		return State{}, err
	}
	if h.subnets().V6.IsValid() && !h.Public().V6.IsValid() {
		return State{}, fmt.Errorf("device %s has no IPv6 address that peers could send to, and IPv6 can't be routed by way of an IPv4 gateway: give it one, or choose another Backend.Type, as vxlan", h.Underlay.Device)
	}
	s := h.common(mtu)
	s.Firewall.From.add(h.Underlay.Device)
	return s, nil
}

func (hostGW) Peer(h Host, l subnet.Lease) (p Part, err error) {
	legs, err := h.legs("host-gw", l)
	if err != nil {
		return Part{}, err
	}
	for _, g := range legs {
		if !h.Underlay.reaches(g.to) {
			return Part{}, subnet.Rejectf(subnet.NotOnLink, "%s is not on the segment of %s, so it can't be a gateway: host-gw needs all hosts on one segment; vxlan with DirectRouting tunnels to the others",
				g.to, h.Underlay.Device)
		}
		if g.directly() {
			p.Routes = append(p.Routes, g.direct(h)...)
		}
	}
	if len(p.Routes) == 0 {
		return Part{}, subnet.Rejectf(subnet.OtherFamily, "its host is reached at %s, this host at %s: IPv6 can't be routed by way of an IPv4 gateway", list(l.PublicIP), list(h.Public()))
	}
	return p, nil
}
