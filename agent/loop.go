package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

const (
	resyncEvery = 30 * time.Second // a look at everything, for what rings no bell: the packet filter, sysctls
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
	rejected map[string]subnet.Reject  // as last logged
	said     map[string]string         // what was last logged, by topic
	revision int64                     // of etcd
	plan     *backend.Plan             // what is in force
	failure  error                     // of the last pass
	drift    map[string]int            // entries repaired, by table
	excluded []netip.Prefix            // of the network's range, for the underlay's sake
}

func newState() state {
	return state{entries: map[string]subnet.Entry{}, rejected: map[string]subnet.Reject{}, said: map[string]string{}, drift: map[string]int{},
		failure: errors.New("nothing is programmed yet")}
}

// loop owns everything: it wakes, coalesces what follows closely, and looks after the kernel.
func (a *Agent) loop(ctx context.Context) error {
	resync := time.NewTicker(resyncEvery)
	defer resync.Stop()
	retry := time.NewTimer(0)
	retry.Stop()
	tries, rest := 0, time.NewTimer(0)
	for {
		full := false
		select {
		case <-ctx.Done():
			return nil
		case <-a.notify.watchdog():
			a.notify.alive()
			continue
		case <-a.store.Changed():
		case <-a.kernel.Doorbell():
			full = true
		case <-retry.C:
			full = true
		case <-resync.C:
			full = true
		}
		select { // the first of many wakes at once; the others wait until the last pass is as long ago as it took
		case <-ctx.Done():
			return nil
		case <-rest.C:
		}
		started := time.Now()
		if err := a.pass(ctx, full); err != nil {
			retry.Reset(backoff(tries))
			tries++
		} else {
			retry.Stop()
			tries = 0
		}
		rest.Reset(max(10*time.Millisecond, time.Since(started)))
	}
}

// backoff is how long to wait after so many failures, spread so that hosts that fail together don't retry together.
func backoff(tries int) time.Duration {
	limit := min(250*time.Millisecond<<min(tries, 6), retryMax)
	return limit/2 + rand.N(limit/2)
}

// pass takes in what is new and brings the kernel in line: what changed peers need if that is all, else everything. A pass
// that fails makes the next one a full one.
func (a *Agent) pass(ctx context.Context, full bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	started := time.Now()
	drift := full && a.state.failure == nil
	full = full || a.state.failure != nil
	u := a.store.Take()
	if a.learn(u) {
		full, drift = true, false
	}
	news := a.news(u)
	var err error
	if full {
		a.state.entries = u.Merge(a.state.entries)
		err = a.reconcile(ctx, drift && len(u.Leases) == 0)
	} else {
		changes := a.state.plan.Update(u.Leases)
		err = a.kernel.Change(ctx, changes)
		a.metrics.changed(changes.Count())
	}
	a.record(full, time.Since(started), err)
	a.sayPeers(u, news)
	return err
}

// learn notes what the store says beside the leases, and reports whether everything must be planned anew.
func (a *Agent) learn(u subnet.Update) (all bool) {
	s := &a.state
	s.etcd, s.revision, s.stored = u.Err, u.Revision, u.Config
	s.listed = s.listed || u.Reset
	a.sayEtcd()
	all = u.Reset || s.plan == nil
	if u.Config.Usable() && u.Config.Revision != s.config.Revision {
		s.config, all = u.Config, true
	}
	a.sayConfig()
	if s.lost = u.Own.Err; u.Own.Held() {
		if u.Own.Lease != s.own.Lease {
			a.sayLease(u.Own)
			all = true
		}
		s.own = u.Own
	} else if s.own.Held() && s.lost == nil {
		s.lost = errors.New("the lease is gone")
	}
	return all
}

// reconcile plans everything and puts it in force. While something is missing that a plan needs, what is in force is kept
// up as it is.
func (a *Agent) reconcile(ctx context.Context, drift bool) error {
	plan, err := a.replan()
	if err == nil {
		a.state.plan = plan
	}
	plan = a.state.plan
	if plan == nil {
		return err
	}
	want := plan.State()
	changes, applyErr := a.kernel.Apply(ctx, want)
	for name, value := range changes.Sysctls.Set {
		a.log.Info("sysctl set", "name", name, "value", value)
	}
	count := changes.Count()
	rules, firewallErr := a.firewall.Apply(ctx, want.Firewall)
	if rules > 0 {
		count["firewall"] = rules
	}
	a.metrics.changed(count)
	if drift {
		a.sayDrift(count)
	}
	return errors.Join(err, applyErr, firewallErr, a.writeEnv(want.MTU))
}

