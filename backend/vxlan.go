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
	maxVNI      = 1<<24 - 1
	minMTU      = 576 // inner, bytes: what every IPv4 host must accept (RFC 791)
	maxMTU      = 65535
	defaultPort = 8472 // Linux's default, and so flannel's; IANA's is 4789
	vxlanV4     = 50   // overhead in bytes on an IPv4 underlay: IPv4 20, UDP 8, VXLAN 8, Ethernet 14
)

func newVXLAN(o options) (Backend, error) {
	w := struct {
		VNI, Port, MTU               int
		GBP, Learning, DirectRouting bool
	}{VNI: 1, Port: defaultPort}
	if err := o.read(&w); err != nil {
		return nil, err
	}
	v, err := vxlanOf(w.VNI, w.Port, w.MTU)
	v.GBP, v.Learning, v.DirectRouting = w.GBP, w.Learning, w.DirectRouting
	return v, err
}

// vxlanOf checks what makes a VXLAN device.
func vxlanOf(vni, port, mtu int) (vxlan, error) {
	if port == 0 { // flannel writes it so where it means the default
		port = defaultPort
	}
	err := within(limit{"VNI", vni, 1, maxVNI, ""}, limit{"Port", port, 1, 65535, ""}, outerMTU(mtu, vxlanV4))
	return vxlan{VNI: uint32(vni), Port: uint16(port), MTU: mtu, device: fmt.Sprintf("%s.%d", Prefix, vni)}, err
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

func (vxlan) Needs() Needs { return Needs{} }

func (v vxlan) Announce(u Underlay, _ Facts) (string, subnet.Pair[string]) {
	return "vxlan", dataOf(vxlanData{v.VNI, v.mac(u).String()})
}

// dataOf writes what a lease says for a backend.
func dataOf(data any) subnet.Pair[string] {
	text, err := json.Marshal(data)
	if err != nil {
		panic(err) // numbers and strings
	}
	return subnet.PairOf(subnet.IPv4, string(text))
}

func (vxlan) Inside(l subnet.Lease) subnet.Pair[netip.Addr] { return first(l) }

func (v vxlan) Fixed(h Host) (State, error) {
	mtu, err := h.inner(v.MTU, vxlanV4, "VXLAN")
	if err != nil {
		return State{}, err
	}
	s := h.common(mtu)
	s.Links[v.device] = v.link(h.Underlay, mtu)
	if !v.DirectRouting {
		s.Firewall.Tunnel = v.device
	}
	s.Addrs[Addr{v.device, netip.PrefixFrom(first(h.Self).V4, 32)}] = struct{}{}
	return s, nil
}

// link is the VXLAN device, with what MTU it has inside.
func (v vxlan) link(u Underlay, mtu int) Link {
	return Link{Kind: KindVXLAN, MAC: v.mac(u), MTU: mtu,
		VXLAN: VXLAN{VNI: v.VNI, Port: v.Port, Local: u.Local.V4, Parent: u.Device, Learning: v.Learning, GBP: v.GBP}}
}

func (v vxlan) Peer(h Host, l subnet.Lease) (Part, error) {
	if err := h.accept(l); err != nil {
		return Part{}, err
	}
	mac, err := v.peerMAC(h, l)
	if err != nil {
		return Part{}, err
	}
	dst, vtep := l.Subnet.V4, first(l).V4
	if v.DirectRouting && h.Underlay.reaches(l.PublicIP.V4) {
		return direct(h, l), nil
	}
	return Part{
		FDB:        row(FDBKey{v.device, mac}, l.PublicIP.V4),
		Neighbours: row(NeighbourKey{v.device, vtep}, mac),
		Routes:     row(dst, Route{Via: vtep, Dev: v.device, OnLink: true}),
	}, nil
}

// direct is the part of a peer on our own segment that is sent to without a tunnel.
func direct(h Host, l subnet.Lease) Part {
	return Part{Routes: row(l.Subnet.V4, Route{Via: l.PublicIP.V4, Dev: h.Underlay.Device})}
}

// peerMAC checks the vxlan part of l and returns its VTEP's MAC.
func (v vxlan) peerMAC(h Host, l subnet.Lease) (MAC, error) {
	if err := carriedBy("vxlan", l); err != nil {
		return MAC{}, err
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
