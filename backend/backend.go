package backend

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode"

	"github.com/tulle-net/tulle/subnet"
)

// Prefix is what the names of our devices begin with, and Alias the ifalias of the links that we made: the marks by which
// a restarted agent knows its own.
const (
	Prefix = "tulle"
	Alias  = "tulle"
)

// Host is this host as a planner sees it.
type Host struct {
	Config   subnet.Config
	Self     subnet.Lease
	Underlay Underlay
	Facts    Facts
	Options
}

// Announce is the lease that tells peers of h, whose subnets are to be in the range returned with it.
func (h Host) Announce(b Backend) (subnet.Lease, subnet.Pair[subnet.Range]) {
	l := b.Announce(h)
	l.Subnet = h.Self.Subnet
	return l, h.Config.Range
}

// Needs is what a backend must be told of this host before it can plan, beside the underlay.
type Needs struct {
	WireGuard bool   // Facts.Key and Facts.Userspace
	Command   string // to be run once; what it prints is Facts.Printed
}

// Facts are the answers to Needs.
type Facts struct {
	Key       Secret // WireGuard's private key
	Userspace bool   // this kernel has no WireGuard: a process of ours is to stand behind the device
	Printed   string // by the command
}

// Options are the operator's choices for this host.
type Options struct {
	Bridge     string // the containers' bridge; "" for none
	Masquerade subnet.Pair[bool]
	Forward    bool
	Mark       uint32 // set on packets from peers, for a Docker that lets in what has it; 0 for none
	Attach     int    // addresses of the lease that tulle attach is to have, and Docker not; 0 for none
	Families   Families
}

// Backend is one way to carry packets. The State is a sum: a fixed part, and a part for each peer that depends on nothing
// but that peer.
type Backend interface {
	Needs() Needs
	// Announce is what h's lease tells its peers, subnets aside: the backend's type, and for each family of the underlay the address
	// to send to and the backend's data.
	Announce(h Host) subnet.Lease
	// Fixed is the part of the State that depends on no peer.
	Fixed(h Host) (State, error)
	// Peer is the part of the State that l's host needs. Its error is a *subnet.Reject.
	Peer(h Host, l subnet.Lease) (Part, error)
	// Inside is where l's host itself answers to peers inside the overlay; not valid if it doesn't.
	Inside(l subnet.Lease) subnet.Pair[netip.Addr]
}

// Part is what one peer adds to the State. It is made of slices, because there may be ten thousands, of an entry or two each.
type Part struct {
	FDB        []Row[FDBKey, netip.Addr]
	Floods     []Row[Flood, struct{}]
	Neighbours []Row[NeighbourKey, MAC]
	Routes     []Row[netip.Prefix, Route]
	Endpoints  []Row[EndpointKey, netip.AddrPort]
	Peers      []Row[PeerKey, Peer]
	Hooks      []Row[string, subnet.Lease]
}

// Row is an entry of one of a State's tables.
type Row[K, V comparable] struct {
	Key   K
	Value V
}

func row[K, V comparable](k K, v V) []Row[K, V] { return []Row[K, V]{{k, v}} }

// types are those that New knows.
var types = []string{"vxlan", "host-gw", "wireguard", "udp", "ipip", "l2", "alloc", "extension"}

// New returns the backend that cfg asks for. Its errors are *subnet.ConfigError.
func New(cfg subnet.Config) (Backend, error) {
	b, err := byType(cfg.Backend.Type, options{cfg.Backend.Options})
	if err != nil {
		return nil, err
	}
	if _, isIPIP := b.(ipip); isIPIP && cfg.Range.V6 != (subnet.Range{}) {
		return nil, &subnet.ConfigError{Key: "EnableIPv6", Reason: "ipip carries IPv4 only: leave it out, or choose another Backend.Type"}
	}
	return b, nil
}

