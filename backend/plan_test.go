package backend

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"runtime"
	"testing"

	"github.com/tulle-net/tulle/subnet"
)

// seeded returns a source of random numbers whose seed a failing test prints.
func seeded(t testing.TB) *rand.Rand {
	a, b := rand.Uint64(), rand.Uint64()
	t.Logf("seed: rand.NewPCG(%d, %d)", a, b)
	return rand.New(rand.NewPCG(a, b))
}

// testHost is 10.5.4.0/22 on 192.0.2.1; its second segment lies inside the network.
func testHost(t testing.TB, options string) (Backend, Host) {
	cfg := mustConfig(t, `{"Network":"10.5.0.0/16","SubnetLen":22,"Backend":{"Type":"vxlan"`+options+`}}`)
	own := v4Addr("192.0.2.1")
	return mustBackend(t, cfg), Host{
		Config: cfg,
		Self:   subnet.Lease{Subnet: subnet.PairOf(subnet.IPv4, netip.MustParsePrefix("10.5.4.0/22")), PublicIP: own},
		Underlay: Underlay{Device: "eth0", MTU: 1500, Local: own, Public: own,
			OnLink: []netip.Prefix{netip.MustParsePrefix("10.5.16.0/24"), netip.MustParsePrefix("192.0.2.0/29")}},
		Options: Options{Bridge: "docker0"},
	}
}

func v4Addr(text string) subnet.Pair[netip.Addr] {
	return subnet.PairOf(subnet.IPv4, netip.MustParseAddr(text))
}

