package agent

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tulle-net/tulle/backend"
)

// Carrier puts in force what of a State isn't the kernel's tables: devices that a process stands behind, WireGuard's peers, an
// operator's commands. Each looks at its own part of a State, and closes down what another State had of it.
type Carrier interface {
	// Prepare fills in those facts that are its own to know, if the backend needs them.
	Prepare(ctx context.Context, needs backend.Needs, facts *backend.Facts) error
	// Open opens and closes the devices that a process stands behind. Kernel.Apply, which comes next, gives them their addresses.
	Open(ctx context.Context, want backend.State) error
	// Apply compares all that is its own with want, and changes what differs. It comes after Kernel.Apply.
	Apply(ctx context.Context, want backend.State) (backend.Changes, error)
	// Change makes those changes that are its own to make, without a look at what is there.
	Change(ctx context.Context, c backend.Changes) error
	// Doorbell receives when something that the others would see may have changed.
	Doorbell() <-chan struct{}
	// Run ends with ctx, and with it all that can't outlive this process.
	Run(ctx context.Context) error
}

// shaker is a Carrier whose hosts shake hands before they hear each other.
type shaker interface {
	// Handshakes are the last with each peer, the zero time where there was none.
	Handshakes() (map[backend.PeerKey]time.Time, error)
}

// handshakes are those with peers that the plan has, by lease key: the last, of a host that is a peer of several devices. One that is
// not known is not there; nil if there is no such thing.
func (a *Agent) handshakes() map[string]time.Time {
	plan := a.state.plan
	if plan == nil || len(plan.State().Peers) == 0 {
		return nil
	}
	at, byLease := a.handshakesByPrefix(plan.State().Peers), map[string]time.Time{}
	for key, e := range plan.Entries() {
		for _, prefix := range e.Lease.Subnet.All() {
			if t, known := at[prefix]; known && plan.IsPeer(key, e) && !t.Before(byLease[key]) {
				byLease[key] = t
			}
		}
	}
	return byLease
}

// handshakesByPrefix are the last handshakes with peers by the inner addresses that these have.
func (a *Agent) handshakesByPrefix(peers map[backend.PeerKey]backend.Peer) map[netip.Prefix]time.Time {
	at := map[netip.Prefix]time.Time{}
	for _, c := range a.carriers {
		s, ok := c.(shaker)
		if !ok {
			continue
		}
		last, err := s.Handshakes()
		if err != nil { // as the next pass will tell
			continue
		}
		for k, p := range peers {
			for _, prefix := range p.Allowed.All() {
				if t, known := last[k]; known {
					at[prefix] = t
				}
			}
		}
	}
	return at
}

// runCarriers runs the carriers until ctx ends.
func (a *Agent) runCarriers(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	for _, c := range a.carriers {
		tasks.Go(func() error { return c.Run(ctx) })
		tasks.Go(func() error { return a.relay(ctx, c.Doorbell()) })
	}
	return tasks.Wait()
}

// relay rings the loop's bell for a carrier's.
func (a *Agent) relay(ctx context.Context, bell <-chan struct{}) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-bell:
		}
		select {
		case a.carried <- struct{}{}:
		default:
		}
	}
}

// facts are what b needs to know of this host.
func (a *Agent) facts(ctx context.Context, b backend.Backend) (f backend.Facts, err error) {
	needs := b.Needs()
	if needs == (backend.Needs{}) {
		return f, nil
	}
	var errs []error
	for _, c := range a.carriers {
		errs = append(errs, c.Prepare(ctx, needs, &f))
	}
	err = errors.Join(errs...)
	if err == nil && needs.WireGuard {
		a.sayWireGuard(f)
	}
	return f, err
}

// program puts want in force: devices first, then what hangs on them.
func (a *Agent) program(ctx context.Context, want backend.State) (done backend.Changes, err error) {
	var errs []error
	for _, c := range a.carriers {
		errs = append(errs, c.Open(ctx, want))
	}
	done, err = a.kernel.Apply(ctx, want)
	errs = append(errs, err)
	for _, c := range a.carriers {
		changes, err := c.Apply(ctx, want)
		done = done.Join(changes)
		errs = append(errs, err)
	}
	return done, errors.Join(errs...)
}

// carry makes changes, the carriers' first: a route leads to what is there.
func (a *Agent) carry(ctx context.Context, changes backend.Changes) error {
	var errs []error
	for _, c := range a.carriers {
		errs = append(errs, c.Change(ctx, changes))
	}
	return errors.Join(append(errs, a.kernel.Change(ctx, changes))...)
}
