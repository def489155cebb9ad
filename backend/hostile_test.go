package backend

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/tulle-net/tulle/subnet"
)

// many are leases of a /128 each inside the n-th subnet, of hosts and with MACs of their own.
func many(n, count int) map[string]subnet.Entry {
	entries := map[string]subnet.Entry{}
	for i := range count {
		inside, outside := subnetsOf(n).V6.Addr().As16(), netip.MustParseAddr("2001:db8:1::").As16()
		inside[13], inside[14], inside[15] = byte(i>>16), byte(i>>8), byte(i)
		outside[13], outside[14], outside[15] = byte(i>>16), byte(i>>8), byte(i)
		l := subnet.Lease{Backend: "vxlan", Subnet: subnet.PairOf(subnet.IPv6, netip.PrefixFrom(netip.AddrFrom16(inside), 128)),
			PublicIP: subnet.PairOf(subnet.IPv6, netip.AddrFrom16(outside)),
			Data:     subnet.PairOf(subnet.IPv6, dataOf(vxlanData{1, fmt.Sprintf("0a:00:00:%02x:%02x:%02x", byte(i>>16), byte(i>>8), byte(i))}))}
		entries[l.Key()] = subnet.Entry{Lease: l, Created: int64(2 + i)}
	}
	return entries
}

// TestManyHostileLeases writes five thousand leases that compete with one, or crowd into one subnet. What that costs grows with their
// number, and not with its square: each takes microseconds. (The bounds are thirty times what it takes on a slow machine.)
func TestManyHostileLeases(t *testing.T) {
	t.Parallel()
	const count = 5000
	for name, test := range map[string]struct{ subnet, accepted int }{"rivals of one": {2, 1}, "in one subnet": {9, count + 1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := agent{`{"Type":"vxlan"}`, families[1], families[1], Both}
			h, b := a.host(t, 1)
			other, _ := a.host(t, 2)
			sound, _ := other.Announce(b)
			p := mustPlan(t, b, h, map[string]subnet.Entry{sound.Key(): {Lease: sound, Created: 1}})
			started := time.Now()
			p.Update(many(test.subnet, count))
			if took := time.Since(started); p.Peers() != test.accepted || took > 30*time.Second {
				t.Errorf("%d peers after %v, want %d; left out are %v", p.Peers(), took, test.accepted, p.Reasons())
			}
			started = time.Now()
			for i := range 10 { // hosts that mean well come and go
				other, _ := a.host(t, 50+i)
				l, _ := other.Announce(b)
				p.Update(map[string]subnet.Entry{l.Key(): {Lease: l, Created: count + 2 + int64(i)}})
				p.Update(map[string]subnet.Entry{l.Key(): {}})
			}
			if took := time.Since(started) / 20; p.Peers() != test.accepted || took > 3*time.Second {
				t.Errorf("%d peers; a change takes %v", p.Peers(), took)
			}
			t.Logf("a change takes %v", time.Since(started)/20)
		})
	}
}
