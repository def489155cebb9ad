// Package agent is the per-host daemon: one loop that takes what the lease store knows and what the kernel says, plans,
// applies, and records what became of it. It owns the env file, the status server and the metrics. What to program is
// package backend's business; how, that of whoever implements Kernel and Firewall.
package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/agent/probe"
	"github.com/tulle-net/tulle/agent/server"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// Store keeps the network's leases, and this host's among them.
type Store interface {
	Run(ctx context.Context) error
	Changed() <-chan struct{}
	Take() subnet.Update
	Want(r subnet.Request)
	Look(ctx context.Context, key string) (subnet.Look, error) // asks etcd itself, at once; "" for no key
}

// Kernel puts a State in force.
type Kernel interface {
	Listen(ctx context.Context) error
	Doorbell() <-chan struct{}
	Underlay(c backend.Choice) (backend.Underlay, error)
	Addresses(device string) ([]netip.Prefix, error) // none if there is no such device
	Apply(ctx context.Context, want backend.State) (backend.Changes, error)
	Holds(want backend.State) bool // whether all is as wanted that no peer has a part in
	Change(ctx context.Context, c backend.Changes) error
}

// Firewall puts a packet filter policy in force, and returns in how many places it was not.
type Firewall interface {
	Listen(ctx context.Context) error
	Doorbell() <-chan struct{}
	Apply(ctx context.Context, f backend.Firewall) (int, error)
	Chosen() (name, why string) // how it does it
}

// Config is the operator's choices for this host.
type Config struct {
	RunDir      string         // for the env file and the lock
	SubnetFile  string         // path of the env file; relative to RunDir
	StateFile   string         // path of a copy of the env file that survives a reboot; "" for none
	FlannelFile string         // path of flannel's env file, which says what this host held before; "" for none
	DaemonJSON  string         // path of dockerd's own config
	Socket      string         // path of the unix socket for the commands of this host; "" for none
	Listen      server.Options // where else it may be asked, and by whom
	SetConfig   string         // the command that stores the network config on its standard input, for an operator who has to
	Version     string
	Host        string   // this host's name, for people
	Endpoints   []string // of etcd, for people
	Probe       bool     // whether peers answer
	PerPeer     bool     // metrics of each peer by itself
	Choice      backend.Choice
	Options     backend.Options
}

// Agent is one host's daemon.
type Agent struct {
	config   Config
	store    Store
	kernel   Kernel
	firewall Firewall
	carriers []Carrier
	carried  chan struct{} // a carrier's doorbell rang
	log      *slog.Logger
	metrics  *metrics
	registry *prometheus.Registry
	notify   *notifier
	journal  *journal
	prober   *probe.Prober // nil: peers are not to be probed
	deaf     atomic.Bool   // they can't be
	started  time.Time

	mu    sync.Mutex // the status server reads state; the loop holds mu while it works
	state state
}

// New returns an Agent. Its metrics are registered with registry.
func New(c Config, store Store, kernel Kernel, firewall Firewall, carriers []Carrier, registry *prometheus.Registry, log *slog.Logger) *Agent {
	if !filepath.IsAbs(c.SubnetFile) {
		c.SubnetFile = filepath.Join(c.RunDir, c.SubnetFile)
	}
	journal := newJournal()
	a := &Agent{
		config: c, store: store, kernel: kernel, firewall: firewall, carriers: carriers, carried: make(chan struct{}, 1), log: slog.New(recorder{log.Handler(), journal, nil}), registry: registry,
		metrics: newMetrics(registry, c.Version), notify: newNotifier(), journal: journal, started: time.Now().UTC(), state: newState(),
	}
	if c.Probe {
		a.prober = probe.New(probe.Options{Turned: a.turned, Observe: func(p probe.Path, trip time.Duration, answered bool) { a.metrics.probed(p.String(), trip, answered) }})
		a.metrics.peers.probed = func() (reachable, unreachable int) {
			reachable, unreachable, _ = a.prober.Count()
			return reachable, unreachable
		}
	}
	if c.PerPeer {
		registry.MustRegister(newPeerSeries(a.Peers))
	}
	return a
}

// Run takes part in the network until ctx ends. It leaves the kernel as it is then: containers go on talking.
func (a *Agent) Run(ctx context.Context) error {
	unlock, err := Lock(a.config.RunDir)
	switch {
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.ENOSPC): // a host without a network would be worse
		a.log.Warn("the run directory can't be locked: starting all the same", "error", err)
	case err != nil:
		return err
	default:
		defer unlock()
	}
	remote, err := server.Listen(a.config.Listen, a.log)
	if err != nil {
		return err
	}
	local, err := listenLocal(a.config.Socket, a.log)
	if err != nil { // a host without a network would be worse
		a.log.Warn("tulle status and the like can't ask this agent", "error", err)
	}
	a.state.previous = a.previous()
	a.state.mark = a.marked()
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return local.Serve(ctx, a.handlers()) })
	tasks.Go(func() error {
		if a.config.Listen.Pprof {
			return remote.Serve(ctx, profiled(a.handlers()))
		}
		return remote.Serve(ctx, a.handlers())
	})
	tasks.Go(func() error { return a.probePeers(ctx) })
	tasks.Go(func() error { return a.store.Run(ctx) })
	tasks.Go(func() error { return a.kernel.Listen(ctx) })
	tasks.Go(func() error { return a.firewall.Listen(ctx) })
	tasks.Go(func() error { return a.runCarriers(ctx) })
	tasks.Go(func() error { return a.loop(ctx) })
	err = tasks.Wait()
	a.notify.stopping()
	return err
}
