package backend

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/tulle-net/tulle/subnet"
)

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
	for k := range sorted(s.Floods, Flood.compare) {
		fmt.Fprintf(&b, "fdb %s dev %s dst %s\n", MAC{}, k.Dev, k.Dst)
	}
	for k, mac := range sorted(s.Neighbours, NeighbourKey.compare) {
		fmt.Fprintf(&b, "neighbour %s lladdr %s dev %s\n", k.IP, mac, k.Dev)
	}
	for name, t := range sorted(s.Tunnels, strings.Compare) {
		fmt.Fprintf(&b, "tunnel %s %s\n", name, t)
	}
	for k, p := range sorted(s.Peers, PeerKey.compare) {
		fmt.Fprintf(&b, "peer %s dev %s %s\n", k.Key, k.Dev, p)
	}
	for k, to := range sorted(s.Endpoints, EndpointKey.compare) {
		fmt.Fprintf(&b, "endpoint %s dev %s dst %s\n", k.Prefix, k.Dev, to)
	}
	for dst, r := range sorted(s.Routes, netip.Prefix.Compare) {
		fmt.Fprintf(&b, "route %s %s\n", dst, r)
	}
	for name, value := range sorted(s.Sysctls, strings.Compare) {
		fmt.Fprintf(&b, "sysctl %s=%s\n", name, value)
	}
	b.WriteString(s.Firewall.String())
	b.WriteString(s.Extension.String())
	for _, l := range sorted(s.Hooks, strings.Compare) {
		fmt.Fprintf(&b, "added %s\n", l.Key())
	}
	return b.String()
}

func (l Link) String() string {
	text := "type " + string(l.Kind)
	switch l.Kind {
	case KindVXLAN:
		text += " " + l.VXLAN.String()
	case KindIPIP:
		text += fmt.Sprintf(" local %s dev %s", l.IPIP.Local, l.IPIP.Parent)
	}
	text += fmt.Sprintf(" mtu %d", l.MTU)
	if l.MAC != (MAC{}) {
		text += " address " + l.MAC.String()
	}
	if l.VXLAN.GBP {
		text += " gbp"
	}
	if l.Master != "" {
		text += " master " + l.Master
	}
	if l.Suppress {
		text += " neigh_suppress on"
	}
	if l.Autoconf {
		text += " autoconf"
	}
	return text
}

func (v VXLAN) String() string {
	learning := "nolearning"
	if v.Learning {
		learning = "learning"
	}
	return fmt.Sprintf("id %d local %s dev %s dstport %d %s", v.VNI, v.Local, v.Parent, v.Port, learning)
}

func (t Tunnel) String() string {
	text := fmt.Sprintf("port %d", t.Port)
	if t.Local != (subnet.Pair[netip.Addr]{}) {
		text = fmt.Sprintf("local %s %s", list(t.Local), text)
	}
	if t.Key != (Secret{}) {
		text += fmt.Sprintf(" public-key %s", t.Key.Public())
	}
	return text
}

func (p Peer) String() string {
	text := fmt.Sprintf("endpoint %s", p.Endpoint)
	for _, prefix := range p.Allowed.All() {
		text += fmt.Sprintf(" allowed %s", prefix)
	}
	if p.PSK != (Secret{}) {
		text += " preshared-key " + p.PSK.String()
	}
	if p.Keepalive != 0 {
		text += fmt.Sprintf(" persistent-keepalive %d", p.Keepalive)
	}
	return text
}

func (e Extension) String() string {
	var b strings.Builder
	for _, c := range []struct{ when, command string }{{"after the start", e.PostStartup}, {"for an added peer", e.SubnetAdd},
		{"for a removed peer", e.SubnetRemove}, {"at the end", e.Shutdown}} {
		if c.command != "" {
			fmt.Fprintf(&b, "run %s: %s\n", c.when, c.command)
		}
	}
	return b.String()
}

func (r Route) String() string {
	if r.Unreachable {
		return "unreachable"
	}
	text := "dev " + r.Dev
	if r.Via.IsValid() {
		text = fmt.Sprintf("via %s %s", r.Via, text)
	}
	if r.OnLink {
		text += " onlink"
	}
	return text
}

func (f Firewall) String() string {
	var b strings.Builder
	for family, network := range f.Network.All() {
		if f.Masquerade.Of(family) {
			fmt.Fprintf(&b, "masquerade %s, but not between %s and %s\n", network, f.Subnet.Of(family), network)
		}
		if f.Forward {
			fmt.Fprintf(&b, "forward %s\n", network)
		}
		if f.Forward && f.Bridge != "" {
			from := cmp.Or(strings.Join(slices.Collect(f.From.All()), ", "), "any device")
			fmt.Fprintf(&b, "forward %s from %s to %s on %s, past Docker\n", network, from, f.Subnet.Of(family), f.Bridge)
			if f.Mark != 0 {
				fmt.Fprintf(&b, "mark %#x what comes so\n", f.Mark)
			}
		}
	}
	if f.NFTables {
		b.WriteString("by nftables\n")
	}
	return b.String()
}

func (a Addr) compare(b Addr) int {
	return cmp.Or(strings.Compare(a.Dev, b.Dev), a.Prefix.Compare(b.Prefix))
}

func (k FDBKey) compare(o FDBKey) int {
	return cmp.Or(strings.Compare(k.Dev, o.Dev), slices.Compare(k.MAC[:], o.MAC[:]))
}

func (f Flood) compare(o Flood) int {
	return cmp.Or(strings.Compare(f.Dev, o.Dev), f.Dst.Compare(o.Dst))
}

func (k EndpointKey) compare(o EndpointKey) int {
	return cmp.Or(strings.Compare(k.Dev, o.Dev), k.Prefix.Compare(o.Prefix))
}

func (k PeerKey) compare(o PeerKey) int {
	return cmp.Or(strings.Compare(k.Dev, o.Dev), slices.Compare(k.Key[:], o.Key[:]))
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
