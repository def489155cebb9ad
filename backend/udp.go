package backend

import (
	"net/netip"

	"github.com/tulle-net/tulle/subnet"
)

// udp carries packets in UDP without a header of its own, by a process: for networks and kernels that let nothing else pass. On the
// wire it is flannel's udp: the inner packet is the payload, and all hosts have the same port.
type udp struct{ Port uint16 }

const udpDevice = Prefix + "-udp"

// udpOverhead is in bytes, by the underlay's family: IPv4 20 or IPv6 40, UDP 8.
var udpOverhead = subnet.Pair[int]{V4: 28, V6: 48}

func newUDP(o options) (Backend, error) {
	w := struct{ Port int }{8285}
	if err := o.read(&w); err != nil {
		return nil, err
	}
	return udp{uint16(w.Port)}, within(limit{"Port", w.Port, 1, 65535, ""})
}

func (udp) Needs() Needs { return Needs{} }

func (udp) Announce(h Host) subnet.Lease { return subnet.Lease{PublicIP: h.Public()} }

func (udp) Inside(l subnet.Lease) subnet.Pair[netip.Addr] { return first(l) }

func (b udp) Fixed(h Host) (State, error) {
	mtu, err := h.inner(0, udpOverhead, "UDP")
	if err != nil {
		return State{}, err
	}
	s := h.common(mtu)
	tunnel := Tunnel{Port: b.Port}
	for f := range h.Public().All() {
		*tunnel.Local.At(f) = h.Underlay.Local.Of(f)
	}
	s.Links[udpDevice] = Link{Kind: KindTUN, MTU: mtu}
	s.Tunnels[udpDevice] = tunnel
	s.Firewall.From.add(udpDevice)
	h.addresses(s, udpDevice)
	return s, nil
}

func (b udp) Peer(h Host, l subnet.Lease) (p Part, err error) {
	legs, err := h.legs("", l)
	if err != nil {
		return Part{}, err
	}
	for _, g := range legs {
		p.Endpoints = append(p.Endpoints, row(EndpointKey{udpDevice, g.subnet}, netip.AddrPortFrom(g.to, b.Port))...)
		p.Routes = append(p.Routes, row(g.subnet, Route{Dev: udpDevice})...)
	}
	return p, nil
}
