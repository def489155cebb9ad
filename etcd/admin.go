package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/tulle-net/tulle/subnet"
)

// ErrNoConfig says that no config is stored under the prefix.
var ErrNoConfig = errors.New("no network config in etcd")

// Config returns the network's config as it is stored and as it reads.
func (c *Client) Config(ctx context.Context) (string, subnet.StoredConfig, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	got, err := c.etcd.Get(ctx, c.configKey())
	if err != nil {
		return "", subnet.StoredConfig{}, c.explain(err)
	}
	if len(got.Kvs) == 0 {
		return "", subnet.StoredConfig{}, fmt.Errorf("%w at %s: tulle config set FILE stores one", ErrNoConfig, c.configKey())
	}
	return string(got.Kvs[0].Value), readConfig(got.Kvs[0]), nil
}

// SetConfig stores the network's config if it is still the one of revision seen, 0 for none.
func (c *Client) SetConfig(ctx context.Context, text string, seen int64) error {
	ctx, cancel := call(ctx)
	defer cancel()
	done, err := c.etcd.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(c.configKey()), "=", seen)).
		Then(clientv3.OpPut(c.configKey(), text)).
		Commit()
	if err == nil && !done.Succeeded {
		return errors.New("somebody else changed the config meanwhile: look at it (tulle config get) and try again")
	}
	return c.explain(err)
}

// Holder is a stored lease or reservation, and who has it.
type Holder struct {
	Key string
	subnet.Entry
	Modified int64     // revision of the key's last change
	Expires  time.Time // zero if it does not expire
}

// Leases returns all leases that are stored, sorted by subnet; unreadable keys come last.
func (c *Client) Leases(ctx context.Context) ([]Holder, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	list, err := c.etcd.Get(ctx, c.network(), clientv3.WithPrefix())
	if err != nil {
		return nil, c.explain(err)
	}
	holders := make([]Holder, 0, len(list.Kvs))
	calls, callCtx := errgroup.WithContext(ctx)
	calls.SetLimit(16)
	for key, kv := range c.leases(list.Kvs) {
		holders = append(holders, Holder{Key: key, Entry: readRecord(key, kv).entry, Modified: kv.ModRevision})
		if kv.Lease == int64(clientv3.NoLease) {
			continue
		}
		h := &holders[len(holders)-1] // there is room for all: it stays where it is
		calls.Go(func() error {
			left, err := c.etcd.TimeToLive(callCtx, clientv3.LeaseID(kv.Lease))
			if err == nil {
				h.Expires = time.Now().Add(time.Duration(left.TTL) * time.Second)
			}
			return err
		})
	}
	if err := calls.Wait(); err != nil {
		return nil, c.explain(err)
	}
	slices.SortFunc(holders, func(a, b Holder) int {
		return cmp.Or(boolOrder(a.Err != nil, b.Err != nil), a.Lease.Subnet.V4.Compare(b.Lease.Subnet.V4),
			a.Lease.Subnet.V6.Compare(b.Lease.Subnet.V6), strings.Compare(a.Key, b.Key))
	})
	return holders, nil
}

