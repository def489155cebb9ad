package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

const (
	joinBatch   = 100              // so many joins, then as many leave
	resyncEvery = 30 * time.Second // the agent looks at everything then, whatever happens (agent)
	callers     = 32               // hosts that write to etcd at a time
)

// join measures what it takes until a peer that joins at a quiet time has its route.
func (b *bench) join(ctx context.Context) error {
	latency := b.curve("join", "From a peer's put to its route, at a quiet time", "peers", "ms")
	cpu := b.curve("cpu-per-join", "The agent's CPU time for each join", "peers", "ms")
	for _, n := range slices.Sorted(maps.Keys(b.joins)) {
		if err := b.settle(ctx, n); err != nil {
			return err
		}
		r, err := b.joinMany(ctx, n, b.joins[n])
		if err != nil {
			return err
		}
		latency.point("p50", n, quantile(r.took, 0.5), r.took)
		latency.point("p99", n, quantile(r.took, 0.99), nil)
		cpu.add("tulle agent", n, r.cpu)
		if n == b.most() {
			at := "join among " + thousands(n) + ", "
			b.add(figure{Name: at + "put to route, p50", Unit: "ms", Value: quantile(r.took, 0.5), Bar: b.unlessQuick(2)})
			b.add(figure{Name: at + "put to route, p99", Unit: "ms", Value: quantile(r.took, 0.99), Bar: b.unlessQuick(10)})
			b.add(figure{Name: at + "put to route, longest", Unit: "ms", Value: slices.Max(r.took)})
			b.add(figure{Name: at + "CPU time", Unit: "ms", Value: quantile(r.cpu, 0.5), Samples: r.cpu})
			b.add(figure{Name: at + "full passes beyond one each 30 s", Value: r.excess(), Bar: always(0),
				Note: fmt.Sprintf("%.0f during %s joins in %.0f s", r.passes, thousands(len(r.took)), r.elapsed.Seconds())})
		}
	}
	b.add(figure{Name: "CPU time per join, " + cpu.spanned("tulle agent"), Unit: ": 1", Value: cpu.growth("tulle agent"), Bar: b.unlessQuick(2)})
	return nil
}

// joins is what became of a number of joins.
type joins struct {
	took    []float64     // ms, of each
	cpu     []float64     // ms for each join, by batch: the median leaves out those with a resync, which is no join's fault
	passes  float64       // that compared everything
	elapsed time.Duration // of all
}

func (j joins) excess() float64 { return max(0, j.passes-1-float64(j.elapsed/resyncEvery)) }

func (b *bench) joinMany(ctx context.Context, n, count int) (r joins, err error) {
	const fullPasses = `tulle_passes_total{scope="everything"}`
	before, err := b.agent.metric(ctx, fullPasses)
	if err != nil {
		return r, err
	}
	w, err := watchRoutes(b.agent.host.Namespace)
	if err != nil {
		return r, err
	}
	defer w.close()
	for started := time.Now(); len(r.took) < count; r.elapsed = time.Since(started) {
		b.say("join among %s peers, %s of %s", thousands(n), thousands(len(r.took)), thousands(count))
		if err := b.joinBatch(ctx, w, min(joinBatch, count-len(r.took)), &r); err != nil {
			return r, err
		}
		w.reach(n)
		if err := b.peers.set(ctx, n); err != nil {
			return r, err
		}
		if _, err := w.wait(ctx); err != nil {
			return r, err
		}
	}
	after, err := b.agent.metric(ctx, fullPasses)
	r.passes = after - before
	return r, err
}

// joinBatch lets hosts join one by one, each at a quiet time after the last.
func (b *bench) joinBatch(ctx context.Context, w *routeWatch, count int, r *joins) error {
	before, err := b.agent.cpu()
	if err != nil {
		return err
	}
	for range count {
		if err := idleFor(ctx, 5*time.Millisecond+rand.N(35*time.Millisecond)); err != nil {
			return err
		}
		op := b.peers.join()
		w.reach(len(b.peers.live))
		started := time.Now()
		if _, err := b.peers.client.Do(ctx, op); err != nil {
			return err
		}
		at, err := w.wait(ctx)
		if err != nil {
			return err
		}
		r.took = append(r.took, milliseconds(at.Sub(started)))
	}
	after, err := b.agent.cpu()
	r.cpu = append(r.cpu, milliseconds(after-before)/float64(count))
	return err
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }

// burst measures how long after the last of many puts the last route is there.
func (b *bench) burst(ctx context.Context) error {
	c := b.curve("burst", fmt.Sprintf("From the last put of a burst, onto %s peers, to the last route", thousands(b.burstOnto)), "hosts that join", "s")
	rate := b.curve("burst-rate", "Puts in a burst", "hosts that join", "/s")
	rates := map[int][]float64{}
	err := b.series(ctx, c, "tulle agent", b.bursts, min(b.runs, 3), func(n int) (float64, error) {
		took, perSecond, err := b.burstOnce(ctx, n)
		rates[n] = append(rates[n], perSecond)
		return took, err
	})
	if err != nil {
		return err
	}
	for _, n := range b.bursts {
		rate.add("etcd", n, rates[n])
	}
	last := c.last("tulle agent")
	b.add(figure{Name: fmt.Sprintf("burst of %s joins, last put to last route", thousands(last.N)), Unit: "s", Value: last.Value, Bar: b.unlessQuick(0.3), Samples: last.Samples})
	b.add(figure{Name: fmt.Sprintf("burst of %s joins, puts", thousands(last.N)), Unit: "/s", Value: rate.last("etcd").Value})
	return nil
}

func (b *bench) burstOnce(ctx context.Context, n int) (took, perSecond float64, err error) {
	if err := b.settle(ctx, b.burstOnto); err != nil {
		return 0, 0, err
	}
	w, err := watchRoutes(b.agent.host.Namespace)
	if err != nil {
		return 0, 0, err
	}
	defer w.close()
	w.reach(b.burstOnto + n)
	started := time.Now()
	err = b.many(ctx, n, func() []clientv3.Op { return []clientv3.Op{b.peers.join()} })
	if err != nil {
		return 0, 0, err
	}
	put := time.Now()
	at, err := w.wait(ctx)
	if err != nil {
		return 0, 0, err
	}
	return max(0, at.Sub(put).Seconds()), float64(n) / put.Sub(started).Seconds(), b.agent.check(b.peers.live)
}

// many makes n calls to etcd, several at a time. Each does what next returns: more than one thing in one transaction.
func (b *bench) many(ctx context.Context, n int, next func() []clientv3.Op) error {
	calls, ctx := errgroup.WithContext(ctx)
	var mu sync.Mutex
	left := n
	take := func() []clientv3.Op {
		mu.Lock()
		defer mu.Unlock()
		if left--; left < 0 {
			return nil
		}
		return next()
	}
	for range callers {
		calls.Go(func() error {
			for ops := take(); ops != nil; ops = take() {
				op := ops[0]
				if len(ops) > 1 {
					op = clientv3.OpTxn(nil, ops, nil)
				}
				if _, err := b.peers.client.Do(ctx, op); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return calls.Wait()
}