func mustPlan(t testing.TB, b Backend, h Host, entries map[string]subnet.Entry) *Plan {
	t.Helper()
	p, err := NewPlan(b, h, entries)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// entry is a vxlan lease as it is found in etcd.
func entry(created int64, prefix, publicIP, mac string) subnet.Entry {
	return subnet.Entry{Created: created, Lease: subnet.Lease{Subnet: subnet.PairOf(subnet.IPv4, netip.MustParsePrefix(prefix)),
		PublicIP: v4Addr(publicIP), Backend: "vxlan", Data: subnet.PairOf(subnet.IPv4, fmt.Sprintf(`{"VNI":1,"VtepMAC":%q}`, mac))}}
}

// randomEntry is a change to one of a few dozen leases. Those that aren't wild get along with each other.
func randomEntry(r *rand.Rand, wild bool) (string, subnet.Entry) {
	host := 2 + r.IntN(12)
	created, prefix := 1+r.Int64N(50), fmt.Sprintf("10.5.%d.0/22", 32+4*r.IntN(24))
	publicIP, mac := fmt.Sprintf("192.0.2.%d", host), fmt.Sprintf("02:00:00:00:00:%02x", host)
	if wild {
		bits := []int{15, 16, 21, 22, 22, 22, 22, 23, 24, 26, 30, 32}[r.IntN(12)]
		p, _ := netip.AddrFrom4([4]byte{10, 5, byte(r.IntN(44)), byte(r.IntN(256))}).Prefix(bits)
		prefix = p.String()
		mac = fmt.Sprintf("%02x:00:00:00:00:%02x", []int{2, 2, 2, 2, 2, 3}[r.IntN(6)], 2+r.IntN(12))
		publicIP = []string{publicIP, publicIP, "192.0.2.1", fmt.Sprintf("10.5.%d.7", r.IntN(44)), "10.5.16.7", "10.5.40.7"}[r.IntN(6)]
	}
	e := entry(created, prefix, publicIP, mac)
	key := e.Lease.Key()
	if wild && r.IntN(8) == 0 {
		e.Lease.Data.V4 = `{"VNI":2}`
	}
	if wild && r.IntN(8) == 0 {
		e = subnet.Entry{Created: created, Err: &subnet.Reject{Reason: subnet.BadValue, Detail: "not a lease"}}
	}
	if wild && r.IntN(8) == 0 {
		e.Lease.Backend, e.Lease.Data, e.Reserved = "", subnet.Pair[string]{}, true
	}
	return key, e
}

// A plan that has been told of changes is the same as one made from what is stored now, and the changes it returned are
// those that lead there.
func TestPlanUpdate(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	for range 100 {
		b, h := testHost(t, []string{"", `,"DirectRouting":true`}[r.IntN(2)])
		wild := []float64{0, 0.02, 0.1, 0.5, 1}[r.IntN(5)] // most rivalry ends before the next begins, or it never ends
		entries := map[string]subnet.Entry{}
		p := mustPlan(t, b, h, map[string]subnet.Entry{})
		for range 50 {
			before := clone(p.State())
			changed := map[string]subnet.Entry{}
			for range 1 + r.IntN(4) {
				key, e := randomEntry(r, r.Float64() < wild)
				for known := range entries { // any
					if r.IntN(3) == 0 {
						key, e = known, subnet.Entry{}
					} else if r.IntN(4) == 0 {
						key, e = known, entries[known]
						e.Created = 1 + r.Int64N(50)
					}
					break
				}
				changed[key] = e
			}
			entries = subnet.Update{Leases: changed}.Merge(entries)
			changes := p.Update(changed)
			if !checkPlan(t, p, mustPlan(t, b, h, maps.Clone(entries)), before, changes) {
				t.Fatalf("after %v", changed)
			}
		}
	}
}

func checkPlan(t *testing.T, got, want *Plan, before State, changes Changes) bool {
	t.Helper()
	if !reflect.DeepEqual(got.Entries(), want.Entries()) {
		t.Errorf("entries\n%v\nwant\n%v", got.Entries(), want.Entries())
	}
	if !reflect.DeepEqual(got.Rejected(), want.Rejected()) {
		t.Errorf("rejected\n%swant\n%s", rejections(got), rejections(want))
	}
	counted := map[subnet.Reason]int{}
	for _, r := range got.Rejected() {
		counted[r.Reason]++
	}
	if !maps.Equal(got.Reasons(), counted) {
		t.Errorf("%v are counted, want %v", got.Reasons(), counted)
	}
	if !reflect.DeepEqual(got.State(), want.State()) {
		t.Errorf("state\n%swant\n%s", got.State(), want.State())
	}
	if after := apply(before, changes); !reflect.DeepEqual(after, want.State()) {
		t.Errorf("the changes lead to\n%swant\n%s", after, want.State())
	}
	least := Diff(before, want.State())
	least.Endpoints, least.Peers, least.Hooks = diff(before.Endpoints, want.State().Endpoints), diff(before.Peers, want.State().Peers), diff(before.Hooks, want.State().Hooks)
	if !reflect.DeepEqual(changes.Count(), least.Count()) {
		t.Errorf("changes %v, want %v", changes.Count(), least.Count())
	}
	return !t.Failed()
}

// An entry that several leases need stays until the last of them is gone.
func TestPlanSharedEntry(t *testing.T) {
	t.Parallel()
	b, h := testHost(t, "")
	stale, fresh := entry(1, "10.5.32.0/22", "192.0.2.9", "02:00:00:00:00:09"), entry(2, "10.5.36.0/22", "192.0.2.9", "02:00:00:00:00:09")
	key := FDBKey{"tulle.1", MAC{2, 0, 0, 0, 0, 9}}
	for _, test := range []struct {
		name        string
		first, last subnet.Entry
	}{{"stale lease goes first", stale, fresh}, {"fresh lease goes first", fresh, stale}} {
		t.Run(test.name, func(t *testing.T) {
			p := mustPlan(t, b, h, map[string]subnet.Entry{stale.Lease.Key(): stale, fresh.Lease.Key(): fresh})
			if len(p.Rejected()) > 0 || len(p.State().FDB) != 1 || len(p.State().Routes) != 2 {
				t.Fatalf("got\n%s%s", p.State(), rejections(p))
			}
			c := p.Update(map[string]subnet.Entry{test.first.Lease.Key(): {}})
			if want := map[string]int{"neighbour": 1, "route": 1}; !reflect.DeepEqual(c.Count(), want) || p.State().FDB[key] != netip.MustParseAddr("192.0.2.9") {
				t.Errorf("the first changes %v, want %v, and leaves\n%s", c.Count(), want, p.State())
			}
			c = p.Update(map[string]subnet.Entry{test.last.Lease.Key(): {}})
			if want := map[string]int{"fdb": 1, "neighbour": 1, "route": 1}; !reflect.DeepEqual(c.Count(), want) || len(p.State().FDB) != 0 {
				t.Errorf("the last changes %v, want %v, and leaves\n%s", c.Count(), want, p.State())
			}
		})
	}
}

// What the older lease gives up, the younger gets.
func TestPlanRivals(t *testing.T) {
	t.Parallel()
	b, h := testHost(t, "")
	older, younger := entry(1, "10.5.32.0/22", "192.0.2.9", "02:00:00:00:00:09"), entry(2, "10.5.36.0/22", "192.0.2.10", "02:00:00:00:00:09")
	p := mustPlan(t, b, h, map[string]subnet.Entry{younger.Lease.Key(): younger})
	key := FDBKey{"tulle.1", MAC{2, 0, 0, 0, 0, 9}}
	for _, step := range []struct {
		name    string
		changed subnet.Entry
		key     string
		fdb     string
		loser   string
	}{
		{"the older is seen late", older, older.Lease.Key(), "192.0.2.9", younger.Lease.Key()},
		{"the older goes", subnet.Entry{}, older.Lease.Key(), "192.0.2.10", ""},
		{"it comes back as the younger", entry(3, "10.5.32.0/22", "192.0.2.9", "02:00:00:00:00:09"), older.Lease.Key(), "192.0.2.10", older.Lease.Key()},
		{"it gets a MAC of its own", entry(3, "10.5.32.0/22", "192.0.2.9", "02:00:00:00:00:0a"), older.Lease.Key(), "192.0.2.10", ""},
	} {
		p.Update(map[string]subnet.Entry{step.key: step.changed})
		if got := p.State().FDB[key]; got != netip.MustParseAddr(step.fdb) {
			t.Errorf("%s: the MAC is at %s, want %s", step.name, got, step.fdb)
		}
		if _, lost := p.Rejected()[step.loser]; len(p.Rejected()) > 1 || lost != (step.loser != "") {
			t.Errorf("%s: rejected %v, want %q", step.name, p.Rejected(), step.loser)
		}
	}
}

// A lease that is left out for another's sake is logged when the detail changes: it must not change by itself.
func TestPlanRejectsAlike(t *testing.T) {
	t.Parallel()
	b, h := testHost(t, "")
	entries := map[string]subnet.Entry{}
	for i := range 8 {
		for _, e := range []subnet.Entry{
			entry(1, fmt.Sprintf("10.5.32.%d/29", 8*i), fmt.Sprintf("192.0.2.%d", 16+i), fmt.Sprintf("02:00:00:00:01:%02x", i)),
			entry(1, fmt.Sprintf("10.5.64.%d/29", 8*i), fmt.Sprintf("10.5.36.%d", 16+i), fmt.Sprintf("02:00:00:00:02:%02x", i)),
		} {
			entries[e.Lease.Key()] = e
		}
	}
	for _, e := range []subnet.Entry{ // overlaps eight; covers eight hosts
		entry(2, "10.5.32.0/22", "192.0.2.9", "02:00:00:00:00:09"), entry(2, "10.5.36.0/22", "192.0.2.10", "02:00:00:00:00:0a"),
	} {
		entries[e.Lease.Key()] = e
	}
	want := rejections(mustPlan(t, b, h, maps.Clone(entries)))
	for range 20 {
		if got := rejections(mustPlan(t, b, h, maps.Clone(entries))); got != want {
			t.Fatalf("once\n%sand once\n%s", want, got)
		}
	}
}

func TestPlanAccessors(t *testing.T) {
	t.Parallel()
	b, h := testHost(t, "")
	p := mustPlan(t, b, h, map[string]subnet.Entry{})
	if !reflect.DeepEqual(p.Host(), h) {
		t.Errorf("host %+v, want %+v", p.Host(), h)
	}
	if p.State().MTU != 1450 {
		t.Errorf("MTU %d, want 1450", p.State().MTU)
	}
	h.Underlay.Local = subnet.Pair[netip.Addr]{}
	if p, err := NewPlan(b, h, nil); err == nil {
		t.Errorf("a plan for a host without an address: %v", p)
	}
}

// largePlan plans a host with n peers in 10.0.0.0/8. Where the hosts live says inside: in the network, behind a gateway.
func largePlan(t testing.TB, n int, inside bool) *Plan {
	cfg := mustConfig(t, `{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}`)
	own := v4Addr("192.0.2.1")
	h := Host{Config: cfg, Self: subnet.Lease{Subnet: subnet.PairOf(subnet.IPv4, netip.MustParsePrefix("10.255.1.0/24")), PublicIP: own},
		Underlay: Underlay{Device: "eth0", MTU: 1500, Local: own, Public: own, OnLink: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}}
	return mustPlan(t, mustBackend(t, cfg), h, largeEntries(n, inside))
}

func largeEntries(n int, inside bool) map[string]subnet.Entry {
	entries := make(map[string]subnet.Entry, n)
	for i := range n {
		e := largePeer(i, inside, 0)
		entries[e.Lease.Key()] = e
	}
	return entries
}

// largePeer is the i-th peer, in one of its versions.
func largePeer(i int, inside bool, version int) subnet.Entry {
	hi, lo, underlay := i>>8, i&255, "172.16"
	if inside {
		underlay = "10.200"
	}
	return entry(int64(1+i), fmt.Sprintf("10.%d.%d.0/24", 1+hi, lo), fmt.Sprintf("%s.%d.%d", underlay, hi, lo), fmt.Sprintf("02:00:00:%02x:%02x:%02x", version, hi, lo))
}

// A join among ten thousand hosts costs one host's work, also while some of them are rivals.
func TestPlanUpdateIsCheap(t *testing.T) {
	rivals := map[string]subnet.Entry{}
	for _, e := range []subnet.Entry{entry(1, "10.254.1.0/24", "172.31.0.1", "02:00:00:ff:ff:ff"), entry(2, "10.254.2.0/24", "172.31.0.2", "02:00:00:ff:ff:ff")} {
		rivals[e.Lease.Key()] = e
	}
	cost := func(peers int) float64 {
		p := largePlan(t, peers, false)
		p.Update(rivals)
		if len(p.Rejected()) != 1 {
			t.Fatal(rejections(p))
		}
		var versions [2]map[string]subnet.Entry
		for v := range versions {
			e := largePeer(7, false, v)
			versions[v] = map[string]subnet.Entry{e.Lease.Key(): e}
		}
		i := 0
		return testing.AllocsPerRun(100, func() {
			i++
			if c := p.Update(versions[i%2]); len(c.FDB.Set) != 1 || len(c.FDB.Del) != 1 || len(c.Neighbours.Set) != 1 || c.Routes.Len() != 0 {
				t.Fatalf("changes %v", c.Count())
			}
		})
	}
	few, many := cost(100), cost(10_000)
	if many > 2*few {
		t.Errorf("%v allocations among 10,000 peers, %v among 100", many, few)
	}
}

func BenchmarkNewPlan(b *testing.B) {
	for _, bench := range []struct {
		name   string
		peers  int
		inside bool
		extra  subnet.Entry
	}{
		{name: "peers=1000", peers: 1000},
		{name: "peers=10000", peers: 10_000},
		{name: "peers=10000,underlay-inside-network", peers: 10_000, inside: true},
		{name: "peers=10000,one-smaller-subnet", peers: 10_000, extra: entry(1, "10.254.1.128/25", "172.31.0.1", "02:00:00:ff:ff:ff")},
	} {
		b.Run(bench.name, func(b *testing.B) {
			p, entries := largePlan(b, 0, false), largeEntries(bench.peers, bench.inside)
			if bench.extra != (subnet.Entry{}) {
				entries[bench.extra.Lease.Key()] = bench.extra
			}
			b.ReportAllocs()
			for b.Loop() {
				mustPlan(b, p.backend, p.host, entries)
			}
		})
	}
}

func BenchmarkUpdate(b *testing.B) {
	for _, bench := range []struct {
		name    string
		inside  bool
		extra   []subnet.Entry
		rejects int
	}{
		{name: "peers=10000"},
		{name: "peers=10000,underlay-inside-network", inside: true},
		{name: "peers=10000,one-smaller-subnet", extra: []subnet.Entry{entry(1, "10.254.1.128/25", "172.31.0.1", "02:00:00:ff:ff:ff")}},
		{name: "peers=10000,two-rivals", rejects: 1, extra: []subnet.Entry{
			entry(1, "10.254.1.0/24", "172.31.0.1", "02:00:00:ff:ff:ff"), entry(2, "10.254.2.0/24", "172.31.0.2", "02:00:00:ff:ff:ff")}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			p := largePlan(b, 10_000, bench.inside)
			for _, e := range bench.extra {
				p.Update(map[string]subnet.Entry{e.Lease.Key(): e})
			}
			if len(p.Rejected()) != bench.rejects {
				b.Fatal(rejections(p))
			}
			var versions [2]map[string]subnet.Entry
			for v := range versions {
				e := largePeer(5000, bench.inside, v)
				versions[v] = map[string]subnet.Entry{e.Lease.Key(): e}
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				p.Update(versions[i%2])
			}
		})
	}
}

