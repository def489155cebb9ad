// Package subnet is the network's vocabulary: its config, the leases hosts hold in it, the key and value formats both
// are stored in (flannel's, so that flanneld hosts can share the network), and the choice of a free subnet. It is pure:
// no clock, no I/O, standard library only. Who stores leases is package etcd's business, what a lease means for the
// kernel is package backend's.
package subnet

import (
	"fmt"
	"iter"
	"net/netip"
	"strings"
)

// Family is an IP address family.
type Family uint8

// The two families, in the order in which everything lists them.
const (
	IPv4 Family = iota
	IPv6
)

// FamilyOf returns a's family. An IPv4-mapped IPv6 address is IPv6.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

func (f Family) String() string {
	if f == IPv4 {
		return "IPv4"
	}
	return "IPv6"
}

// Other is the other family.
func (f Family) Other() Family { return IPv6 - f }

// Bits is the length of the family's addresses: 32 or 128.
func (f Family) Bits() int {
	if f == IPv4 {
		return 32
	}
	return 128
}

// Pair holds one value for each family. The zero value of T means that the family is absent.
type Pair[T comparable] struct{ V4, V6 T }

// PairOf returns the pair that holds v for family f alone.
func PairOf[T comparable](f Family, v T) (p Pair[T]) {
	*p.At(f) = v
	return p
}

// At returns the place of f's value.
func (p *Pair[T]) At(f Family) *T {
	if f == IPv4 {
		return &p.V4
	}
	return &p.V6
}

// Of returns f's value.
func (p Pair[T]) Of(f Family) T { return *p.At(f) }

// All yields the families present and their values.
func (p Pair[T]) All() iter.Seq2[Family, T] {
	return func(yield func(Family, T) bool) {
		var absent T
		for _, f := range []Family{IPv4, IPv6} {
			if v := p.Of(f); v != absent && !yield(f, v) {
				return
			}
		}
	}
}

// Join writes the values that are there, IPv4's first, with sep between them.
func (p Pair[T]) Join(sep string) string {
	var texts []string
	for _, v := range p.All() {
		texts = append(texts, fmt.Sprint(v))
	}
	return strings.Join(texts, sep)
}
