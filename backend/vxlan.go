package backend

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
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
}

// vxlanData is a vxlan lease's BackendData.
type vxlanData struct {
	VNI     uint32
	VtepMAC string
}

const (
	maxVNI      = 1<<24 - 1
	minMTU      = 576  // inner, bytes: what every IPv4 host must accept (RFC 791)
	minMTU6     = 1280 // what every IPv6 link must carry (RFC 8200)
	maxMTU      = 65535
	defaultPort = 8472 // Linux's default, and so flannel's; IANA's is 4789
)

// vxlanOverhead is in bytes, by the underlay's family: IPv4 20 or IPv6 40, UDP 8, VXLAN 8, Ethernet 14.
var vxlanOverhead = subnet.Pair[int]{V4: 50, V6: 70}

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
	err := within(limit{"VNI", vni, 1, maxVNI, ""}, limit{"Port", port, 1, 65535, ""}, outerMTU(mtu, vxlanOverhead.V4))
	return vxlan{VNI: uint32(vni), Port: uint16(port), MTU: mtu}, err
}

// device is the one over an underlay of the family f. A device sends over one family only.
func (v vxlan) device(f subnet.Family) string {
	if f == subnet.IPv6 {
		return fmt.Sprintf("%s-v6.%d", Prefix, v.VNI)
	}
	return fmt.Sprintf("%s.%d", Prefix, v.VNI)
}

// mac is that of the device over f: one that stays the same as long as peers have reason to send here, so that a device made again has the
// MAC that peers already know. It is what the host's lease says, if that is for this address: flannel's are random, and a host that flannel
// ran on keeps its own. Or else it is derived.
func (v vxlan) mac(h Host, f subnet.Family) MAC {
	public := h.Underlay.Public.Of(f)
	const local = 2 // of the first octet (IEEE 802): made by software, as flannel's and ours are
	if h.Self.Backend == "vxlan" && h.Self.PublicIP.Of(f) == public {
		if mac, err := v.leasedMAC(h.Self, f); err == nil && mac[0]&local != 0 {
			return mac
		}
	}
	return deriveMAC("vtep", fmt.Sprint(v.VNI), public.String())
}

// deriveMAC returns a unicast, locally administered MAC (IEEE 802) that depends on facts only.
func deriveMAC(facts ...string) MAC {
	sum := sha256.Sum256([]byte("tulle\n" + strings.Join(facts, "\n")))
	mac := MAC(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

func (vxlan) Needs() Needs { return Needs{} }

func (v vxlan) Announce(h Host) subnet.Lease {
	l := subnet.Lease{Backend: "vxlan", PublicIP: h.Public()}
	for f := range l.PublicIP.All() {
		*l.Data.At(f) = dataOf(vxlanData{v.VNI, v.mac(h, f).String()})
	}
	return l
}

// dataOf writes what a lease says for a backend.
func dataOf(data any) string {
	text, err := json.Marshal(data)
	if err != nil {
		panic(err) // numbers and strings
	}
	return string(text)
}

func (vxlan) Inside(l subnet.Lease) subnet.Pair[netip.Addr] { return first(l) }

func (v vxlan) Fixed(h Host) (State, error) {
	mtu, err := h.inner(v.MTU, vxlanOverhead, "VXLAN")
	if err != nil {
		return State{}, err
	}
	s := h.common(mtu)
	for f := range h.Public().All() {
		s.Links[v.device(f)] = v.link(h, f, mtu)
		s.Firewall.From.add(v.device(f))
		h.addresses(s, v.device(f))
	}
	if v.DirectRouting {
		s.Firewall.From.add(h.Underlay.Device)
	}
	return s, nil
}

// link is the device over f, with what MTU it has inside.
func (v vxlan) link(h Host, f subnet.Family, mtu int) Link {
	u := h.Underlay
	return Link{Kind: KindVXLAN, MAC: v.mac(h, f), MTU: mtu,
		VXLAN: VXLAN{VNI: v.VNI, Port: v.Port, Local: u.Local.Of(f), Parent: u.Device, Learning: v.Learning, GBP: v.GBP}}
}

func (v vxlan) Peer(h Host, l subnet.Lease) (p Part, err error) {
	legs, err := h.legs("vxlan", l)
	if err != nil {
		return Part{}, err
	}
	for _, g := range legs {
		mac, err := v.peerMAC(h, l, g.outer)
		if err != nil {
			return Part{}, err
		}
		if v.DirectRouting && h.Underlay.reaches(g.to) && g.directly() {
			p.Routes = append(p.Routes, g.direct(h)...)
			continue
		}
		device := v.device(g.outer)
		if hop := (Row[FDBKey, netip.Addr]{FDBKey{device, mac}, g.to}); !slices.Contains(p.FDB, hop) {
			p.FDB = append(p.FDB, hop)
		}
		p.Neighbours = append(p.Neighbours, row(NeighbourKey{device, g.vtep()}, mac)...)
		p.Routes = append(p.Routes, row(g.subnet, Route{Via: g.vtep(), Dev: device, OnLink: true})...)
	}
	return p, nil
}

// directly reports whether the kernel sends packets of g as they are by way of a gateway with the address that they go to: IPv4 by
// way of an IPv6 one (RTA_VIA, Linux ≥ 5.2), but not the other way round.
func (g leg) directly() bool { return g.inner() == subnet.IPv4 || g.outer == subnet.IPv6 }

// direct is the route to a peer on our own segment that is sent to without a tunnel.
func (g leg) direct(h Host) []Row[netip.Prefix, Route] {
	return row(g.subnet, Route{Via: g.to, Dev: h.Underlay.Device})
}

// peerMAC is the MAC of a peer's VTEP on f.
func (v vxlan) peerMAC(h Host, l subnet.Lease, f subnet.Family) (MAC, error) {
	mac, err := v.leasedMAC(l, f)
	if err == nil && mac == v.mac(h, f) {
		return MAC{}, subnet.Rejectf(subnet.BadMAC, "VtepMAC %s is this host's own", mac)
	}
	return mac, err
}

// leasedMAC checks the vxlan part of l and returns the MAC of its VTEP on f.
func (v vxlan) leasedMAC(l subnet.Lease, f subnet.Family) (MAC, error) {
	var data vxlanData
	if err := json.Unmarshal([]byte(l.Data.Of(f)), &data); err != nil {
		return MAC{}, subnet.Rejectf(subnet.BadValue, "%s is not {\"VNI\":…,\"VtepMAC\":…}: %s", dataKey(f), l.Data.Of(f))
	}
	if data.VNI != v.VNI {
		return MAC{}, subnet.Rejectf(subnet.WrongVNI, "VNI %d, the network's is %d", data.VNI, v.VNI)
	}
	hw, err := net.ParseMAC(data.VtepMAC)
	if err != nil || len(hw) != 6 || !MAC(hw).Unicast() {
		return MAC{}, subnet.Rejectf(subnet.BadMAC, "VtepMAC %q is not a unicast Ethernet address", data.VtepMAC)
	}
	return MAC(hw), nil
}

// dataKey is what a lease calls its data for f.
func dataKey(f subnet.Family) string {
	if f == subnet.IPv6 {
		return "BackendV6Data"
	}
	return "BackendData"
}
