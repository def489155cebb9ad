package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"time"

	"github.com/tulle-net/tulle/agent/flannel"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

const (
	resyncEvery = 30 * time.Second // a look at what rings no bell: files, sysctls; and at everything, if that is cheap
	lookRest    = 5000             // after a look at everything, times as long as it took: so it costs the same for any number of peers
	lookAtLeast = 10 * time.Minute // between two, however long they take
	calmAfter   = 5 * time.Second  // without a pass, it is time to give back memory
	retryMax    = 15 * time.Second
	talkative   = 8 // so many changed peers get a log line each; more get one together
)

// state is what the loop knows.
type state struct {
	entries  map[string]subnet.Entry   // all leases, by key; the plan's own map once there is a plan
	config   subnet.StoredConfig       // the latest that could be used
	stored   subnet.StoredConfig       // as it is now
	own      subnet.Own                // the lease last held; kept when it is lost, and the kernel with it
	lost     error                     // why it is held no more
	etcd     error                     // why etcd is out of reach
	listed   bool                      // etcd has told us all once
	previous subnet.Pair[netip.Prefix] // what the host held in an earlier life
	mark     int64                     // the revision that it left its key at; 0 if that isn't known
	rejected map[string]subnet.Reject  // as last logged
	said     map[string]string         // what was last logged, by topic
	revision int64                     // of etcd
	plan     *backend.Plan             // what is in force
	outdated bool                      // it was made of other entries
	due      time.Time                 // when to look at everything though no bell rang
	failure  error                     // of the last pass
	drift    map[string]int            // entries repaired, by table
	warnings map[string]string         // what an operator should do something about, by topic
	bridged  subnet.Pair[bool]         // the bridge has the lease's address
	changed  recently                  // when leases last did
	excluded []netip.Prefix            // of the network's range, for the underlay's sake
	alone    bool                      // no flanneld runs here
}

func newState() state {
	return state{entries: map[string]subnet.Entry{}, rejected: map[string]subnet.Reject{}, said: map[string]string{}, drift: map[string]int{}, warnings: map[string]string{},
		failure: errors.New("nothing is programmed yet")}
}

// loop owns everything: it wakes, coalesces what follows closely, and looks after the kernel.
func (a *Agent) loop(ctx context.Context) error {
	resync := time.NewTicker(resyncEvery)
	defer resync.Stop()
	retry := time.NewTimer(0)
	retry.Stop()
	tries, rest, calm := 0, time.NewTimer(0), time.NewTimer(calmAfter)
	room := uint64(0) // whatever the start has left
	for {
		var look scope
		retrying := tries == 0
		select {
		case <-ctx.Done():
			return nil
		case <-a.notify.watchdog():
			a.notify.alive()
			continue
		case <-a.store.Changed():
		case <-a.firewall.Doorbell():
			look = atFirewall
		case <-a.kernel.Doorbell():
			look = atEverything
		case <-a.carried:
			look = atEverything
		case <-retry.C:
			look, retrying = atEverything, true
		case <-calm.C:
			releaseMemory(room)
			room = spare
			continue
		case <-resync.C:
			if look = atHost; !time.Now().Before(a.state.due) {
				look = atEverything
			}
		}
		select { // the first of many wakes at once; the others wait until the last pass is as long ago as it took
		case <-ctx.Done():
			return nil
		case <-rest.C:
		}
		started := time.Now()
		if err := a.pass(ctx, look); err != nil && retrying { // else a retry is due, and what else wakes us is no reason to put it off
			retry.Reset(backoff(tries))
			tries++
		} else if err == nil {
			retry.Stop()
			tries = 0
		}
		rest.Reset(min(max(look.rest(), time.Since(started)), time.Second)) // a host that was suspended meanwhile has rested
		calm.Reset(calmAfter)
	}
}

// backoff is how long to wait after so many failures, spread so that hosts that fail together don't retry together.
func backoff(tries int) time.Duration {
	limit := min(250*time.Millisecond<<min(tries, 6), retryMax)
	return limit/2 + rand.N(limit/2)
}

// scope is how much of what is in force a pass compares with the plan.
type scope int

const (
	atChanges  scope = iota // nothing: what changed peers need is known
	atFirewall              // the packet filter, as somebody changed it
	atHost                  // all that no peer has a part in
	atEverything
)

