// Package backend says what a host's kernel should hold: the desired State, and for each backend type a planner that
// derives it from the network's config, this host's lease, its peers' leases and facts about the underlay. It is pure: no
// netlink, no clock, no logger. Putting a State into the kernel is the business of the packages below this one.
package backend

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/tulle-net/tulle/subnet"
)

// State is what belongs into the kernel. Devices are named, never numbered: an ifindex dies with its device. All keys and
// values are comparable, so == is the diff.
type State struct {
	Links      map[string]Link // by device name
	Addrs      map[Addr]struct{}
	FDB        map[FDBKey]netip.Addr // to the underlay address that a MAC lives behind
	Neighbours map[NeighbourKey]MAC
	Routes     map[netip.Prefix]Route // main table
	Sysctls    map[string]string      // by their name, as in net.ipv4.ip_forward
	Firewall   Firewall
	MTU        int // of the overlay, bytes: what containers should have
}

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Unicast reports whether m can be a device's address: neither zero nor a group address (IEEE 802, lowest bit of the first
// octet).
func (m MAC) Unicast() bool { return m != MAC{} && m[0]&1 == 0 }

// Kind is a link's type, as `ip link` spells it.
type Kind string

// The kinds of links that are made.
const (
	KindVXLAN  Kind = "vxlan"
	KindBridge Kind = "bridge"
)

// Link is a device that must exist and be up.
type Link struct {
	Kind  Kind
	MAC   MAC
	MTU   int   // bytes
	VXLAN VXLAN // if Kind is KindVXLAN
	Down  bool  // never wanted; observed of a link that somebody set down
}

// VXLAN is what makes a VXLAN device (RFC 7348). Of these, only Local and Parent can be changed later (vxlan_changelink,
// drivers/net/vxlan/vxlan_core.c).
type VXLAN struct {
	VNI      uint32
	Port     uint16     // UDP destination
	Local    netip.Addr // outer source
	Parent   string     // underlay device
	Learning bool
	GBP      bool // group policy extension
}

// Addr is an address on a device, with its prefix length.
type Addr struct {
	Dev    string
	Prefix netip.Prefix
}

// FDBKey is a forwarding entry of a VXLAN device: frames to MAC are sent to a remote VTEP.
type FDBKey struct {
	Dev string
	MAC MAC
}

// NeighbourKey is a permanent neighbour: the link-layer address of IP needs no ARP or NDP.
type NeighbourKey struct {
	Dev string
	IP  netip.Addr
}

// Route is where packets to a prefix go. OnLink means that Via counts as reachable on Dev though no address says so.
type Route struct {
	Via    netip.Addr
	Dev    string
	OnLink bool
}

// Firewall is what the host's packet filter must do. The zero Firewall asks for nothing.
type Firewall struct {
	Network, Subnet subnet.Pair[netip.Prefix] // the overlay's range, and this host's part of it
	Masquerade      bool                      // packets between the overlay and elsewhere leave under the host's address
	Forward         bool                      // packets from and to the overlay may be forwarded
	Bridge          string                    // the containers' bridge, which Docker has rules of its own for; "" for none
	Mark            uint32                    // set on peers' packets, for a Docker that lets in what has it; 0 for none
	Tunnel          string                    // the device that peers' packets come in on; "" if they come in on any
}

// NewState returns an empty State.
func NewState() State {
	return State{
		Links: map[string]Link{}, Addrs: map[Addr]struct{}{}, FDB: map[FDBKey]netip.Addr{},
		Neighbours: map[NeighbourKey]MAC{}, Routes: map[netip.Prefix]Route{}, Sysctls: map[string]string{},
	}
}

// String prints the State the way a network engineer would type it, one object a line, in dependency order.
func (s State) String() string {
	var b strings.Builder
	for name, l := range sorted(s.Links, strings.Compare) {
		fmt.Fprintf(&b, "link %s %s\n", name, l)
	}
	for a := range sorted(s.Addrs, Addr.compare) {
		fmt.Fprintf(&b, "address %s dev %s\n", a.Prefix, a.Dev)
	}
	for k, dst := range sorted(s.FDB, FDBKey.compare) {
		fmt.Fprintf(&b, "fdb %s dev %s dst %s\n", k.MAC, k.Dev, dst)
	}
	for k, mac := range sorted(s.Neighbours, NeighbourKey.compare) {
		fmt.Fprintf(&b, "neighbour %s lladdr %s dev %s\n", k.IP, mac, k.Dev)
	}
	for dst, r := range sorted(s.Routes, netip.Prefix.Compare) {
		fmt.Fprintf(&b, "route %s %s\n", dst, r)
	}
	for name, value := range sorted(s.Sysctls, strings.Compare) {
		fmt.Fprintf(&b, "sysctl %s=%s\n", name, value)
	}
	b.WriteString(s.Firewall.String())
	return b.String()
}

func (l Link) String() string {
	if l.Kind != KindVXLAN {
		return fmt.Sprintf("type %s mtu %d address %s", l.Kind, l.MTU, l.MAC)
	}
	v, learning := l.VXLAN, "nolearning"
	if v.Learning {
		learning = "learning"
	}
	text := fmt.Sprintf("type vxlan id %d local %s dev %s dstport %d %s mtu %d address %s", v.VNI, v.Local, v.Parent, v.Port, learning, l.MTU, l.MAC)
	if v.GBP {
		text += " gbp"
	}
	return text
}

func (r Route) String() string {
	text := fmt.Sprintf("via %s dev %s", r.Via, r.Dev)
	if r.OnLink {
		text += " onlink"
	}
	return text
}

func (f Firewall) String() string {
	var b strings.Builder
	for family, network := range f.Network.All() {
		if f.Masquerade {
			fmt.Fprintf(&b, "masquerade %s, but not between %s and %s\n", network, f.Subnet.Of(family), network)
		}
		if f.Forward {
			fmt.Fprintf(&b, "forward %s\n", network)
		}
		if f.Forward && f.Bridge != "" {
			tunnel := "any device"
			if f.Tunnel != "" {
				tunnel = f.Tunnel
			}
			fmt.Fprintf(&b, "forward %s from %s to %s on %s, past Docker\n", network, tunnel, f.Subnet.Of(family), f.Bridge)
			if f.Mark != 0 {
				fmt.Fprintf(&b, "mark %#x what comes so\n", f.Mark)
			}
		}
	}
	return b.String()
}

func (a Addr) compare(b Addr) int {
	return cmp.Or(strings.Compare(a.Dev, b.Dev), a.Prefix.Compare(b.Prefix))
}

func (k FDBKey) compare(o FDBKey) int {
	return cmp.Or(strings.Compare(k.Dev, o.Dev), slices.Compare(k.MAC[:], o.MAC[:]))
}

func (k NeighbourKey) compare(o NeighbourKey) int {
	return cmp.Or(strings.Compare(k.Dev, o.Dev), k.IP.Compare(o.IP))
}

// sorted yields m in the order of its keys.
func sorted[K comparable, V any](m map[K]V, compare func(a, b K) int) func(yield func(K, V) bool) {
	return func(yield func(K, V) bool) {
		for _, k := range slices.SortedFunc(maps.Keys(m), compare) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}
