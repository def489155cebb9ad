package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/tulle-net/tulle/subnet"
)

const both = "192.0.2.1 fd00::1"

// kept fails the test unless after has those of before's subnets that r asks for.
func kept(t *testing.T, r subnet.Request, before, after subnet.Pair[netip.Prefix]) {
	t.Helper()
	for f, p := range usable(before, r).All() {
		if after.Of(f) != p {
			t.Errorf("of %v there is now %v", before, after)
		}
	}
}

// alone returns the one key that is stored, and what it has.
func (n *network) alone() (string, stored) {
	n.t.Helper()
	keys := n.keys()
	for key, s := range keys {
		if len(keys) == 1 {
			return key, s
		}
	}
	n.t.Fatalf("stored is %v", keys)
	return "", stored{}
}

// A live network gets families, and loses them. Its hosts keep the subnets of the family that stays, and their etcd lease; nobody ever
// sees a host without a lease, or with two.
func TestFamiliesChange(t *testing.T) {
	n := newNetwork(t)
	h := n.join(want(both, wide))
	watcher := n.node()
	watcher.listed()
	first := n.keys()[h.key()]
	for _, config := range []string{dual, only6, dual, wide, dual, wide, only6, wide} {
		before, r := h.last.Own, want(both, config)
		h.Want(r)
		h.until("leased for "+config, func() bool { return serves(h.last.Own.Lease.Subnet, r) && h.last.Own.Err == nil })
		kept(t, r, before.Lease.Subnet, h.last.Own.Lease.Subnet)
		key, now := n.alone()
		if key != h.key() || now.lease != first.lease || now.modified != h.last.Own.Revision || h.last.Own.Lease.PublicIP != r.PublicIP {
			t.Errorf("holds %s, with %+v; stored is %s, with %+v", h.key(), h.last.Own, key, now)
		}
		if path := n.options.Prefix + "/" + subnet.Path(key); strings.Contains(path, "/ipv6-subnets/fd12:") != (config == only6) {
			t.Errorf("%s is stored at %s", key, path)
		}
		watcher.until("sees "+key, func() bool {
			if len(watcher.entries) != 1 {
				t.Errorf("with %s, a peer has %v", config, watcher.entries)
			}
			return watcher.entries[key].Lease == h.last.Own.Lease
		})
		if len(h.entries) != 1 {
			t.Errorf("it has %v", h.entries)
		}
	}
}

// A length that changes for one family is nothing to the other.
func TestLengthOfOneFamilyChanges(t *testing.T) {
	n := newNetwork(t)
	h := n.join(want(both, dual))
	before := h.last.Own.Lease.Subnet
	r := want(both, `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12::/48","IPv6SubnetLen":80}`)
	h.Want(r)
	h.until("a longer IPv6 subnet", func() bool { return serves(h.last.Own.Lease.Subnet, r) })
	if now := h.last.Own.Lease.Subnet; now.V4 != before.V4 {
		t.Errorf("has %v, before %v", now, before)
	}
	n.alone()
}

// The config changes while the agent is down, or it was killed before it heard of that.
func TestFamiliesChangeWhileDown(t *testing.T) {
	for _, c := range []struct {
		name, before, after string
		address, then       string // the host's
		known               bool   // what it held
		asks                bool
	}{
		{"a family more", wide, dual, both, both, true, false},
		{"a family less", dual, wide, both, both, true, false},
		{"IPv6 stays", dual, only6, both, both, true, false},
		{"another family", wide, only6, both, both, true, false},
		{"another family, and address", wide, only6, "192.0.2.1", "fd00::1", true, false},
		{"a family more, and nothing known of before", wide, dual, "192.0.2.1", both, false, true},
		{"a family less, and nothing known of before", dual, only6, both, "fd00::1", false, true},
		{"another range", wide, `{"Network":"10.6.0.0/16"}`, both, both, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, count := newNetwork(t), calls{}
			first := n.join(want(c.address, c.before))
			first.stop()
			r := want(c.then, c.after)
			if c.known {
				r = after(first.last.Own, r)
			}
			second := n.join(r, count.dial()...)
			kept(t, r, first.last.Own.Lease.Subnet, second.last.Own.Lease.Subnet)
			if key, _ := n.alone(); key != second.key() || !serves(second.last.Own.Lease.Subnet, r) {
				t.Errorf("holds %s, stored is %s", second.key(), key)
			}
			if txn := count.counted()["Txn"]; (txn > 1) != c.asks {
				t.Errorf("it cost %v", count.counted())
			}
			second.sees(n)
			if len(second.entries) != 1 {
				t.Errorf("it has %v", second.entries)
			}
		})
	}
}

