package subnet

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
)

// Range is what one family's subnets are leased from: the subnets of length SubnetLen from Min to Max, both included,
// inside Network. Ranges come validated from ParseConfig.
type Range struct {
	Network   netip.Prefix
	SubnetLen int // bits
	Min, Max  netip.Addr
}

// Contains reports whether p is one of the range's subnets.
func (r Range) Contains(p netip.Prefix) bool {
	return p.IsValid() && p == p.Masked() && p.Bits() == r.SubnetLen && r.Network.Overlaps(p) &&
		p.Addr().Compare(r.Min) >= 0 && p.Addr().Compare(r.Max) <= 0
}

// Admits reports whether a host may hold p: it lies inside Network, and is no larger than the network's subnets. A network
// whose SubnetLen was changed has smaller ones, too.
func (r Range) Admits(p netip.Prefix) bool {
	return p.Bits() >= r.SubnetLen && r.Network.Contains(p.Addr())
}

// Len is the number of subnets in the range.
func (r Range) Len() uint64 { return r.index(r.Max) - r.index(r.Min) + 1 }

// Free is the number of the range's subnets that overlap none of taken.
func (r Range) Free(taken []netip.Prefix) uint64 { return r.left(r.spans(taken)) }

// left is the number of subnets outside of spans.
func (r Range) left(spans []span) uint64 {
	free := r.Len()
	for _, s := range spans {
		free -= s.last - s.first + 1
	}
	return free
}

// Pick returns a subnet that overlaps none of taken, and false if there is none. It depends on identity and on taken
// only, and spreads identities evenly over the free subnets: hosts that choose at the same time from the same view seldom
// choose the same. A host that lost its choice to another adds it to taken and picks again, which ends when all is taken.
// The cost is that of sorting taken, however large the range is.
func (r Range) Pick(identity string, taken []netip.Prefix) (netip.Prefix, bool) {
	spans := r.spans(taken)
	free := r.left(spans)
	if free == 0 {
		return netip.Prefix{}, false
	}
	sum := sha256.Sum256([]byte(identity + " " + strconv.FormatUint(free, 10)))
	i := binary.BigEndian.Uint64(sum[:8]) % free // the i-th free subnet: every span at or before it moves it up
	for _, s := range spans {
		if s.first > i {
			break
		}
		i += s.last - s.first + 1
	}
	return r.subnet(i), true
}

// span is a run of subnets by their index in the range, both ends included.
type span struct{ first, last uint64 }

// spans returns the parts of the range that taken covers, sorted, none touching another.
func (r Range) spans(taken []netip.Prefix) []span {
	end := lastAddr(netip.PrefixFrom(r.Max, r.SubnetLen))
	spans := make([]span, 0, len(taken))
	for _, p := range taken {
		first, last := p.Masked().Addr(), lastAddr(p)
		if FamilyOf(first) != FamilyOf(r.Min) || last.Less(r.Min) || end.Less(first) {
			continue
		}
		spans = append(spans, span{r.index(maxAddr(first, r.Min)), r.index(minAddr(last, end))})
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	merged := spans[:0]
	for _, s := range spans {
		if n := len(merged); n > 0 && s.first <= merged[n-1].last+1 {
			merged[n-1].last = max(merged[n-1].last, s.last)
			continue
		}
		merged = append(merged, s)
	}
	return merged
}

// index is the position in the range of the subnet that a lies in. A range holds at most 2^62 subnets (ParseConfig), so
// the low 64 bits of the subnet numbers tell them apart.
func (r Range) index(a netip.Addr) uint64 { return r.number(a) - r.number(r.Min) }

// number is the low 64 bits of a's subnet number: of the address shifted right by its host part.
func (r Range) number(a netip.Addr) uint64 {
	hi, lo := halves(a)
	if shift := r.hostBits(); shift < 64 {
		return hi<<(64-shift) | lo>>shift
	} else {
		return hi >> (shift - 64)
	}
}

// subnet is the range's i-th subnet.
func (r Range) subnet(i uint64) netip.Prefix {
	n := i + r.number(r.Min) - r.number(r.Network.Addr()) // counted from the network's start: fits in 63 bits
	hi, lo := halves(r.Network.Addr())
	if shift := r.hostBits(); shift < 64 {
		hi, lo = hi|n>>(64-shift), lo|n<<shift
	} else {
		hi |= n << (shift - 64)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	a := netip.AddrFrom16(b)
	if r.Network.Addr().Is4() {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, r.SubnetLen)
}

func (r Range) hostBits() int { return FamilyOf(r.Min).Bits() - r.SubnetLen }

// halves is a as a 128-bit number, IPv4 as its IPv4-mapped form.
func halves(a netip.Addr) (hi, lo uint64) {
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// lastAddr is the highest address in p.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func minAddr(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return a
	}
	return b
}

func maxAddr(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return b
	}
	return a
}
