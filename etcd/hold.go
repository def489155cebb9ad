package etcd

import (
	"context"
	"errors"
	"fmt"
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

// errFull says that there is no subnet to be had.
var errFull = errors.New("out of subnets")

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
	o.Lease, o.Revision, o.Renewed, o.TTL = s.own.granted, s.own.modified, s.own.renewed, s.own.ttl
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
	here := r.entry.Lease.PublicIP == want.PublicIP || r.entry.Lease.PublicIP == s.own.granted.PublicIP
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

// acquire leases a subnet: the one held, if it still serves; one reserved for our address; one that an earlier life of this
// host held; or a free one.
func (s *session) acquire(ctx context.Context, want subnet.Request) error {
	if s.own.key == "" {
		return s.find(ctx, want)
	}
	key, serving := s.own.key, serves(s.own.granted.Subnet, want)
	if s.reclaim = s.reclaim && serving; s.reclaim {
		return s.takeBack(ctx, want)
	}
	r := s.records[key]
	switch state := s.standing(want); {
	case state == gone:
	case !serving:
		if err := s.release(ctx); err != nil {
			return err
		}
	case state == taken:
		return s.contested(contestLast, "%s wrote itself into our lease %s: release that (tulle lease release), and we take it again", holderOf(r.entry.Lease), key)
	case state == disputed:
		return s.ask(ctx, key, want)
	default:
		if r.entry.Err != nil { // what spoilt the value took its etcd lease away, too
			r.lease = s.own.lease
		}
		t, err := s.leaseOf(ctx, r)
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
	if keys := s.earlier(want); serving && (len(keys) == 0 || !s.records[keys[0]].entry.Reserved) && again(want, s.free(want)) {
		return s.create(ctx, want)
	}
	return s.find(ctx, want)
}

// find leases a subnet for a host that holds none.
func (s *session) find(ctx context.Context, want subnet.Request) error {
	keys := s.earlier(want)
	if len(keys) == 0 {
		return s.create(ctx, want)
	}
	r := s.records[keys[0]]
	known := r.modified == want.Revision && r.entry.Lease.Subnet == want.Previous || r.lease != clientv3.NoLease && r.lease == s.attempt.lease
	if waiting := r.entry.Reserved && r.entry.Lease.Idle(); !known && !waiting {
		return s.ask(ctx, keys[0], want)
	}
	t, err := s.leaseOf(ctx, r)
	if err != nil {
		return err
	}
	return s.adopt(ctx, keys[0], want, t)
}

// takeBack registers again what was held before etcd's history was rewritten, and takes it from whoever has it since: our
// containers have addresses there.
func (s *session) takeBack(ctx context.Context, want subnet.Request) error {
	key := s.own.key
	r, exists := s.records[key]
	t, err := s.leaseOf(ctx, record{lease: s.own.lease})
	if err != nil {
		return err
	}
	if exists && (r.entry.Err != nil || r.entry.Lease.PublicIP == want.PublicIP) {
		return s.adopt(ctx, key, want, t)
	}
	if exists { // deleted first, so that its holder sees that it has lost it for good
		if err := s.remove(ctx, key, r.modified); err != nil {
			return err
		}
	}
	granted := want.Lease(s.own.granted.Subnet)
	revision, _, err := s.claimFree(ctx, want, granted, t.lease)
	if err == nil && revision == 0 {
		err = errChanged // by whom the watch will tell, and then we try again
	}
	if err != nil {
		return err
	}
	s.keep(holding{key: key, created: revision, modified: revision, granted: granted, term: t})
	return nil
}

// earlier returns the keys that are ours by their public address, best first: a reservation, then the subnet that the last
// life had, then the oldest.
func (s *session) earlier(want subnet.Request) []string {
	var keys []string
	for key, r := range s.records {
		if r.entry.Err == nil && r.entry.Lease.PublicIP == want.PublicIP && serves(r.entry.Lease.Subnet, want) {
			keys = append(keys, key)
		}
	}
	rank := func(key string) int {
		r := s.records[key]
		switch {
		case r.entry.Reserved:
			return 0
		case r.entry.Lease.Subnet == want.Previous:
			return 1
		}
		return 2
	}
	slices.SortFunc(keys, func(a, b string) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return int(s.records[a].entry.Created - s.records[b].entry.Created)
	})
	return keys
}

// serves reports whether subnets are what want asks for: one in each range, none excluded.
func serves(subnets subnet.Pair[netip.Prefix], want subnet.Request) bool {
	for _, f := range []subnet.Family{subnet.IPv4, subnet.IPv6} {
		r, p := want.Range.Of(f), subnets.Of(f)
		if (r != subnet.Range{}) != p.IsValid() {
			return false
		}
		if p.IsValid() && (!r.Contains(p) || slices.ContainsFunc(want.Exclude, p.Overlaps)) {
			return false
		}
	}
	return true
}

// adopt takes the key over as it is found, and writes to it only if its value is not what ours would be.
func (s *session) adopt(ctx context.Context, key string, want subnet.Request, t term) error {
	r := s.records[key]
	subnets := r.entry.Lease.Subnet
	if key == s.own.key {
		subnets = s.own.granted.Subnet // also if what is stored can't be read any more
	}
	granted := want.Lease(subnets)
	if value := string(granted.MarshalValue()); value != r.text() || t.lease != r.lease {
		revision, err := s.rewrite(ctx, key, r.modified, value, t.lease)
		if err != nil {
			return err
		}
		r.modified = revision
	}
	s.keep(holding{key: key, created: r.entry.Created, modified: r.modified, granted: granted, term: t})
	return nil
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

// create leases a free subnet. Each try is one transaction; one that loses to another host learns from it what has been
// taken meanwhile, so the next does not choose from an old view.
func (s *session) create(ctx context.Context, want subnet.Request) error {
	free := s.free(want)
	if s.attempt.lease == clientv3.NoLease || !serves(s.attempt.subnets, want) {
		if err := s.attemptAnew(ctx, want, free); err != nil {
			return err
		}
	}
	for {
		try := s.attempt
		granted := want.Lease(try.subnets)
		revision, others, err := s.claimFree(ctx, want, granted, try.lease)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) { // it was not used for too long
			s.attempt = attempt{}
		}
		if err != nil {
			return err
		}
		if revision != 0 {
			s.keep(holding{key: granted.Key(), created: revision, modified: revision, granted: granted, term: try.term})
			return nil
		}
		for f, pool := range free.All() {
			pool.Take(try.subnets.Of(f))
			for _, p := range others {
				pool.Take(p)
			}
		}
		if s.attempt.subnets, err = choose(want, free); err != nil {
			return errors.Join(s.full(want, err), s.giveUp(ctx))
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
		return s.full(want, err)
	}
	t, err := s.grant(ctx)
	if err != nil {
		return err
	}
	s.attempt = attempt{subnets, t}
	return nil
}

// giveUp takes back what was tried, whether it was done or not.
func (s *session) giveUp(ctx context.Context) error {
	if s.attempt.lease == clientv3.NoLease {
		return nil
	}
	err := s.revoke(ctx, s.attempt.lease)
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return err
	}
	s.attempt = attempt{}
	return nil
}

// free are the subnets that can be had.
func (s *session) free(want subnet.Request) (free subnet.Pair[*subnet.Pool]) {
	taken := s.taken(want)
	for f, r := range want.Range.All() {
		*free.At(f) = r.Pool(taken)
	}
	return free
}

// taken are the addresses that can't be had.
func (s *session) taken(want subnet.Request) []netip.Prefix {
	taken := slices.Grow(slices.Clone(want.Exclude), len(s.records)+len(s.past.peers))
	for _, records := range []map[string]record{s.records, s.past.peers} {
		for key, r := range records {
			taken = claims(taken, want, key, r.entry.Lease)
		}
	}
	return taken
}

// claims appends to taken the addresses that a stored key takes: its subnets, and its host's public address, if the network
// has such. A key that claims the whole network claims nothing, and one whose value can't be read claims its subnets.
func claims(taken []netip.Prefix, want subnet.Request, key string, l subnet.Lease) []netip.Prefix {
	if l.Subnet == (subnet.Pair[netip.Prefix]{}) {
		l.Subnet, _ = subnet.ParseKey(key) // a key that can't be read either has none
	}
	for f, p := range l.Subnet.All() {
		if want.Range.Of(f).Admits(p) {
			taken = append(taken, p)
		}
	}
	for f, a := range l.PublicIP.All() {
		if want.Range.Of(f).Network.Contains(a) {
			taken = append(taken, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return taken
}

// choose picks the subnets to try: what the host had before, if it is free, or else what its address hashes to.
func choose(want subnet.Request, free subnet.Pair[*subnet.Pool]) (subnets subnet.Pair[netip.Prefix], err error) {
	if again(want, free) {
		return want.Previous, nil
	}
	for f, pool := range free.All() {
		p, ok := pool.Pick(fmt.Sprint(want.PublicIP))
		if !ok {
			return subnets, errFull
		}
		*subnets.At(f) = p
	}
	return subnets, nil
}

// again reports whether the host can have what it had before.
func again(want subnet.Request, free subnet.Pair[*subnet.Pool]) bool {
	ok := serves(want.Previous, want)
	for f, p := range want.Previous.All() {
		ok = ok && free.Of(f).Has(p)
	}
	return ok
}

// full says how full the network is.
func (s *session) full(want subnet.Request, err error) error {
	leased, reserved := 0, 0
	for key, r := range s.records {
		switch {
		case len(claims(nil, want, key, r.entry.Lease)) == 0: // takes nothing
		case r.entry.Reserved:
			reserved++
		default:
			leased++
		}
	}
	total := want.Range.V4.Len()
	if want.Range.V4 == (subnet.Range{}) {
		total = want.Range.V6.Len()
	}
	return fmt.Errorf("%w: %d leased and %d reserved of %d; release some (tulle lease ls) or enlarge the network (tulle config set)", err, leased, reserved, total)
}

// claimFree writes a key that must not exist, and returns the revision, or 0 and what others hold that we don't know of yet. The
// IPv4 subnet must be free with whatever IPv6 subnet it is paired. A call that is made again after it took too long is not
// done again.
func (s *session) claimFree(ctx context.Context, want subnet.Request, l subnet.Lease, id clientv3.LeaseID) (int64, []netip.Prefix, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	name := s.client.subnetKey(l.Key())
	absent := []clientv3.Cmp{clientv3.Compare(clientv3.Version(name), "=", 0)}
	if l.Subnet.V4.IsValid() {
		v4 := s.client.subnetKey(subnet.FormatKey(subnet.PairOf(subnet.IPv4, l.Subnet.V4)))
		absent = append(absent, clientv3.Compare(clientv3.Version(v4), "=", 0), clientv3.Compare(clientv3.Version(v4+"&"), "=", 0).WithPrefix())
	}
	done, err := s.client.etcd.Txn(ctx).If(absent...).
		Then(clientv3.OpPut(name, string(l.MarshalValue()), clientv3.WithLease(id))).
		Else(clientv3.OpGet(name), // keys only come without their lease
			clientv3.OpGet(s.client.subnetsPrefix(), clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithMinCreateRev(s.history.revision+1))).
		Commit()
	switch {
	case err != nil:
		return 0, nil, err
	case done.Succeeded:
		return done.Header.Revision, nil, nil
	}
	for _, kv := range done.Responses[0].GetResponseRange().Kvs {
		if id != clientv3.NoLease && kv.Lease == int64(id) { // an earlier call was done, and we were not told
			return kv.ModRevision, nil, nil
		}
	}
	var others []netip.Prefix
	for _, kv := range done.Responses[1].GetResponseRange().Kvs {
		others = claims(others, want, string(kv.Key[len(s.client.subnetsPrefix()):]), subnet.Lease{})
	}
	return 0, others, nil
}

func (s *session) revoke(ctx context.Context, id clientv3.LeaseID) error {
	ctx, cancel := call(context.WithoutCancel(ctx))
	defer cancel()
	_, err := s.client.etcd.Revoke(ctx, id)
	return err
}

// keep holds h from now on. The record of it is made here: its event may be long in coming.
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
		})
	}
	s.own, s.asked, s.lost, s.reclaim, s.attempt = h, true, false, false, attempt{}
}

// release gives up the key that is held but no longer serves, unless it is reserved or somebody else's by now.
func (s *session) release(ctx context.Context) error {
	if s.own.lease == clientv3.NoLease {
		return nil
	}
	return s.remove(ctx, s.own.key, s.own.modified)
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