// What is left of the env file may name one family only.
func TestPreviousOfOneFamily(t *testing.T) {
	for _, p := range []string{"10.5.77.0/24", "fd12:0:0:1234::/64"} {
		n := newNetwork(t)
		r := want(both, dual)
		r.Previous = prefixes(p)
		h := n.join(r)
		kept(t, r, r.Previous, h.last.Own.Lease.Subnet)
	}
}

func TestReservationsChangeFamilies(t *testing.T) {
	for _, c := range []struct{ reserved, before, after, held string }{
		{"10.5.7.0/24", wide, dual, "10.5.7.0-24&fd12:0:0:7::-64"},
		{"10.5.7.0/24 fd12:0:0:9::/64", dual, wide, "10.5.7.0-24"},
		{"10.5.7.0/24 fd12:0:0:9::/64", dual, only6, "fd12:0:0:9::-64"},
		{"fd12:0:0:9::/64", only6, dual, "10.5.9.0-24&fd12:0:0:9::-64"},
	} {
		for _, live := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, %s, live %t", c.reserved, c.held, live), func(t *testing.T) {
				n := newNetwork(t)
				n.config(c.before)
				if err := n.client().Reserve(t.Context(), prefixes(c.reserved), addresses(both)); err != nil {
					t.Fatal(err)
				}
				h := n.node()
				if live {
					h.Want(want(both, c.before))
					h.holds(subnet.FormatKey(prefixes(c.reserved)))
				}
				h.Want(want(both, c.after))
				h.holds(c.held)
				if key, now := n.alone(); key != c.held || now.lease != 0 || !h.last.Own.Reserved {
					t.Errorf("stored is %s, with %+v; own is %+v", key, now, h.last.Own)
				}
			})
		}
	}
}

// A reservation of which nothing serves is left to the operator who made it.
func TestReservationThatServesNothing(t *testing.T) {
	n := newNetwork(t)
	n.put("10.5.7.0-24", `{"PublicIP":"192.0.2.1","PublicIPv6":null}`)
	h := n.join(want(both, wide))
	if h.key() != "10.5.7.0-24" {
		t.Fatalf("holds %s", h.key())
	}
	h.Want(want(both, only6))
	h.until("an IPv6 subnet", func() bool { return h.last.Own.Lease.Subnet.V6.IsValid() })
	if keys := n.keys(); len(keys) != 2 || keys["10.5.7.0-24"].lease != 0 || keys[h.key()].lease == 0 {
		t.Errorf("stored is %v", keys)
	}
	h.Want(want(both, wide))
	h.holds("10.5.7.0-24")
}

// Whatever families a lease and a request have addresses of: the host is the same, and takes its lease over.
func TestSameHostReturns(t *testing.T) {
	for _, c := range []struct {
		before, after string
		same          bool
	}{
		{"192.0.2.1", both, true},
		{"fd00::1", both, true},
		{both, "192.0.2.1", true},
		{both, "fd00::1", true},
		{both, "192.0.2.1 fd00::2", true},
		{both, "192.0.2.2 fd00::1", false},
		{"fd00::1", "fd00::2", false},
	} {
		n := newNetwork(t)
		first := n.join(want(c.before, dual))
		first.stop()
		second := n.join(want(c.after, dual))
		if same := second.key() == first.key(); same != c.same || len(n.keys()) == 1 != c.same {
			t.Errorf("%s, then %s: holds %s, then %s", c.before, c.after, first.key(), second.key())
		}
	}
}

// A host that gains or loses a family need not connect anew; one that moves must.
func TestElsewhere(t *testing.T) {
	for _, c := range []struct {
		before, now string
		want        bool
	}{
		{"192.0.2.1", both, false}, {both, "192.0.2.1", false}, {both, "fd00::1", false}, {both, both, false},
		{"192.0.2.1", "192.0.2.2", true}, {"192.0.2.1", "fd00::1", true}, {both, "192.0.2.1 fd00::2", true}, {both, "192.0.2.2 fd00::1", true},
	} {
		if got := elsewhere(addresses(c.before), addresses(c.now)); got != c.want {
			t.Errorf("%s, then %s: %t", c.before, c.now, got)
		}
	}
}

