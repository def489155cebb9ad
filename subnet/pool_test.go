package subnet

import (
	"fmt"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// seeded returns a source of random numbers whose seed a failing test prints.
func seeded(t testing.TB) *rand.Rand {
	a, b := rand.Uint64(), rand.Uint64()
	t.Logf("seed: rand.NewPCG(%d, %d)", a, b)
	return rand.New(rand.NewPCG(a, b))
}

// number128 and addr128 count addresses in another way than the code under test.
func number128(a netip.Addr) *big.Int { return new(big.Int).SetBytes(a.AsSlice()) }

func addr128(f Family, n *big.Int) netip.Addr {
	a, _ := netip.AddrFromSlice(n.FillBytes(make([]byte, f.Bits()/8)))
	return a
}

// nth is the i-th subnet of length bits after the first.
func nth(first netip.Addr, bits int, i int64) netip.Prefix {
	f := FamilyOf(first)
	step := new(big.Int).Lsh(big.NewInt(i), uint(f.Bits()-bits))
	return netip.PrefixFrom(addr128(f, step.Add(step, number128(first))), bits)
}

// randomAddr is any address in p.
func randomAddr(r *rand.Rand, p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] ^= byte(r.UintN(2)) << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// randomRange is a range as ParseConfig makes them, of at most 2^width subnets.
func randomRange(t *testing.T, r *rand.Rand, width int) Range {
	network, longest := netip.MustParsePrefix("10.0.0.0/8"), 30
	if r.IntN(2) == 0 {
		network, longest = netip.MustParsePrefix("fd00::/8"), 126
	}
	bits := 8 + r.IntN(longest-9)
	length := bits + 2 + r.IntN(min(longest-bits-2, width-2)+1)
	network = netip.PrefixFrom(randomAddr(r, network), bits).Masked()
	edge := func() netip.Addr { return netip.PrefixFrom(randomAddr(r, network), length).Masked().Addr() }
	low, high := edge(), edge()
	if high.Less(low) {
		low, high = high, low
	}
	key := map[bool]string{false: "", true: "IPv6"}[network.Addr().Is6()]
	text := fmt.Sprintf(`{"EnableIPv4":%t,"EnableIPv6":%t,"%[3]sNetwork":%[4]q,"%[3]sSubnetLen":%[5]d`, key == "", key != "", key, network, length)
	if r.IntN(3) > 0 {
		text += fmt.Sprintf(`,"%sSubnetMin":%q,"%[1]sSubnetMax":%[3]q`, key, low, high)
	}
	c := parseConfig(t, text+"}")
	return *c.Range.At(FamilyOf(network.Addr()))
}

// randomTaken is prefixes of all kinds: subnets of the range, shorter and longer ones, with host bits set, around the range's
// ends, outside it, of the other family, and some of them twice.
func randomTaken(r *rand.Rand, in Range, n int) []netip.Prefix {
	var taken []netip.Prefix
	for range n {
		a, bits := randomAddr(r, in.Network), in.SubnetLen
		switch r.IntN(9) {
		case 0:
			bits = r.IntN(in.SubnetLen + 1)
		case 1:
			bits = in.Network.Bits() + 1 + r.IntN(in.SubnetLen-in.Network.Bits())
		case 2:
			bits += r.IntN(a.BitLen() - bits + 1)
		case 3:
			a = in.Min
		case 4:
			a, bits = in.Max, max(in.SubnetLen-2, 1)
		case 5:
			a = netip.MustParseAddr([]string{"192.0.2.1", "2001:db8::1"}[FamilyOf(a)])
		case 6:
			a = netip.MustParseAddr([]string{"2001:db8::1", "10.0.0.1"}[FamilyOf(a)])
			bits = r.IntN(33)
		}
		p := netip.PrefixFrom(a, bits)
		if r.IntN(4) > 0 {
			p = p.Masked()
		}
		taken = append(taken, p)
		if r.IntN(4) == 0 {
			taken = append(taken, p)
		}
	}
	return taken
}

// Picking until nothing is left gives each free subnet exactly once, and whether one that lost its choice goes on with its
// Pool or makes it anew is all the same.
func TestPickAll(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	for range 400 {
		in := randomRange(t, r, 8)
		taken := randomTaken(r, in, r.IntN(8))
		free := map[netip.Prefix]bool{}
		for i := int64(0); ; i++ {
			p := nth(in.Min, in.SubnetLen, i)
			if in.Max.Less(p.Addr()) {
				if n := in.Len(); n != uint64(i) {
					t.Fatalf("%s: %d subnets, want %d", show(in), n, i)
				}
				break
			}
			if !in.Contains(p) {
				t.Fatalf("%s doesn't contain %s", show(in), p)
			}
			if !slices.ContainsFunc(taken, p.Overlaps) {
				free[p] = true
			}
		}
		for pool := in.Pool(taken); ; {
			checkFree(t, pool, taken, free)
			p, ok := pool.Pick("192.0.2.1")
			if anew, _ := in.Pool(taken).Pick("192.0.2.1"); ok != (len(free) > 0) || ok && !free[p] || p != anew {
				t.Fatalf("%s, taken %v: picked %s, and %s from a new Pool; %d are free", show(in), taken, p, anew, len(free))
			}
			if !ok {
				break
			}
			delete(free, p)
			pool.Take(p)
			taken = append(taken, p)
		}
	}
}

// checkFree checks that free is what the Pool has.
func checkFree(t *testing.T, pool *Pool, taken []netip.Prefix, free map[netip.Prefix]bool) {
	t.Helper()
	if n := pool.Len(); n != uint64(len(free)) {
		t.Fatalf("%s, taken %v: %d free, want %d", show(pool.of), taken, n, len(free))
	}
	for i := range int64(pool.of.Len()) {
		if p := nth(pool.of.Min, pool.of.SubnetLen, i); pool.Has(p) != free[p] {
			t.Fatalf("%s, taken %v: %s is free: %t", show(pool.of), taken, p, pool.Has(p))
		}
	}
}

// A Pool from which is taken, and to which is returned, is the same as one made from what is left.
func TestPoolTakesAndReturns(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	for range 200 {
		in := randomRange(t, r, 8)
		pool, free, taken := in.Pool(nil), map[netip.Prefix]bool{}, []netip.Prefix(nil)
		for i := range int64(in.Len()) {
			free[nth(in.Min, in.SubnetLen, i)] = true
		}
		for range 40 {
			if len(taken) > 0 && r.IntN(3) == 0 {
				i := r.IntN(len(taken))
				pool.Return(taken[i])
				free[taken[i]] = true
				taken = slices.Delete(taken, i, i+1)
			}
			if p, ok := pool.Pick(fmt.Sprint("host ", r.Uint64())); ok && r.IntN(2) == 0 {
				pool.Take(p)
				delete(free, p)
				taken = append(taken, p)
			}
			checkFree(t, pool, taken, free)
			one, _ := pool.Pick("192.0.2.1")
			if other, _ := in.Pool(taken).Pick("192.0.2.1"); one != other {
				t.Fatalf("%s, taken %v: picked %s, and %s from a new Pool", show(in), taken, one, other)
			}
		}
		for _, p := range randomTaken(r, in, 8) {
			pool.Take(p)
			for q := range free {
				if q.Overlaps(p) {
					delete(free, q)
				}
			}
			checkFree(t, pool, append(taken, p), free)
		}
		for p := range free {
			if in.Pool(nil).Has(netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()) || pool.Has(netip.PrefixFrom(p.Addr(), p.Bits()+1)) {
				t.Fatalf("%s has longer and shorter ones than %s", show(in), p)
			}
		}
	}
	if in := rangeOf(t, "10.5.0.0/16", 24); in.Pool(nil).Has(netip.Prefix{}) || in.Pool(nil).Has(netip.MustParsePrefix("10.6.1.0/24")) {
		t.Error("a Pool has what is not in its Range")
	}
}

// The same where there is no room to enumerate: up to 2^62 subnets.
func TestPickFromLargeRanges(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	ranges := []Range{
		rangeOf(t, "10.0.0.0/8", 30), rangeOf(t, "fd12:3456::/48", 64), rangeOf(t, "fd12:3456::/32", 64), rangeOf(t, "fd00::/8", 64),
		rangeOf(t, "fd00::/16", 78), rangeOf(t, "fd12:3456::/48", 96), rangeOf(t, "fd12:3456::/64", 126), rangeOf(t, "4000::/2", 64),
	}
	for range 300 {
		ranges = append(ranges, randomRange(t, r, 62))
	}
	for _, in := range ranges {
		length := new(big.Int).Sub(number128(in.Max), number128(in.Min))
		length.Rsh(length, uint(in.hostBits())).Add(length, big.NewInt(1))
		if n := in.Len(); !length.IsUint64() || n != length.Uint64() {
			t.Fatalf("%s: %d subnets, want %s", show(in), n, length)
		}
		taken := randomTaken(r, in, r.IntN(20))
		if slices.ContainsFunc(taken, func(p netip.Prefix) bool { return p.Contains(in.Min) && p.Contains(in.Max) }) {
			continue
		}
		pool := in.Pool(taken)
		free := pool.Len()
		for i := range uint64(20) {
			p, ok := pool.Pick(fmt.Sprint("host ", r.Uint64()))
			if ok != (i < free) {
				t.Fatalf("%s, taken %v: picked %t, %d of %d left", show(in), taken, ok, free-i, free)
			}
			if !ok {
				break
			}
			if !in.Contains(p) || p.Bits() != in.SubnetLen || p != p.Masked() || p.Addr().Less(in.Min) || in.Max.Less(p.Addr()) || !in.Network.Contains(p.Addr()) {
				t.Fatalf("%s: picked %s", show(in), p)
			}
			if other := slices.IndexFunc(taken, p.Overlaps); other >= 0 {
				t.Fatalf("%s: picked %s, which overlaps %s", show(in), p, taken[other])
			}
			taken = append(taken, p)
			pool.Take(p)
			if n, anew := pool.Len(), in.Pool(taken).Len(); n != free-i-1 || anew != n {
				t.Fatalf("%s, taken %v: %d free, %d in a new Pool, want %d", show(in), taken, n, anew, free-i-1)
			}
		}
	}
}

// The order in which an agent learns of leases must not decide, nor must leases that take nothing from the range.
func TestPickDependsOnWhatIsTakenOnly(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	for range 200 {
		in := randomRange(t, r, 20)
		taken := randomTaken(r, in, 10)
		want, _ := in.Pool(taken).Pick("192.0.2.1")
		r.Shuffle(len(taken), func(i, j int) { taken[i], taken[j] = taken[j], taken[i] })
		before := slices.Clone(taken)
		got, _ := in.Pool(append(taken, netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32"))).Pick("192.0.2.1")
		if got != want {
			t.Fatalf("%s, taken %v: picked %s, and %s in another order", show(in), taken, want, got)
		}
		if !slices.Equal(before, taken) {
			t.Fatalf("%v has become %v", before, taken)
		}
	}
}

// Hosts of a dual-stack network choose from views of different age, and etcd lets only one of them have an IPv4 subnet, whatever IPv6
// subnet goes with it. As long as an index is free in both ranges, none of those who won overlap, in either family.
func TestPickEach(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	for range 100 {
		ranges := Pair[Range]{V4: rangeOf(t, "10.5.0.0/16", 18+r.IntN(6)), V6: rangeOf(t, "fd12::/48", 50+r.IntN(6))}
		var won []Pair[netip.Prefix]
		for host := range min(ranges.V4.Len(), ranges.V6.Len()) {
			stale := won[:len(won)-r.IntN(min(len(won), 10)+1)]
			for pools := poolsWithout(ranges, stale); ; pools = poolsWithout(ranges, won) { // who loses learns what is taken
				p, ok := PickEach(pools, fmt.Sprint("host ", host))
				if !ok || !ranges.V4.Contains(p.V4) || !ranges.V6.Contains(p.V6) {
					t.Fatalf("%s and %s, taken %v: picked %v, %t", show(ranges.V4), show(ranges.V6), won, p, ok)
				}
				if slices.ContainsFunc(won, func(q Pair[netip.Prefix]) bool { return q.V4 == p.V4 }) {
					continue
				}
				if slices.ContainsFunc(won, func(q Pair[netip.Prefix]) bool { return q.V6 == p.V6 }) {
					t.Fatalf("%s and %s, taken %v: picked %v", show(ranges.V4), show(ranges.V6), won, p)
				}
				won = append(won, p)
				break
			}
		}
		if p, ok := PickEach(poolsWithout(ranges, won), "one more"); ok {
			t.Fatalf("%s and %s, all taken: picked %v", show(ranges.V4), show(ranges.V6), p)
		}
	}
}

func poolsWithout(ranges Pair[Range], won []Pair[netip.Prefix]) (pools Pair[*Pool]) {
	for f, r := range ranges.All() {
		var taken []netip.Prefix
		for _, p := range won {
			taken = append(taken, p.Of(f))
		}
		*pools.At(f) = r.Pool(taken)
	}
	return pools
}

// Where what is free has no index in common, each family's is picked by itself; a Pool of one alone is of that one.
func TestPickEachApart(t *testing.T) {
	t.Parallel()
	ranges := Pair[Range]{V4: rangeOf(t, "10.5.0.0/22", 24), V6: rangeOf(t, "fd12::/62", 64)} // three of each
	pools := Pair[*Pool]{ranges.V4.Pool(nil), ranges.V6.Pool(nil)}
	kept := netip.MustParsePrefix("10.5.3.0/24")
	pools.V4 = pools.V4.Only(kept)
	if p, ok := PickEach(pools, "host"); !ok || p != subnets("10.5.3.0/24", "fd12:0:0:3::/64") {
		t.Errorf("picked %v, %t", p, ok)
	}
	pools.V6.Take(netip.MustParsePrefix("fd12:0:0:3::/64"))
	if p, ok := PickEach(pools, "host"); !ok || p.V4 != kept || !ranges.V6.Contains(p.V6) {
		t.Errorf("picked %v, %t", p, ok)
	}
	if none := pools.V4.Only(netip.MustParsePrefix("10.5.1.0/24")); none.Len() != 0 || pools.V4.Only(netip.Prefix{}).Len() != 0 {
		t.Errorf("%d are free", none.Len())
	}
	if p, ok := PickEach(Pair[*Pool]{V6: pools.V6}, "host"); !ok || p.V4.IsValid() || !p.V6.IsValid() {
		t.Errorf("picked %v, %t", p, ok)
	}
}

func TestPickSpreads(t *testing.T) {
	t.Parallel()
	in := parseConfig(t, `{"Network":"10.5.0.0/16","SubnetMin":"10.5.0.0"}`).Range.V4
	half := []netip.Prefix{netip.MustParsePrefix("10.5.0.0/17")}
	for _, taken := range [][]netip.Prefix{nil, half} {
		pool, picked := in.Pool(taken), map[netip.Prefix]int{}
		for i := range 1000 {
			p, _ := pool.Pick(fmt.Sprintf("192.0.%d.%d", i/256, i%256))
			picked[p]++
		}
		free := int(pool.Len())
		for p, n := range picked {
			if n > 5120/free { // five times the mean
				t.Errorf("%d of 1000 hosts picked %s of %d", n, p, free)
			}
		}
		if len(picked) < free*9/10 {
			t.Errorf("1000 hosts picked only %d of %d", len(picked), free)
		}
	}
}

// BenchmarkPick measures what a join spends on its choice in a network that is 90 % full: on the choice, and on the next one
// if another host was faster.
func BenchmarkPick(b *testing.B) {
	for _, network := range []string{"10.5.0.0/16", "10.0.0.0/8"} {
		in := rangeOf(b, network, 24)
		size := 1 << (24 - in.Network.Bits())
		taken := make([]netip.Prefix, 0, size)
		for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(size)[:size*9/10] {
			taken = append(taken, nth(in.Network.Addr(), 24, int64(i)))
		}
		name := fmt.Sprintf("%s,taken=%d", network, len(taken))
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := in.Pool(taken).Pick("192.0.2.1"); !ok {
					b.Fatal("nothing is free")
				}
			}
		})
		b.Run(name+",after-collision", func(b *testing.B) {
			pool := in.Pool(taken)
			lost, _ := pool.Pick("192.0.2.1")
			b.ReportAllocs()
			for b.Loop() {
				pool.Take(lost)
				if _, ok := pool.Pick("192.0.2.1"); !ok {
					b.Fatal("nothing is free")
				}
				pool.Return(lost)
			}
		})
	}
}
