package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"

	"github.com/tulle-net/tulle/subnet"
)

// Store is an agent's view of the network in etcd: it lists once, follows a watch from there, and folds what it sees into
// one Update that waits until it is taken. It also holds the lease that the agent asks for. Want, Take and Changed are for
// any goroutine.
type Store struct {
	options    Options
	name       string        // of this life of this host, among those who claim a key
	answerWait time.Duration // for a key's holder
	probeWait  func() time.Duration
	changed    chan struct{} // capacity one: something waits to be taken
	wanted     chan struct{} // capacity one: the request is another

	mu      sync.Mutex
	pending subnet.Update
	request *subnet.Request
}

// NewStore returns a Store. It does nothing before Run.
func NewStore(o Options) *Store {
	host, err := os.Hostname()
	if err != nil {
		host = "a host without a name"
	}
	if len(o.Endpoints) > 0 {
		o.files = newFiles(o)
		_ = o.files.read() // who connects is told
	}
	return &Store{options: o, name: fmt.Sprintf("%s (%08x)", host, rand.Uint32()), answerWait: answerWait, probeWait: probeEvery,
		changed: make(chan struct{}, 1), wanted: make(chan struct{}, 1),
		pending: subnet.Update{Leases: map[string]subnet.Entry{}, Err: errors.New("no answer from etcd yet")}}
}

// Changed receives when there is something to take.
func (s *Store) Changed() <-chan struct{} { return s.changed }

// Take returns what has changed since it was last called. It does not wait.
func (s *Store) Take() subnet.Update {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.pending
	s.pending.Leases, s.pending.Reset = map[string]subnet.Entry{}, false
	return taken
}

// Want asks for a lease, or for the one held to be changed to match. It does not wait: the outcome is in a later Update.
func (s *Store) Want(r subnet.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.request != nil && s.request.Equal(r) {
		return
	}
	s.request = &r
	ring(s.wanted)
}

// publish changes the waiting Update.
func (s *Store) publish(change func(u *subnet.Update)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.pending)
	ring(s.changed)
}

// outOfReach publishes why etcd is, unless that is known.
func (s *Store) outOfReach(err error) {
	s.mu.Lock()
	known := s.pending.Err != nil && s.pending.Err.Error() == err.Error()
	s.mu.Unlock()
	if !known {
		s.publish(func(u *subnet.Update) { u.Err = err })
	}
}

