package etcd

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/tulle-net/tulle/subnet"
)

// errFull says that there is no subnet to be had.
var errFull = errors.New("out of subnets")

// free are the subnets that can be had.
func (s *session) free(want subnet.Request) (free subnet.Pair[*subnet.Pool]) {
	taken := s.taken(want)
	for f, r := range want.Range.All() {
		*free.At(f) = r.Pool(taken)
	}
	return free
}

// taken are the addresses that can't be had. What is held can: it is given up for what is tried.
func (s *session) taken(want subnet.Request) []netip.Prefix {
	taken := slices.Grow(slices.Clone(want.Exclude), len(s.records)+len(s.past.peers))
	for _, records := range []map[string]record{s.records, s.past.peers} {
		for key, r := range records {
			if key != s.own.key {
				taken = claims(taken, want, key, r)
			}
		}
	}
	return taken
}

// claims appends to taken the addresses that a stored key takes: its subnets, and its host's public address, if the network
// has such. A key that claims the whole network claims nothing, and one whose value can't be read claims its subnets.
func claims(taken []netip.Prefix, want subnet.Request, key string, r record) []netip.Prefix {
	for f, p := range r.subnets(key).All() {
		if want.Range.Of(f).Admits(p) {
			taken = append(taken, p)
		}
	}
	for f, a := range r.entry.Lease.PublicIP.All() {
		if want.Range.Of(f).Network.Contains(a) {
			taken = append(taken, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return taken
}

// choose picks the subnets to try: of each family what the host had before, if it is free, or else what its address hashes to.
func choose(want subnet.Request, free subnet.Pair[*subnet.Pool]) (subnets subnet.Pair[netip.Prefix], err error) {
	for f, pool := range free.All() {
		if p := want.Previous.Of(f); pool.Has(p) {
			*free.At(f) = pool.Only(p)
		}
	}
	subnets, ok := subnet.PickEach(free, fmt.Sprint(want.PublicIP))
	if !ok {
		return subnets, errFull
	}
	return subnets, nil
}

// again reports whether the host can have what it had before.
func again(want subnet.Request, free subnet.Pair[*subnet.Pool]) bool {
	ok := serves(want.Previous, want)
	for f, p := range want.Previous.All() {
		ok = ok && free.Of(f).Has(p)
	}
	return ok
}

// serves reports whether subnets are what want asks for: one in each range, none excluded.
func serves(subnets subnet.Pair[netip.Prefix], want subnet.Request) bool {
	for f := range want.Range.All() {
		if !subnets.Of(f).IsValid() {
			return false
		}
	}
	return usable(subnets, want) == subnets
}

// usable are those of subnets that want asks for.
func usable(subnets subnet.Pair[netip.Prefix], want subnet.Request) (serve subnet.Pair[netip.Prefix]) {
	for f, p := range subnets.All() {
		if want.Range.Of(f).Contains(p) && !slices.ContainsFunc(want.Exclude, p.Overlaps) {
			*serve.At(f) = p
		}
	}
	return serve
}

// overlap reports whether two hosts' subnets do.
func overlap(a, b subnet.Pair[netip.Prefix]) bool { return a.V4.Overlaps(b.V4) || a.V6.Overlaps(b.V6) }

// first is the subnet of those that a key begins with.
func first(subnets subnet.Pair[netip.Prefix]) netip.Prefix {
	for _, p := range subnets.All() {
		return p
	}
	return netip.Prefix{}
}

// exhausted is the family of which nothing is free.
func exhausted(free subnet.Pair[*subnet.Pool]) (none subnet.Family) {
	for f, pool := range free.All() {
		if pool.Len() == 0 {
			none = f
		}
	}
	return none
}

// full says how full the network's range of a family is.
func (s *session) full(want subnet.Request, family subnet.Family) error {
	r, leased, reserved := want.Range.Of(family), 0, 0
	want.Range = subnet.PairOf(family, r)
	for key, record := range s.records {
		switch {
		case len(claims(nil, want, key, record)) == 0: // takes nothing
		case record.entry.Reserved:
			reserved++
		default:
			leased++
		}
	}
	return fmt.Errorf("%w: of %d for %s, %d are leased and %d reserved; release some (tulle lease ls) or enlarge the network (tulle config set)",
		errFull, r.Len(), family, leased, reserved)
}
