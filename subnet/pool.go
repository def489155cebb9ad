package subnet

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
)

// Pool is what is free of a Range: its subnets without those that overlap what was taken. To make one costs as much as there
// is taken, and what is asked of it then a look at the runs of free subnets, however large the range is.
type Pool struct {
	of                   Range
	network, first, last uint64 // numbers of the network's first subnet and, counted from there, of the range's first and last
	free                 []span // sorted, none overlapping another
}

// span is a run of subnets by their index in the range, both ends included.
type span struct{ first, last uint64 }

// Pool returns a Pool from which taken is taken.
func (r Range) Pool(taken []netip.Prefix) *Pool {
	network := r.number(r.Network.Addr())
	p := &Pool{of: r, network: network, first: r.number(r.Min) - network, last: r.number(r.Max) - network}
	spans := make([]span, 0, len(taken))
	for _, q := range taken {
		if s, ok := p.span(q); ok {
			spans = append(spans, s)
		}
	}
	next := uint64(0)
	for _, s := range sorted(spans, r.Len()) {
		if s.first > next {
			p.free = append(p.free, span{next, s.first - 1})
		}
		next = max(next, s.last+1)
	}
	if next < r.Len() {
		p.free = append(p.free, span{next, r.Len() - 1})
	}
	return p
}

// span returns the subnets that overlap q, and false if none does.
func (p *Pool) span(q netip.Prefix) (span, bool) {
	if !p.of.Network.Overlaps(q) {
		return span{}, false
	}
	first, last := p.first, p.last
	if q.Bits() > p.of.Network.Bits() {
		others := uint64(1)<<max(0, p.of.SubnetLen-q.Bits()) - 1 // beside the first
		n := (p.of.number(q.Addr()) - p.network) &^ others
		first, last = max(first, n), min(last, n|others)
	}
	return span{first - p.first, last - p.first}, first <= last
}

// sorted returns spans in the order of their first subnets, which are below limit. It sorts by one byte after the other:
// comparing takes five times as long. The spans' own order is lost.
func sorted(spans []span, limit uint64) []span {
	other := make([]span, len(spans))
	for shift := 0; (limit-1)>>shift > 0; shift += 8 {
		var at [257]int // where the next span with the byte goes
		for _, s := range spans {
			at[int(byte(s.first>>shift))+1]++
		}
		for i := range 256 {
			at[i+1] += at[i]
		}
		for _, s := range spans {
			b := byte(s.first >> shift)
			other[at[b]] = s
			at[b]++
		}
		spans, other = other, spans
	}
	return spans
}

// Len is the number of free subnets.
func (p *Pool) Len() (n uint64) {
	for _, s := range p.free {
		n += s.last - s.first + 1
	}
	return n
}

// Has reports whether q is one of the range's subnets, and free.
func (p *Pool) Has(q netip.Prefix) bool {
	s, _ := p.span(q)
	i := p.at(s.first)
	return p.of.Contains(q) && i < len(p.free) && p.free[i].first <= s.first
}

// Only is a Pool that has nothing free but the subnet q of p's.
func (p *Pool) Only(q netip.Prefix) *Pool {
	only := *p
	only.free = nil
	if s, ok := p.span(q); ok && p.Has(q) {
		only.free = []span{s}
	}
	return &only
}

// Pick returns a free subnet, and false if there is none. It depends on identity and on what is free only, and spreads
// identities evenly: hosts that choose at the same time from the same view seldom choose the same. A host that lost its
// choice to another takes it from the Pool and picks again, which ends when nothing is left.
func (p *Pool) Pick(identity string) (netip.Prefix, bool) {
	free := p.Len()
	if free == 0 {
		return netip.Prefix{}, false
	}
	sum := sha256.Sum256([]byte(identity + " " + strconv.FormatUint(free, 10)))
	i := binary.BigEndian.Uint64(sum[:8]) % free
	for _, s := range p.free {
		if n := s.last - s.first + 1; i >= n {
			i -= n
			continue
		}
		return p.of.subnet(s.first + i), true
	}
	panic("subnet: fewer are free than were counted")
}

// PickEach picks a subnet of each Pool, and returns false if one has none. Both are of one index in their ranges if one is free
// in both: then hosts that choose the same IPv6 subnet choose the same IPv4 subnet, too, and etcd can tell all but one of them
// that it is taken.
func PickEach(pools Pair[*Pool], identity string) (picked Pair[netip.Prefix], ok bool) {
	free := common(pools)
	for f, p := range pools.All() {
		from := *p
		if len(free) > 0 {
			from.free = free
		}
		if *picked.At(f), ok = from.Pick(identity); !ok {
			return Pair[netip.Prefix]{}, false
		}
	}
	return picked, ok
}

// common are the indexes that are free in all of pools.
func common(pools Pair[*Pool]) (free []span) {
	if pools.V4 == nil || pools.V6 == nil {
		return nil
	}
	for a, b := pools.V4.free, pools.V6.free; len(a) > 0 && len(b) > 0; {
		if s := (span{max(a[0].first, b[0].first), min(a[0].last, b[0].last)}); s.first <= s.last {
			free = append(free, s)
		}
		if a[0].last < b[0].last {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return free
}

// Take takes what overlaps q, as far as it is free.
func (p *Pool) Take(q netip.Prefix) {
	if s, ok := p.span(q); ok {
		p.take(s)
	}
}

func (p *Pool) take(s span) {
	from := p.at(s.first)
	to, rest := from, make([]span, 0, 2)
	for ; to < len(p.free) && p.free[to].first <= s.last; to++ {
		if f := p.free[to]; f.first < s.first {
			rest = append(rest, span{f.first, s.first - 1})
		}
		if f := p.free[to]; f.last > s.last {
			rest = append(rest, span{s.last + 1, f.last})
		}
	}
	p.free = slices.Replace(p.free, from, to, rest...)
}

// Return puts back a subnet that was taken, and that overlaps nothing else that was.
func (p *Pool) Return(q netip.Prefix) {
	if s, ok := p.span(q); ok {
		p.free = slices.Insert(p.free, p.at(s.first), s)
	}
}

// at is the place of the first run that does not end before the subnet i.
func (p *Pool) at(i uint64) int {
	at, _ := slices.BinarySearchFunc(p.free, i, func(s span, i uint64) int { return cmp.Compare(s.last, i) })
	return at
}
