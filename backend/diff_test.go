package backend

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"github.com/tulle-net/tulle/subnet"
)

// clone copies a State's tables.
func clone(s State) State {
	s.Links, s.Addrs, s.FDB = maps.Clone(s.Links), maps.Clone(s.Addrs), maps.Clone(s.FDB)
	s.Neighbours, s.Routes, s.Sysctls = maps.Clone(s.Neighbours), maps.Clone(s.Routes), maps.Clone(s.Sysctls)
	s.Floods, s.Endpoints, s.Peers, s.Hooks = maps.Clone(s.Floods), maps.Clone(s.Endpoints), maps.Clone(s.Peers), maps.Clone(s.Hooks)
	return s
}

// apply does to a copy of s what the kernel's side does with changes.
func apply(s State, c Changes) State {
	s = clone(s)
	applyDelta(s.Links, c.Links)
	applyDelta(s.Addrs, c.Addrs)
	applyDelta(s.FDB, c.FDB)
	applyDelta(s.Floods, c.Floods)
	applyDelta(s.Neighbours, c.Neighbours)
	applyDelta(s.Routes, c.Routes)
	applyDelta(s.Endpoints, c.Endpoints)
	applyDelta(s.Peers, c.Peers)
	applyDelta(s.Hooks, c.Hooks)
	return s
}

func applyDelta[K, V comparable](table map[K]V, d Delta[K, V]) {
	for k, v := range d.Del {
		if table[k] == v { // what is deleted is told as it is now
			delete(table, k)
		}
	}
	maps.Copy(table, d.Set)
}

// randomState has few keys and fewer values, so that two of them share some.
func randomState(r *rand.Rand) State {
	s := NewState()
	addr := func() netip.Addr { return netip.AddrFrom4([4]byte{10, 5, byte(r.IntN(6)), 0}) }
	mac := func() MAC { return MAC{2, 0, 0, 0, 0, byte(r.IntN(4))} }
	dev := func() string { return []string{"tulle.1", "tulle.2", "docker0"}[r.IntN(3)] }
	for range r.IntN(8) {
		s.Links[dev()] = Link{Kind: KindVXLAN, MAC: mac(), MTU: 1450, VXLAN: VXLAN{VNI: r.Uint32N(2), Local: addr()}}
		s.Addrs[Addr{dev(), netip.PrefixFrom(addr(), 24)}] = struct{}{}
		s.FDB[FDBKey{dev(), mac()}] = addr()
		s.Neighbours[NeighbourKey{dev(), addr()}] = mac()
		s.Routes[netip.PrefixFrom(addr(), 24)] = Route{Via: addr(), Dev: dev(), OnLink: r.IntN(2) == 0}
	}
	return s
}

func TestDiff(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	for range 2000 {
		have, want := randomState(r), randomState(r)
		before := clone(have)
		c := Diff(have, want)
		if got := apply(have, c); !reflect.DeepEqual(got, want) {
			t.Fatalf("from\n%sthe changes lead to\n%swant\n%s", have, got, want)
		}
		if !reflect.DeepEqual(have, before) {
			t.Fatal("Diff changed its argument")
		}
		if n := Diff(have, have).Count(); len(n) != 0 {
			t.Fatalf("nothing changes, but %v", n)
		}
		for k, a := range c.FDB.Set {
			if b, ok := have.FDB[k]; ok && a == b {
				t.Fatalf("sets %v to what it is", k)
			}
		}
	}
}

// Sysctls are set where they differ. What others set is nobody's to take back.
func TestDiffSysctls(t *testing.T) {
	t.Parallel()
	have, want := NewState(), NewState()
	have.Sysctls = map[string]string{"net.ipv4.ip_forward": "0", "net.ipv4.tcp_ecn": "1", "net.ipv6.conf.all.forwarding": "1"}
	want.Sysctls = map[string]string{"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"}
	got := Diff(have, want).Sysctls
	if want := map[string]string{"net.ipv4.ip_forward": "1"}; !maps.Equal(got.Set, want) || len(got.Del) > 0 {
		t.Errorf("got %v, want %v set and none deleted", got, want)
	}
}

func TestChangesCount(t *testing.T) {
	t.Parallel()
	have, want := NewState(), NewState()
	have.Links["tulle.1"], want.Links["tulle.1"] = Link{MTU: 1450}, Link{MTU: 1430}
	have.Addrs[Addr{Dev: "tulle.1"}], want.Addrs[Addr{Dev: "tulle.2"}] = struct{}{}, struct{}{}
	want.Routes[netip.MustParsePrefix("10.5.2.0/24")] = Route{Dev: "tulle.1"}
	want.Sysctls["net.ipv4.ip_forward"] = "1"
	got := Diff(have, want).Count()
	if want := map[string]int{"link": 1, "address": 2, "route": 1, "sysctl": 1}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// BenchmarkDiff measures a full compare that finds nothing, and one that finds a peer with another MAC.
func BenchmarkDiff(b *testing.B) {
	plan := largePlan(b, 10_000, false)
	have := clone(plan.State())
	for _, changes := range []int{0, 1} {
		b.Run(fmt.Sprintf("peers=10000,changed=%d", changes), func(b *testing.B) {
			for i := range changes {
				e := largePeer(i, false, 1)
				plan.Update(map[string]subnet.Entry{e.Lease.Key(): e})
			}
			want := plan.State()
			b.ReportAllocs()
			for b.Loop() {
				if n := Diff(have, want).FDB.Len(); n != 2*changes {
					b.Fatalf("%d FDB entries differ", n)
				}
			}
		})
	}
}
