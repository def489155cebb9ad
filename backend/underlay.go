package backend

import (
	"net/netip"
	"regexp"
	"slices"

	"github.com/tulle-net/tulle/subnet"
)

// Choice says which device carries the overlay. The first of its fields that is set and leads to a device decides; with
// none set it is the device of the default route.
type Choice struct {
	Ifaces   []string                // names or addresses, tried in order
	Regexes  []*regexp.Regexp        // tried in order, each on all addresses before it is tried on names
	CanReach netip.Addr              // the device that the kernel would send to this address from
	Public   subnet.Pair[netip.Addr] // where peers are told to send to, if not to the device's own address
}

// Named reports whether c leads to a device by itself, and not by the default route.
func (c Choice) Named() bool { return len(c.Ifaces)+len(c.Regexes) > 0 || c.CanReach.IsValid() }

// Underlay is what the kernel says of the network that carries the overlay's packets.
type Underlay struct {
	Device string
	MTU    int                     // bytes
	Local  subnet.Pair[netip.Addr] // Device's own addresses
	Public subnet.Pair[netip.Addr] // where peers send to: Local, or what a NAT in front shows for it
	OnLink []netip.Prefix          // reached on Device without a gateway, and its gateways themselves, as /32 or /128; IPv6's link-local ones aside
	Others []Addr                  // this host's other addresses, those of our own devices and link-local ones aside

	// Devices that take IPv6 addresses and routes as routers advertise them (RFC 4861): Device, and those of such routes. They
	// would not once the host forwards, unless they are told to.
	AcceptRA []string
}

// Excluded returns the parts of the network's own range that the underlay needs for itself. Their subnets must never be
// leased nor routed, or the packets that carry the overlay would be sent into the overlay.
func (u Underlay) Excluded(cfg subnet.Config) []netip.Prefix {
	var excluded []netip.Prefix
	for _, r := range cfg.Range.All() {
		for _, p := range u.OnLink {
			if p.Overlaps(r.Network) && !slices.Contains(excluded, p) {
				excluded = append(excluded, p)
			}
		}
	}
	return excluded
}

// has reports whether a is an address of this host.
func (u Underlay) has(a netip.Addr) bool {
	return slices.ContainsFunc(u.Others, func(o Addr) bool { return o.Prefix.Addr() == a })
}

// broadcasts reports whether a is no host's on the segment, but all hosts': what is sent there, the segment multiplies.
func (u Underlay) broadcasts(a netip.Addr) bool {
	return slices.ContainsFunc(u.OnLink, func(p netip.Prefix) bool {
		return a.Is4() && p.Contains(a) && p.Bits() < 31 && (a == p.Addr() || !p.Contains(a.Next()))
	})
}

// reaches reports whether a is reached on the underlay device without a gateway.
func (u Underlay) reaches(a netip.Addr) bool {
	for _, p := range u.OnLink {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
