package backend

import (
	"net/netip"

	"github.com/tulle-net/tulle/subnet"
)

// ipip carries packets in IPIP (RFC 2003): the least overhead of all tunnels, and no ports, which some networks don't let pass.
// On the wire it is flannel's ipip.
type ipip struct{ DirectRouting bool }

const (
	ipipDevice = Prefix + "-ipip"
	ipipV4     = 20 // overhead in bytes: an IPv4 header
)

func newIPIP(o options) (Backend, error) {
	var b ipip
	return b, o.read(&b)
}

func (ipip) Needs() Needs { return Needs{} }

func (ipip) Announce(h Host) subnet.Lease {
	return subnet.Lease{Backend: "ipip", PublicIP: h.onIPv4().Public()}
}

// onIPv4 is h without an underlay of IPv6: IPIP has none.
func (h Host) onIPv4() Host {
	h.Families = OnlyIPv4
	return h
}

func (ipip) Inside(l subnet.Lease) subnet.Pair[netip.Addr] { return first(l) }

func (b ipip) Fixed(h Host) (State, error) {
	mtu, err := h.onIPv4().inner(0, subnet.PairOf(subnet.IPv4, ipipV4), "IPIP")
	if err != nil {
		return State{}, err
	}
	s := h.common(mtu)
	s.Links[ipipDevice] = Link{Kind: KindIPIP, MTU: mtu, IPIP: IPIP{Local: h.Underlay.Local.V4, Parent: h.Underlay.Device}}
	h.addresses(s, ipipDevice)
	s.Firewall.From.add(ipipDevice)
	if b.DirectRouting {
		s.Firewall.From.add(h.Underlay.Device)
	}
	return s, nil
}

func (b ipip) Peer(h Host, l subnet.Lease) (p Part, err error) {
	legs, err := h.onIPv4().legs("ipip", l)
	if err != nil {
		return Part{}, err
	}
	for _, g := range legs {
		if b.DirectRouting && h.Underlay.reaches(g.to) {
			p.Routes = append(p.Routes, g.direct(h)...)
			continue
		}
		p.Routes = append(p.Routes, row(g.subnet, Route{Via: g.to, Dev: ipipDevice, OnLink: true})...)
	}
	return p, nil
}
