package etcd

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/tulle-net/tulle/subnet"
)

// A join costs the same calls, however many hosts there are, and however little is free.
func TestJoinCalls(t *testing.T) {
	const large, large6 = `{"Network":"10.0.0.0/8","SubnetLen":24}`, `{"Network":"10.0.0.0/8","SubnetLen":24,"EnableIPv6":true,"IPv6Network":"fd12::/40"}`
	all := map[string]int{"Range": 1, "LeaseGrant": 1, "Txn": 1, "Watch": 1}
	for _, c := range []struct {
		name, config string
		peers        int
	}{
		{"alone", wide, 0},
		{"10 peers", wide, 10},
		{"a /16 that is 90 % full", wide, 230},
		{"2,000 peers", large, 2000},
		{"a /8 that is 90 % full", large, 58_982},
		{"dual-stack", dual, 0},
		{"dual-stack, a /16 that is 90 % full", dual, 230},
		{"dual-stack, 2,000 peers", large6, 2000},
		{"IPv6 only, 2,000 peers", only6, 2000},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, count := newNetwork(t), calls{}
			r := want("192.0.2.1", c.config)
			n.fill(r.Range, c.peers)
			h := n.join(r, count.dial()...)
			h.held()
			h.sees(n)
			got := count.counted()
			delete(got, "Event") // its own key, and what sees wrote
			if !maps.Equal(got, all) {
				t.Errorf("it cost %v, want %v", got, all)
			}
			if len(h.entries) != c.peers+1 {
				t.Errorf("it knows %d leases", len(h.entries))
			}
		})
	}
}

// Who loses its choice learns with that what else is taken by now: it costs one more transaction, whatever it does not know.
func TestCollisionCalls(t *testing.T) {
	n, slow, count := newNetwork(t), slowWatch{make(chan struct{})}, calls{}
	r := want("192.0.2.1", narrow)
	pool := r.Range.V4.Pool(nil)
	choice, _ := pool.Pick(fmt.Sprint(r.PublicIP))
	pool.Take(choice)
	second, _ := pool.Pick(fmt.Sprint(r.PublicIP))
	pool.Take(second)
	free, _ := pool.Pick("")
	h := n.node(append(count.dial(), slow.dial())...)
	h.listed()
	for _, p := range []netip.Prefix{choice, second} {
		n.put(subnet.FormatKey(subnet.PairOf(subnet.IPv4, p)), value("192.0.2.9"), clientv3.WithLease(n.grant()))
	}
	h.Want(r)
	key := h.held()
	if got := h.last.Own.Lease.Subnet.V4; got != free {
		t.Errorf("it holds %s, want %s", key, free)
	}
	if got := count.counted(); got["Txn"] != 2 || got["LeaseGrant"] != 1 || got["Range"] != 1 || got["LeaseRevoke"] != 0 {
		t.Errorf("it cost %v", got)
	}
	close(slow.open)
	h.sees(n)
	h.holds(key)
}

// A renewal is a message of its host's, and nobody else's business.
func TestRenewalCalls(t *testing.T) {
	t.Parallel()
	n, own, others := newNetwork(t), calls{}, calls{}
	h := n.join(want("192.0.2.1", wide), append(own.dial(), shortLease)...)
	peer := n.join(want("192.0.2.2", wide), others.dial()...)
	h.sees(n)
	peer.sees(n)
	h.until("told of what the peer saw", func() bool { return h.last.Revision >= peer.last.Revision })
	keys, before, theirs := n.keys(), own.counted(), others.counted()
	for range 2 {
		at := h.last.Own.Renewed
		h.until("renewed", func() bool { return h.last.Own.Renewed.After(at) })
	}
	before["LeaseKeepAlive"] += 2 // streams
	before["KeepAlive"] += 2      // messages
	if after := own.counted(); !maps.Equal(after, before) {
		t.Errorf("two renewals cost %v, want %v", after, before)
	}
	if after := others.counted(); !maps.Equal(after, theirs) {
		t.Errorf("they cost a peer %v, before %v", after, theirs)
	}
	if after := n.keys(); !maps.Equal(after, keys) {
		t.Errorf("they wrote %v, before %v", after, keys)
	}
}

// shortLease has etcd leases renewed every few seconds.
var shortLease = grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
	if r, ok := req.(*etcdserverpb.LeaseGrantRequest); ok {
		r.TTL = 9
	}
	return invoke(ctx, method, req, reply, cc, o...)
})

