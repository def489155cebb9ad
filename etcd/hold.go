package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tulle-net/tulle/subnet"
)

// holding is the key that this host holds.
type holding struct {
	key      string // "" while none is held
	created  int64  // revision
	modified int64  // revision of what we last wrote there, or found as we would have written it
	granted  subnet.Lease
	given    string // the key that was given up for it when it was made; "" for none
	yielded  string // why that was: an older lease overlapped it; "" for another reason
	term
}

// term is an etcd lease and how far it reaches. The zero term is a reservation's: no lease, and no end.
type term struct {
	lease   clientv3.LeaseID
	ttl     time.Duration // from when it was renewed
	renewed time.Time
	due     time.Time // when to renew it again
}

// newTerm is that of a lease that was granted or renewed just now. It is renewed when about a third is over, as etcd's own
// client does it, but not at one instant by hosts that were started at one.
func newTerm(id clientv3.LeaseID, seconds int64) term {
	ttl, now := time.Duration(seconds)*time.Second, time.Now()
	return term{id, ttl, now, now.Add(ttl/4 + rand.N(ttl/12+1))}
}

// errChanged says that a key is no longer as we know it. The watch is about to tell how it is.
var errChanged = errors.New("somebody else changed it meanwhile")

// hold makes what is held match what is wanted, in as few calls as that takes: none if it does already. It returns when to
// look again; 0 for not before something happens.
func (s *session) hold(ctx context.Context) time.Duration {
	s.store.mu.Lock()
	want := s.store.request
	s.store.mu.Unlock()
	if want == nil {
		return 0
	}
	err, contested := s.acquire(ctx, *want), contestError("")
	s.waits = errors.Is(err, errFull) || errors.As(err, &contested)
	wait := max(0, time.Until(s.contest.until))
	switch {
	case err == nil:
		s.again.reset()
		if due := time.Until(s.own.due); s.own.lease != clientv3.NoLease && (wait == 0 || due < wait) {
			wait = max(due, time.Millisecond)
		}
	case ctx.Err() != nil: // the connection is lost, and all else with it
		return 0
	case errors.Is(err, errAsking):
		err, wait = nil, time.Until(s.claim.until)+time.Millisecond
	case errors.Is(err, errChanged):
		err, wait = nil, s.again.next()
	case !errors.As(err, &contested):
		err, wait = s.client.explain(err), s.again.next()
	}
	s.store.publish(func(u *subnet.Update) { s.tellOwn(&u.Own, err) })
	return wait
}

// tellOwn puts into o what is held.
func (s *session) tellOwn(o *subnet.Own, err error) {
	o.Rival = ""
	if time.Now().Before(s.contest.until) && s.own.key != "" {
		o.Rival = string(s.contest.text)
		if contested := contestError(""); errors.As(err, &contested) {
			err = nil
		}
	}
	if o.Err = err; err != nil && !s.lost {
		return // what is held stays held as long as nobody says otherwise
	}
	o.Lease, o.Revision, o.Renewed, o.TTL, o.Yielded = s.own.granted, s.own.modified, s.own.renewed, s.own.ttl, s.own.yielded
	o.Reserved = s.own.key != "" && s.own.lease == clientv3.NoLease
}

// standing is what became of the key that we hold.
type standing int

const (
	ours     standing = iota // whoever may have changed it
	gone                     // deleted, expired, or by now another host's in due form
	asked                    // as ours, but somebody asks whether we live
	disputed                 // with our address, but another's etcd lease
	taken                    // another host's, written over ours
)

func (s *session) standing(want subnet.Request) standing {
	r, exists := s.records[s.own.key]
	at := r.entry.Lease.PublicIP
	here := subnet.SameHost(at, want.PublicIP) || subnet.SameHost(at, s.own.granted.PublicIP)
	anew := r.entry.Created != s.own.created
	switch {
	case !exists:
		return gone
	case r.modified == s.own.modified, r.entry.Err != nil: // what is unreadable is nobody's
		return ours
	case anew && !here:
		return gone
	case !here:
		return taken
	case claimant(r.value) != "" && claimant(r.value) != s.store.name:
		return asked
	case anew, r.lease != s.own.lease && r.lease != clientv3.NoLease:
		return disputed
	}
	return ours
}