// Keys are where they belong, or are nobody's.
func TestMisplacedKeys(t *testing.T) {
	n := newNetwork(t)
	n.config(only6)
	right, wrong := "fd12:0:0:7::-64", []string{"subnets/fd12:0:0:8::-64", "ipv6-subnets/10.5.7.0-24"}
	for _, key := range append(wrong, right) {
		n.put(key, value("192.0.2.7"), clientv3.WithLease(n.grant()))
	}
	h := n.node()
	h.listed()
	for _, key := range wrong {
		n.put(key, value("192.0.2.8")) // as the watch tells it
	}
	h.sees(n)
	for _, key := range wrong {
		var r *subnet.Reject
		if e := h.entries[key]; !errors.As(e.Err, &r) || r.Reason != subnet.BadKey || !strings.HasPrefix(r.Detail, "in the wrong place") {
			t.Errorf("%s: %+v", key, e)
		}
	}
	if e := h.entries[right]; e.Err != nil || e.Lease.Subnet != prefixes("fd12:0:0:7::/64") || len(h.entries) != 3 {
		t.Errorf("entries %v", h.entries)
	}
	holders, err := n.client().Leases(t.Context())
	if err != nil || len(holders) != 3 || holders[0].Key != right {
		t.Errorf("leases %+v, %v", holders, err)
	}
	look, err := Look(t.Context(), n.options, right)
	if err != nil || look.Entry == nil || look.TTL == 0 {
		t.Errorf("look %+v, %v", look, err)
	}
	for _, key := range append(wrong, right) {
		n.release(key)
	}
	h.until("all are gone", func() bool { return len(h.entries) == 0 })
}

// apart fails the test if two of nodes have subnets that overlap.
func apart(t *testing.T, nodes []*node) {
	t.Helper()
	for i, a := range nodes {
		for _, b := range nodes[:i] {
			if overlap(a.last.Own.Lease.Subnet, b.last.Own.Lease.Subnet) {
				t.Errorf("%s and %s overlap", a.key(), b.key())
			}
		}
	}
}

// Many join a dual-stack network, all from the view of an empty one. The IPv6 subnets are as few as the hosts, and nobody has to
// yield.
func TestManyJoinDualStack(t *testing.T) {
	for _, c := range []struct {
		hosts  int
		config string
	}{
		{3, `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12::/62"}`},
		{4, `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12::/62","IPv6SubnetMin":"fd12::"}`},
		{40, `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12::/48"}`},
	} {
		n, listed := newNetwork(t), sync.WaitGroup{}
		listed.Add(c.hosts)
		together := grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			if filepath.Base(method) == "LeaseGrant" {
				listed.Done()
				listed.Wait()
			}
			return invoke(ctx, method, req, reply, cc, o...)
		})
		var nodes []*node
		for i := range c.hosts {
			h := n.node(together)
			h.Want(want(fmt.Sprintf("192.0.2.%d fd00::%d", i, i+1), c.config))
			nodes = append(nodes, h)
		}
		for _, h := range nodes {
			h.held()
			h.sees(n)
		}
		apart(t, nodes)
		for _, h := range nodes {
			if own := h.last.Own; own.Yielded != "" || own.Err != nil || n.keys()[h.key()].createRev != n.keys()[h.key()].modified {
				t.Errorf("own is %+v", own)
			}
		}
	}
}

