package etcd

import (
	"context"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// lag measures how far a connection's watch is behind etcd, see Options.Lag.
type lag struct {
	client  *Client
	tell    func(time.Duration)
	asked   time.Time // when the measurement that is under way began; zero for none
	reached chan bool // capacity one: it is over, and whether it measured something
	asking  sync.WaitGroup
}

func newLag(c *Client) *lag {
	return &lag{client: c, tell: c.options.Lag, reached: make(chan bool, 1)}
}

// measure begins to measure how long the watch needs to reach a revision of etcd's. If it already does so, it tells for how
// long. ctx must be the watch's own.
func (l *lag) measure(ctx context.Context, revision int64) {
	switch {
	case l.tell == nil:
	case l.asked.IsZero():
		l.asked = time.Now()
		l.asking.Go(func() {
			l.reached <- l.await(ctx, revision)
		})
	default:
		l.tell(time.Since(l.asked))
	}
}

// measured ends a measurement.
func (l *lag) measured(reached bool) {
	if reached {
		l.tell(time.Since(l.asked))
	}
	l.asked = time.Time{}
}

// await waits until something has come by the watch's stream from a member of etcd that has reached revision: the word that a
// second watch was opened there. It returns false if the stream ends before,
// or if etcd refuses the watch: the token that the stream was opened with may have expired, which does not keep events from it.
//
// etcd's progress requests are made for this, but let an etcd before 3.4.25 or 3.5.8 claim a revision before it has sent the
// events up to there (etcd issue 15220), and `etcd grpc-proxy` does not pass them on: it logs an error each time, and before
// 3.4.19 it crashes (etcd issues 12311 and 19710).
func (l *lag) await(ctx context.Context, revision int64) bool {
	for again := (pause{}); ; {
		at, open := l.echo(ctx)
		if !open || at >= revision {
			return open
		}
		select { // this member is behind the one that told the revision
		case <-ctx.Done():
			return false
		case <-time.After(again.next()):
		}
	}
}

// echo opens a second watch on the stream, as of now, and closes it. It returns the revision that etcd was at then.
func (l *lag) echo(ctx context.Context) (revision int64, open bool) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	r, open := <-l.client.etcd.Watch(ctx, l.client.network(), clientv3.WithPrefix(), clientv3.WithFilterPut(), clientv3.WithFilterDelete(),
		clientv3.WithCreatedNotify())
	if !open || r.Err() != nil {
		return 0, false
	}
	return r.Header.Revision, true
}