// acquire leases subnets: those held, if they still serve; those reserved for our address; those that an earlier life of this
// host held; or free ones.
func (s *session) acquire(ctx context.Context, want subnet.Request) error {
	if s.own.key == "" {
		if err := s.find(ctx, want); err != nil || s.elder() == "" {
			return err
		}
	}
	key, serving := s.own.key, serves(s.own.granted.Subnet, want)
	if s.reclaim = s.reclaim && serving; s.reclaim {
		return s.takeBack(ctx, want)
	}
	r := s.records[key]
	switch state := s.standing(want); {
	case state == gone, !serving && !s.disposable(state, want):
	case !serving && usable(s.own.granted.Subnet, want) == subnet.Pair[netip.Prefix]{} && s.reserved(want):
		if err := s.remove(ctx, key, r.modified); err != nil {
			return err
		}
	case !serving:
		return s.replace(ctx, want)
	case state == taken:
		return s.contested(contestLast, "%s wrote itself into our lease %s: release that (tulle lease release), and we take it again", holderOf(r.entry.Lease), key)
	case state == disputed:
		return s.ask(ctx, key, want)
	case s.elder() != "":
		return s.replace(ctx, want)
	default:
		t, err := s.ownTerm(ctx)
		if err == nil {
			err = s.adopt(ctx, key, want, t)
		}
		if err == nil && state == asked {
			_ = s.contested(contestLast, "another host, %s, has our public address %s and claims our lease %s: give each host an address of its own (--public-ip)", claimant(r.value), publicOf(want), key)
			s.contest.asked = true
		}
		return err
	}
	want.Previous, want.Revision = s.own.granted.Subnet, 0 // our containers have addresses there
	s.drop()
	if !s.reserved(want) && again(want, s.free(want)) {
		return s.create(ctx, want)
	}
	return s.find(ctx, want)
}

// reserved reports whether there is a reservation for us.
func (s *session) reserved(want subnet.Request) bool {
	keys := s.earlier(want)
	return len(keys) > 0 && s.records[keys[0]].entry.Reserved
}

// disposable reports whether the key that is held is ours to give up: not what is another host's by now, nor a reservation of
// which nothing serves, because an operator made it.
func (s *session) disposable(state standing, want subnet.Request) bool {
	r := s.records[s.own.key]
	reserved := r.entry.Reserved && r.entry.Err == nil // by an operator, not by who spoilt it
	return state != taken && state != disputed && (!reserved || usable(s.own.granted.Subnet, want) != subnet.Pair[netip.Prefix]{})
}

// replace leases subnets anew in place of the key that is held. Of a family whose subnet still serves, that is kept: containers
// have addresses there.
func (s *session) replace(ctx context.Context, want subnet.Request) error {
	t, err := s.ownTerm(ctx)
	if err != nil {
		return err
	}
	s.own.term, want.Previous = t, s.own.granted.Subnet
	return s.create(ctx, want)
}

// elder is the key of an older lease that overlaps ours: peers of both heed that one alone. It is "" if there is none, or if it is
// too early to tell, because the watch is still on its way to where ours was made. Among hosts of ours this is rare: etcd compares
// keys, and a key that has an IPv6 subnet begins with the IPv4 one.
func (s *session) elder() (oldest string) {
	if s.own.key == "" || s.history.revision < s.own.created {
		return ""
	}
	created := s.own.created
	for key, r := range s.records {
		if r.entry.Created < created && r.entry.Err == nil && s.within(r.entry.Lease.Subnet) {
			oldest, created = key, r.entry.Created
		}
	}
	return oldest
}

// within reports whether one of subnets lies in ours. One that is larger than the network's counts for nothing.
func (s *session) within(subnets subnet.Pair[netip.Prefix]) bool {
	for f, p := range subnets.All() {
		if own := s.own.granted.Subnet.Of(f); own.Overlaps(p) && own.Bits() <= p.Bits() {
			return true
		}
	}
	return false
}

// find leases a subnet for a host that holds none.
func (s *session) find(ctx context.Context, want subnet.Request) error {
	keys := s.earlier(want)
	if len(keys) == 0 {
		return s.create(ctx, want)
	}
	r := s.records[keys[0]]
	known := (r.modified == want.Revision || want.Revision == subnet.AnyRevision) && r.entry.Lease.Subnet == want.Previous || r.lease != clientv3.NoLease && r.lease == s.attempt.lease
	if waiting := r.entry.Reserved && r.entry.Lease.Idle(); !known && !waiting {
		return s.ask(ctx, keys[0], want)
	}
	t, err := s.leaseOf(ctx, r)
	if err != nil {
		return err
	}
	return s.adopt(ctx, keys[0], want, t)
}