// errSaid marks an error of which another log line tells already. It adds nothing to the text.
var errSaid = errors.New("")

// replan makes a plan from what is known, and asks the store for the lease that it needs.
func (a *Agent) replan() (*backend.Plan, error) {
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
	b, unknown, err := backend.New(config)
	if err != nil {
		return nil, fmt.Errorf("waiting for a valid network config: %w", err)
	}
	if len(unknown)+len(s.config.Unknown) > 0 {
		a.say("unknown keys", slog.LevelWarn, "the network's config has keys that mean nothing here", "keys", strings.Join(append(s.config.Unknown, unknown...), ", "))
	}
	underlay, err := a.kernel.Underlay(a.config.Choice)
	if err != nil {
		return nil, err
	}
	a.say("underlay", slog.LevelInfo, "underlay", "device", underlay.Device, "mtu", underlay.MTU, "address", underlay.Local.V4, "public-ip", underlay.Public.V4)
	s.excluded = underlay.Excluded(config)
	if len(s.excluded) > 0 {
		a.say("excluded", slog.LevelWarn, "the network's range contains the underlay's own: subnets that cover it are never leased nor routed",
			"network", config.Range.V4.Network, "underlay", fmt.Sprint(s.excluded))
	}
	a.request(b, config, underlay)
	switch {
	case !s.own.Held() && s.lost != nil:
		return nil, fmt.Errorf("waiting for a lease: %w", s.lost)
	case !s.own.Held():
		return nil, fmt.Errorf("waiting for a lease%w", errSaid)
	}
	for f, r := range config.Range.All() {
		if !r.Contains(s.own.Lease.Subnet.Of(f)) {
			return nil, fmt.Errorf("waiting for a lease in the network's new range %s; %s is outside it", r.Network, s.own.Lease.Subnet.Of(f))
		}
	}
	host := backend.Host{Config: config, Self: s.own.Lease, Underlay: underlay, Options: a.config.Options}
	return backend.NewPlan(b, host, s.entries)
}

// request asks the store for a lease. It may be asked the same again.
func (a *Agent) request(b backend.Backend, config subnet.Config, u backend.Underlay) {
	name, data := b.Announce(u)
	previous := a.state.previous
	if a.state.own.Held() {
		previous = a.state.own.Lease.Subnet
	}
	var public subnet.Pair[netip.Addr] // only the families that the backend can use to reach us
	for f := range data.All() {
		*public.At(f) = u.Public.Of(f)
	}
	a.store.Want(subnet.Request{Range: config.Range, PublicIP: public, Previous: previous, Exclude: a.state.excluded, Backend: name, Data: data})
}

// record notes what became of a pass: in the log when it is news, in the metrics, for the status server and for systemd.
func (a *Agent) record(full bool, took time.Duration, err error) {
	s := &a.state
	switch {
	case err == nil && s.failure != nil:
		delete(s.said, "failure")
		a.log.Info("everything is programmed", "peers", len(s.plan.State().Routes))
	case err != nil && !errors.Is(err, errSaid):
		a.say("failure", slog.LevelWarn, "not everything is programmed; trying again", "error", err)
	}
	s.failure = err
	a.sayRejected()
	a.metrics.pass(full, took, err)
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
	}
	reason := fmt.Sprintf("%s, %d peers", s.own.Lease.Key(), len(s.plan.State().Routes))
	if s.etcd != nil {
		reason += "; etcd out of reach, the network stays as it is: " + s.etcd.Error()
	}
	return true, reason
}

// say logs a line unless it is what was last said about the topic.
func (a *Agent) say(topic string, level slog.Level, message string, args ...any) {
	text := fmt.Sprint(append([]any{message}, args...)...)
	if a.state.said[topic] == text {
		return
	}
	a.state.said[topic] = text
	a.log.Log(context.Background(), level, message, args...)
}

