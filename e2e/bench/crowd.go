package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/tulle-net/tulle/e2e/lab"
	"github.com/tulle-net/tulle/etcd"
	"github.com/tulle-net/tulle/subnet"
)

// counter counts calls to etcd at gRPC's interceptors: unary ones, and streams when they are opened.
type counter struct {
	mu    sync.Mutex
	calls map[string]int // by method, as in Range
}

func (c *counter) count(method string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[path.Base(method)]++
}

func (c *counter) of(method string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[method]
}

func (c *counter) dial() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			c.count(method)
			return invoke(ctx, method, req, reply, cc, o...)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
			c.count(method)
			return stream(ctx, desc, cc, method, o...)
		}),
	}
}

// String lists what was counted, as in LeaseGrant 1, Range 1.
func (c *counter) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var parts []string
	for _, method := range slices.Sorted(maps.Keys(c.calls)) {
		parts = append(parts, fmt.Sprintf("%s %d", method, c.calls[method]))
	}
	return strings.Join(parts, ", ")
}

func (b *bench) storeOptions(prefix string, c *counter) etcd.Options {
	return etcd.Options{Endpoints: []string{b.agent.lab.Endpoint()}, Prefix: prefix, DialOptions: append(c.dial(), dialIn(b.agent.lab.Underlay()))}
}

// request is that of the n-th host of a crowd, for a subnet of a network.
func request(config string, n int) (subnet.Request, error) {
	c, _, err := subnet.ParseConfig([]byte(config))
	l := nth(n)
	return subnet.Request{Range: c.Range, PublicIP: subnet.PairOf(subnet.IPv4, offset("100.64.0.0", 1+n)), Backend: l.Backend, Data: l.Data}, err
}

// held waits until a store has a lease, and returns its subnet.
func held(ctx context.Context, s *etcd.Store) (netip.Prefix, error) {
	var last subnet.Update
	for !last.Own.Held() || last.Own.Err != nil {
		select {
		case <-s.Changed():
			last = s.Take()
		case <-ctx.Done():
			return netip.Prefix{}, fmt.Errorf("waiting for a lease: %w", errors.Join(ctx.Err(), last.Err, last.Own.Err))
		}
	}
	return last.Own.Lease.Subnet.V4, nil
}

// calls counts what one host's join asks of etcd. What a renewal asks is counted by etcd's own tests: it is due hours later.
func (b *bench) calls(ctx context.Context) error {
	totals := map[int]int{}
	sizes := []int{100, b.most()}
	for i, n := range sizes {
		b.say("calls of a join among %s peers", thousands(n))
		if err := b.wipe(ctx); err != nil {
			return err
		}
		if err := b.peers.set(ctx, n); err != nil {
			return err
		}
		c, err := b.joinAlone(ctx)
		if err != nil {
			return err
		}
		for _, calls := range c.calls {
			totals[n] += calls
		}
		bar := always(4) // list, with the config; grant, transaction, watch
		if i > 0 {
			bar = always(float64(totals[sizes[0]]))
		}
		b.add(figure{Name: "join among " + thousands(n) + ", calls to etcd", Value: float64(totals[n]), Bar: bar, Note: c.String()})
	}
	return nil
}

// joinAlone lets one store join, and counts until it has asked for all that it needs.
func (b *bench) joinAlone(ctx context.Context) (*counter, error) {
	c := &counter{calls: map[string]int{}}
	want, err := request(config, 0)
	if err != nil {
		return nil, err
	}
	s := etcd.NewStore(b.storeOptions(prefix, c))
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	s.Want(want)
	running, stop := context.WithCancel(ctx)
	var run sync.WaitGroup
	run.Go(func() { _ = s.Run(running) }) // it returns nil only
	subnet, err := held(ctx, s)
	if err == nil {
		err = lab.Wait(ctx, patience, "the store watches", func() error { // which it begins last
			if c.of("Watch") == 0 {
				return errors.New("it does not")
			}
			return nil
		})
	}
	stop()
	run.Wait()
	return c, errors.Join(err, b.peers.release(ctx, subnet))
}

// crowd lets many hosts join at once a network that is half full.
func (b *bench) crowd(ctx context.Context) error {
	if err := b.agent.kill(); err != nil {
		return err
	}
	n := b.stores
	b.say("%s stores join at once", thousands(n))
	const prefix = "/bench/crowd"
	network := fmt.Sprintf(`{"Network":%q,"SubnetLen":24}`, b.crowdRange)
	taken, err := b.occupy(ctx, prefix+"/subnets/", 2*n)
	if err != nil {
		return err
	}
	c := &counter{calls: map[string]int{}}
	subnets, took, err := b.joinAtOnce(ctx, network, n, b.storeOptions(prefix, c))
	if err != nil {
		return err
	}
	duplicates := 0
	for _, s := range subnets {
		if taken[s] {
			duplicates++
		}
		taken[s] = true
	}
	name := fmt.Sprintf("%s stores join at once, ", thousands(n))
	b.add(figure{Name: name + "all hold a lease after", Unit: "s", Value: took.Seconds(), Note: c.String()})
	b.add(figure{Name: name + "duplicates", Value: float64(duplicates), Bar: always(0)})
	b.add(figure{Name: name + "transactions each", Value: float64(c.of("Txn")) / float64(n), Bar: always(2)})
	return nil
}

// occupy takes n subnets of the crowd's network, every second one.
func (b *bench) occupy(ctx context.Context, prefix string, n int) (map[netip.Prefix]bool, error) {
	first, taken := netip.MustParsePrefix(b.crowdRange).Addr().String(), map[netip.Prefix]bool{}
	var ops []clientv3.Op
	for i := range n {
		l := nth(i)
		l.Subnet.V4 = netip.PrefixFrom(offset(first, (1+2*i)<<8), 24)
		taken[l.Subnet.V4] = true
		ops = append(ops, clientv3.OpPut(prefix+l.Key(), string(l.MarshalValue()), clientv3.WithLease(b.peers.lease)))
	}
	return taken, commit(ctx, b.peers.client, ops)
}

// joinAtOnce runs stores until each has a lease, and returns what they have and how long it took.
func (b *bench) joinAtOnce(ctx context.Context, network string, n int, o etcd.Options) ([]netip.Prefix, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*patience)
	defer cancel()
	running, stop := context.WithCancel(ctx)
	var run sync.WaitGroup
	defer run.Wait()
	defer stop()
	subnets, joining := make([]netip.Prefix, n), new(errgroup.Group)
	started := time.Now()
	for i := range n {
		want, err := request(network, i)
		if err != nil {
			return nil, 0, err
		}
		s := etcd.NewStore(o)
		s.Want(want)
		run.Go(func() { _ = s.Run(running) })
		joining.Go(func() (err error) {
			subnets[i], err = held(ctx, s)
			return err
		})
	}
	err := joining.Wait()
	return subnets, time.Since(started), err
}
