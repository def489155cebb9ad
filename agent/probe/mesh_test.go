package probe

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// The mesh has the 64 lowest addresses, and this host; what was told of those that stay stays.
func TestMeshHosts(t *testing.T) {
	for _, self := range []int{0, 50, 300} {
		p := New(Options{})
		p.SetSelf("self", target(self))
		for i := 400; i > 0; i-- {
			if i != self {
				p.Set(name(i), target(i))
			}
		}
		m := p.Mesh()
		if len(m.Keys) != meshMost || len(m.RTT) != meshMost || len(m.RTT[0]) != meshMost || slices.Index(m.Keys, "self") != min(self, 64)-min(self, 1) {
			t.Fatalf("self %d: %q", self, m.Keys)
		}
		if p.mesh.told != (self < 64) {
			t.Errorf("self %d: among those that others want to know of: %v", self, p.mesh.told)
		}
		now := p.now().at
		p.mesh.hear(target(2).Overlay, []entry{{target(3).Overlay, 23}, {target(5).Overlay, noAnswer}, {target(399).Overlay, 1}}, now)
		p.mesh.hear(target(3).Overlay, []entry{{target(2).Overlay, 32}}, now)
		p.mesh.hear(target(398).Overlay, []entry{{target(2).Overlay, 1}}, now)
		cells := func() (told int) {
			for _, row := range p.Mesh().RTT {
				for _, trip := range row {
					if trip != 0 {
						told++
					}
				}
			}
			return told
		}
		if got := cells(); got != 3 {
			t.Errorf("self %d: %d trips are known", self, got)
		}
		p.Drop(name(3))
		if got := cells(); got != 1 {
			t.Errorf("self %d: without one host, %d trips are known", self, got)
		}
		p.Set(name(3), target(3))
		if got := cells(); got != 1 {
			t.Errorf("self %d: with that host back, %d trips are known", self, got)
		}
		if m := p.Mesh(); m.RTT[slices.Index(m.Keys, name(2))][slices.Index(m.Keys, name(5))] >= 0 {
			t.Errorf("self %d: what is not answered is not negative", self)
		}
		p.base = p.base.Add(-20 * time.Minute) // three rounds of 400 hosts take ten
		if got := cells(); got != 0 {
			t.Errorf("self %d: after twenty minutes, %d trips are known", self, got)
		}
	}
}

// What others are told fits, has the addressee in it, and in time everybody.
func TestMeshTell(t *testing.T) {
	p := New(Options{})
	p.SetSelf("self", target(0))
	for i := range 400 {
		p.Set(name(i+1), target(i+1))
		p.table.peers[name(i+1)].records[Overlay].trip = uint32(i + 1)
	}
	p.chooseMesh()
	seen := map[netip.Addr]uint32{}
	for range 100 {
		p.mesh.measure()
		row := p.mesh.tell(entry{target(333).Overlay, 333})
		if len(row) != 46 || row[0] != (entry{target(333).Overlay, 333}) {
			t.Fatalf("%v", row)
		}
		for _, e := range row[1:] {
			seen[e.to] = e.trip
		}
	}
	if len(seen) != meshMost-1 || seen[target(63).Overlay] != 63 || seen[target(333).Overlay] != 0 {
		t.Errorf("told of %d: %v", len(seen), seen)
	}
	p.SetSelf("self", target(2000))
	p.chooseMesh()
	p.mesh.measure()
	if row := p.mesh.tell(entry{target(333).Overlay, 333}); len(row) != 1 {
		t.Errorf("of a host that nobody wants to know of: %v", row)
	}
}

// Before this host has a name, too, a Mesh has who is there and nobody else.
func TestMeshWithoutSelf(t *testing.T) {
	p := New(Options{})
	for i := range 100 {
		p.Set(name(i), target(i))
	}
	for left := 100; left > 0; left-- {
		m := p.Mesh()
		if len(m.Keys) != min(meshMost, left) {
			t.Fatalf("of %d: %q", left, m.Keys)
		}
		p.Drop(m.Keys[len(m.Keys)-1])
	}
}
