package agent

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// fakeStore holds what the test publishes until it is taken, as a Store does.
type fakeStore struct {
	changed chan struct{}
	mu      sync.Mutex
	pending subnet.Update
	wants   []subnet.Request
}

func (s *fakeStore) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (s *fakeStore) Changed() <-chan struct{} { return s.changed }

func (s *fakeStore) Want(r subnet.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wants = append(s.wants, r)
}

func (s *fakeStore) Take() subnet.Update {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.pending
	s.pending.Leases, s.pending.Reset = map[string]subnet.Entry{}, false
	return u
}

func (s *fakeStore) publish(change func(u *subnet.Update)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.pending)
	ring(s.changed)
}

func (s *fakeStore) Look(context.Context, string) (subnet.Look, error) {
	return subnet.Look{Members: []subnet.Member{{URL: "http://192.0.2.1:2379", Version: "3.7.3", Took: time.Millisecond, Clock: 3 * time.Second}}, Revision: 9}, nil
}

func (s *fakeStore) asked() []subnet.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wants[:len(s.wants):len(s.wants)]
}

func (s *fakeStore) lastWant() subnet.Request { return s.asked()[len(s.asked())-1] }

func ring(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// fakeKernel records what it is told.
type fakeKernel struct {
	doorbell chan struct{}
	underlay backend.Underlay
	mu       sync.Mutex
	applied  []string // States
	addrs    map[backend.Addr]struct{}
	bridge   string // that somebody else gave its addresses; "" for none
	changed  []backend.Changes
	find     backend.Changes // what the next Apply finds to do
	err      error           // of Apply and Change
	delay    time.Duration   // of Apply
}

func (k *fakeKernel) Listen(ctx context.Context) error { <-ctx.Done(); return nil }

func (k *fakeKernel) Doorbell() <-chan struct{} { return k.doorbell }

func (k *fakeKernel) Underlay(backend.Choice) (backend.Underlay, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.underlay, nil
}

func (k *fakeKernel) setMTU(mtu int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.underlay.MTU = mtu
}

// Addresses are those that the plan last applied has, but for a bridge of somebody else's.
func (k *fakeKernel) Addresses(device string) (addrs []netip.Prefix, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for a := range k.addrs {
		if a.Dev == device && device != k.bridge {
			addrs = append(addrs, a.Prefix)
		}
	}
	return addrs, nil
}

func (k *fakeKernel) Apply(_ context.Context, want backend.State) (backend.Changes, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	time.Sleep(k.delay)
	k.applied, k.addrs = append(k.applied, want.String()), want.Addrs
	found := k.find
	k.find = backend.Changes{}
	return found, k.err
}

// Holds is false while Apply would find something to do, or fail.
func (k *fakeKernel) Holds(backend.State) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.find.Count()) == 0 && k.err == nil
}

func (k *fakeKernel) Change(_ context.Context, c backend.Changes) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changed = append(k.changed, c)
	return k.err
}

// takes makes every Apply take so long, and the firewall's too.
func (k *fakeKernel) takes(d time.Duration, f *fakeFirewall) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	k.delay, f.delay = d, d
}

func (k *fakeKernel) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.err = err
}

func (k *fakeKernel) finds(c backend.Changes) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.find = c
}

// told is what Apply and Change were called with.
func (k *fakeKernel) told() (applied []string, changed []backend.Changes) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.applied[:len(k.applied):len(k.applied)], k.changed[:len(k.changed):len(k.changed)]
}

func (k *fakeKernel) applies() int {
	applied, _ := k.told()
	return len(applied)
}

func (k *fakeKernel) changes() int {
	_, changed := k.told()
	return len(changed)
}

// state is what was last applied.
func (k *fakeKernel) state() string {
	applied, _ := k.told()
	return applied[len(applied)-1]
}

// fakeFirewall counts how often it is told.
type fakeFirewall struct {
	doorbell chan struct{}
	mu       sync.Mutex
	applied  int
	find     int // what the next Apply finds to do
	err      error
	delay    time.Duration
}

func (f *fakeFirewall) Listen(ctx context.Context) error { <-ctx.Done(); return nil }

func (f *fakeFirewall) Doorbell() <-chan struct{} { return f.doorbell }

func (f *fakeFirewall) Apply(context.Context, backend.Firewall) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	time.Sleep(f.delay)
	f.applied++
	found := f.find
	f.find = 0
	return found, f.err
}

func (f *fakeFirewall) Chosen() (name, why string) { return "iptables", "it is a fake" }

func (f *fakeFirewall) applies() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied
}

func (f *fakeFirewall) finds(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.find = n
}