// A live IPv4 network gets as few IPv6 subnets as it has hosts, which all take one at once: some collide, and the younger yield until
// all have their own.
func TestManyGetIPv6(t *testing.T) {
	n := newNetwork(t)
	var nodes []*node
	for i := range 4 {
		r := want(fmt.Sprintf("192.0.2.%d fd00::%d", i+1, i+1), wide)
		r.Previous = prefixes(fmt.Sprintf("10.5.%d.0/24", 100+i))
		nodes = append(nodes, n.join(r))
	}
	before, requests := make([]subnet.Lease, len(nodes)), make([]subnet.Request, len(nodes))
	for i, h := range nodes {
		before[i] = h.last.Own.Lease
		requests[i] = want(fmt.Sprintf("192.0.2.%d fd00::%d", i+1, i+1), `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12::/62","IPv6SubnetMin":"fd12::"}`)
		h.Want(requests[i])
	}
	settled := func() bool {
		seen := map[netip.Prefix]bool{}
		for key := range n.keys() {
			subnets, _ := subnet.ParseKey(key)
			seen[subnets.V6] = subnets.V6.IsValid()
		}
		return len(seen) == len(nodes) && !seen[netip.Prefix{}]
	}
	for i, h := range nodes {
		h.until("all have their own", settled)
		h.sees(n)
		h.until("the same as stored", func() bool { _, ok := n.keys()[h.key()]; return ok && h.last.Own.Err == nil })
		kept(t, requests[i], before[i].Subnet, h.last.Own.Lease.Subnet)
	}
	apart(t, nodes)
	if keys := n.keys(); len(keys) != len(nodes) {
		t.Errorf("stored is %v", keys)
	}
}

// A flannel host chooses its IPv6 subnet at random, just before ours is written, or just after. The older stays, and ours keeps the
// IPv4 subnet.
func TestFlannelTakesTheSameIPv6Subnet(t *testing.T) {
	for _, older := range []bool{true, false} {
		t.Run(fmt.Sprintf("older %t", older), func(t *testing.T) {
			n, once, id := newNetwork(t), sync.Once{}, clientv3.LeaseID(0)
			id = n.grant()
			flannels := ""
			meddle := func(v6 string) {
				flannels = "10.5.250.0-24&" + v6
				n.put(flannels, value("192.0.2.50"), clientv3.WithLease(id))
			}
			h := n.node(grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
				if filepath.Base(method) != "Txn" || !older {
					return invoke(ctx, method, req, reply, cc, o...)
				}
				once.Do(func() {
					_, key, _ := strings.Cut(fmt.Sprint(req), "&")
					v6, _, _ := strings.Cut(key, "-64")
					meddle(v6 + "-64")
				})
				return invoke(ctx, method, req, reply, cc, o...)
			}))
			h.listed()
			h.Want(want(both, dual))
			key := h.held()
			if !older {
				_, v6, _ := strings.Cut(key, "&")
				meddle(v6)
				h.sees(n)
				if h.key() != key || h.last.Own.Yielded != "" {
					t.Errorf("own is %+v", h.last.Own)
				}
				return
			}
			h.until("another IPv6 subnet", func() bool { return h.last.Own.Yielded != "" && h.last.Own.Err == nil })
			v4, _, _ := strings.Cut(key, "&")
			if keys := n.keys(); !strings.HasPrefix(h.key(), v4+"&") || len(keys) != 2 || keys[h.key()].lease == 0 {
				t.Errorf("holds %s, before %s; stored is %v", h.key(), key, keys)
			}
			if text := h.last.Own.Yielded; !strings.Contains(text, "overlapped "+flannels+", which 192.0.2.50 holds for longer") {
				t.Errorf("it says %q", text)
			}
			h.sees(n)
			n.alonebut(flannels)
		})
	}
}

// alonebut fails the test unless one key is stored beside another.
func (n *network) alonebut(other string) {
	n.t.Helper()
	if keys := n.keys(); len(keys) != 2 || keys[other].value == "" {
		n.t.Errorf("stored is %v", keys)
	}
}

// The transaction that replaces a key gets no answer. Whether it was done or not, one key is left.
func TestNoAnswerToAReplacement(t *testing.T) {
	for _, c := range []struct{ done, reserved bool }{{true, false}, {false, false}, {true, true}, {false, true}} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			n, armed, lost := newNetwork(t), make(chan struct{}), sync.Once{}
			if c.reserved {
				n.put("10.5.7.0-24", `{"PublicIP":"192.0.2.1","PublicIPv6":null}`)
			}
			h := n.join(want(both, wide), grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) (err error) {
				lose := false
				select {
				case <-armed:
					if filepath.Base(method) == "Txn" {
						lost.Do(func() { lose = true })
					}
				default:
				}
				if !lose || c.done {
					err = invoke(ctx, method, req, reply, cc, o...)
				}
				if lose {
					err = context.DeadlineExceeded
				}
				return err
			}))
			before := h.last.Own.Lease.Subnet
			close(armed)
			r := want(both, dual)
			h.Want(r)
			h.until("both", func() bool { return serves(h.last.Own.Lease.Subnet, r) && h.last.Own.Err == nil })
			kept(t, r, before, h.last.Own.Lease.Subnet)
			h.sees(n)
			if key, now := n.alone(); key != h.key() || (now.lease == 0) != c.reserved {
				t.Errorf("holds %s; stored is %s, with %+v", h.key(), key, now)
			}
		})
	}
}

