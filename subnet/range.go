package subnet

import (
	"encoding/binary"
	"net/netip"
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
func (r Range) Len() uint64 { return r.number(r.Max) - r.number(r.Min) + 1 }

// number is the low 64 bits of a's subnet number: of the address shifted right by its host part. A range holds at most 2^62
// subnets (ParseConfig), so they tell them apart.
func (r Range) number(a netip.Addr) uint64 {
	hi, lo := halves(a)
	if shift := r.hostBits(); shift < 64 {
		return hi<<(64-shift) | lo>>shift
	} else {
		return hi >> (shift - 64)
	}
}

// Index is which of the range's subnets p is, counted from Min.
func (r Range) Index(p netip.Prefix) uint64 { return r.number(p.Addr()) - r.number(r.Min) }

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