// A thousand hosts start together, and all choose from the same view of a network that is half full. Some lose their choice,
// few of them twice. Etcd shares the machine with them here, and may be too slow to answer all of them in time: who gets no
// answer asks again, and nothing is done twice.
func TestManyJoinAtOnce(t *testing.T) {
	hosts, config, half := 1000, `{"Network":"10.0.0.0/12","SubnetLen":24}`, "10.0.0.0/13"
	if raceEnabled {
		hosts, config, half = 250, `{"Network":"10.0.0.0/14","SubnetLen":24}`, "10.0.0.0/15"
	}
	n, count, listed := newNetwork(t), calls{}, sync.WaitGroup{}
	listed.Add(hosts)
	request := func(i int) subnet.Request { // half is as good as taken, and makes no list long
		return exclude(want(fmt.Sprintf("192.0.%d.%d", i/256, i%256), config), half)
	}
	together := grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
		if filepath.Base(method) == "LeaseGrant" {
			listed.Done()
			listed.Wait()
			var cancel context.CancelFunc
			ctx, cancel = call(context.WithoutCancel(ctx))
			defer cancel()
		}
		err := invoke(ctx, method, req, reply, cc, o...)
		if filepath.Base(method) == "Txn" && err == nil {
			count.add("Txn answered", 1)
		}
		return err
	})
	nodes := make([]*node, hosts)
	for i := range nodes {
		options := n.options
		options.DialOptions = append(count.dial(), together)
		nodes[i] = prepare(t, options)
		nodes[i].Want(request(i))
		nodes[i].run()
	}
	listed.Wait()
	began := time.Now()
	for _, h := range nodes {
		h.held()
	}
	took, seen := time.Since(began), map[string]int{}
	end, err := n.raw.Put(t.Context(), n.options.Prefix+"/mark", "")
	if err != nil {
		t.Fatal(err)
	}
	for i, h := range nodes {
		h.until("caught up", func() bool { return h.last.Revision >= end.Header.Revision }) // nobody gave way to another meanwhile
		if other, twice := seen[h.key()]; twice || !serves(h.last.Own.Lease.Subnet, request(i)) {
			t.Errorf("host %d holds %s, as does host %d, or it may not", i, h.key(), other)
		}
		seen[h.key()] = i
	}
	got := count.counted()
	t.Logf("%d hosts at once: within %s, %.2f transactions each, %.2f answered; calls %v", hosts, took.Round(time.Millisecond),
		float64(got["Txn"])/float64(hosts), float64(got["Txn answered"])/float64(hosts), got)
	if keys := n.keys(); len(keys) != hosts {
		t.Errorf("%d keys, want %d", len(keys), hosts)
	}
	if got["Txn answered"] > 2*hosts || got["LeaseGrant"] != hosts {
		t.Errorf("%d hosts cost %v", hosts, got)
	}
}

// The transaction that registers a host gets no answer in time. Whether it was done or not, the next try finds out, and leaves
// nothing behind.
func TestNoAnswer(t *testing.T) {
	for _, c := range []struct {
		name  string
		done  bool // in spite of that
		blind bool // the watch does not tell either
		other bool // what is wanted next is another network's
		gone  bool // the etcd lease ends meanwhile
		cost  map[string]int
	}{
		{"done, as the watch tells", true, false, false, false, map[string]int{"Txn": 1, "LeaseGrant": 1}},
		{"done", true, true, false, false, map[string]int{"Txn": 2, "LeaseGrant": 1}},
		{"not done", false, false, false, false, map[string]int{"Txn": 2, "LeaseGrant": 1}},
		{"done, and of no use", true, true, true, false, map[string]int{"Txn": 2, "LeaseGrant": 2, "LeaseRevoke": 1}},
		{"not done, and too long ago", false, false, false, true, map[string]int{"Txn": 3, "LeaseGrant": 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, slow, count, first := newNetwork(t), slowWatch{make(chan struct{})}, calls{}, sync.Once{}
			h := &node{}
			lose := grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) (err error) {
				lost := false
				if filepath.Base(method) == "Txn" {
					first.Do(func() { lost = true })
				}
				if !lost || c.done {
					err = invoke(ctx, method, req, reply, cc, o...)
				}
				if !lost {
					return err
				}
				if c.other {
					h.Want(want("192.0.2.1", `{"Network":"10.6.0.0/16"}`))
				}
				if id := req.(*etcdserverpb.TxnRequest).Success[0].GetRequestPut().Lease; c.gone {
					if _, err := n.raw.Revoke(ctx, clientv3.LeaseID(id)); err != nil {
						t.Error(err)
					}
				}
				return rpctypes.ErrGRPCTimeout
			})
			options := n.options
			if options.DialOptions = append(count.dial(), lose); c.blind {
				options.DialOptions = append(options.DialOptions, slow.dial())
			}
			h = prepare(t, options)
			h.Want(want("192.0.2.1", wide))
			h.run()
			key := h.held()
			got := count.counted()
			maps.DeleteFunc(got, func(call string, _ int) bool {
				return call != "Txn" && !strings.HasPrefix(call, "LeaseGrant") && call != "LeaseRevoke"
			})
			if !maps.Equal(got, c.cost) {
				t.Errorf("it cost %v, want %v", got, c.cost)
			}
			close(slow.open)
			h.sees(n)
			keys := n.keys()
			if len(keys) != 1 || keys[key].modified != h.last.Own.Revision || h.key() != key {
				t.Errorf("holds %s, stored is %v", key, keys)
			}
		})
	}
}

