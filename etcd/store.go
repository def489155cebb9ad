package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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
	options Options
	changed chan struct{} // capacity one: something waits to be taken
	wanted  chan struct{} // capacity one: the request is another

	mu      sync.Mutex
	pending subnet.Update
	request *subnet.Request
}

// NewStore returns a Store. It does nothing before Run.
func NewStore(o Options) *Store {
	return &Store{options: o, changed: make(chan struct{}, 1), wanted: make(chan struct{}, 1),
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

func ring(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run follows etcd until ctx ends. Whatever goes wrong is told by Update.Err, and tried again.
func (s *Store) Run(ctx context.Context) error {
	retry, own := pause{}, holding{}
	for ctx.Err() == nil {
		session := session{store: s, records: map[string]record{}, synced: retry.reset, own: own}
		err := session.run(ctx)
		own = session.own // a new connection is no reason for another subnet
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, rpctypes.ErrCompacted): // the list is out of date, etcd is well
			continue
		}
		s.publish(func(u *subnet.Update) { u.Err = err })
		select {
		case <-ctx.Done():
		case <-time.After(retry.next()):
		}
	}
	return nil
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
	value    string
}

// session is one list and the watch from there on, with the lease held meanwhile. It is one goroutine's.
type session struct {
	store   *Store
	client  *Client
	records map[string]record // by key name
	synced  func()            // the list has arrived

	own       holding
	lost      bool                                    // it is known that nothing is held
	keepAlive <-chan *clientv3.LeaseKeepAliveResponse // nil while nothing is to be renewed
	stop      context.CancelFunc                      // ends keepAlive
	retry     pause
}

func (s *session) run(ctx context.Context) error {
	client, err := Dial(ctx, s.store.options)
	if err != nil {
		return err
	}
	defer client.Close()
	s.client, s.stop = client, func() {}
	defer func() { s.stop() }()

	revision, err := s.list(ctx)
	if err != nil {
		return client.explain(err)
	}
	s.synced()
	watchCtx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	watch := client.etcd.Watch(watchCtx, client.prefix+"/", clientv3.WithPrefix(), clientv3.WithRev(revision+1))
	link := s.watchLink(watchCtx)

	again := time.NewTimer(0) // fires when the lease is to be looked after
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case r, open := <-watch:
			if !open || r.Err() != nil {
				return watchError(r.Err())
			}
			if s.fold(r.Events, r.Header.Revision) {
				again.Reset(0)
			}
		case r, open := <-s.keepAlive:
			if s.renewed(r, open); !open {
				again.Reset(0)
			}
		case <-s.store.wanted:
			again.Reset(0)
		case <-again.C:
			if err := s.hold(ctx); err != nil {
				again.Reset(s.retry.next())
			}
		case err := <-link:
			s.store.publish(func(u *subnet.Update) { u.Err = err })
		}
	}
}

func watchError(err error) error {
	if err == nil {
		return errors.New("etcd ended the watch")
	}
	return err
}

// list reads the config and all leases in one call and returns their revision.
func (s *session) list(ctx context.Context) (int64, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	list, err := s.client.etcd.Get(ctx, s.client.prefix+"/", clientv3.WithPrefix())
	if err != nil {
		return 0, err
	}
	var config subnet.StoredConfig
	leases := map[string]subnet.Entry{}
	for _, kv := range list.Kvs {
		key, isLease := strings.CutPrefix(string(kv.Key), s.client.subnetsPrefix())
		switch {
		case isLease:
			s.records[key] = readRecord(key, kv)
			leases[key] = s.records[key].entry
		case string(kv.Key) == s.client.configKey():
			config = readConfig(kv)
		}
	}
	s.store.publish(func(u *subnet.Update) {
		u.Revision, u.Config, u.Leases, u.Reset, u.Err = list.Header.Revision, config, leases, true, nil
	})
	return list.Header.Revision, nil
}

// fold takes events in, and reports whether they concern the lease that is held or wanted.
func (s *session) fold(events []*clientv3.Event, revision int64) (concerned bool) {
	s.store.publish(func(u *subnet.Update) {
		u.Revision, u.Err = revision, nil
		for _, e := range events {
			key, isLease := strings.CutPrefix(string(e.Kv.Key), s.client.subnetsPrefix())
			switch {
			case isLease && e.Kv.ModRevision < s.records[key].modified: // of before our own last write
			case isLease && e.Type == clientv3.EventTypeDelete:
				concerned = concerned || key == s.own.key || s.own.key == "" // one that is gone is one that is free
				delete(s.records, key)
				u.Leases[key] = subnet.Entry{}
			case isLease:
				r, old := readRecord(key, e.Kv), s.records[key]
				concerned = concerned || key == s.own.key && r.modified != s.own.modified
				s.records[key] = r
				if r.entry.Err != nil || r.entry != old.entry { // flanneld renews by writing the same again
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
	return concerned
}

func readRecord(key string, kv *mvccpb.KeyValue) record {
	l, err := subnet.ParseLease(key, kv.Value)
	return record{
		entry:    subnet.Entry{Lease: l, Created: kv.CreateRevision, Reserved: kv.Lease == 0, Err: err},
		modified: kv.ModRevision, lease: clientv3.LeaseID(kv.Lease), value: string(kv.Value),
	}
}

func readConfig(kv *mvccpb.KeyValue) subnet.StoredConfig {
	c, unknown, err := subnet.ParseConfig(kv.Value)
	return subnet.StoredConfig{Revision: kv.ModRevision, Config: c, Unknown: unknown, Err: err}
}

// watchLink tells of the connection's loss, and with a nil of its return: the watch itself only waits, and renewals are
// hours apart.
func (s *session) watchLink(ctx context.Context) <-chan error {
	c := make(chan error)
	conn := s.client.etcd.ActiveConnection()
	go func() {
		for state, told := conn.GetState(), true; ; state = conn.GetState() {
			var err error
			up := state == connectivity.Ready || state == connectivity.Idle
			if !up {
				err = fmt.Errorf("no connection to etcd at %s", strings.Join(s.store.options.Endpoints, ", "))
			}
			if up != told && state != connectivity.Connecting {
				select {
				case c <- err:
					told = up
				case <-ctx.Done():
					return
				}
			}
			if !conn.WaitForStateChange(ctx, state) {
				return
			}
		}
	}()
	return c
}
