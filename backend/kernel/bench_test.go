package kernel

import (
	"fmt"
	"testing"

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