// rest is for how long the next pass waits at least, so that what comes meanwhile is done together. Changes cost the same one by
// one as together, nearly, so that it is short.
func (s scope) rest() time.Duration {
	if s == atChanges {
		return time.Millisecond
	}
	return 10 * time.Millisecond
}

func (s scope) String() string { return [...]string{"changes", "firewall", "host", "everything"}[s] }

// pass takes in what is new and brings what is in force in line with it. A pass that fails makes the next one look at
// everything.
func (a *Agent) pass(ctx context.Context, look scope) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	started := time.Now()
	u := a.store.Take()
	anew := a.learn(u)
	news := a.news(u)
	before := a.state.plan
	drift := !anew && a.state.failure == nil && len(u.Leases) == 0
	if anew || a.state.failure != nil {
		look = atEverything
	}
	a.state.noteChanged(u, started)
	var done outcome
	var err error
	if look >= atHost {
		a.state.take(u)
		done, err = a.reconcile(ctx, look)
	} else {
		done, err = a.change(ctx, u, look)
	}
	a.aim(a.state.plan != before, u.Leases)
	count := done.count()
	a.metrics.changed(count)
	if drift && sameHost(before, a.state.plan) {
		a.sayDrift(done, count)
	}
	took := time.Since(started)
	if look == atEverything {
		a.state.looked(took, count)
	}
	a.record(look, took, err)
	a.sayPeers(u, news)
	return err
}

// outcome is what a pass had to change.
type outcome struct {
	backend.Changes
	chains int // of the packet filter
}

// count is the number of changed entries by table, the unchanged tables left out.
func (o outcome) count() map[string]int {
	count := o.Changes.Count()
	if o.chains > 0 {
		count["firewall"] = o.chains
	}
	return count
}

// noteChanged notes when leases changed, in u: not those that were there at first, of which nobody knows.
func (s *state) noteChanged(u subnet.Update, now time.Time) {
	if s.plan == nil {
		return
	}
	for key, e := range u.Leases {
		if before, known := s.entries[key]; e != (subnet.Entry{}) && (!known || before.Lease != e.Lease) {
			s.changed.note(key, now)
		}
	}
}

// recently is when things last happened, by key: of the last thousand at least, and of two thousand at most.
type recently struct{ now, before map[string]time.Time }

func (r *recently) note(key string, at time.Time) {
	if r.now == nil || len(r.now) >= 1000 {
		r.now, r.before = map[string]time.Time{}, r.now
	}
	r.now[key] = at
}

func (r *recently) of(key string) (at time.Time, known bool) {
	if at, known = r.now[key]; !known {
		at, known = r.before[key]
	}
	return at, known
}

// looked says when the next look at everything is due, after one that took so long: with the tick that is nearest to the end of
// its rest. One that changed something does not tell how long a look takes.
func (s *state) looked(took time.Duration, count map[string]int) {
	s.due = time.Time{}
	if len(count) == 0 {
		s.due = time.Now().Add(min(took*lookRest, lookAtLeast) - resyncEvery/2)
	}
}

// sameHost reports whether two plans were made for the same underlay, and the same key: else what differs from the plan is its own
// doing.
func sameHost(a, b *backend.Plan) bool {
	return a != nil && b != nil && reflect.DeepEqual(a.Host().Underlay, b.Host().Underlay) && a.Host().Facts == b.Host().Facts
}

// change applies what changed peers need, and compares the packet filter if that is asked for.
func (a *Agent) change(ctx context.Context, u subnet.Update, look scope) (done outcome, err error) {
	done.Changes = a.state.update(u.Leases)
	err = a.carry(ctx, done.Changes)
	if look >= atFirewall {
		err = errors.Join(err, a.filter(ctx, &done))
	}
	return done, err
}

// filter compares the packet filter with the plan, and notes what it had to change.
func (a *Agent) filter(ctx context.Context, done *outcome) (err error) {
	if done.chains, err = a.firewall.Apply(ctx, a.state.plan.State().Firewall); err != nil {
		err = &backend.Failure{Count: map[string]int{"firewall": 1}, Err: err}
	}
	a.sayFilter()
	return err
}

// take takes changed leases in: into the plan, too, which follows them also while a new one can't be made.
func (s *state) take(u subnet.Update) {
	if s.plan != nil && !s.outdated && !u.Reset {
		s.update(u.Leases)
	} else {
		s.entries, s.outdated = u.Merge(s.entries), true
	}
}

