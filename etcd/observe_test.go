package etcd

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// observed counts calls by operation, those that failed with an "!" behind it.
type observed struct {
	mu    sync.Mutex
	calls map[string]int
	told  chan struct{}
}

func newObserved() *observed { return &observed{calls: map[string]int{}, told: make(chan struct{}, 1)} }

func (o *observed) observe(operation string, took time.Duration, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil {
		operation += "!"
	}
	if took < 0 || took > patience {
		operation += fmt.Sprintf(" took %s", took)
	}
	o.calls[operation]++
	ring(o.told)
}

func (o *observed) count(operation string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.calls[operation]
}

// until waits until each of the operations was told of.
func (o *observed) until(t *testing.T, operations ...string) {
	t.Helper()
	deadline := time.After(patience)
	for _, operation := range operations {
		for o.count(operation) == 0 {
			select {
			case <-o.told:
			case <-deadline:
				t.Fatalf("no %s among %v", operation, o.calls)
			}
		}
	}
}

func TestObserve(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.config(wide)
	o := newObserved()
	n.options.Observe = o.observe
	h := prepare(t, n.options)
	h.probeWait = func() time.Duration { return 50 * time.Millisecond }
	h.run()
	h.listed()
	h.Want(want("192.0.2.1", wide))
	h.held()
	o.until(t, "range", "lease-grant", "txn", "watch", "status")
	c, err := Dial(t.Context(), n.options)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Release(t.Context(), "10.5.9.0/24"); err == nil {
		t.Error("what nobody has was released")
	}
	if _, err := c.etcd.KeepAliveOnce(t.Context(), n.grant()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.etcd.Get(t.Context(), "/", clientv3.WithRev(1<<40)); err == nil {
		t.Error("read as of a revision that is yet to come")
	}
	o.until(t, "lease-keepalive")
	h.stop()
	o.mu.Lock()
	defer o.mu.Unlock()
	for operation := range o.calls {
		switch operation {
		case "range", "lease-grant", "txn", "watch", "status", "lease-keepalive", "lease-ttl":
		default:
			t.Errorf("%q was told of", operation)
		}
	}
}

func TestObserveFailures(t *testing.T) {
	t.Parallel()
	o := newObserved()
	start(t, Options{Endpoints: []string{freeURL()}, Prefix: "/n", Observe: o.observe})
	o.until(t, "range!")
	for err, failed := range map[error]bool{
		nil: false, rpctypes.ErrGRPCCompacted: false, rpctypes.ErrGRPCFutureRev: false, rpctypes.ErrGRPCLeaseNotFound: false, rpctypes.ErrGRPCNoSpace: true,
		status.Error(codes.Unavailable, "down"): true, context.DeadlineExceeded: true,
	} {
		if got := fault(err); (got != nil) != failed {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// TestOperation names each of etcd's methods that this package calls, and docs/metrics.md names no other operations.
func TestOperation(t *testing.T) {
	methods := map[string]string{
		"/etcdserverpb.KV/Range": "range", "/etcdserverpb.KV/Put": "put", "/etcdserverpb.KV/DeleteRange": "delete", "/etcdserverpb.KV/Txn": "txn",
		"/etcdserverpb.Lease/LeaseGrant": "lease-grant", "/etcdserverpb.Lease/LeaseKeepAlive": "lease-keepalive", "/etcdserverpb.Lease/LeaseRevoke": "lease-revoke",
		"/etcdserverpb.Lease/LeaseTimeToLive": "lease-ttl", "/etcdserverpb.Watch/Watch": "watch", "/etcdserverpb.Maintenance/Status": "status",
		"/etcdserverpb.Auth/Authenticate": "authenticate", "/etcdserverpb.KV/Compact": "other", "/grpc.health.v1.Health/Watch": "other", "": "other",
	}
	for method, want := range methods {
		if got := operation(method); got != want {
			t.Errorf("%s is %q, want %q", method, got, want)
		}
	}
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	_, row, _ := strings.Cut(string(text), "`operation`: ")
	list, _, _ := strings.Cut(row, " |")
	documented := strings.Split(strings.ReplaceAll(list, "`", ""), ", ")
	slices.Sort(documented)
	if want := slices.Compact(slices.Sorted(maps.Values(methods))); !slices.Equal(documented, want) {
		t.Errorf("docs/metrics.md has the operations %v, want %v", documented, want)
	}
}
