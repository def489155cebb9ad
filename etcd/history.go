package etcd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tulle-net/tulle/subnet"
)

// history is where in etcd's history the records are whole. An etcd that was wiped, or restored from a backup, has another.
type history struct {
	cluster, term uint64
	revision      int64 // 0: nothing was listed yet
}

// errRewritten says that etcd has forgotten what it told us.
var errRewritten = errors.New("etcd was wiped, or restored from an older backup")

// probeEvery is how often etcd is asked whether it still knows what it told, though nothing seems to be wrong: a proxy in
// between may keep our connection while etcd is replaced behind it.
func probeEvery() time.Duration { return 30*time.Second + rand.N(15*time.Second) }

// probe asks etcd for the newest key that we know, as of when we knew it, and for its alarms.
func (s *session) probe(ctx context.Context) error {
	ctx, cancel := call(ctx)
	defer cancel()
	key := s.newest()
	revision := max(s.history.revision, s.records[key].modified) // what we wrote we know before the watch tells
	got, err := s.client.etcd.Get(ctx, s.client.subnetKey(key), clientv3.WithRev(revision))
	compacted := errors.Is(err, rpctypes.ErrCompacted) // as others' writes may have it every few minutes: no reason to list
	if compacted {
		got, err = s.client.etcd.Get(ctx, s.client.subnetKey(key))
	}
	switch {
	case errors.Is(err, rpctypes.ErrFutureRev):
		return errRewritten
	case err != nil:
		return err
	case got.Header.ClusterId != s.history.cluster || got.Header.RaftTerm < s.history.term || got.Header.Revision < revision:
		return errRewritten
	}
	var now record
	if len(got.Kvs) > 0 {
		now = readRecord(key, got.Kvs[0])
	}
	news := compacted && (now.modified == 0 || now.modified > revision) // the watch is about to tell
	if known := s.records[key]; !news && (now.modified != known.modified || now.lease != known.lease) {
		return errRewritten
	}
	s.history.term, s.head = got.Header.RaftTerm, got.Header.Revision
	s.alarm = s.alarms(ctx)
	_ = s.client.files.read() // long before a new connection needs them; tell says what is wrong with them
	s.tell()
	return nil
}

// contradicts reports whether a list can't be what became of what is known: whatever was changed before our records were
// whole must be among them as it is.
func (s *session) contradicts(h *etcdserverpb.ResponseHeader, listed map[string]record) bool {
	if s.history.revision == 0 {
		return false
	}
	for key, r := range listed {
		known := s.records[key]
		if r.modified <= s.history.revision && (r.modified != known.modified || r.lease != known.lease) {
			return true
		}
	}
	return h.ClusterId != s.history.cluster || h.RaftTerm < s.history.term || h.Revision < s.history.revision
}

// newest is the key that was changed last; "" if there is none.
func (s *session) newest() (newest string) {
	for key, r := range s.records {
		if r.modified > s.records[newest].modified {
			newest = key
		}
	}
	return newest
}

// alarms says what is wrong with etcd though it answers.
func (s *session) alarms(ctx context.Context) string {
	status, err := etcdserverpb.NewMaintenanceClient(s.client.etcd.ActiveConnection()).Status(ctx, &etcdserverpb.StatusRequest{})
	if err != nil {
		return "" // not every proxy passes that on
	}
	for _, e := range status.GetErrors() {
		switch {
		case strings.Contains(e, "NOSPACE"):
			return errNoSpace
		case strings.Contains(e, "CORRUPT"):
			return "etcd has raised the alarm CORRUPT: its members disagree, so what it says of leases may be wrong: see etcd's documentation on data corruption"
		}
	}
	return ""
}

const errNoSpace = "etcd has raised the alarm NOSPACE and refuses every write: no host can join or change its lease. Free space (etcdctl compact, etcdctl defrag), then etcdctl alarm disarm"

// tell publishes that etcd is in touch, and what an operator should know, if that is news.
func (s *session) tell() {
	s.alert()
	s.store.mu.Lock()
	told := s.store.pending.Err == nil
	s.store.mu.Unlock()
	if !told {
		s.store.publish(func(u *subnet.Update) { u.Err = nil })
	}
}

// alert publishes what an operator should know, if that is news.
func (s *session) alert() {
	texts := []string{s.past.alert, s.alarm}
	if s.client != nil {
		texts = append(texts, s.client.doubts()...)
	}
	alert := strings.Join(slices.DeleteFunc(texts, func(a string) bool { return a == "" }), "; ")
	s.store.mu.Lock()
	told := s.store.pending.Alert == alert
	s.store.mu.Unlock()
	if !told {
		s.store.publish(func(u *subnet.Update) { u.Alert = alert })
	}
}

// past is what etcd knew before it was rewritten: the peers that have not registered again since. They stay in force until
// they do, or until a grace period is over, and are written back: a host that comes new, or anew, must not take their
// subnets for free.
type past struct {
	peers map[string]record // by key name
	rank  int               // among all hosts: so many write back before we have to
	until time.Time
	timer *time.Timer
	alert string
}