// update takes changed leases into the plan.
func (s *state) update(changed map[string]subnet.Entry) backend.Changes {
	changes := s.plan.Update(changed)
	s.entries = s.plan.Entries()
	return changes
}

// learn notes what the store says beside the leases, and reports whether everything must be planned anew.
func (a *Agent) learn(u subnet.Update) (all bool) {
	s := &a.state
	s.etcd, s.revision, s.stored = u.Err, u.Revision, checked(u.Config)
	s.listed = s.listed || u.Reset
	a.sayEtcd()
	a.warn("etcd alert", u.Alert)
	a.warn("rival", u.Own.Rival)
	all = u.Reset || s.plan == nil
	if s.stored.Usable() && (s.stored.Revision != s.config.Revision || s.stored.Text != s.config.Text) {
		a.sayChanged(s.config, s.stored)
		s.config, all = s.stored, true
	}
	a.sayConfig()
	if s.lost = u.Own.Err; u.Own.Held() {
		if s.lost = nil; u.Own.Lease != s.own.Lease {
			all = true
		}
		a.sayLease(u.Own)
		a.markHeld(u.Own)
		s.own = u.Own
	} else if s.own.Held() {
		if s.lost == nil {
			s.lost = errors.New("somebody else has it")
		}
		a.say("lease", slog.LevelWarn, "the lease is lost; the network stays as it is", "error", s.lost)
	}
	return all
}

// checked adds to a config what package backend thinks of it.
func checked(c subnet.StoredConfig) subnet.StoredConfig {
	if c.Usable() {
		_, c.Err = backend.New(c.Config)
	}
	return c
}

// reconcile plans everything and puts it in force, as far as it is to look. While something is missing that a plan needs, what
// is in force is kept up as it is.
func (a *Agent) reconcile(ctx context.Context, look scope) (done outcome, err error) {
	before := a.state.plan
	plan, err := a.replan(ctx)
	if err == nil {
		a.state.plan = plan
	}
	if plan = a.state.plan; plan == nil {
		return done, err
	}
	want := plan.State()
	a.notify.progress()
	var applyErr error
	if look == atEverything || plan != before || !a.kernel.Holds(want) {
		done.Changes, applyErr = a.program(ctx, want)
	}
	a.notify.progress()
	for name, value := range done.Sysctls.Set {
		a.log.Info("sysctl set", "name", name, "value", value)
	}
	if err == nil { // else peers would be told of what this host can't do
		a.request(plan.Announce())
	}
	return done, errors.Join(err, applyErr, a.filter(ctx, &done), a.writeEnv(want.MTU), a.checkDocker(plan))
}

// errSaid marks an error of which another log line tells already. It adds nothing to the text.
var errSaid = errors.New("")

// replan makes a plan from what is known, and asks the store for the lease that it needs.
func (a *Agent) replan(ctx context.Context) (*backend.Plan, error) {
	s := &a.state
	switch {
	case !s.listed:
		return nil, fmt.Errorf("waiting for etcd%w", errSaid)
	case s.config.Revision == 0 && s.stored.Err != nil:
		return nil, fmt.Errorf("waiting for a valid network config: %w%w", s.stored.Err, errSaid)
	case s.config.Revision == 0:
		return nil, fmt.Errorf("waiting for a network config in etcd%w", errSaid)
	}
	config := s.config.Config
	b, err := backend.New(config)
	if err != nil {
		return nil, err // it was checked before
	}
	if len(s.config.Unknown) > 0 {
		a.say("unknown keys", slog.LevelWarn, "the network's config has keys that mean nothing here", "keys", strings.Join(s.config.Unknown, ", "))
	}
	underlay, err := a.kernel.Underlay(a.config.Choice)
	if err != nil {
		return nil, err
	}
	a.say("underlay", slog.LevelInfo, "underlay", "device", underlay.Device, "mtu", underlay.MTU, "address", each(underlay.Local), "public-ip", each(underlay.Public))
	s.excluded = underlay.Excluded(config)
	if len(s.excluded) > 0 {
		a.say("excluded", slog.LevelWarn, "the network's range contains the underlay's own: subnets that cover it are never leased nor routed",
			"network", networks(config), "underlay", fmt.Sprint(s.excluded))
	}
	facts, err := a.facts(ctx, b)
	if err != nil {
		return nil, err
	}
	host := backend.Host{Config: config, Self: s.self(underlay), Underlay: underlay, Facts: facts, Options: a.options()}
	if err := s.unleased(config); err != nil {
		if err := a.alone(); err != nil {
			return nil, err
		}
		a.request(host.Announce(b))
		return nil, err
	}
	if s.plan != nil && !s.outdated && reflect.DeepEqual(s.plan.Host(), host) {
		return s.plan, nil
	}
	plan, err := backend.NewPlan(b, host, s.entries)
	if err == nil {
		s.outdated = false
	}
	return plan, err
}