// takeBack registers again what was held before etcd's history was rewritten, and takes it from whoever has some of it since: our
// containers have addresses there.
func (s *session) takeBack(ctx context.Context, want subnet.Request) error {
	key := s.own.key
	r, exists := s.records[key]
	t, err := s.leaseOf(ctx, record{lease: s.own.lease})
	if err != nil {
		return err
	}
	if exists && (r.entry.Err != nil || subnet.SameHost(r.entry.Lease.PublicIP, want.PublicIP)) {
		return s.adopt(ctx, key, want, t)
	}
	if exists { // deleted first, so that its holder sees that it has lost it for good
		if err := s.remove(ctx, key, r.modified); err != nil {
			return err
		}
	}
	var rivals []string
	for other, r := range s.records {
		if other != key && s.within(r.subnets(other)) {
			rivals = append(rivals, other)
		}
	}
	granted := want.Lease(s.own.granted.Subnet)
	revision, _, err := s.claimFree(ctx, want, granted, t.lease, rivals...)
	if err == nil && revision == 0 {
		err = errChanged // by whom the watch will tell, and then we try again
	}
	if err != nil {
		return err
	}
	s.keep(holding{key: key, created: revision, modified: revision, granted: granted, term: t})
	return nil
}

// earlier returns the keys that are ours by their public address, best first: a reservation, then what serves as it is, then what
// has something that serves; and in each case what the last life had, then the oldest. What the last life left behind is ours
// whatever its address. A reservation of which nothing serves stays as it is.
func (s *session) earlier(want subnet.Request) []string {
	rank := map[string]int{}
	for key, r := range s.records {
		l := r.entry.Lease
		last := l.Subnet == want.Previous
		if r.entry.Err != nil || !subnet.SameHost(l.PublicIP, want.PublicIP) && !(last && r.modified == want.Revision) {
			continue
		}
		if some := usable(l.Subnet, want) != (subnet.Pair[netip.Prefix]{}); some || !r.entry.Reserved {
			rank[key] = 8*without(r.entry.Reserved) + 4*without(serves(l.Subnet, want)) + 2*without(some) + without(last)
		}
	}
	return slices.SortedFunc(maps.Keys(rank), func(a, b string) int {
		return cmp.Or(rank[a]-rank[b], cmp.Compare(s.records[a].entry.Created, s.records[b].entry.Created))
	})
}

// without is what a key ranks lower by that lacks a merit.
func without(merit bool) int {
	if merit {
		return 0
	}
	return 1
}

// adopt takes the key over as it is found, and writes to it only if its value is not what ours would be. One that does not serve is
// replaced.
func (s *session) adopt(ctx context.Context, key string, want subnet.Request, t term) error {
	r := s.records[key]
	h := holding{key: key, created: r.entry.Created, granted: r.entry.Lease, term: t}
	if key == s.own.key {
		h.granted, h.given, h.yielded = s.own.granted, s.own.given, s.own.yielded // also if what is stored can't be read any more
	}
	subnets := h.granted.Subnet
	if h.modified = r.modified; !serves(subnets, want) {
		s.keep(h)
		want.Previous = subnets
		return s.create(ctx, want)
	}
	h.granted = want.Lease(subnets)
	if value := string(h.granted.MarshalValue()); value != r.text() || t.lease != r.lease {
		revision, err := s.rewrite(ctx, key, r.modified, value, t.lease)
		if err != nil {
			return err
		}
		h.modified = revision
	}
	s.keep(h)
	return nil
}

// ownTerm returns that of the key that is held.
func (s *session) ownTerm(ctx context.Context) (term, error) {
	r := s.records[s.own.key]
	if r.entry.Err != nil { // what spoilt the value took its etcd lease away, too
		r.lease = s.own.lease
	}
	return s.leaseOf(ctx, r)
}

// leaseOf returns the etcd lease for a key of ours: the one it hangs on, if that is alive, else a new one; none for a
// reservation. It asks etcd if it has not asked over this connection yet, or if the lease is to be renewed.
func (s *session) leaseOf(ctx context.Context, r record) (term, error) {
	switch {
	case r.lease == clientv3.NoLease:
		return term{}, nil
	case r.lease == s.own.lease && s.asked && time.Now().Before(s.own.due):
		return s.own.term, nil
	}
	ctx, cancel := call(ctx)
	defer cancel()
	// Not the client's KeepAlive, which looks at the clock four times a second for as long as it keeps a lease alive.
	alive, err := s.client.etcd.KeepAliveOnce(ctx, r.lease)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return s.grant(ctx)
	}
	if err != nil {
		return term{}, err
	}
	return newTerm(r.lease, alive.TTL), nil
}