func byType(name string, o options) (Backend, error) {
	switch name {
	case "", "vxlan": // flannel's code takes a missing type for udp, its documentation says vxlan
		return newVXLAN(o)
	case "host-gw":
		return hostGW{}, o.read(&struct{}{})
	case "wireguard":
		return newWireGuard(o)
	case "udp":
		return newUDP(o)
	case "ipip":
		return newIPIP(o)
	case "l2":
		return newL2(o)
	case "alloc":
		return alloc{}, o.read(&struct{}{})
	case "extension":
		return newExtension(o)
	}
	return nil, &subnet.ConfigError{Key: "Backend.Type", Reason: fmt.Sprintf("%q is not a type that this version of tulle knows: it knows %s", name, strings.Join(types, ", "))}
}

// accept checks what concerns every backend: that l's subnets lie where they may.
func (h Host) accept(l subnet.Lease) error {
	for f, p := range l.Subnet.All() {
		r := h.Config.Range.Of(f)
		if r == (subnet.Range{}) {
			continue // a family that this host does not take part in
		}
		if !r.Admits(p) {
			return subnet.Rejectf(subnet.OutOfNetwork, "%s is larger than the network's /%d subnets, or outside %s", p, r.SubnetLen, r.Network)
		}
		if p.Overlaps(h.Self.Subnet.Of(f)) {
			return subnet.Rejectf(subnet.Overlap, "%s overlaps our own %s", p, h.Self.Subnet.Of(f))
		}
		if a := h.Underlay.Local.Of(f); p.Contains(a) {
			return subnet.Rejectf(subnet.OnUnderlay, "%s covers %s, this host's own address", p, a)
		}
		for _, u := range h.Underlay.OnLink {
			if p.Overlaps(u) {
				return subnet.Rejectf(subnet.OnUnderlay, "%s covers %s, which this host's underlay needs", p, u)
			}
		}
		for u := range h.elsewhere {
			if p.Overlaps(u) {
				return subnet.Rejectf(subnet.OnUnderlay, "%s covers %s, which another device of this host has", p, u)
			}
		}
	}
	for f, a := range l.PublicIP.All() {
		if err := h.acceptAddress(a, f); err != nil {
			return err
		}
		if network := h.Config.Range.Of(f).Network; network.IsValid() && l.Subnet.Of(f).Contains(a) {
			return subnet.Rejectf(subnet.OnUnderlay, "%s covers its own host's address %s", l.Subnet.Of(f), a)
		}
	}
	return nil
}

// acceptAddress checks that packets for a would be another host's alone.
func (h Host) acceptAddress(a netip.Addr, f subnet.Family) error {
	switch own := h.Underlay.Public.Of(f); {
	case a == own || a == h.Underlay.Local.Of(f) || h.Underlay.has(a):
		return subnet.Rejectf(subnet.OwnAddress, "%s is this host's own address", a)
	case h.Self.Subnet.Of(f).Contains(a):
		return subnet.Rejectf(subnet.OwnAddress, "%s lies inside our own %s", a, h.Self.Subnet.Of(f))
	case h.Underlay.broadcasts(a):
		return subnet.Rejectf(subnet.BadAddress, "%s is not a host's address, but that of a whole segment", a)
	case a.IsLinkLocalUnicast() && !own.IsLinkLocalUnicast():
		return subnet.Rejectf(subnet.BadAddress, "%s is link-local, which this host's own address is not", a)
	}
	return nil
}

// elsewhere are the networks of this host's other devices, as far as they are no part of the overlay: not the containers' bridge, and
// what has our own subnet in it.
func (h Host) elsewhere(yield func(netip.Prefix) bool) {
	for _, o := range h.Underlay.Others {
		p := o.Prefix.Masked()
		if o.Dev != h.Bridge && !p.Overlaps(h.Self.Subnet.Of(subnet.FamilyOf(p.Addr()))) && !yield(p) {
			return
		}
	}
}