func boolOrder(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// Entries returns all leases that are stored, by key name, in one call.
func (c *Client) Entries(ctx context.Context) (map[string]subnet.Entry, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	list, err := c.etcd.Get(ctx, c.network(), clientv3.WithPrefix())
	if err != nil {
		return nil, c.explain(err)
	}
	entries := make(map[string]subnet.Entry, len(list.Kvs))
	for key, kv := range c.leases(list.Kvs) {
		entries[key] = readRecord(key, kv).entry
	}
	return entries, nil
}

// Reserve keeps subnets, one or one of each family, for the host with a public address, for ever. If that host holds them already,
// its lease stops expiring. The host takes a reservation made for it when its agent starts, and adds the family that this lacks.
func (c *Client) Reserve(ctx context.Context, subnets subnet.Pair[netip.Prefix], host subnet.Pair[netip.Addr]) error {
	_, stored, err := c.Config(ctx)
	if err != nil {
		return err
	}
	if stored.Err != nil {
		return fmt.Errorf("the stored config can't be used: %w", stored.Err)
	}
	for f, p := range subnets.All() {
		switch r := stored.Config.Range.Of(f); {
		case r == subnet.Range{}:
			return fmt.Errorf("%s: the network has no %s", p, f)
		case !r.Contains(p):
			return fmt.Errorf("%s is not one of the network's subnets: they are the /%d ones from %s to %s in %s", p, r.SubnetLen, r.Min, r.Max, r.Network)
		}
	}
	holders, err := c.Leases(ctx)
	if err != nil {
		return err
	}
	l, seen := subnet.Lease{Subnet: subnets, PublicIP: host}, int64(0)
	for _, h := range holders {
		held, _ := subnet.ParseKey(h.Key) // the key counts, even if the value can't be read
		theirs := subnet.SameHost(h.Lease.PublicIP, host)
		switch {
		case theirs && includes(held, subnets):
			l, seen = h.Lease, h.Modified
		case theirs && h.Reserved:
			return fmt.Errorf("%s already has %s reserved: release that first (tulle lease release %s)", holderOf(l), first(held), first(held))
		case overlap(held, subnets):
			return fmt.Errorf("%s is held by %s: release it first (tulle lease release %s)", clashing(held, subnets), holderOf(h.Lease), clashing(held, subnets))
		}
	}
	return c.put(ctx, l.Key(), l, seen)
}

// includes reports whether all of subnets are among held.
func includes(held, subnets subnet.Pair[netip.Prefix]) bool {
	for f, p := range subnets.All() {
		if held.Of(f) != p {
			return false
		}
	}
	return true
}

// clashing is the one of held that overlaps one of subnets.
func clashing(held, subnets subnet.Pair[netip.Prefix]) netip.Prefix {
	if held.V4.Overlaps(subnets.V4) {
		return held.V4
	}
	return held.V6
}

func holderOf(l subnet.Lease) string {
	for _, a := range l.PublicIP.All() {
		return a.String()
	}
	return "nobody known"
}

// put writes a key without an etcd lease, if it is still the one of revision seen.
func (c *Client) put(ctx context.Context, key string, l subnet.Lease, seen int64) error {
	ctx, cancel := call(ctx)
	defer cancel()
	done, err := c.etcd.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(c.subnetKey(key)), "=", seen)).
		Then(clientv3.OpPut(c.subnetKey(key), string(l.MarshalValue()))).
		Commit()
	if err == nil && !done.Succeeded {
		return errors.New("somebody else took the subnet meanwhile: look who (tulle lease ls) and try again")
	}
	return c.explain(err)
}

// ErrNotHeld says that nobody holds the subnet.
var ErrNotHeld = errors.New("nobody holds it")

// Release deletes the lease or reservation that is called name, by its key or by one of its subnets, and returns it. An agent that
// still runs takes its subnets again.
func (c *Client) Release(ctx context.Context, name string) (subnet.Lease, error) {
	holders, err := c.Leases(ctx)
	if err != nil {
		return subnet.Lease{}, err
	}
	i := slices.IndexFunc(holders, func(h Holder) bool { return called(h.Key, name) })
	if i < 0 {
		return subnet.Lease{}, fmt.Errorf("%s: %w", name, ErrNotHeld)
	}
	h := holders[i]
	ctx, cancel := call(ctx)
	defer cancel()
	done, err := c.etcd.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(c.subnetKey(h.Key)), "=", h.Modified)).
		Then(clientv3.OpDelete(c.subnetKey(h.Key))).
		Commit()
	if err == nil && !done.Succeeded {
		err = fmt.Errorf("%s changed just now: look who holds it (tulle lease ls) and try again", name)
	}
	return h.Lease, c.explain(err)
}

// called reports whether a name is a key's, or that of one of its subnets.
func called(key, name string) bool {
	subnets, _ := subnet.ParseKey(key)
	for _, p := range subnets.All() {
		if q, err := netip.ParsePrefix(name); err == nil && p == q {
			return true
		}
	}
	return key == name
}