// BenchmarkBurst measures four thousand hosts that join ten thousand in one Update, and leave again.
func BenchmarkBurst(b *testing.B) {
	p := largePlan(b, 10_000, false)
	joined, left := map[string]subnet.Entry{}, map[string]subnet.Entry{}
	for i := range 4000 {
		e := largePeer(10_000+i, false, 0)
		joined[e.Lease.Key()], left[e.Lease.Key()] = e, subnet.Entry{}
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, changed := range []map[string]subnet.Entry{joined, left} {
			if n := p.Update(changed).Routes.Len(); n != len(changed) {
				b.Fatalf("%d routes changed", n)
			}
		}
	}
}

// A network that has shrunk leaves no room behind, or an agent would be as large as its network ever was.
func TestPlanShrinks(t *testing.T) {
	size := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	p := largePlan(t, 1000, false)
	before := size()
	p.Update(largeEntries(30_000, false))
	most := size()
	for i := 1000; i < 30_000; i++ {
		e := largePeer(i, false, 0)
		p.Update(map[string]subnet.Entry{e.Lease.Key(): {}})
	}
	after := size()
	if len(p.Entries()) != 1000 || len(p.State().FDB) != 1000 {
		t.Fatalf("%d entries, %d of the FDB", len(p.Entries()), len(p.State().FDB))
	}
	if grown := int64(after) - int64(before); grown > int64(most-before)/10 {
		t.Errorf("1,000 peers took %d KiB, 30,000 %d KiB, and 1,000 again %d KiB", before>>10, most>>10, after>>10)
	}
	runtime.KeepAlive(p)
}