// carriedBy checks that l's host carries packets by the backend called name.
func carriedBy(name string, l subnet.Lease) error {
	switch {
	case l.Backend == name:
		return nil
	case l.Backend == "":
		return subnet.Rejectf(subnet.WrongBackend, "it names no backend (udp and alloc don't), the network's config says %s", name)
	case name == "":
		return subnet.Rejectf(subnet.WrongBackend, "its host runs %q, the network's config says udp or alloc", l.Backend)
	}
	return subnet.Rejectf(subnet.WrongBackend, "its host runs %q, the network's config says %s", l.Backend, name)
}

// common is the part of the State that every backend with containers behind a bridge has.
func (h Host) common(mtu int) State {
	s := NewState()
	s.MTU, s.Underlay = mtu, h.Underlay.Device
	for f, p := range h.subnets().All() {
		if h.Bridge != "" {
			s.Addrs[Addr{h.Bridge, h.BridgeAddrs().Of(f)}] = struct{}{}
		}
		s.Sysctls[forwarding(f)] = "1"
		*s.Firewall.Subnet.At(f) = p
		*s.Firewall.Network.At(f) = h.Config.Range.Of(f).Network
	}
	if h.subnets().V6.IsValid() {
		for _, device := range h.Underlay.AcceptRA {
			s.Sysctls["net/ipv6/conf/"+device+"/accept_ra"] = "2" // also while forwarding
		}
	}
	if h.Bridge != "" {
		mac := h.bridgeMAC()
		s.Links[h.Bridge] = Link{Kind: KindBridge, MAC: mac, MTU: mtu}
		if h.subnets().V6.IsValid() {
			s.Addrs[Addr{h.Bridge, netip.PrefixFrom(mac.linkLocal(), 64)}] = struct{}{}
		}
	}
	s.Firewall.Masquerade, s.Firewall.Forward, s.Firewall.Bridge = h.Masquerade, h.Forward, h.Bridge
	s.Firewall.Mark, s.Firewall.NFTables = h.Mark, h.Config.NFTables
	return s
}

// bridgeMAC does not change with the network's families: containers know it as their gateway's. A host's subnets have one index in their
// ranges, if that was free (subnet.PickEach).
func (h Host) bridgeMAC() MAC {
	for f, p := range h.subnets().All() {
		return deriveMAC("bridge", fmt.Sprint(h.Config.Range.Of(f).Index(p)))
	}
	return deriveMAC("bridge")
}

func forwarding(f subnet.Family) string {
	if f == subnet.IPv4 {
		return "net.ipv4.ip_forward"
	}
	return "net.ipv6.conf.all.forwarding"
}

// BridgeAddrs are the addresses that containers use as their gateway: the first of each of the lease's subnets. Where all hosts
// are one segment, their prefix is that of the network.
func (h Host) BridgeAddrs() (addrs subnet.Pair[netip.Prefix]) {
	for f, p := range h.subnets().All() {
		bits := p.Bits()
		if h.Config.Backend.Type == "l2" {
			bits = h.Config.Range.Of(f).Network.Bits()
		}
		*addrs.At(f) = netip.PrefixFrom(p.Addr().Next(), bits)
	}
	return addrs
}

// first are the first addresses of each of the lease's subnets, the networks' own: those of the overlay's device.
func first(l subnet.Lease) (addrs subnet.Pair[netip.Addr]) {
	for f, p := range l.Subnet.All() {
		*addrs.At(f) = p.Addr()
	}
	return addrs
}

// second are the addresses of the containers' bridge.
func second(l subnet.Lease) (addrs subnet.Pair[netip.Addr]) {
	for f, p := range l.Subnet.All() {
		*addrs.At(f) = p.Addr().Next()
	}
	return addrs
}

// CheckBridge refuses a name that a bridge of ours can't have.
func CheckBridge(name string) error {
	if len(name) > 15 || strings.ContainsAny(name, "/:%") || strings.ContainsFunc(name, unicode.IsSpace) || name == "." || name == ".." || strings.HasPrefix(name, Prefix+".") || strings.HasPrefix(name, Prefix+"-") {
		return fmt.Errorf("%q can't be a bridge's name: at most 15 characters, no '/', ':', '%%' or space, and not one of tulle's own devices", name)
	}
	return nil
}