func TestRestartWritesNothing(t *testing.T) {
	n := newNetwork(t)
	first := n.join(want("192.0.2.1", wide))
	key := first.key()
	first.stop()
	before, count := n.keys(), calls{}
	second := n.join(after(first.last.Own, want("192.0.2.1", wide)), count.dial()...)
	second.sees(n)
	if second.key() != key {
		t.Errorf("holds %s after a restart, before it %s", second.key(), key)
	}
	if after := n.keys(); !maps.Equal(before, after) {
		t.Errorf("a restart wrote: %v, before %v", after, before)
	}
	if got := count.counted(); got["Txn"]+got["LeaseGrant"]+got["Put"] != 0 {
		t.Errorf("a restart cost %v", got)
	}
}

func TestChoice(t *testing.T) {
	const host, other = "192.0.2.1", "192.0.2.9"
	reserved := `{"PublicIP":"192.0.2.1","PublicIPv6":null}`
	for _, c := range []struct {
		name string
		keys map[string]string // in etcd before; the value of a reservation begins with "!"
		want subnet.Request
		held string // "" for anything new
	}{
		{"reservation before earlier lease and previous",
			map[string]string{"10.5.7.0-24": value(host), "10.5.8.0-24": "!" + reserved}, previous(want(host, wide), "10.5.9.0/24"), "10.5.8.0-24"},
		{"earlier lease before previous", map[string]string{"10.5.7.0-24": value(host)}, previous(want(host, wide), "10.5.9.0/24"), "10.5.7.0-24"},
		{"of two earlier leases the previous", map[string]string{"10.5.7.0-24": value(host), "10.5.8.0-24": value(host)}, previous(want(host, wide), "10.5.8.0/24"), "10.5.8.0-24"},
		{"previous if free", map[string]string{"10.5.7.0-24": value(other)}, previous(want(host, wide), "10.5.9.0/24"), "10.5.9.0-24"},
		{"previous is taken", map[string]string{"10.5.9.0-24": value(other)}, previous(want(host, wide), "10.5.9.0/24"), ""},
		{"previous overlaps a longer one", map[string]string{"10.5.9.128-25": value(other)}, previous(want(host, wide), "10.5.9.0/24"), ""},
		{"previous is outside", nil, previous(want(host, wide), "10.6.9.0/24"), ""},
		{"earlier lease outside the range", map[string]string{"10.6.7.0-24": value(host)}, want(host, wide), ""},
		{"earlier lease of another length", map[string]string{"10.5.7.0-25": value(host)}, want(host, wide), ""},
		{"earlier lease on an excluded prefix", map[string]string{"10.5.7.0-24": value(host)}, exclude(want(host, wide), "10.5.7.8/32"), ""},
		{"previous on an excluded prefix", nil, exclude(previous(want(host, wide), "10.5.9.0/24"), "10.5.8.0/22"), ""},
		{"all but one excluded", nil, exclude(want(host, narrow), "10.5.1.0/24", "10.5.2.1/32"), "10.5.3.0-24"},
		{"another host's public address lies in a subnet", map[string]string{"10.5.1.0-24": value("10.5.2.77")}, want(host, narrow), "10.5.3.0-24"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNetwork(t)
			for key, v := range c.keys {
				if v, isReserved := strings.CutPrefix(v, "!"); isReserved {
					n.put(key, v)
				} else {
					n.put(key, v, clientv3.WithLease(n.grant()))
				}
			}
			h := n.join(c.want)
			_, old := c.keys[h.key()]
			if c.held != "" && h.key() != c.held || c.held == "" && (old || !serves(h.last.Own.Lease.Subnet, c.want)) {
				t.Errorf("holds %s, want %q", h.key(), c.held)
			}
		})
	}
}