// leaseLike returns a new etcd lease in the place of r's, which may be another host's; none for a reservation.
func (s *session) leaseLike(ctx context.Context, r record) (term, error) {
	if r.lease == clientv3.NoLease {
		return term{}, nil
	}
	return s.grant(ctx)
}

func (s *session) grant(ctx context.Context) (term, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	granted, err := s.client.etcd.Grant(ctx, LeaseTTL)
	if err != nil {
		return term{}, err
	}
	return newTerm(granted.ID, granted.TTL), nil
}

// rewrite changes a key that nobody else has changed since we saw it.
func (s *session) rewrite(ctx context.Context, key string, seen int64, value string, id clientv3.LeaseID) (int64, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	name := s.client.subnetKey(key)
	done, err := s.client.etcd.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(name), "=", seen)).
		Then(clientv3.OpPut(name, value, clientv3.WithLease(id))).
		Commit()
	switch {
	case err != nil:
		return 0, err
	case !done.Succeeded:
		return 0, fmt.Errorf("%s: %w", key, errChanged)
	}
	return done.Header.Revision, nil
}

// attempt is what was tried to hold. If the call took too long it may have been done all the same: the next try is the same
// again, so that it finds out, and an etcd that is slow has no more to do for it.
type attempt struct {
	subnets subnet.Pair[netip.Prefix]
	term
}

// create leases free subnets, in place of the key that is held, if one is. Each try is one transaction; one that loses to another
// host learns from it what has been taken meanwhile, so the next does not choose from an old view.
func (s *session) create(ctx context.Context, want subnet.Request) error {
	free := s.free(want)
	if !serves(s.attempt.subnets, want) {
		if err := s.attemptAnew(ctx, want, free); err != nil {
			return err
		}
	}
	for {
		try := s.attempt
		granted := want.Lease(try.subnets)
		revision, others, err := s.claimFree(ctx, want, granted, try.lease, s.given()...)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) { // it was not used for too long
			s.attempt = attempt{}
		}
		if err != nil {
			return err
		}
		if revision != 0 {
			s.keep(holding{key: granted.Key(), created: revision, modified: revision, granted: granted, given: s.own.key, yielded: s.yields(), term: try.term})
			return nil
		}
		others = append(others, first(try.subnets)) // which alone is surely taken
		for _, pool := range free.All() {
			for _, p := range others {
				pool.Take(p)
			}
		}
		if s.attempt.subnets, err = choose(want, free); err != nil {
			return errors.Join(s.full(want, exhausted(free)), s.giveUp(ctx))
		}
	}
}

// attemptAnew chooses what to try to hold, in place of what was tried before.
func (s *session) attemptAnew(ctx context.Context, want subnet.Request, free subnet.Pair[*subnet.Pool]) error {
	if err := s.giveUp(ctx); err != nil {
		return err
	}
	subnets, err := choose(want, free)
	if err != nil {
		return s.full(want, exhausted(free))
	}
	t := s.own.term
	if s.own.key == "" {
		if t, err = s.grant(ctx); err != nil {
			return err
		}
	}
	s.attempt = attempt{subnets, t}
	return nil
}

// given are the keys that are given up for what is tried to hold.
func (s *session) given() []string {
	if s.own.key == "" {
		return nil
	}
	return []string{s.own.key}
}

// yields says whose older lease has some of what is held; "" if nobody's has.
func (s *session) yields() string {
	key := s.elder()
	if key == "" {
		return ""
	}
	return fmt.Sprintf("our lease %s overlapped %s, which %s holds for longer: leased anew what they shared", s.own.key, key, holderOf(s.records[key].entry.Lease))
}

// giveUp takes back what was tried, whether it was done or not.
func (s *session) giveUp(ctx context.Context) error {
	if s.attempt.lease == clientv3.NoLease || s.attempt.lease == s.own.lease { // what is held hangs on it
		s.attempt = attempt{}
		return nil
	}
	err := s.revoke(ctx, s.attempt.lease)
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return err
	}
	s.attempt = attempt{}
	return nil
}

