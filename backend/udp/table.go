package udp

import (
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// table says which endpoint carries a prefix. Whoever looks something up waits for nobody: a change makes a new trie, of the old one's
// nodes but for those that it touches, and puts it in the old one's place. Changes are made one at a time.
type table struct {
	root atomic.Pointer[trie]
}

type trie = bart.Fast[*endpoint]

// endpoint is where a peer's datagrams go and come from.
type endpoint struct {
	netip.AddrPort
	outer  subnet.Family // of it
	socket *net.UDPAddr  // the same, as package net wants it
}

func newTable() *table {
	t := &table{}
	t.root.Store(&trie{})
	return t
}

// change makes changes, all at once.
func (t *table) change(d backend.Delta[backend.EndpointKey, netip.AddrPort]) {
	root := t.root.Load()
	if d.Len() > 32 { // to copy nodes for each costs more from here on than to copy all of ten thousand entries
		root = root.Clone()
		for k := range d.Del {
			root.Delete(k.Prefix)
		}
		for k, to := range d.Set {
			root.Insert(k.Prefix, newEndpoint(to))
		}
	} else {
		for k := range d.Del {
			root = root.DeletePersist(k.Prefix)
		}
		for k, to := range d.Set {
			root = root.InsertPersist(k.Prefix, newEndpoint(to))
		}
	}
	t.root.Store(root)
}

func newEndpoint(a netip.AddrPort) *endpoint {
	return &endpoint{a, subnet.FamilyOf(a.Addr()), net.UDPAddrFromAddrPort(a)}
}

// all yields what is in the table now.
func (t *table) all(yield func(netip.Prefix, netip.AddrPort) bool) {
	for p, e := range t.root.Load().All() {
		if !yield(p, e.AddrPort) {
			return
		}
	}
}

// lookup returns the endpoint of the longest prefix that a lies in, or nil.
func (t *table) lookup(a netip.Addr) *endpoint {
	e, _ := t.root.Load().Lookup(a)
	return e
}