// remember makes the past of all that is known, when etcd has turned out to know it no more.
func (s *session) remember() {
	s.reclaim = s.own.key != "" && (s.own.lease == clientv3.NoLease || time.Since(s.own.renewed) < s.own.ttl)
	s.history, s.stale, s.own.given = history{}, true, ""
	grace := s.store.options.Grace
	if grace == 0 {
		return
	}
	known := maps.Clone(s.past.peers)
	if known == nil {
		known = map[string]record{}
	}
	for key, r := range s.records {
		if r.entry.Err == nil {
			r.entry.Created = 0 // older than whatever the new history has
			known[key] = r
		}
	}
	keys := slices.Sorted(maps.Keys(known))
	rank, _ := slices.BinarySearch(keys, s.own.key)
	delete(known, s.own.key)
	s.past = past{peers: known, rank: rank, until: time.Now().Add(grace),
		alert: fmt.Sprintf("at %s etcd turned out to have been wiped, or restored from an older backup: peers known before are kept until they register again, or until %s",
			time.Now().Format(time.TimeOnly), time.Now().Add(grace).Format(time.TimeOnly))}
}

// keeps reports whether what was known of key stays in force beside r, which is there now: not if it is the same again.
func (p *past) keeps(key string, r record) bool {
	before, ok := p.peers[key]
	if ok && r.entry.Err == nil && subnet.SameHost(r.entry.Lease.PublicIP, before.entry.Lease.PublicIP) {
		delete(p.peers, key)
		return false
	}
	return ok
}

// supersede drops the keys that r's host had in place of this one, with a family less or one more, and returns them.
func (p *past) supersede(key string, r record) (dropped []string) {
	if _, same := p.peers[key]; same || r.entry.Err != nil {
		return nil
	}
	for other, before := range p.peers {
		if l := before.entry.Lease; subnet.SameHost(l.PublicIP, r.entry.Lease.PublicIP) && overlap(l.Subnet, r.entry.Lease.Subnet) {
			delete(p.peers, other)
			dropped = append(dropped, other)
		}
	}
	return dropped
}

// settle drops what a new list has all the same, and makes ready to write the rest back.
func (p *past) settle(listed map[string]record) {
	for key, r := range listed {
		if p.peers[key].entry.Lease == r.entry.Lease {
			delete(p.peers, key)
		}
		p.supersede(key, r)
	}
	if !p.until.IsZero() {
		p.timer = time.NewTimer(min(time.Duration(p.rank)*100*time.Millisecond, 10*time.Second))
	}
}

// due receives when there is something to do about the past.
func (p *past) due() <-chan time.Time {
	if p.timer == nil {
		return nil
	}
	return p.timer.C
}

// tend writes the past's peers back into etcd or, when their time is over, forgets them.
func (s *session) tend(ctx context.Context) {
	left := time.Until(s.past.until)
	if left > 0 {
		if err := s.writeBack(ctx, left); err != nil {
			left = min(left, time.Second+rand.N(5*time.Second))
		}
		s.past.timer.Reset(left)
		return
	}
	forgotten := s.past.peers
	s.past = past{}
	s.store.publish(func(u *subnet.Update) {
		for key := range forgotten {
			u.Leases[key] = s.records[key].entry
		}
	})
	s.tell()
}

// writeBack writes those of the past's peers that nobody has written yet, under an etcd lease that ends with the grace
// period. Their hosts take these keys over as they would their own.
func (s *session) writeBack(ctx context.Context, left time.Duration) error {
	var missing []string
	leased := false
	for key, r := range s.past.peers {
		if _, there := s.records[key]; !there {
			missing = append(missing, key)
			leased = leased || r.lease != clientv3.NoLease
		}
	}
	if len(missing) == 0 {
		return nil
	}
	ctx, cancel := call(ctx)
	defer cancel()
	id := clientv3.LeaseID(clientv3.NoLease)
	if leased {
		granted, err := s.client.etcd.Grant(ctx, int64(left.Seconds())+1)
		if err != nil {
			return err
		}
		id = granted.ID
	}
	for batch := range slices.Chunk(missing, 64) { // etcd's limit is 128 operations, those inside others included
		var puts []clientv3.Op
		for _, key := range batch {
			r, name := s.past.peers[key], s.client.subnetKey(key)
			lease := id
			if r.lease == clientv3.NoLease { // a reservation
				lease = clientv3.NoLease
			}
			puts = append(puts, clientv3.OpTxn(s.client.absent(r.entry.Lease.Subnet),
				[]clientv3.Op{clientv3.OpPut(name, r.text(), clientv3.WithLease(lease))}, nil))
		}
		if _, err := s.client.etcd.Txn(ctx).Then(puts...).Commit(); err != nil {
			return err
		}
	}
	return nil
}
