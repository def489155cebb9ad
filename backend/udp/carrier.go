// Package udp carries packets between hosts as the payload of UDP datagrams, one a datagram, without a header of its own: flannel's
// udp. It owns the TUN device and the sockets that this process stands between, and the table of who is where. Addresses and routes
// are package kernel's business.
//
// It does by hand what golang.zx2c4.com/wireguard's tun and conn packages do: those have no socket with a local address and no device
// with several queues, and they cost too much. On two cores, which both hosts and iperf3 shared, one TCP stream got at best 5.9 Gbit/s
// with tun and conn, 6.2 with tun alone, and gets 9.5; a gigabit took both datapaths together 162 ms of CPU time, 145, and takes 96; a
// datagram of 64 bytes took them 12.6 µs, 10.7, and takes 3.7. (Medians of three runs of 10 s and of 3 s, in turn.)
package udp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"sync"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// queues is how many queues a device has: each keeps two cores busy. More cost more than they bring: on two cores, which both hosts'
// datapaths shared, four TCP streams got 5.0 Gbit/s by one queue and 4.5 by two.
func queues() int { return min(max(1, runtime.GOMAXPROCS(0)/2), 4) }

// Carrier is an agent's. It works in the network namespace of the threads that call it, which must be one.
type Carrier struct {
	log    *slog.Logger
	queues int
	bell   chan struct{}
	table  *table
	count  counters
	tasks  sync.WaitGroup // all that runs

	mu   sync.Mutex // Run ends what others open
	open *running   // nil if none is wanted, or could be opened
	over bool       // Run has ended
}

// running is a datapath that runs.
type running struct {
	name   string // of the device
	local  backend.Tunnel
	cancel context.CancelFunc
	ended  chan struct{} // closed when it has ended, and all of it is closed
}

// New returns a Carrier.
func New(log *slog.Logger) *Carrier {
	return &Carrier{log: log, queues: queues(), bell: make(chan struct{}, 1), table: newTable()}
}

// Doorbell receives when a datapath has broken down: its device was deleted, most likely.
func (c *Carrier) Doorbell() <-chan struct{} { return c.bell }

// Counters returns what was counted up to now.
func (c *Carrier) Counters() Counters { return c.count.now() }

// Prepare has nothing to find out.
func (c *Carrier) Prepare(context.Context, backend.Needs, *backend.Facts) error { return nil }

// tunnel returns the name of the device that want has of this package, and where peers' datagrams arrive; "" if it has none. Without
// an address that is any of IPv4.
func tunnel(want backend.State) (name string, local backend.Tunnel) {
	for name, t := range want.Tunnels {
		if want.Links[name].Kind != backend.KindTUN || t.Key != (backend.Secret{}) { // the latter is WireGuard's
			continue
		}
		if t.Local == (subnet.Pair[netip.Addr]{}) {
			t.Local.V4 = netip.IPv4Unspecified()
		}
		return name, t
	}
	return "", local
}

// Open opens and closes datapaths, so that what is wanted runs.
func (c *Carrier) Open(_ context.Context, want backend.State) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	name, local := tunnel(want)
	if c.open != nil && (c.open.dead() || c.open.name != name || c.open.local != local) {
		c.close()
	}
	if c.over || name == "" || c.open != nil {
		return nil
	}
	d, err := openDatapath(name, local, c.queues, c.table, &c.count)
	if errors.Is(err, errForeign) { // as package kernel is about to tell
		return nil
	}
	if err != nil {
		return fmt.Errorf("open UDP tunnel %s: %w", name, err)
	}
	c.start(d, name, local)
	return nil
}

// start runs a datapath until it is closed or breaks down.
func (c *Carrier) start(d *datapath, name string, local backend.Tunnel) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{name, local, cancel, make(chan struct{})}
	c.open = r
	c.tasks.Go(func() {
		err := d.run(ctx)
		close(r.ended)
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, errGone) {
			c.log.Warn("a UDP tunnel broke down: it is opened anew", "device", name, "error", err)
		}
		c.ring()
	})
}

func (c *Carrier) ring() {
	select {
	case c.bell <- struct{}{}:
	default:
	}
}

func (r *running) dead() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

// close waits until the port is free again.
func (c *Carrier) close() {
	if c.open != nil {
		c.open.cancel()
		<-c.open.ended
	}
	c.open = nil
}

// Apply compares the table with want, and changes what differs.
func (c *Carrier) Apply(ctx context.Context, want backend.State) (changes backend.Changes, err error) {
	name, _ := tunnel(want)
	d := backend.Compare(want.Endpoints)
	for p, to := range c.table.all {
		d.See(backend.EndpointKey{Dev: name, Prefix: p}, to)
	}
	changes.Endpoints = d.Delta
	return changes, c.Change(ctx, changes)
}

// Change changes the table.
func (c *Carrier) Change(_ context.Context, changes backend.Changes) error {
	if changes.Endpoints.Len() > 0 {
		c.table.change(changes.Endpoints)
	}
	return nil
}

// Run waits until ctx ends, and then ends what runs. The device stays, with its routes.
func (c *Carrier) Run(ctx context.Context) error {
	<-ctx.Done()
	c.mu.Lock()
	c.over = true
	c.close()
	c.mu.Unlock()
	c.tasks.Wait()
	return nil
}