func exclude(r subnet.Request, prefixes ...string) subnet.Request {
	for _, p := range prefixes {
		r.Exclude = append(r.Exclude, netip.MustParsePrefix(p))
	}
	return r
}

func TestReservationStaysOne(t *testing.T) {
	n := newNetwork(t)
	n.config(wide)
	if err := n.client().Reserve(t.Context(), prefixes("10.5.8.0/24"), addresses("192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	r := want("192.0.2.1", wide)
	var before map[string]stored
	for life := range 2 {
		h := n.join(r)
		if own := h.last.Own; h.key() != "10.5.8.0-24" || !own.Reserved || own.TTL != 0 {
			t.Errorf("life %d: own is %+v", life, own)
		}
		keys := n.keys()
		if got := keys["10.5.8.0-24"]; got.lease != 0 || got.value != string(r.Lease(h.last.Own.Lease.Subnet).MarshalValue()) {
			t.Errorf("life %d: stored is %+v", life, got)
		}
		if life > 0 && !maps.Equal(keys, before) {
			t.Errorf("a restart wrote: %v, before %v", keys, before)
		}
		before, r = keys, after(h.last.Own, r)
		h.stop()
	}
}

func TestOwnKeyReleased(t *testing.T) {
	n := newNetwork(t)
	h := n.join(want("192.0.2.1", wide))
	key := h.key()
	for i := range 10 { // so that a choice by hash would be another one
		n.put(fmt.Sprintf("10.5.%d.0-24", 200+i), value(fmt.Sprintf("192.0.2.%d", 100+i)))
	}
	h.sees(n)
	before := n.keys()[key]
	n.release(strings.Replace(key, "-", "/", 1))
	h.until("written again", func() bool { now := h.entries[key]; return now.Created > before.createRev })
	h.holds(key)
	if after := n.keys()[key]; after.value != before.value || after.lease == 0 {
		t.Errorf("stored is %+v, before %+v", after, before)
	}
}

// Somebody writes another host over our lease. We neither write over that nor move away; when it is gone we have ours again.
func TestOwnKeyOverwritten(t *testing.T) {
	n := newNetwork(t)
	h := n.join(want("192.0.2.1", wide))
	key := h.key()
	n.put(key, value("192.0.2.9"))
	h.until("a rival", func() bool { return h.last.Own.Rival != "" })
	if got := h.last.Own; !strings.HasPrefix(got.Rival, "192.0.2.9 wrote itself into our lease "+key) || !got.Held() || h.key() != key || got.Err != nil {
		t.Errorf("own is %+v", got)
	}
	if got := n.keys()[key].value; got != value("192.0.2.9") {
		t.Errorf("the other host's lease is now %s", got)
	}
	n.release(strings.Replace(key, "-", "/", 1))
	h.until("no rival", func() bool { return h.last.Own.Rival == "" })
	h.holds(key)
}

// A value that nobody can read is nobody's: it is written anew.
func TestOwnKeySpoilt(t *testing.T) {
	n := newNetwork(t)
	h := n.join(want("192.0.2.1", wide))
	key := h.key()
	before := n.keys()[key]
	n.put(key, "garbage")
	h.sees(n)
	h.until("readable again", func() bool { return n.keys()[key].value == before.value })
	h.holds(key)
	if now := n.keys()[key]; now.lease != before.lease || h.last.Own.Reserved {
		t.Errorf("stored is %+v, before %+v", now, before)
	}
}

// Our lease expires while we are away, and another host takes the subnet.
func TestOwnKeyTakenAfterItExpired(t *testing.T) {
	n, w := newNetwork(t), &wire{}
	h := n.join(want("192.0.2.1", wide), w.dial())
	key := h.key()
	w.cut()
	h.until("out of reach", func() bool { return h.last.Err != nil })
	n.release(strings.Replace(key, "-", "/", 1))
	other := n.join(previous(want("192.0.2.2", wide), strings.Replace(key, "-", "/", 1)))
	if other.key() != key {
		t.Fatalf("the other host holds %s", other.key())
	}
	w.mend()
	h.until("another subnet", func() bool { return h.last.Own.Held() && h.key() != key && h.last.Own.Err == nil })
	other.holds(key)
}

func TestOwnEtcdLeaseRevoked(t *testing.T) {
	n := newNetwork(t)
	h := n.join(want("192.0.2.1", wide))
	key := h.key()
	before := n.keys()[key]
	if _, err := n.raw.Revoke(t.Context(), clientv3.LeaseID(before.lease)); err != nil {
		t.Fatal(err)
	}
	h.until("written again", func() bool { return h.entries[key].Created > before.createRev })
	h.holds(key)
	if after := n.keys(); len(after) != 1 || after[key].lease == before.lease || after[key].lease == 0 {
		t.Errorf("stored is %v", after)
	}
}

func TestRequestChanges(t *testing.T) {
	n := newNetwork(t)
	r := want("192.0.2.1", wide)
	h := n.join(r)
	key, before := h.key(), n.keys()[h.key()]
	r.Data.V4 = `{"VNI":2,"VtepMAC":"02:00:00:00:00:09"}`
	h.Want(r)
	h.until("the new data", func() bool { return h.last.Own.Lease.Data == r.Data })
	after := n.keys()
	if got := after[key]; len(after) != 1 || got.createRev != before.createRev || got.lease != before.lease || !strings.Contains(got.value, `"VNI":2`) {
		t.Errorf("stored is %v, before %v", after, before)
	}
	r.Range = want("192.0.2.1", `{"Network":"10.6.0.0/16"}`).Range
	h.Want(r)
	h.until("a subnet in the new range", func() bool { return r.Range.V4.Contains(h.last.Own.Lease.Subnet.V4) })
	if after := n.keys(); len(after) != 1 || after[h.key()].lease == 0 {
		t.Errorf("stored is %v, held %s", after, h.key())
	}
}

// The longer subnets of the new range lie where the old one was: it must not count as taken.
func TestRangeShrinksInPlace(t *testing.T) {
	n := newNetwork(t)
	h := n.join(want("192.0.2.1", `{"Network":"10.5.0.0/22","SubnetMin":"10.5.1.0","SubnetMax":"10.5.1.0"}`))
	r := want("192.0.2.1", `{"Network":"10.5.0.0/22","SubnetLen":25,"SubnetMin":"10.5.1.0","SubnetMax":"10.5.1.128"}`)
	h.Want(r)
	h.until("a longer subnet", func() bool { return r.Range.V4.Contains(h.last.Own.Lease.Subnet.V4) })
}

// Between a write and the watch's word of it, the request may change again.
func TestRequestChangesBeforeTheWatchTells(t *testing.T) {
	n, slow := newNetwork(t), slowWatch{make(chan struct{})}
	h := n.node(slow.dial())
	h.listed()
	r := want("192.0.2.1", wide)
	h.Want(r)
	key := h.held()
	before := n.keys()[key]
	for vni := range 3 {
		r.Data.V4 = fmt.Sprintf(`{"VNI":%d,"VtepMAC":"02:00:00:00:00:09"}`, vni+2)
		h.Want(r)
		h.until("the new data", func() bool { return h.last.Own.Lease.Data == r.Data })
		if h.key() != key {
			t.Errorf("holds %s, before %s", h.key(), key)
		}
	}
	close(slow.open)
	h.sees(n)
	h.holds(key)
	after := n.keys()
	if got := after[key]; len(after) != 1 || got.createRev != before.createRev || got.lease != before.lease || h.last.Own.Lease.Data != r.Data {
		t.Errorf("stored is %v, before %v", after, before)
	}
}

// A request that is there before the Store runs costs no more than one that comes later.
func TestWantBeforeRun(t *testing.T) {
	for range 5 {
		n := newNetwork(t)
		h := &node{Store: NewStore(n.options), t: t, entries: map[string]subnet.Entry{}}
		h.Want(want("192.0.2.1", wide))
		go h.Run(t.Context())
		key := h.held()
		h.sees(n)
		if keys := n.keys(); len(keys) != 1 || h.key() != key {
			t.Fatalf("holds %s, then %s; stored is %v", key, h.key(), keys)
		}
	}
}

// A running host is not renumbered because its connection was made anew and somebody reserved it another subnet meanwhile.
func TestSessionsKeepTheSubnet(t *testing.T) {
	n, w := newNetwork(t), &wire{}
	h := n.join(want("192.0.2.1", wide), w.dial())
	key := h.key()
	n.put("10.5.77.0-24", `{"PublicIP":"192.0.2.1","PublicIPv6":null}`)
	h.sees(n)
	w.cut()
	h.until("out of reach", func() bool { return h.last.Err != nil })
	n.put("10.5.78.0-24", value("192.0.2.9"))
	n.put("10.5.79.0-24", value("192.0.2.8"))
	if _, err := n.raw.Compact(t.Context(), n.keys()["10.5.79.0-24"].modified, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	w.mend()
	h.until("listed anew", func() bool { return h.last.Reset })
	h.sees(n)
	h.holds(key)
}

func TestFull(t *testing.T) {
	n := newNetwork(t)
	n.put("10.5.1.0-24", value("192.0.2.8"), clientv3.WithLease(n.grant()))
	n.put("10.5.2.0-24", value("192.0.2.9"), clientv3.WithLease(n.grant()))
	n.put("10.5.3.0-24", `{"PublicIP":"192.0.2.7","PublicIPv6":null}`)
	n.put("nonsense", "x")
	h := n.node()
	h.Want(want("192.0.2.1", narrow))
	h.until("full", func() bool { return h.last.Own.Err != nil })
	text := "out of subnets: of 3 for IPv4, 2 are leased and 1 reserved; release some (tulle lease ls) or enlarge the network (tulle config set)"
	if got := h.last.Own.Err.Error(); got != text || h.last.Own.Held() {
		t.Errorf("own is %+v, want the error %q", h.last.Own, text)
	}
	n.release("10.5.2.0/24")
	h.holds("10.5.2.0-24")
}

func TestDualStack(t *testing.T) {
	const config = `{"Network":"10.5.0.0/22","EnableIPv6":true,"IPv6Network":"fd12::/48"}`
	n := newNetwork(t)
	seen := map[netip.Prefix]string{}
	var nodes []*node
	for i := range 3 {
		h := n.node()
		h.listed()
		nodes = append(nodes, h)
		r := want(fmt.Sprintf("192.0.2.%d", i+1), config)
		r.PublicIP.V6 = netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+1))
		h.Want(r)
	}
	for _, h := range nodes {
		key := h.held()
		if v4, v6, ok := strings.Cut(key, "&"); !ok || !strings.HasPrefix(v4, "10.5.") || !strings.HasPrefix(v6, "fd12:") {
			t.Errorf("key %s", key)
		}
		if other, twice := seen[h.last.Own.Lease.Subnet.V4]; twice {
			t.Errorf("%s and %s have the same IPv4 subnet", other, key)
		}
		seen[h.last.Own.Lease.Subnet.V4] = key
	}
}

// The one IPv4 subnet is claimed with two IPv6 subnets, each by a host that does not know of the other yet.
func TestDualStackClaims(t *testing.T) {
	const config = `{"Network":"10.5.0.0/22","SubnetMin":"10.5.1.0","SubnetMax":"10.5.1.0","EnableIPv6":true,"IPv6Network":"fd12::/48"}`
	n, slow := newNetwork(t), slowWatch{make(chan struct{})}
	blind := n.node(slow.dial())
	blind.listed()
	request := func(i int) subnet.Request {
		r := want(fmt.Sprintf("192.0.2.%d", i), config)
		r.PublicIP.V6 = netip.MustParseAddr(fmt.Sprintf("fd00::%d", i))
		return r
	}
	first := n.join(request(1))
	blind.Want(request(2))
	blind.until("full", func() bool { return blind.last.Own.Err != nil })
	key, before := first.key(), n.keys()
	n.release("10.5.1.0/24") // which its holder takes again at once
	first.until("written again", func() bool { return first.entries[key].Created > before[key].createRev })
	close(slow.open)
	blind.sees(n)
	first.holds(key)
	if keys := n.keys(); len(keys) != 1 {
		t.Errorf("stored is %v", keys)
	}
}