// self is the lease that is held. Before one is, it is what is stored for this host, by an earlier life or by flannel, but for the
// subnets: the first one made, if there are several.
func (s *state) self(u backend.Underlay) (own subnet.Lease) {
	if s.own.Held() {
		return s.own.Lease
	}
	var first int64
	for _, e := range s.entries {
		l := e.Lease
		if e.Err == nil && !l.Idle() && subnet.SameHost(l.PublicIP, u.Public) && (first == 0 || e.Created < first) {
			first, own = e.Created, subnet.Lease{PublicIP: l.PublicIP, Backend: l.Backend, Data: l.Data}
		}
	}
	return own
}

// alone makes sure, before this host's lease is touched, that no flanneld keeps it.
func (a *Agent) alone() error {
	if a.state.own.Held() || a.state.alone {
		return nil
	}
	err := flannel.Runs()
	a.state.alone = err == nil
	return err
}

// unleased says why no lease is held that the config has room for; nil if one is.
func (s *state) unleased(config subnet.Config) error {
	switch {
	case !s.own.Held() && s.lost != nil:
		return fmt.Errorf("waiting for a lease: %w", s.lost)
	case !s.own.Held():
		return fmt.Errorf("waiting for a lease%w", errSaid)
	}
	for f, r := range config.Range.All() {
		switch p := s.own.Lease.Subnet.Of(f); {
		case !p.IsValid():
			return fmt.Errorf("waiting for a subnet of %s beside %s%w", r.Network, s.own.Lease.Key(), errSaid)
		case !r.Contains(p):
			return fmt.Errorf("waiting for a lease in the network's new range %s; %s is outside it", r.Network, p)
		}
	}
	return nil
}

// request asks the store for a lease. It may be asked the same again.
func (a *Agent) request(l subnet.Lease, r subnet.Pair[subnet.Range]) {
	previous, revision := a.state.previous, a.state.mark
	if a.state.own.Held() {
		previous, revision = a.state.own.Lease.Subnet, max(revision, 0)
	}
	a.store.Want(subnet.Request{Range: r, PublicIP: l.PublicIP, Previous: previous, Revision: revision, Exclude: a.state.excluded, Backend: l.Backend, Data: l.Data})
}

// record notes what became of a pass: in the log when it is news, in the metrics, for the status server and for systemd.
func (a *Agent) record(look scope, took time.Duration, err error) {
	s := &a.state
	switch {
	case err == nil && s.failure != nil:
		delete(s.said, "failure")
		a.log.Info("everything is programmed", "peers", s.plan.Peers())
	case err != nil && !errors.Is(err, errSaid):
		a.say("failure", slog.LevelWarn, "not everything is programmed; trying again", "error", err)
	}
	s.failure = err
	a.sayRejected()
	a.metrics.pass(look, took, err)
	a.metrics.state(s)
	ready, reason := s.ready()
	a.metrics.ready(ready)
	a.notify.status(ready, reason)
}

// ready reports whether containers of this host can be reached, and says why or why not.
func (s *state) ready() (bool, string) {
	switch {
	case s.failure != nil:
		return false, s.failure.Error()
	case s.lost != nil:
		return false, "lease lost: " + s.lost.Error()
	case s.own.Rival != "":
		return false, s.own.Rival
	case s.etcd != nil && !s.own.Reserved && time.Since(s.own.Renewed) > s.own.TTL:
		return false, "lease expired while etcd was out of reach, so another host may have the subnet by now: " + s.etcd.Error()
	}
	reason := fmt.Sprintf("%s, %d peers", s.own.Lease.Key(), s.plan.Peers())
	if s.etcd != nil {
		reason += "; etcd out of reach, the network stays as it is: " + s.etcd.Error()
	}
	return true, reason
}