func ring(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run follows etcd until ctx ends. Whatever goes wrong is told by Update.Err, and tried again.
func (s *Store) Run(ctx context.Context) error {
	session := session{store: s, records: map[string]record{}}
	for ctx.Err() == nil {
		err := session.run(ctx)
		wait := rand.N(spread(len(session.records)))
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errMoved), errors.Is(err, errClock): // etcd is well
			continue
		case errors.Is(err, rpctypes.ErrCompacted): // what has changed since can't be told any more; etcd is well
			session.stale = true
		case errors.Is(err, errRewritten):
			session.remember()
		default:
			wait = session.retry.next()
			if errors.Is(err, rpctypes.ErrAuthFailed) { // which costs etcd 60 ms of a core each time (bcrypt), and so many hosts have the same password
				wait += rand.N(spread(len(session.records)))
			}
			s.outOfReach(err)
			session.alert()
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// spread is over how long hosts that must all list anew, for the same reason, spread their calls: etcd needs about 2 µs for each
// lease of each list (measured), and so many hosts have as many leases.
func spread(leases int) time.Duration {
	const least, most, each = time.Second, 5 * time.Minute, 20 * time.Millisecond
	return min(max(least, time.Duration(leases)*each), most)
}

// pause grows from a quarter of a second to fifteen, spread so that hosts that fail together don't return together.
type pause struct{ tries int }

func (p *pause) reset() { p.tries = 0 }

func (p *pause) next() time.Duration {
	limit := min(250*time.Millisecond<<min(p.tries, 6), retryMax)
	p.tries++
	return limit/2 + rand.N(limit/2+1)
}

// record is what is stored under one key, as far as the lease holder needs it.
type record struct {
	entry    subnet.Entry
	modified int64 // revision of the last change
	lease    clientv3.LeaseID
	value    string // if that is not how entry.Lease is written, which it nearly always is
}

// subnets are what the key takes, also if its value can't be read. A key that can't be read either takes nothing.
func (r record) subnets(key string) subnet.Pair[netip.Prefix] {
	if l := r.entry.Lease; l.Subnet != (subnet.Pair[netip.Prefix]{}) {
		return l.Subnet
	}
	subnets, _ := subnet.ParseKey(key)
	return subnets
}

// text is what is stored, byte for byte.
func (r record) text() string {
	if r.value == "" && r.entry.Err == nil {
		return string(r.entry.Lease.MarshalValue())
	}
	return r.value
}

// session is what the Store knows of etcd, and the lease that it holds, from one connection to the next. It is one
// goroutine's.
type session struct {
	store     *Store
	client    *Client           // of this connection
	records   map[string]record // by key name
	history   history           // as of which they are whole
	head      int64             // etcd's revision, as of the last probe
	forgotten int               // deleted from records since the map was made
	stale     bool              // they must be listed anew
	past      past
	leaving   leaving
	alarm     string
	retry     pause         // between connections
	patience  time.Duration // for a list, beyond the time of other calls

	own     holding
	asked   bool // over this connection, whether its etcd lease is alive
	lost    bool // it is known that nothing is held
	waits   bool // for somebody to leave
	attempt attempt
	reclaim bool  // what is held is ours, whoever has it in etcd's new history
	claim   claim // of a key that may be ours
	contest contest
	again   pause // between tries to get or keep a lease
}

// run is one connection. It returns when a new one must be made, or all must be listed anew.
func (s *session) run(ctx context.Context) error {
	client, err := Dial(ctx, s.store.options)
	if err != nil {
		return err
	}
	ctx, cut := context.WithCancelCause(ctx)
	var link sync.WaitGroup
	defer link.Wait()
	defer client.Close()
	defer cut(nil)
	s.client, s.asked = client, false
	client.failing = s.refused
	link.Go(func() { s.watchLink(ctx, cut) })
	link.Go(func() { watchClock(ctx, cut) })

	if s.stale || len(s.records) == 0 { // who knows nothing can't tell whether it is still so
		err = s.list(ctx)
	} else {
		err = s.probe(ctx)
	}
	if err == nil {
		s.retry.reset()
		err = s.follow(ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return client.explain(err)
}

// follow folds what the watch tells, and looks after the lease. A host that has none gets one first: where a thousand start
// together, etcd then tells each in one message who else has joined, not all in a thousand.
func (s *session) follow(ctx context.Context) error {
	if s.own.key == "" {
		select {
		case <-ctx.Done():
		case <-s.store.wanted:
		case <-time.After(firstWant):
		}
	}
	again := s.hold(ctx)
	watchCtx, end := context.WithCancel(clientv3.WithRequireLeader(ctx))
	lag := newLag(s.client)
	defer lag.asking.Wait()
	defer end()
	watch := s.client.etcd.Watch(watchCtx, s.client.network(), clientv3.WithPrefix(),
		clientv3.WithRev(s.history.revision+1), clientv3.WithProgressNotify())
	hold, probe := time.NewTimer(again), time.NewTimer(s.store.probeWait())
	if again == 0 {
		hold.Stop()
	}
	defer hold.Stop()
	defer probe.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case r, open := <-watch:
			if !open || r.Err() != nil {
				return watchError(r.Err())
			}
			if s.fold(r.Events, r.Header.Revision) {
				hold.Reset(0)
			}
		case <-s.store.wanted:
			if s.moved() {
				return errMoved
			}
			hold.Reset(0)
		case <-hold.C:
			if wait := s.hold(ctx); wait > 0 {
				hold.Reset(wait)
			}
		case <-probe.C:
			if err := s.probe(ctx); err != nil {
				return err
			}
			lag.measure(watchCtx, s.head)
			probe.Reset(s.store.probeWait())
		case reached := <-lag.reached:
			lag.measured(reached)
		case <-s.past.due():
			s.tend(ctx)
		case <-s.leaving.due():
			s.store.publish(func(u *subnet.Update) { s.leaving.publish(s.records, u) })
		}
	}
}

// firstWant is for how long a request is waited for: who asks has to read the config, which takes a few milliseconds.
const firstWant = 100 * time.Millisecond

// errMoved says that this host's address changed. A connection that was made from the old one may hang, and would for
// seconds: a new one is made at once.
var errMoved = errors.New("the host's address changed")

func (s *session) moved() bool {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	return s.own.key != "" && elsewhere(s.own.granted.PublicIP, s.store.request.PublicIP)
}

// elsewhere reports whether a host has another address now than before. It has not if it only gained or lost a family.
func elsewhere(before, now subnet.Pair[netip.Addr]) bool {
	for f, a := range before.All() {
		if b := now.Of(f); b.IsValid() && a != b {
			return true
		}
	}
	return !subnet.SameHost(before, now)
}

func watchError(err error) error {
	if err == nil {
		return errors.New("etcd ended the watch")
	}
	return err
}

// list reads the config and all leases in one call.
func (s *session) list(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, rpcTimeout+s.patience)
	defer cancel()
	list, err := s.client.etcd.Get(ctx, s.client.network(), clientv3.WithPrefix())
	if err != nil {
		if ctx.Err() != nil && s.client.etcd.ActiveConnection().GetState() == connectivity.Ready {
			s.patience = min(s.patience+rpcTimeout, time.Minute) // it is there, and has many to answer
		}
		return err
	}
	var config subnet.StoredConfig
	records := make(map[string]record, len(list.Kvs))
	for _, kv := range list.Kvs {
		key, isLease := s.client.leaseKey(kv)
		switch {
		case isLease:
			records[key] = readRecord(key, kv)
		case string(kv.Key) == s.client.configKey():
			config = readConfig(kv)
		}
	}
	if s.contradicts(list.Header, records) {
		return errRewritten
	}
	s.records, s.stale = records, false
	s.history = history{list.Header.ClusterId, list.Header.RaftTerm, list.Header.Revision}
	s.past.settle(s.records)
	s.leaving = leaving{}
	leases := make(map[string]subnet.Entry, len(s.records))
	for key, r := range s.records {
		leases[key] = r.entry
	}
	for key, r := range s.past.peers {
		leases[key] = r.entry
	}
	s.store.publish(func(u *subnet.Update) {
		u.Revision, u.Config, u.Leases, u.Reset, u.Err = list.Header.Revision, config, leases, true, nil
	})
	if s.alarm != "" {
		s.alarm = s.alarms(ctx)
	}
	s.tell()
	return nil
}

// fold takes events in, and reports whether they concern the lease that is held or wanted. Without events, etcd tells that
// there were none up to the revision, so that a watch made anew need not begin with what is long compacted.
func (s *session) fold(events []*clientv3.Event, revision int64) (concerned bool) {
	if len(events) > 0 { // the response's own may be of events that come with the next
		revision = events[len(events)-1].Kv.ModRevision
	}
	known := s.history.revision
	s.history.revision = max(known, revision)
	if len(events) == 0 {
		return false
	}
	s.store.publish(func(u *subnet.Update) {
		u.Revision = revision
		for i, e := range events {
			key, isLease := s.client.leaseKey(e.Kv)
			switch {
			case isLease && e.Kv.ModRevision < s.records[key].modified, isLease && key == s.own.given && e.Kv.ModRevision <= s.own.created: // of before our own last write
			case isLease && e.Type == clientv3.EventTypeDelete:
				concerned = concerned || key == s.own.key || s.waits // one that is gone is one that is free
				s.forget(key)
				switch {
				case s.past.keeps(key, record{}):
				case replaced(events[i:]):
					u.Leases[key] = subnet.Entry{}
				default:
					s.leaving.add(key)
				}
			case isLease:
				r, old := readRecord(key, e.Kv), s.records[key]
				concerned = concerned || r.modified != old.modified && (key == s.own.key || key == s.claim.key)
				s.records[key] = r
				for _, key := range s.past.supersede(key, r) {
					u.Leases[key] = s.records[key].entry
				}
				if !s.past.keeps(key, r) && (r.entry.Err != nil || r.entry != old.entry) { // flanneld renews by writing the same again
					u.Leases[key] = r.entry
				}
			case string(e.Kv.Key) != s.client.configKey():
			case e.Type == clientv3.EventTypeDelete:
				u.Config = subnet.StoredConfig{}
			default:
				u.Config = readConfig(e.Kv)
			}
		}
	})
	return concerned || known < s.own.created && s.elder() != ""
}

// replaced reports whether the first of events, a deletion, is of a host that wrote another key in its place.
func replaced(events []*clientv3.Event) bool {
	return len(events) > 1 && events[1].Type == clientv3.EventTypePut && events[1].Kv.ModRevision == events[0].Kv.ModRevision
}

// forget notes that a key is gone. Now and then it makes the table anew, because a map keeps the room of the most it ever held.
func (s *session) forget(key string) {
	delete(s.records, key)
	if s.forgotten++; s.forgotten > len(s.records)/8+1000 {
		s.records, s.forgotten = maps.Collect(maps.All(s.records)), 0
	}
}

func readRecord(key string, kv *mvccpb.KeyValue) record {
	l, err := subnet.ParseLease(key, kv.Value)
	r := record{
		entry:    subnet.Entry{Lease: l, Created: kv.CreateRevision, Reserved: kv.Lease == 0, Err: err},
		modified: kv.ModRevision, lease: clientv3.LeaseID(kv.Lease),
	}
	if err != nil || !bytes.Equal(l.MarshalValue(), kv.Value) {
		r.value = string(kv.Value)
	}
	return r
}

func readConfig(kv *mvccpb.KeyValue) subnet.StoredConfig {
	c, unknown, err := subnet.ParseConfig(kv.Value)
	return subnet.StoredConfig{Revision: kv.ModRevision, Config: c, Unknown: unknown, Err: err, Text: string(kv.Value)}
}

// watchLink cuts the session off when its connection is lost: the watch itself would go on with the next one, and with
// another etcd's history if this one was replaced meanwhile.
func (s *session) watchLink(ctx context.Context, cut context.CancelCauseFunc) {
	if wasLost(ctx, s.client.etcd.ActiveConnection()) {
		cut(fmt.Errorf("no connection to etcd at %s", strings.Join(s.store.options.Endpoints, ", ")))
	}
}

// link is a gRPC connection.
type link interface {
	GetState() connectivity.State
	WaitForStateChange(ctx context.Context, from connectivity.State) bool
}

// wasLost waits until a connection that was made is lost; it returns false if ctx ends before. How it is by then does not matter: on a
// busy machine it may have been made anew before we look.
func wasLost(ctx context.Context, conn link) bool {
	for {
		state := conn.GetState()
		if !conn.WaitForStateChange(ctx, state) {
			return false
		}
		if state == connectivity.Ready {
			return true
		}
	}
}

// refused tells at once why there is no connection: the call that waits for one gives up much later.
func (s *session) refused() {
	s.store.outOfReach(s.client.explain(context.DeadlineExceeded))
}

// errClock says that the clock was set back.
var errClock = errors.New("the clock was set back")

// watchClock cuts the connection when the clock is set back. gRPC tells by the clock for how long a connection has been silent
// (keepalive in its internal/transport/http2_client.go): it would give up one that is well, or not ask again before the clock
// is where it was. It would do so after 5 seconds, so the clock is looked at more often.
func watchClock(ctx context.Context, cut context.CancelCauseFunc) {
	tick := time.NewTicker(3 * time.Second)
	defer tick.Stop()
	for last := time.Now().Round(0); ; { // without the reading of the clock that nobody sets
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now().Round(0)
		if now.Before(last) {
			cut(errClock)
			return
		}
		last = now
	}
}
