package main

import (
	"context"
	"fmt"
)

// start measures how long an agent takes from its start until the last route is there, on a host that has nothing of it.
func (b *bench) start(ctx context.Context) error {
	c := b.curve("start", "From the agent's start to the last route, empty kernel", "peers", "s")
	if err := b.series(ctx, c, "tulle agent", b.sizes, b.runs, func(n int) (float64, error) { return b.startOnce(ctx, n) }); err != nil {
		return err
	}
	if err := b.floor(ctx, c); err != nil {
		return err
	}
	last := c.last("tulle agent")
	b.add(figure{Name: fmt.Sprintf("start, empty kernel, %s peers", thousands(last.N)), Unit: "s", Value: last.Value, Bar: b.unlessQuick(0.8),
		Floor: last.Value / c.last(floor).Value, Samples: last.Samples})
	b.add(figure{Name: "start, " + c.spanned("tulle agent"), Unit: ": 1", Value: c.growth("tulle agent"), Bar: b.unlessQuick(11)})
	return nil
}

func (b *bench) startOnce(ctx context.Context, n int) (float64, error) {
	if err := b.wipe(ctx); err != nil {
		return 0, err
	}
	if err := b.peers.set(ctx, n); err != nil {
		return 0, err
	}
	w, err := watchRoutes(b.agent.host.Namespace)
	if err != nil {
		return 0, err
	}
	defer w.close()
	w.reach(n)
	started, err := b.agent.launch()
	if err != nil {
		return 0, err
	}
	at, err := w.wait(ctx)
	if err != nil {
		return 0, err
	}
	return at.Sub(started).Seconds(), b.settle(ctx, n)
}

// restart measures how long an agent takes from its start until it has found that all is as it should be.
func (b *bench) restart(ctx context.Context) error {
	c, most := b.curve("restart", "From the agent's start to ready, all in the kernel already", "peers", "s"), 0.0
	err := b.series(ctx, c, "tulle agent", b.sizes, b.runs, func(n int) (float64, error) {
		took, changes, err := b.restartOnce(ctx, n)
		most = max(most, changes)
		return took, err
	})
	if err != nil {
		return err
	}
	last := c.last("tulle agent")
	b.add(figure{Name: fmt.Sprintf("restart, %s peers", thousands(last.N)), Unit: "s", Value: last.Value, Bar: b.unlessQuick(0.4), Samples: last.Samples})
	b.add(figure{Name: "restart, changes made, at most", Value: most, Bar: always(0)})
	return nil
}

func (b *bench) restartOnce(ctx context.Context, n int) (took, changes float64, err error) {
	if err := b.settle(ctx, n); err != nil {
		return 0, 0, err
	}
	if err := b.agent.kill(); err != nil {
		return 0, 0, err
	}
	w, err := b.agent.watchLog()
	if err != nil {
		return 0, 0, err
	}
	defer w.close()
	started, err := b.agent.launch()
	if err != nil {
		return 0, 0, err
	}
	at, err := w.wait(ctx, "everything is programmed")
	if err != nil {
		return 0, 0, err
	}
	changes, err = b.agent.metric(ctx, "tulle_changes_total")
	return at.Sub(started).Seconds(), changes, err
}
