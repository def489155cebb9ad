package backend

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/tulle-net/tulle/subnet"
)

// vxlan carries packets in VXLAN (RFC 7348), each peer's VTEP known from its lease: no multicast, no learning, no flooding.
// On the wire it is flannel's vxlan.
type vxlan struct {
	VNI           uint32
	Port          uint16
	MTU           int // of the underlay, bytes; 0: what the underlay device has
	GBP           bool
	Learning      bool
	DirectRouting bool
	device        string
}

// vxlanData is a vxlan lease's BackendData.
type vxlanData struct {
	VNI     uint32
	VtepMAC string
}

const (
	maxVNI  = 1<<24 - 1
	minMTU  = 576 // inner, bytes: what every IPv4 host must accept (RFC 791)
	maxMTU  = 65535
	vxlanV4 = 50 // overhead in bytes on an IPv4 underlay: IPv4 20, UDP 8, VXLAN 8, Ethernet 14
)

func newVXLAN(options string) (Backend, []string, error) {
	w := struct {
		VNI, Port, MTU               int
		GBP, Learning, DirectRouting bool
	}{VNI: 1}
	unknown, err := parseOptions(options, &w, "VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting")
	if err != nil {
		return nil, nil, err
	}
	if w.Port == 0 {
		w.Port = 8472 // Linux's default, and so flannel's; IANA's is 4789
	}
	for _, limit := range []struct {
		key             string
		value, min, max int
		hint            string
	}{
		{"VNI", w.VNI, 1, maxVNI, ""},
		{"Port", w.Port, 1, 65535, ""},
		{"MTU", w.MTU, minMTU + vxlanV4, maxMTU, " (it is the underlay's MTU; leave it out to take the device's)"},
	} {
		if (limit.value < limit.min || limit.value > limit.max) && !(limit.key == "MTU" && limit.value == 0) {
			return nil, nil, &subnet.ConfigError{Key: "Backend." + limit.key,
				Reason: fmt.Sprintf("%d is not within %d and %d%s", limit.value, limit.min, limit.max, limit.hint)}
		}
	}
	return vxlan{uint32(w.VNI), uint16(w.Port), w.MTU, w.GBP, w.Learning, w.DirectRouting, fmt.Sprintf("%s.%d", Prefix, w.VNI)}, unknown, nil
}

// mac is derived from what stays the same as long as peers have reason to send here, so that a device made again has the
// MAC that peers already know.
func (v vxlan) mac(u Underlay) MAC {
	return deriveMAC("vtep", fmt.Sprint(v.VNI), u.Public.V4.String())
}

// deriveMAC returns a unicast, locally administered MAC (IEEE 802) that depends on facts only.
func deriveMAC(facts ...string) MAC {
	sum := sha256.Sum256([]byte("tulle\n" + strings.Join(facts, "\n")))
	mac := MAC(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

func (v vxlan) Announce(u Underlay) (string, subnet.Pair[string]) {
	data, err := json.Marshal(vxlanData{v.VNI, v.mac(u).String()})
	if err != nil {
		panic(err) // a number and a string
	}
	return "vxlan", subnet.PairOf(subnet.IPv4, string(data))
}

func (v vxlan) Fixed(h Host) (State, error) {
	u := h.Underlay
	if !u.Local.V4.IsValid() {
		return State{}, fmt.Errorf("device %s has no IPv4 address, which this network's leases need: choose another with --iface", u.Device)
	}
	mtu := u.MTU
	if v.MTU != 0 {
		mtu = v.MTU
	}
	mtu -= vxlanV4
	if mtu < minMTU {
		return State{}, fmt.Errorf("device %s has MTU %d, which leaves %d inside VXLAN, less than %d: raise it, or choose another with --iface", u.Device, u.MTU, mtu, minMTU)
	}
	s := h.common(mtu)
	s.Links[v.device] = Link{Kind: KindVXLAN, MAC: v.mac(u), MTU: mtu,
		VXLAN: VXLAN{VNI: v.VNI, Port: v.Port, Local: u.Local.V4, Parent: u.Device, Learning: v.Learning, GBP: v.GBP}}
	if !v.DirectRouting {
		s.Firewall.Tunnel = v.device
	}
	s.Addrs[Addr{v.device, netip.PrefixFrom(VTEPs(h.Self).V4, 32)}] = struct{}{}
	return s, nil
}

func (v vxlan) Peer(h Host, l subnet.Lease) (Part, error) {
	if err := h.accept(l); err != nil {
		return Part{}, err
	}
	mac, err := v.peerMAC(h, l)
	if err != nil {
		return Part{}, err
	}
	dst, vtep := l.Subnet.V4, VTEPs(l).V4
	if v.DirectRouting && h.Underlay.reaches(l.PublicIP.V4) {
		return Part{Routes: row(dst, Route{Via: l.PublicIP.V4, Dev: h.Underlay.Device})}, nil
	}
	return Part{
		FDB:        row(FDBKey{v.device, mac}, l.PublicIP.V4),
		Neighbours: row(NeighbourKey{v.device, vtep}, mac),
		Routes:     row(dst, Route{Via: vtep, Dev: v.device, OnLink: true}),
	}, nil
}

// peerMAC checks the vxlan part of l and returns its VTEP's MAC.
func (v vxlan) peerMAC(h Host, l subnet.Lease) (MAC, error) {
	if l.Backend != "vxlan" {
		if l.Backend == "" {
			return MAC{}, subnet.Rejectf(subnet.WrongBackend, "it names no backend (udp and alloc don't), the network's config says vxlan")
		}
		return MAC{}, subnet.Rejectf(subnet.WrongBackend, "its host runs %q, the network's config says vxlan", l.Backend)
	}
	if !l.Subnet.V4.IsValid() || !l.PublicIP.V4.IsValid() {
		return MAC{}, subnet.Rejectf(subnet.BadAddress, "no IPv4 subnet or no public IPv4 address")
	}
	var data vxlanData
	if err := json.Unmarshal([]byte(l.Data.V4), &data); err != nil {
		return MAC{}, subnet.Rejectf(subnet.BadValue, "BackendData is not {\"VNI\":…,\"VtepMAC\":…}: %s", l.Data.V4)
	}
	if data.VNI != v.VNI {
		return MAC{}, subnet.Rejectf(subnet.WrongVNI, "VNI %d, the network's is %d", data.VNI, v.VNI)
	}
	hw, err := net.ParseMAC(data.VtepMAC)
	if err != nil || len(hw) != 6 || !MAC(hw).Unicast() {
		return MAC{}, subnet.Rejectf(subnet.BadMAC, "VtepMAC %q is not a unicast Ethernet address", data.VtepMAC)
	}
	if MAC(hw) == v.mac(h.Underlay) {
		return MAC{}, subnet.Rejectf(subnet.BadMAC, "VtepMAC %s is this host's own", data.VtepMAC)
	}
	return MAC(hw), nil
}
