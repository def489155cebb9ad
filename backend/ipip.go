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

func (ipip) Announce(Underlay, Facts) (string, subnet.Pair[string]) {
	return "ipip", subnet.Pair[string]{}
}

func (ipip) Inside(l subnet.Lease) subnet.Pair[netip.Addr] { return first(l) }

func (b ipip) Fixed(h Host) (State, error) {
	mtu, err := h.inner(0, ipipV4, "IPIP")
	if err != nil {
		return State{}, err
	}
	s := h.common(mtu)
	s.Links[ipipDevice] = Link{Kind: KindIPIP, MTU: mtu, IPIP: IPIP{Local: h.Underlay.Local.V4, Parent: h.Underlay.Device}}
	s.Addrs[Addr{ipipDevice, netip.PrefixFrom(first(h.Self).V4, 32)}] = struct{}{}
	if !b.DirectRouting {
		s.Firewall.Tunnel = ipipDevice
	}
	return s, nil
}

func (b ipip) Peer(h Host, l subnet.Lease) (Part, error) {
	if err := h.accept(l); err != nil {
		return Part{}, err
	}
	if err := carriedBy("ipip", l); err != nil {
		return Part{}, err
	}
	if b.DirectRouting && h.Underlay.reaches(l.PublicIP.V4) {
		return direct(h, l), nil
	}
	return Part{Routes: row(l.Subnet.V4, Route{Via: l.PublicIP.V4, Dev: ipipDevice, OnLink: true})}, nil
}
