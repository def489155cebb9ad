package etcd

import (
	"context"
	"errors"
	"fmt"
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
	modified int64  // revision of what we last wrote there, or found as we would have written it
	lease    clientv3.LeaseID
	granted  subnet.Lease
	ttl      int64
}

// errFull says that there is no subnet to be had.
var errFull = errors.New("out of subnets")

// hold makes what is held match what is wanted, in as few calls as that takes: none if it does already.
func (s *session) hold(ctx context.Context) error {
	s.store.mu.Lock()
	want := s.store.request
	s.store.mu.Unlock()
	if want == nil {
		return nil
	}
	err := s.acquire(ctx, *want)
	if err == nil {
		s.retry.reset()
	} else {
		err = s.client.explain(err)
	}
	own, lost := s.own, s.lost
	s.store.publish(func(u *subnet.Update) {
		u.Own.Err = err
		if err != nil && !lost {
			return // what is held stays held as long as nobody says otherwise
		}
		if u.Own.Lease != own.granted {
			u.Own.Renewed = time.Now().Unix()
		}
		u.Own.Lease, u.Own.TTL, u.Own.Reserved = own.granted, own.ttl, own.key != "" && own.lease == clientv3.NoLease
	})
	return err
}

// acquire leases a subnet: the one held, if it still serves; one reserved for our address; one that an earlier life of this
// host held; or a free one.
func (s *session) acquire(ctx context.Context, want subnet.Request) error {
	if s.own.key != "" {
		r, exists := s.records[s.own.key]
		ours := exists && (r.modified == s.own.modified || r.entry.Lease.PublicIP == want.PublicIP) // else somebody else's now
		if ours && serves(r.entry.Lease.Subnet, want) {
			return s.adopt(ctx, s.own.key, want)
		}
		if ours {
			if err := s.release(ctx); err != nil {
				return err
			}
		}
		want.Previous = s.own.granted.Subnet // our containers have addresses there
		s.drop()
	}
	if keys := s.earlier(want); len(keys) > 0 {
		return s.adopt(ctx, keys[0], want)
	}
	return s.create(ctx, want)
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
func (s *session) adopt(ctx context.Context, key string, want subnet.Request) error {
	r := s.records[key]
	id, ttl, err := s.etcdLease(ctx, r)
	if err != nil {
		return err
	}
	granted := want.Lease(r.entry.Lease.Subnet)
	value := string(granted.MarshalValue())
	if value != r.value || id != r.lease {
		r.modified, err = s.rewrite(ctx, key, r.modified, value, id)
		if err != nil {
			return err
		}
	}
	s.keep(holding{key, r.modified, id, granted, ttl})
	return nil
}

// etcdLease returns the etcd lease for a key that we take over: the one it hangs on, if that is alive, else a new one; none
// for a reservation.
func (s *session) etcdLease(ctx context.Context, r record) (clientv3.LeaseID, int64, error) {
	if r.lease == clientv3.NoLease {
		return clientv3.NoLease, 0, nil
	}
	if r.lease == s.own.lease && s.keepAlive != nil {
		return r.lease, s.own.ttl, nil
	}
	ctx, cancel := call(ctx)
	defer cancel()
	alive, err := s.client.etcd.KeepAliveOnce(ctx, r.lease)
	if err == nil {
		return r.lease, alive.TTL, nil
	}
	if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return 0, 0, err
	}
	return s.grant(ctx)
}

func (s *session) grant(ctx context.Context) (clientv3.LeaseID, int64, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	granted, err := s.client.etcd.Grant(ctx, LeaseTTL)
	if err != nil {
		return 0, 0, err
	}
	return granted.ID, granted.TTL, nil
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
		return 0, fmt.Errorf("%s: somebody else changed it meanwhile", key) // the watch will tell how
	}
	return done.Header.Revision, nil
}

// create leases a free subnet. Each try is one transaction; one that loses to another host learns from it what has been
// taken meanwhile, so the next does not choose from an old view.
func (s *session) create(ctx context.Context, want subnet.Request) error {
	taken := slices.Clone(want.Exclude)
	for key, r := range s.records {
		taken = append(taken, claims(want, key, r)...)
	}
	subnets, err := choose(want, taken)
	if err != nil {
		return s.full(want, err)
	}
	id, ttl, err := s.grant(ctx)
	if err != nil {
		return err
	}
	for {
		granted := want.Lease(subnets)
		revision, others, err := s.claim(ctx, want, granted, id)
		if err != nil {
			return errors.Join(err, s.revoke(ctx, id))
		}
		if revision != 0 {
			s.keep(holding{granted.Key(), revision, id, granted, ttl})
			return nil
		}
		for _, p := range subnets.All() {
			taken = append(taken, p)
		}
		if subnets, err = choose(want, append(taken, others...)); err != nil {
			return errors.Join(s.full(want, err), s.revoke(ctx, id))
		}
	}
}

