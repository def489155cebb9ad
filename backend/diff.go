package backend

import (
	"maps"
	"net/netip"

	"github.com/tulle-net/tulle/subnet"
)

// Delta is what to do to one table: entries to set (to add, or to change), and entries to delete as they are now.
type Delta[K, V comparable] struct {
	Set, Del map[K]V
	Was      map[K]V // of a comparison: what those entries of Set are now that are there; nil if none is
}

// Len is the number of entries in d.
func (d Delta[K, V]) Len() int { return len(d.Set) + len(d.Del) }

// Changes leads from one State to another.
type Changes struct {
	Links      Delta[string, Link]
	Addrs      Delta[Addr, struct{}]
	FDB        Delta[FDBKey, netip.Addr]
	Floods     Delta[Flood, struct{}]
	Neighbours Delta[NeighbourKey, MAC]
	Routes     Delta[netip.Prefix, Route]
	Sysctls    Delta[string, string] // set only: nobody owns a sysctl
	Tunnels    Delta[string, Tunnel]
	Endpoints  Delta[EndpointKey, netip.AddrPort]
	Peers      Delta[PeerKey, Peer]
	Hooks      Delta[string, subnet.Lease]
}

// Join adds what others changed: others put other tables in force than c does.
func (c Changes) Join(o Changes) Changes {
	return Changes{c.Links.join(o.Links), c.Addrs.join(o.Addrs), c.FDB.join(o.FDB), c.Floods.join(o.Floods), c.Neighbours.join(o.Neighbours),
		c.Routes.join(o.Routes), c.Sysctls.join(o.Sysctls), c.Tunnels.join(o.Tunnels), c.Endpoints.join(o.Endpoints), c.Peers.join(o.Peers), c.Hooks.join(o.Hooks)}
}

func (d Delta[K, V]) join(o Delta[K, V]) Delta[K, V] {
	if d.Len() == 0 {
		return o
	}
	return d
}

// Diff returns the changes of the kernel's tables that lead from have to want. What isn't part of it is compared by who applies it.
func Diff(have, want State) Changes {
	return Changes{
		Links:      diff(have.Links, want.Links),
		Addrs:      diff(have.Addrs, want.Addrs),
		FDB:        diff(have.FDB, want.FDB),
		Floods:     diff(have.Floods, want.Floods),
		Neighbours: diff(have.Neighbours, want.Neighbours),
		Routes:     diff(have.Routes, want.Routes),
		Sysctls:    Delta[string, string]{Set: diff(have.Sysctls, want.Sysctls).Set},
	}
}

func diff[K, V comparable](have, want map[K]V) Delta[K, V] {
	c := Compare(want)
	for k, v := range have {
		c.See(k, v)
	}
	return c.Delta
}

// Comparison finds what leads from a table to the one that is wanted, entry by entry. It keeps nothing of entries that are as
// wanted: those are nearly all, and may be ten thousands.
type Comparison[K, V comparable] struct {
	Delta[K, V] // once all entries were seen
	want        map[K]V
	same        int // entries seen as wanted, by a Glance
	glance      bool
}

// Compare begins a Comparison. It does not change want.
func Compare[K, V comparable](want map[K]V) *Comparison[K, V] {
	c := &Comparison[K, V]{Delta: Delta[K, V]{Set: maps.Clone(want), Del: map[K]V{}}, want: want}
	if c.Set == nil {
		c.Set = map[K]V{}
	}
	return c
}

// Glance begins a Comparison that can't tell which entries are missing, only whether any is: it takes no room.
func Glance[K, V comparable](want map[K]V) *Comparison[K, V] {
	return &Comparison[K, V]{Delta: Delta[K, V]{Set: map[K]V{}, Del: map[K]V{}}, want: want, glance: true}
}

// See takes note of an entry. Of one that is seen twice the second counts.
func (c *Comparison[K, V]) See(k K, have V) {
	switch want, wanted := c.want[k]; {
	case !wanted:
		c.Del[k] = have
	case want != have:
		if c.Was == nil {
			c.Was = map[K]V{}
		}
		c.Set[k], c.Was[k] = want, have
	case c.glance:
		c.same++
	default:
		delete(c.Set, k)
		delete(c.Was, k)
	}
}

// Whole reports whether Delta is: not if it was but a Glance, and entries are missing.
func (c *Comparison[K, V]) Whole() bool { return !c.glance || c.same+len(c.Set) == len(c.want) }

// Count is the number of changed entries by table, the unchanged tables left out.
func (c Changes) Count() map[string]int {
	count := map[string]int{"link": c.Links.Len(), "address": c.Addrs.Len(), "fdb": c.FDB.Len(),
		"flood": c.Floods.Len(), "neighbour": c.Neighbours.Len(), "route": c.Routes.Len(), "sysctl": c.Sysctls.Len(),
		"tunnel": c.Tunnels.Len(), "endpoint": c.Endpoints.Len(), "peer": c.Peers.Len(), "hook": c.Hooks.Len()}
	for table, n := range count {
		if n == 0 {
			delete(count, table)
		}
	}
	return count
}