func (a *Agent) sayEtcd() {
	if err := a.state.etcd; err != nil {
		a.say("etcd", slog.LevelWarn, "etcd is out of reach; the network stays as it is", "error", err)
	} else if a.state.said["etcd"] != "" {
		delete(a.state.said, "etcd")
		a.log.Info("etcd is in reach again")
	}
}

func (a *Agent) sayConfig() {
	s := &a.state
	switch {
	case !s.listed:
	case s.stored.Revision == 0 && s.config.Revision == 0:
		a.say("config", slog.LevelWarn, "no network config in etcd: waiting for one", "store-one-with", a.config.SetConfig)
	case s.stored.Revision == 0:
		a.say("config", slog.LevelWarn, "the network's config was deleted from etcd: going on with the one before", "store-it-with", a.config.SetConfig)
	case s.stored.Err != nil:
		a.say("config", slog.LevelError, "the network's config is not valid", "error", s.stored.Err)
	default:
		a.say("config", slog.LevelInfo, "network config", "network", s.config.Config.Range.V4.Network, "subnet-length", s.config.Config.Range.V4.SubnetLen,
			"backend", backendName(s.config.Config))
	}
}

// backendName says which backend a config asks for, and that it is the default if it does not say.
func backendName(c subnet.Config) string {
	if c.Backend.Type == "" {
		return "vxlan (the default: the config names none)"
	}
	return c.Backend.Type
}

func (a *Agent) sayLease(own subnet.Own) {
	if before := a.state.own; before.Held() && before.Lease.Subnet != own.Lease.Subnet {
		a.log.Error("this host has another subnet now: restart Docker, or its containers stay cut off", "subnet", own.Lease.Subnet.V4, "before", before.Lease.Subnet.V4)
		return
	}
	a.log.Info("lease held", "subnet", own.Lease.Subnet.V4, "public-ip", own.Lease.PublicIP.V4, "reserved", own.Reserved)
}

// event is what happened to a peer.
type event struct {
	what string
	key  string
	ip   netip.Addr
}

// news says who comes, goes and changes with u, if they are few. It must be asked before u is merged.
func (a *Agent) news(u subnet.Update) (events []event) {
	if u.Reset || len(u.Leases) > talkative {
		return nil
	}
	for key, e := range u.Leases {
		before, known := a.state.entries[key]
		switch {
		case key == a.state.own.Lease.Key() || before.Lease.PublicIP == a.state.own.Lease.PublicIP || e.Err != nil:
		case e == (subnet.Entry{}) && known:
			events = append(events, event{"peer left", key, before.Lease.PublicIP.V4})
		case known:
			events = append(events, event{"peer changed", key, e.Lease.PublicIP.V4})
		default:
			events = append(events, event{"peer joined", key, e.Lease.PublicIP.V4})
		}
	}
	return events
}

// sayPeers logs what happened to peers, those aside that are left out.
func (a *Agent) sayPeers(u subnet.Update, events []event) {
	switch {
	case u.Reset:
		a.log.Info("leases listed", "count", len(u.Leases), "revision", u.Revision)
	case len(u.Leases) > talkative:
		a.log.Info("leases changed", "count", len(u.Leases), "revision", u.Revision)
	}
	for _, e := range events {
		if _, left := a.state.rejected[e.key]; !left {
			a.log.Info(e.what, "lease", e.key, "public-ip", e.ip)
		}
	}
}

// sayRejected logs each lease that is left out once.
func (a *Agent) sayRejected() {
	s := &a.state
	if s.plan == nil {
		return
	}
	rejected := s.plan.Rejected()
	for key, r := range rejected {
		if s.rejected[key] != r {
			s.rejected[key] = r
			a.log.Warn("lease left out", "lease", key, "reason", r.Reason, "detail", r.Detail)
		}
	}
	if len(s.rejected) > len(rejected) {
		maps.DeleteFunc(s.rejected, func(key string, _ subnet.Reject) bool { _, still := rejected[key]; return !still })
	}
}

func (a *Agent) sayDrift(count map[string]int) {
	for table, n := range count {
		a.state.drift[table] += n
		a.metrics.drifted(table, n)
		a.log.Warn("somebody changed what is ours; restored", "table", table, "entries", n)
	}
}
