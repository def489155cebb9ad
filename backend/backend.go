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
	Options
}

// Options are the operator's choices for this host.
type Options struct {
	Bridge     string // the containers' bridge; "" for none
	Masquerade bool
	Forward    bool
	Mark       uint32 // set on packets from peers, for a Docker that lets in what has it; 0 for none
	Attach     int    // addresses of the lease that tulle attach is to have, and Docker not; 0 for none
}

// Backend is one way to carry packets. The State is a sum: a fixed part, and a part for each peer that depends on nothing
// but that peer.
type Backend interface {
	// Announce is what this host's lease tells its peers: the backend's type and data.
	Announce(u Underlay) (name string, data subnet.Pair[string])
	// Fixed is the part of the State that depends on no peer.
	Fixed(h Host) (State, error)
	// Peer is the part of the State that l's host needs. Its error is a *subnet.Reject.
	Peer(h Host, l subnet.Lease) (Part, error)
}

// Part is what one peer adds to the State. It is made of slices, because there may be ten thousands, of an entry or two each.
type Part struct {
	FDB        []Row[FDBKey, netip.Addr]
	Neighbours []Row[NeighbourKey, MAC]
	Routes     []Row[netip.Prefix, Route]
}

// Row is an entry of one of a State's tables.
type Row[K, V comparable] struct {
	Key   K
	Value V
}

func row[K, V comparable](k K, v V) []Row[K, V] { return []Row[K, V]{{k, v}} }

// New returns the backend that cfg asks for, and the keys of its Backend object that this type does not know. Its errors
// are *subnet.ConfigError.
func New(cfg subnet.Config) (b Backend, unknown []string, err error) {
	if cfg.Range.V6 != (subnet.Range{}) {
		return nil, nil, &subnet.ConfigError{Key: "EnableIPv6", Reason: "IPv6 in the overlay is not supported by this version of tulle"}
	}
	switch cfg.Backend.Type {
	case "", "vxlan": // flannel's code takes a missing type for udp, its documentation says vxlan
		return newVXLAN(cfg.Backend.Options)
	default:
		return nil, nil, &subnet.ConfigError{Key: "Backend.Type", Reason: fmt.Sprintf("%q is not a type that this version of tulle knows: it knows vxlan", cfg.Backend.Type)}
	}
}

// parseOptions decodes a Backend object into v and returns the keys beside Type that are not among known, with "Backend."
// before them.
func parseOptions(options string, v any, known ...string) (unknown []string, err error) {
	if options == "" {
		return nil, nil
	}
	if err := subnet.DecodeObject("Backend", []byte(options), v); err != nil {
		return nil, err
	}
	for _, key := range subnet.UnknownKeys([]byte(options), append([]string{"Type"}, known...)) {
		unknown = append(unknown, "Backend."+key)
	}
	return unknown, nil
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
	}
	for f, a := range l.PublicIP.All() {
		if a == h.Underlay.Public.Of(f) || a == h.Underlay.Local.Of(f) {
			return subnet.Rejectf(subnet.OwnAddress, "%s is this host's own address", a)
		}
		if network := h.Config.Range.Of(f).Network; network.IsValid() && l.Subnet.Of(f).Contains(a) {
			return subnet.Rejectf(subnet.OnUnderlay, "%s covers its own host's address %s", l.Subnet.Of(f), a)
		}
	}
	return nil
}

// common is the part of the State that every backend with containers behind a bridge has.
func (h Host) common(mtu int) State {
	s := NewState()
	s.MTU = mtu
	for f, p := range h.Self.Subnet.All() {
		if h.Bridge != "" {
			s.Addrs[Addr{h.Bridge, BridgeAddrs(h.Self).Of(f)}] = struct{}{}
		}
		s.Sysctls[forwarding(f)] = "1"
		*s.Firewall.Subnet.At(f) = p
		*s.Firewall.Network.At(f) = h.Config.Range.Of(f).Network
	}
	if h.Bridge != "" {
		s.Links[h.Bridge] = Link{Kind: KindBridge, MAC: deriveMAC("bridge", h.Self.Key()), MTU: mtu}
	}
	s.Firewall.Masquerade, s.Firewall.Forward, s.Firewall.Bridge = h.Masquerade, h.Forward, h.Bridge
	s.Firewall.Mark = h.Mark
	return s
}

func forwarding(f subnet.Family) string {
	if f == subnet.IPv4 {
		return "net.ipv4.ip_forward"
	}
	return "net.ipv6.conf.all.forwarding"
}

// BridgeAddrs are the addresses that containers use as their gateway: the first of each of the lease's subnets.
func BridgeAddrs(l subnet.Lease) (addrs subnet.Pair[netip.Prefix]) {
	for f, p := range l.Subnet.All() {
		*addrs.At(f) = netip.PrefixFrom(p.Addr().Next(), p.Bits())
	}
	return addrs
}

// VTEPs are the addresses of a host's overlay device: the first of each of its lease's subnets, the network's own.
func VTEPs(l subnet.Lease) (addrs subnet.Pair[netip.Addr]) {
	for f, p := range l.Subnet.All() {
		*addrs.At(f) = p.Addr()
	}
	return addrs
}

// CheckBridge refuses a name that a bridge of ours can't have.
func CheckBridge(name string) error {
	if len(name) > 15 || strings.ContainsAny(name, "/:%") || strings.ContainsFunc(name, unicode.IsSpace) || name == "." || name == ".." || strings.HasPrefix(name, Prefix+".") {
		return fmt.Errorf("%q can't be a bridge's name: at most 15 characters, no '/', ':', '%%' or space, and not one of tulle's own devices", name)
	}
	return nil
}
