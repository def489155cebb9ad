package backend

import (
	"encoding/json"
	"errors"
	"net/netip"

	"github.com/tulle-net/tulle/subnet"
)

// l2 makes one broadcast domain of all hosts' bridges: the VXLAN device is a port of the bridge, and what has no one destination
// is copied to every peer (head-end replication). The network is one range, of which each host's containers have a slice.
type l2 struct{ vxlan }

// l2Data is an l2 lease's BackendData. Flannel has no such type.
type l2Data struct{ VNI uint32 }

func newL2(o options) (Backend, error) {
	w := struct{ VNI, Port, MTU int }{VNI: 1, Port: defaultPort}
	if err := o.read(&w); err != nil {
		return nil, err
	}
	v, err := vxlanOf(w.VNI, w.Port, w.MTU)
	v.Learning = true // which host a container's MAC is behind is in no lease
	return l2{v}, err
}

// on is h with one family of underlay, IPv4 if it has that: a bridge with two ports to the same peers would be a loop.
func (l2) on(h Host) (Host, subnet.Family) {
	for f := range h.Public().All() {
		h.Families = [...]Families{subnet.IPv4: OnlyIPv4, subnet.IPv6: OnlyIPv6}[f]
		return h, f
	}
	return h, subnet.IPv4
}

func (b l2) Announce(h Host) subnet.Lease {
	h, f := b.on(h)
	return subnet.Lease{Backend: "l2", PublicIP: h.Public(), Data: subnet.PairOf(f, dataOf(l2Data{b.VNI}))}
}

func (l2) Inside(l subnet.Lease) subnet.Pair[netip.Addr] { return second(l) }

func (b l2) Fixed(h Host) (State, error) {
	if h.Bridge == "" {
		return State{}, errors.New("l2 joins the hosts' bridges, and this host has none: name one with --bridge")
	}
	h, f := b.on(h)
	mtu, err := h.inner(b.MTU, vxlanOverhead, "VXLAN")
	if err != nil {
		return State{}, err
	}
	s := h.common(mtu)
	port := b.link(h, f, mtu)
	port.Master, port.Suppress = h.Bridge, true
	s.Links[b.device(f)] = port
	s.Firewall.From.add(h.Bridge)
	return s, nil
}

func (b l2) Peer(h Host, l subnet.Lease) (Part, error) {
	h, f := b.on(h)
	legs, err := h.legs("l2", l)
	if err != nil {
		return Part{}, err
	}
	if to := legs[0].to; h.Config.Range.Of(f).Network.Contains(to) && !h.Underlay.reaches(to) {
		return Part{}, subnet.Rejectf(subnet.BadAddress, "public address %s lies inside the overlay: copies for it would be copied themselves", to)
	}
	var data l2Data
	if err := json.Unmarshal([]byte(l.Data.Of(f)), &data); err != nil {
		return Part{}, subnet.Rejectf(subnet.BadValue, "%s is not {\"VNI\":…}: %s", dataKey(f), l.Data.Of(f))
	}
	if data.VNI != b.VNI {
		return Part{}, subnet.Rejectf(subnet.WrongVNI, "VNI %d, the network's is %d", data.VNI, b.VNI)
	}
	return Part{Floods: row(Flood{b.device(f), legs[0].to}, struct{}{})}, nil
}