// claimFree writes a key that must not exist, in place of those that are given up for it and must be as we know them. It returns
// the revision, or 0 and what others hold that we don't know of yet. A call that is made again after it took too long is not
// done again.
func (s *session) claimFree(ctx context.Context, want subnet.Request, l subnet.Lease, id clientv3.LeaseID, given ...string) (int64, []netip.Prefix, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	name, value := s.client.subnetKey(l.Key()), string(l.MarshalValue())
	conditions, give := s.client.absent(l.Subnet, given...), []clientv3.Op(nil)
	look := []clientv3.Op{clientv3.OpGet(name), // keys only come without their lease
		clientv3.OpGet(s.client.network(), clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithMinCreateRev(s.history.revision+1))}
	for _, key := range given {
		path := s.client.subnetKey(key)
		conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(path), "=", s.records[key].modified))
		give = append(give, clientv3.OpDelete(path))
		look = append(look, clientv3.OpGet(path, clientv3.WithKeysOnly()))
	}
	done, err := s.client.etcd.Txn(ctx).If(conditions...).
		Then(append(give, clientv3.OpPut(name, value, clientv3.WithLease(id)))...). // in this order: flanneld takes a subnet's route away when its key goes
		Else(look...).
		Commit()
	switch {
	case err != nil:
		return 0, nil, err
	case done.Succeeded:
		return done.Header.Revision, nil, nil
	}
	for _, kv := range done.Responses[0].GetResponseRange().Kvs {
		if kv.Lease == int64(id) && (id != clientv3.NoLease || string(kv.Value) == value) { // an earlier call was done, and we were not told
			return kv.ModRevision, nil, nil
		}
	}
	for i, key := range given {
		if now := done.Responses[2+i].GetResponseRange().Kvs; len(now) == 0 || now[0].ModRevision != s.records[key].modified {
			return 0, nil, fmt.Errorf("%s: %w", key, errChanged)
		}
	}
	var others []netip.Prefix
	for key := range s.client.leases(done.Responses[1].GetResponseRange().Kvs) {
		others = claims(others, want, key, record{})
	}
	return 0, others, nil
}

// absent says that nobody holds subnets: the IPv4 one with whatever IPv6 subnet it is paired, unless a key that is given up has it.
func (c *Client) absent(subnets subnet.Pair[netip.Prefix], given ...string) []clientv3.Cmp {
	absent := []clientv3.Cmp{clientv3.Compare(clientv3.Version(c.subnetKey(subnet.FormatKey(subnets))), "=", 0)}
	held := func(key string) bool {
		given, _ := subnet.ParseKey(key)
		return given.V4 == subnets.V4
	}
	if !subnets.V4.IsValid() || slices.ContainsFunc(given, held) {
		return absent
	}
	v4 := c.subnetKey(subnet.FormatKey(subnet.PairOf(subnet.IPv4, subnets.V4)))
	return append(absent, clientv3.Compare(clientv3.Version(v4), "=", 0), clientv3.Compare(clientv3.Version(v4+"&"), "=", 0).WithPrefix())
}

func (s *session) revoke(ctx context.Context, id clientv3.LeaseID) error {
	ctx, cancel := call(context.WithoutCancel(ctx))
	defer cancel()
	_, err := s.client.etcd.Revoke(ctx, id)
	return err
}

// keep holds h from now on, and nothing else. The record of it is made here: its event may be long in coming.
func (s *session) keep(h holding) {
	if !s.contest.asked {
		s.contest = contest{}
	}
	if r := s.records[h.key]; r.modified < h.modified {
		r = record{entry: subnet.Entry{Lease: h.granted, Created: h.created, Reserved: h.lease == clientv3.NoLease},
			modified: h.modified, lease: h.lease}
		s.records[h.key] = r
		s.store.publish(func(u *subnet.Update) {
			s.own = h // the reader must not take its own lease for a peer's
			s.tellOwn(&u.Own, nil)
			u.Leases[h.key] = r.entry
			if h.given != "" && s.records[h.given].modified < h.created { // else it is another host's since
				delete(s.records, h.given)
				u.Leases[h.given] = subnet.Entry{}
			}
		})
	}
	s.own, s.asked, s.lost, s.reclaim, s.attempt = h, true, false, false, attempt{}
}

// remove deletes a key that nobody else has changed since we saw it; one that somebody has is theirs.
func (s *session) remove(ctx context.Context, key string, seen int64) error {
	ctx, cancel := call(ctx)
	defer cancel()
	name := s.client.subnetKey(key)
	done, err := s.client.etcd.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(name), "=", seen)).
		Then(clientv3.OpDelete(name)).
		Commit()
	if err == nil && done.Succeeded {
		delete(s.records, key) // it is free for whatever we choose next
	}
	return err
}

// drop forgets what was held.
func (s *session) drop() { s.own, s.lost = holding{}, true }
