package backend

import (
	"fmt"
	"iter"
	"net/netip"

	"github.com/tulle-net/tulle/subnet"
)

// Deviation is an entry that was found not to be as wanted.
type Deviation struct {
	Table  string // as Changes.Count names it
	Object string // as in "route to 10.5.2.0/24"
	Was    string // what had become of it: deleted, changed or, of one that nobody wants, added
}

// Deviations yields what a comparison found, entry by entry.
func (c Changes) Deviations() iter.Seq[Deviation] {
	return func(yield func(Deviation) bool) {
		_ = c.Links.deviations("link", yield, func(name string, _ Link) string { return "link " + name }) &&
			c.Addrs.deviations("address", yield, func(a Addr, _ struct{}) string { return fmt.Sprintf("address %s of %s", a.Prefix, a.Dev) }) &&
			c.FDB.deviations("fdb", yield, func(k FDBKey, to netip.Addr) string { return fmt.Sprintf("forwarding entry for %s (%s)", k.MAC, to) }) &&
			c.Floods.deviations("flood", yield, func(f Flood, _ struct{}) string { return fmt.Sprintf("flooding entry of %s for %s", f.Dev, f.Dst) }) &&
			c.Neighbours.deviations("neighbour", yield, func(k NeighbourKey, _ MAC) string { return fmt.Sprintf("neighbour %s on %s", k.IP, k.Dev) }) &&
			c.Routes.deviations("route", yield, func(p netip.Prefix, _ Route) string { return fmt.Sprintf("route to %s", p) }) &&
			c.Sysctls.deviations("sysctl", yield, func(name, _ string) string { return "sysctl " + name }) &&
			c.Tunnels.deviations("tunnel", yield, func(name string, _ Tunnel) string { return "tunnel " + name }) &&
			c.Endpoints.deviations("endpoint", yield, func(k EndpointKey, _ netip.AddrPort) string {
				return fmt.Sprintf("endpoint of %s on %s", k.Prefix, k.Dev)
			}) &&
			c.Peers.deviations("peer", yield, func(k PeerKey, p Peer) string { return fmt.Sprintf("peer %s (%s) of %s", k.Key, p.Endpoint, k.Dev) }) &&
			c.Hooks.deviations("hook", yield, func(key string, _ subnet.Lease) string { return "extension's peer " + key })
	}
}

func (d Delta[K, V]) deviations(table string, yield func(Deviation) bool, object func(K, V) string) bool {
	for k, v := range d.Set {
		was := "deleted"
		if _, there := d.Was[k]; there {
			was = "changed"
		}
		if !yield(Deviation{table, object(k, v), was}) {
			return false
		}
	}
	for k, v := range d.Del {
		if !yield(Deviation{table, object(k, v), "added"}) {
			return false
		}
	}
	return true
}
