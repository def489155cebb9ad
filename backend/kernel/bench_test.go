package kernel

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/subnet"
)

// BenchmarkApply measures an agent's first Apply, into an empty namespace, and one that finds nothing to do.
func BenchmarkApply(b *testing.B) {
	for _, peers := range []int{1000, 4000} {
		for _, mode := range []struct {
			name    string
			options []Option
		}{{"nexthops", nil}, {"plain", []Option{WithoutNexthops}}} {
			b.Run(fmt.Sprintf("first/%s/%d", mode.name, peers), func(b *testing.B) {
				want := state(b, peers)
				for b.Loop() {
					b.StopTimer()
					s := newSandbox(b, mode.options...)
					k, err := Open(s.options...)
					if err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
					s.apply(k, want)
					b.StopTimer()
					k.Close()
					b.StartTimer()
				}
			})
			b.Run(fmt.Sprintf("again/%s/%d", mode.name, peers), func(b *testing.B) {
				s := newSandbox(b, mode.options...)
				k, want := s.open(), state(b, peers)
				s.apply(k, want)
				for b.Loop() {
					s.apply(k, want)
				}
			})
		}
	}
}

// BenchmarkJoin measures what one peer that joins and leaves costs among many.
func BenchmarkJoin(b *testing.B) {
	s := newSandbox(b)
	k, p := s.open(), newPlan(b, vxlanConfig, 4000)
	s.apply(k, p.State())
	e := peer(p.Host().Config, 4000)
	key := e.Lease.Key()
	for b.Loop() {
		for _, entry := range []subnet.Entry{e, {}} {
			if err := k.Change(b.Context(), p.Update(map[string]subnet.Entry{key: entry})); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// With nexthop objects ten times the peers cost about ten times as much, which they don't without (see setRoutes). What counts is
// the time that the processor worked for it, the best of three: others on the machine have no part in that.
func TestRoutesGrowLinearly(t *testing.T) {
	worked := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	cost := func(n network, peers int) time.Duration {
		best := time.Hour
		for range 3 {
			s := newSandbox(t)
			s.setup(underlay6)
			k, want := s.open(), newPlanOn(t, n.local, n.config, peers).State()
			before := worked()
			s.apply(k, want)
			best = min(best, worked()-before)
		}
		return best
	}
	for _, n := range []network{networks()[5], networks()[4]} {
		few, many := cost(n, 800), cost(n, 8000)
		t.Logf("%s: 800 peers: %s, 8,000: %s", n.name, few, many)
		if many > 20*few {
			t.Errorf("%s: 8,000 peers cost %.1f times what 800 do", n.name, float64(many)/float64(few))
		}
	}
}