// The IPv6 range is full: the host goes on with what it has, says so, and joins in when one is free.
func TestNoRoomForIPv6(t *testing.T) {
	const few = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12::/62"}`
	n := newNetwork(t)
	for i := range 3 {
		n.put(fmt.Sprintf("10.5.%d.0-24&fd12:0:0:%d::-64", 100+i, i+1), value(fmt.Sprintf("192.0.2.%d", 100+i)), clientv3.WithLease(n.grant()))
	}
	h := n.join(want(both, wide))
	key := h.key()
	h.Want(want(both, few))
	h.until("full", func() bool { return h.last.Own.Err != nil })
	if own := h.last.Own; own.Lease.Key() != key || !strings.HasPrefix(own.Err.Error(), "out of subnets: of 3 for IPv6, 3 are leased and 0 reserved") {
		t.Errorf("own is %+v", own)
	}
	n.release("fd12:0:0:2::/64")
	h.holds(key + "&fd12:0:0:2::-64")
}

// Etcd is wiped, and two newcomers have each one of our subnets. We take them back.
func TestWipedDualStack(t *testing.T) {
	c, w := newCluster(t), &wire{}
	h := c.join(want(both, dual), w.dial())
	h.sees(c.network)
	key, subnets := h.key(), h.last.Own.Lease.Subnet
	w.cut()
	h.until("out of reach", func() bool { return h.last.Err != nil })
	c.stop()
	c.start("")
	rivals := []string{
		subnet.FormatKey(subnet.Pair[netip.Prefix]{V4: subnets.V4, V6: netip.MustParsePrefix("fd12:0:0:ffff::/64")}),
		subnet.FormatKey(subnet.Pair[netip.Prefix]{V4: netip.MustParsePrefix("10.5.255.0/24"), V6: subnets.V6}),
	}
	for _, rival := range rivals {
		c.put(rival, value("192.0.2.9"), clientv3.WithLease(c.grant()))
	}
	w.mend()
	h.until("taken back", func() bool {
		keys := c.keys()
		return h.last.Err == nil && h.key() == key && keys[key].lease != 0 && !slices.ContainsFunc(rivals, func(r string) bool { return keys[r].value != "" })
	})
	h.sees(c.network)
	h.holds(key)
}

// Etcd is wiped, and a peer comes back with one more family than it had: what it had before is in force no more, and is not written
// back.
func TestPeerReturnsWithMoreFamilies(t *testing.T) {
	c, w := newCluster(t), &wire{}
	h, peer := c.join(want(both, dual), w.dial()), c.join(want("192.0.2.2 fd00::2", wide))
	old, subnets := peer.key(), peer.last.Own.Lease.Subnet
	h.sees(c.network)
	peer.stop()
	w.cut()
	h.until("out of reach", func() bool { return h.last.Err != nil })
	c.stop()
	c.start("")
	anew := subnet.FormatKey(subnet.Pair[netip.Prefix]{V4: subnets.V4, V6: netip.MustParsePrefix("fd12:0:0:ffff::/64")})
	c.put(anew, `{"PublicIP":"192.0.2.2","PublicIPv6":"fd00::2","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}}`, clientv3.WithLease(c.grant()))
	w.mend()
	h.until("the peer's new key alone", func() bool {
		_, known := h.entries[old]
		return h.last.Err == nil && h.last.Alert != "" && !known && h.entries[anew].Created != 0 && c.keys()[h.key()].value != ""
	})
	h.sees(c.network)
	if keys := c.keys(); keys[old].value != "" {
		t.Errorf("stored is %v", keys)
	}
}