// claims are the addresses that a stored key takes: its subnets, if the network has such, and its host's public address,
// which may lie inside the network. A key that claims the whole network claims nothing.
func claims(want subnet.Request, key string, r record) []netip.Prefix {
	subnets, err := subnet.ParseKey(key)
	if err != nil {
		return nil
	}
	var taken []netip.Prefix
	for f, p := range subnets.All() {
		if want.Range.Of(f).Admits(p) {
			taken = append(taken, p)
		}
	}
	for _, a := range r.entry.Lease.PublicIP.All() {
		taken = append(taken, netip.PrefixFrom(a, a.BitLen()))
	}
	return taken
}

// choose picks the subnets to try: what the host had before, if it is free, or else what its address hashes to.
func choose(want subnet.Request, taken []netip.Prefix) (subnet.Pair[netip.Prefix], error) {
	free := serves(want.Previous, want)
	for _, p := range want.Previous.All() {
		free = free && !slices.ContainsFunc(taken, p.Overlaps)
	}
	if free {
		return want.Previous, nil
	}
	var subnets subnet.Pair[netip.Prefix]
	for f, r := range want.Range.All() {
		p, ok := r.Pick(fmt.Sprint(want.PublicIP), taken)
		if !ok {
			return subnets, errFull
		}
		*subnets.At(f) = p
	}
	return subnets, nil
}

// full says how full the network is.
func (s *session) full(want subnet.Request, err error) error {
	leased, reserved := 0, 0
	for key, r := range s.records {
		switch {
		case len(claims(want, key, r)) == 0: // takes nothing
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

// claim writes a key that must not exist, and returns the revision, or 0 and what others hold by now. The IPv4 subnet must
// be free with whatever IPv6 subnet it is paired.
func (s *session) claim(ctx context.Context, want subnet.Request, l subnet.Lease, id clientv3.LeaseID) (int64, []netip.Prefix, error) {
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
		Else(clientv3.OpGet(s.client.subnetsPrefix(), clientv3.WithPrefix(), clientv3.WithKeysOnly())).
		Commit()
	switch {
	case err != nil:
		return 0, nil, err
	case done.Succeeded:
		return done.Header.Revision, nil, nil
	}
	var others []netip.Prefix
	for _, kv := range done.Responses[0].GetResponseRange().Kvs {
		others = append(others, claims(want, string(kv.Key[len(s.client.subnetsPrefix()):]), record{})...)
	}
	return 0, others, nil
}

func (s *session) revoke(ctx context.Context, id clientv3.LeaseID) error {
	ctx, cancel := call(context.WithoutCancel(ctx))
	defer cancel()
	_, err := s.client.etcd.Revoke(ctx, id)
	return err
}

// keep holds h from now on, and renews it. The record of it is made here: its event may be long in coming.
func (s *session) keep(h holding) {
	if r := s.records[h.key]; r.modified < h.modified {
		created := r.entry.Created
		if created == 0 {
			created = h.modified
		}
		r = record{entry: subnet.Entry{Lease: h.granted, Created: created, Reserved: h.lease == clientv3.NoLease},
			modified: h.modified, lease: h.lease, value: string(h.granted.MarshalValue())}
		s.records[h.key] = r
		s.store.publish(func(u *subnet.Update) { u.Leases[h.key] = r.entry })
	}
	renewing := s.own.lease == h.lease && s.keepAlive != nil
	s.own, s.lost = h, false
	if renewing {
		return
	}
	s.stop()
	if s.keepAlive = nil; h.lease == clientv3.NoLease {
		return
	}
	ctx, stop := context.WithCancel(s.client.etcd.Ctx())
	s.stop = stop
	c, err := s.client.etcd.KeepAlive(ctx, h.lease)
	if err == nil {
		s.keepAlive = c
	}
}

// release gives up the key that is held but no longer serves, unless it is reserved or somebody else's by now.
func (s *session) release(ctx context.Context) error {
	ctx, cancel := call(ctx)
	defer cancel()
	if s.own.lease == clientv3.NoLease {
		return nil
	}
	name := s.client.subnetKey(s.own.key)
	done, err := s.client.etcd.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(name), "=", s.own.modified)).
		Then(clientv3.OpDelete(name)).
		Commit()
	if err == nil && done.Succeeded {
		delete(s.records, s.own.key) // it is free for whatever we choose next
	}
	return err
}

// drop forgets what was held.
func (s *session) drop() {
	s.stop()
	s.own, s.keepAlive, s.lost = holding{}, nil, true
}

// renewed notes that the lease was renewed or, if the channel is closed, that it can't be renewed any more.
func (s *session) renewed(r *clientv3.LeaseKeepAliveResponse, open bool) {
	if !open {
		s.keepAlive = nil
		return
	}
	s.store.publish(func(u *subnet.Update) { u.Own.Renewed, u.Own.TTL = time.Now().Unix(), r.TTL })
}
