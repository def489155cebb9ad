package backend

import "net/netip"

// Delta is what to do to one table: entries to set (to add, or to change), and entries to delete as they are now.
type Delta[K, V comparable] struct{ Set, Del map[K]V }

// Len is the number of entries in d.
func (d Delta[K, V]) Len() int { return len(d.Set) + len(d.Del) }

// Changes leads from one State to another.
type Changes struct {
	Links      Delta[string, Link]
	Addrs      Delta[Addr, struct{}]
	FDB        Delta[FDBKey, netip.Addr]
	Neighbours Delta[NeighbourKey, MAC]
	Routes     Delta[netip.Prefix, Route]
	Sysctls    Delta[string, string] // set only: nobody owns a sysctl
}

// Diff returns the changes that lead from have to want. The firewall isn't part of it: who applies it compares it.
func Diff(have, want State) Changes {
	return Changes{
		Links:      diff(have.Links, want.Links),
		Addrs:      diff(have.Addrs, want.Addrs),
		FDB:        diff(have.FDB, want.FDB),
		Neighbours: diff(have.Neighbours, want.Neighbours),
		Routes:     diff(have.Routes, want.Routes),
		Sysctls:    Delta[string, string]{Set: diff(have.Sysctls, want.Sysctls).Set},
	}
}

func diff[K, V comparable](have, want map[K]V) Delta[K, V] {
	d := Delta[K, V]{Set: map[K]V{}, Del: map[K]V{}}
	for k, v := range want {
		if h, ok := have[k]; !ok || h != v {
			d.Set[k] = v
		}
	}
	for k := range have {
		if _, ok := want[k]; !ok {
			d.Del[k] = have[k]
		}
	}
	return d
}

// Count is the number of changed entries by table, the unchanged tables left out.
func (c Changes) Count() map[string]int {
	count := map[string]int{"link": c.Links.Len(), "address": c.Addrs.Len(), "fdb": c.FDB.Len(),
		"neighbour": c.Neighbours.Len(), "route": c.Routes.Len(), "sysctl": c.Sysctls.Len()}
	for table, n := range count {
		if n == 0 {
			delete(count, table)
		}
	}
	return count
}