// A clone asks for our key just when the config gains a family. We answer with the new key, and it gets none.
func TestCloneAsksWhileFamiliesChange(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.options.Grace = time.Hour // with time to answer
	first := n.join(want(both, wide))
	key, before := first.key(), first.last.Own.Lease.Subnet
	clone := n.node()
	clone.Want(want(both, dual))
	first.Want(want(both, dual))
	clone.until("refused", func() bool { return clone.last.Own.Err != nil })
	r := want(both, dual)
	first.until("both families", func() bool { return serves(first.last.Own.Lease.Subnet, r) && first.last.Own.Err == nil })
	kept(t, r, before, first.last.Own.Lease.Subnet)
	if own := clone.last.Own; own.Held() || !strings.HasPrefix(own.Err.Error(), "another host with our public address 192.0.2.1 holds "+key) {
		t.Errorf("the clone's own is %+v", own)
	}
	if held, now := n.alone(); held != first.key() || claimant(now.value) != "" {
		t.Errorf("stored is %s with %+v", held, now)
	}
}

// Two clones in a dual-stack network, one of which has lost a family of its addresses: still one host, and one lease.
func TestTwoHostsOneAddressDualStack(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.options.Grace = time.Hour
	first := n.join(want(both, dual))
	second := n.node()
	second.Want(want("192.0.2.1", dual))
	second.until("refused", func() bool { return second.last.Own.Err != nil })
	first.until("warned", func() bool { return first.last.Own.Rival != "" })
	if held, now := n.alone(); held != first.key() || claimant(now.value) != "" || second.last.Own.Held() {
		t.Errorf("stored is %s with %+v; the second's own is %+v", held, now, second.last.Own)
	}
}

// Hosts come and go, families come and go, and flannel hosts choose at random meanwhile. When all is quiet each host of ours has what
// it asks for, and nothing of it is an older lease's.
func TestFamiliesAtRandom(t *testing.T) {
	a, b := rand.Uint64(), rand.Uint64()
	t.Logf("seed: rand.NewPCG(%d, %d)", a, b)
	r, n := rand.New(rand.NewPCG(a, b)), newNetwork(t)
	configs := []string{wide, only6,
		`{"Network":"10.5.0.0/20","EnableIPv6":true,"IPv6Network":"fd12::/60"}`,
		`{"Network":"10.5.0.0/20","EnableIPv6":true,"IPv6Network":"fd12::/48","IPv6SubnetMax":"fd12:0:0:f::"}`}
	nodes, last := make([]*node, 5), subnet.Request{}
	for i := range nodes {
		nodes[i] = n.node()
	}
	for round := range 12 {
		config := configs[2+round%2]
		if round < 10 {
			config = configs[r.IntN(len(configs))]
		}
		for i, h := range nodes {
			if last = want(fmt.Sprintf("192.0.2.%d fd00::%d", i+1, i+1), config); r.IntN(8) == 0 {
				h.stop()
				nodes[i] = n.node()
				nodes[i].Want(after(h.last.Own, last))
				continue
			}
			h.Want(last)
		}
		flannels := fmt.Sprintf("10.5.%d.0-24&fd12:0:0:%x::-64", 1+r.IntN(15), 1+r.IntN(15))
		id, name := n.grant(), n.client().subnetKey(flannels)
		if _, err := n.raw.Txn(t.Context()).If(clientv3.Compare(clientv3.Version(name), "=", 0)).
			Then(clientv3.OpPut(name, value(fmt.Sprintf("192.0.2.%d", 100+round)), clientv3.WithLease(id))).Commit(); err != nil {
			t.Fatal(err)
		}
		for _, h := range nodes {
			h.until("leased", func() bool { return serves(h.last.Own.Lease.Subnet, last) && h.last.Own.Err == nil })
		}
		n.settled(nodes)
		if _, err := n.raw.Revoke(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if keys := n.keys(); len(keys) != len(nodes) {
			t.Errorf("with %s, stored is %v", config, keys)
		}
	}
}

// settled waits until each of nodes has what it says it has, and nothing that is an older lease's.
func (n *network) settled(nodes []*node) {
	n.t.Helper()
	for _, h := range nodes {
		h.until("settled", func() bool {
			keys := n.keys()
			mine, ok := keys[h.key()]
			for key, k := range keys {
				theirs, _ := subnet.ParseKey(key)
				ok = ok && (k.createRev >= mine.createRev || !overlap(theirs, h.last.Own.Lease.Subnet))
			}
			return ok && h.last.Own.Err == nil
		})
	}
}
