// Package backend says what a host's kernel should hold: the desired State, and for each backend type a planner that
// derives it from the network's config, this host's lease, its peers' leases and facts about the underlay. It is pure: no
// netlink, no clock, no logger. Putting a State into the kernel is the business of the packages below this one.
package backend

import (
	"iter"
	"net"
	"net/netip"
	"slices"

	"github.com/tulle-net/tulle/subnet"
)

// State is what belongs into the kernel. Devices are named, never numbered: an ifindex dies with its device. All keys and
// values are comparable, so == is the diff.
type State struct {
	Links      map[string]Link // by device name
	Addrs      map[Addr]struct{}
	FDB        map[FDBKey]netip.Addr // to the underlay address that a MAC lives behind
	Floods     map[Flood]struct{}
	Neighbours map[NeighbourKey]MAC
	Routes     map[netip.Prefix]Route // main table
	Sysctls    map[string]string      // by their name, as in net.ipv4.ip_forward, or net/ipv6/conf/eth0.7/accept_ra, since a device's name may have dots
	Firewall   Firewall
	MTU        int    // of the overlay, bytes: what containers should have
	Underlay   string // device that the overlay's packets leave by

	// What is put in force by others than the kernel's tables:
	Tunnels   map[string]Tunnel // by device name, which is among Links
	Endpoints map[EndpointKey]netip.AddrPort
	Peers     map[PeerKey]Peer
	Extension Extension
	Hooks     map[string]subnet.Lease // the peers that Extension's commands are to have been told of, by key
}

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Unicast reports whether m can be a device's address: neither zero nor a group address (IEEE 802, lowest bit of the first
// octet).
func (m MAC) Unicast() bool { return m != MAC{} && m[0]&1 == 0 }

// linkLocal is the IPv6 address that a device with the MAC m gives itself (RFC 4291, appendix A). A device that hasn't one asks for no
// neighbour on behalf of what it forwards (ndisc_send_ns, net/ipv6/ndisc.c).
func (m MAC) linkLocal() netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// Kind is a link's type, as `ip link` spells it.
type Kind string

// The kinds of links that are made.
const (
	KindVXLAN     Kind = "vxlan"
	KindBridge    Kind = "bridge"
	KindIPIP      Kind = "ipip"
	KindWireGuard Kind = "wireguard"
	KindTUN       Kind = "tun" // this process stands behind it
)

// Link is a device that must exist and be up.
type Link struct {
	Kind     Kind
	MAC      MAC    // zero for a device that isn't Ethernet
	MTU      int    // bytes
	VXLAN    VXLAN  // if Kind is KindVXLAN
	IPIP     IPIP   // if Kind is KindIPIP
	Master   string // bridge that it is a port of; "" for none
	Suppress bool   // as a port: ARP requests that the bridge can answer don't leave by it (BR_NEIGH_SUPPRESS, Linux ≥ 4.15)
	Down     bool   // never wanted; observed of a link that somebody set down
	Autoconf bool   // never wanted; observed of a link that may get IPv6 addresses by itself (RFC 4862)
}

// Parent is the underlay device that l is bound to; "" for none.
func (l Link) Parent() string {
	if l.Kind == KindIPIP {
		return l.IPIP.Parent
	}
	return l.VXLAN.Parent
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

// IPIP is what makes an IPIP device (RFC 2003) that has no remote end of its own: a route's gateway is where its packets go.
type IPIP struct {
	Local  netip.Addr // outer source
	Parent string     // underlay device
}

// Tunnel is a device's own end of an encapsulation in UDP that the kernel's tables don't tell of.
type Tunnel struct {
	Port  uint16                  // UDP, local
	Local subnet.Pair[netip.Addr] // outer sources; none for any
	Key   Secret                  // WireGuard's private key; zero for a tunnel that is not encrypted
}

// EndpointKey is a range of inner addresses that a userspace tunnel carries to one endpoint.
type EndpointKey struct {
	Dev    string
	Prefix netip.Prefix
}

// PeerKey is a WireGuard peer: WireGuard knows peers by their public key.
type PeerKey struct {
	Dev string
	Key Key
}

// Peer is what a WireGuard device knows of a peer.
type Peer struct {
	Endpoint  netip.AddrPort
	Allowed   subnet.Pair[netip.Prefix] // inner addresses that are sent to it, and that it may send from
	PSK       Secret                    // zero for none
	Keepalive int                       // seconds; 0 for none
}

// Extension is an operator's own way to carry packets: commands for sh -c, "" for those that there are none of. The zero
// Extension asks for nothing.
type Extension struct {
	PostStartup, SubnetAdd, SubnetRemove, Shutdown string

	Network subnet.Pair[netip.Prefix] // for the commands' environment, as is Self
	Self    subnet.Lease
}

// Flood is a remote VTEP that a VXLAN device sends a copy to of what it knows no VTEP for: broadcast, multicast and unknown unicast.
type Flood struct {
	Dev string
	Dst netip.Addr
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
	Via    netip.Addr // not valid where the device alone says where to
	Dev    string
	OnLink bool

	Unreachable bool // it leads nowhere: packets are dropped, and their sender is told. The other fields are zero
}

// Firewall is what the host's packet filter must do. The zero Firewall asks for nothing.
type Firewall struct {
	Network, Subnet subnet.Pair[netip.Prefix] // the overlay's range, and this host's part of it
	Masquerade      subnet.Pair[bool]         // packets between the overlay and elsewhere leave under the host's address
	Forward         bool                      // packets from and to the overlay may be forwarded
	Bridge          string                    // the containers' bridge, which Docker has rules of its own for; "" for none
	Mark            uint32                    // set on peers' packets, for a Docker that lets in what has it; 0 for none
	From            Devices                   // that peers' packets come in on; none if they come in on any
	NFTables        bool                      // the network's config asks for nftables
}

// Devices are a few names. It is comparable.
type Devices [3]string

// All yields the names.
func (d Devices) All() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, name := range d {
			if name != "" && !yield(name) {
				return
			}
		}
	}
}

// add adds a name.
func (d *Devices) add(name string) { d[slices.Index(d[:], "")] = name }

// NewState returns an empty State.
func NewState() State {
	return State{
		Links: map[string]Link{}, Addrs: map[Addr]struct{}{}, FDB: map[FDBKey]netip.Addr{},
		Floods: map[Flood]struct{}{}, Neighbours: map[NeighbourKey]MAC{}, Routes: map[netip.Prefix]Route{}, Sysctls: map[string]string{},
		Tunnels: map[string]Tunnel{}, Endpoints: map[EndpointKey]netip.AddrPort{}, Peers: map[PeerKey]Peer{}, Hooks: map[string]subnet.Lease{},
	}
}
