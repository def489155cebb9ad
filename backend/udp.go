package backend

import (
	"net/netip"

	"github.com/tulle-net/tulle/subnet"
)

// udp carries packets in UDP without a header of its own, by a process: for networks and kernels that let nothing else pass. On the
// wire it is flannel's udp: the inner packet is the payload, and all hosts have the same port.
type udp struct{ Port uint16 }

const (
	udpDevice = Prefix + "-udp"
	udpV4     = 28 // overhead in bytes: IPv4 20, UDP 8
)

func newUDP(o options) (Backend, error) {
	w := struct{ Port int }{8285}
	if err := o.read(&w); err != nil {
		return nil, err
	}
	return udp{uint16(w.Port)}, within(limit{"Port", w.Port, 1, 65535, ""})
}

func (udp) Needs() Needs { return Needs{} }

func (udp) Announce(Underlay, Facts) (string, subnet.Pair[string]) {
	return "", subnet.Pair[string]{}
}

func (udp) Inside(l subnet.Lease) subnet.Pair[netip.Addr] { return first(l) }

func (b udp) Fixed(h Host) (State, error) {
	mtu, err := h.inner(0, udpV4, "UDP")
	if err != nil {
		return State{}, err
	}
	s := h.common(mtu)
	s.Links[udpDevice] = Link{Kind: KindTUN, MTU: mtu}
	s.Tunnels[udpDevice] = Tunnel{Port: b.Port, Local: h.Underlay.Local.V4}
	s.Addrs[Addr{udpDevice, netip.PrefixFrom(first(h.Self).V4, 32)}] = struct{}{}
	s.Firewall.Tunnel = udpDevice
	return s, nil
}

func (b udp) Peer(h Host, l subnet.Lease) (Part, error) {
	if err := h.accept(l); err != nil {
		return Part{}, err
	}
	if err := carriedBy("", l); err != nil {
		return Part{}, err
	}
	return Part{
		Endpoints: row(EndpointKey{udpDevice, l.Subnet.V4}, netip.AddrPortFrom(l.PublicIP.V4, b.Port)),
		Routes:    row(l.Subnet.V4, Route{Dev: udpDevice}),
	}, nil
}
