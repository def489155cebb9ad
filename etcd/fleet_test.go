package etcd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tulle-net/tulle/subnet"
)

// announceFleet stands for a vxlan backend's Announce.
func announceFleet(public subnet.Pair[netip.Addr]) subnet.Lease {
	a := public.V4.As4()
	return subnet.Lease{PublicIP: subnet.PairOf(subnet.IPv4, public.V4), Backend: "vxlan", Data: subnet.PairOf(subnet.IPv4, fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:%02x:%02x:%02x:%02x"}`, a[0], a[1], a[2], a[3]))}
}

// fleet is a Fleet that runs until the test ends or stop is called.
type fleet struct {
	*Fleet
	t     *testing.T
	ended chan struct{}
	err   error
	stop  func() error
}

func (n *network) fleet(o FleetOptions, config string) *fleet {
	n.t.Helper()
	if o.Range = want("192.0.2.1", config).Range; o.Announce == nil {
		o.Announce = announceFleet
	}
	client, err := Dial(context.Background(), n.options)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &fleet{Fleet: client.NewFleet(o), t: n.t, ended: make(chan struct{})}
	go func() {
		defer close(f.ended)
		f.err = f.Run(ctx)
	}()
	f.stop = sync.OnceValue(func() error {
		cancel()
		<-f.ended
		client.Close()
		return f.err
	})
	n.t.Cleanup(func() { _ = f.stop() })
	return f
}

// until waits until the Fleet's figures are ok.
func (f *fleet) until(what string, ok func(s FleetStats) bool) FleetStats {
	f.t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for {
		s := f.Stats()
		if ok(s) {
			return s
		}
		select {
		case <-tick.C:
		case <-f.ended:
			f.t.Fatalf("it ended with %v before: %s", f.err, what)
		case <-deadline:
			f.t.Fatalf("after %s still not: %s; errors %d %s", patience, what, s.Errors, s.LastError)
		}
	}
}

func (f *fleet) filled() {
	f.t.Helper()
	f.until("all have joined", func(s FleetStats) bool { return s.FilledIn > 0 })
}

// end stops the Fleet.
func (f *fleet) end() {
	f.t.Helper()
	if err := f.stop(); err != nil {
		f.t.Errorf("Run: %v", err)
	}
}

// alive reports whether an etcd lease is.
func (n *network) alive(id int64) bool {
	n.t.Helper()
	left, err := n.raw.TimeToLive(n.t.Context(), clientv3.LeaseID(id))
	if err != nil {
		n.t.Fatal(err)
	}
	return left.TTL > 0
}

// Hosts of whatever families join as real ones do: one key each, with a subnet of each family and a public address of each.
func TestFleetFamilies(t *testing.T) {
	for _, config := range []string{dual, only6} {
		n := newNetwork(t)
		r := want("192.0.2.1", config)
		n.put("10.5.7.0-24&fd12:0:0:99::-64", value("192.0.2.1"))
		n.put("fd12:0:0:77::-64", `{"PublicIP":null,"PublicIPv6":"2001:2::c612:3"}`)
		others, prefix := n.keys(), n.options.Prefix
		f := n.fleet(FleetOptions{Leases: 100, Churn: 200, Announce: func(public subnet.Pair[netip.Addr]) subnet.Lease {
			l := subnet.Lease{Backend: "vxlan"}
			for f := range r.Range.All() {
				*l.PublicIP.At(f), *l.Data.At(f) = public.Of(f), `{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}`
			}
			return l
		}}, config)
		f.until("some were replaced", func(s FleetStats) bool { return s.Churned >= 20 })
		seen := map[any]string{}
		for key, k := range n.keys() {
			l, err := subnet.ParseLease(key, []byte(k.value))
			if _, before := others[key]; !before && (err != nil || !serves(l.Subnet, r) || len(words(l.PublicIP)) != len(words(l.Subnet))) {
				t.Errorf("%s%s: %s, %v", prefix, subnet.Path(key), k.value, err)
			}
			for _, fact := range append(words(l.Subnet), words(l.PublicIP)...) {
				if twin, twice := seen[fact]; twice {
					t.Errorf("%s and %s both have %v", twin, key, fact)
				}
				seen[fact] = key
			}
		}
		if s := f.Stats(); s.Errors != 0 {
			t.Errorf("%d errors, the last %s", s.Errors, s.LastError)
		}
		f.end()
		if left := n.keys(); len(left) != len(others) {
			t.Errorf("%d keys are left", len(left))
		}
	}
}

// words are a pair's values.
func words[T comparable](p subnet.Pair[T]) (values []any) {
	for _, v := range p.All() {
		values = append(values, v)
	}
	return values
}

func TestFleetJoins(t *testing.T) {
	n := newNetwork(t)
	others := map[string]string{
		"10.5.1.0-24": value("192.0.2.1"), "10.5.7.0-24": value("198.18.0.3"), "10.5.9.128-25": value("192.0.2.2"),
		"10.5.20.0-24": "x", "10.5.30.0-24": value("10.5.33.1"),
	}
	for key, value := range others {
		n.put(key, value)
	}
	f := n.fleet(FleetOptions{Leases: 200}, wide)
	f.filled()
	keys, seen := n.keys(), map[any]string{}
	if len(keys) != 200+len(others) {
		t.Errorf("%d keys", len(keys))
	}
	held := []string{"10.5.1.0/24", "10.5.7.0/24", "10.5.9.0/24", "10.5.20.0/24", "10.5.30.0/24", "10.5.33.0/24"}
	leases := map[int64]bool{}
	for key, k := range keys {
		if k.value == others[key] {
			continue
		}
		l, err := subnet.ParseLease(key, []byte(k.value))
		if err != nil {
			t.Errorf("%s: %v", key, err)
			continue
		}
		if want := announceFleet(l.PublicIP); l.Backend != want.Backend || l.Data != want.Data || k.value != string(l.MarshalValue()) {
			t.Errorf("%s: %s", key, k.value)
		}
		if !f.Range.V4.Contains(l.Subnet.V4) || slices.Contains(held, l.Subnet.V4.String()) {
			t.Errorf("%s is another's, or outside the network", l.Subnet.V4)
		}
		if a := l.PublicIP.V4; !fleetAddresses.V4.Contains(a) || a.String() == "198.18.0.3" {
			t.Errorf("%s: public address %s", key, a)
		}
		for _, fact := range []any{l.Subnet, l.PublicIP, l.Data, k.lease} {
			if twin, twice := seen[fact]; twice {
				t.Errorf("%s and %s both have %v", twin, key, fact)
			}
			seen[fact] = key
		}
		leases[k.lease] = true
		if left, err := n.raw.TimeToLive(t.Context(), clientv3.LeaseID(k.lease)); err != nil || left.GrantedTTL != LeaseTTL {
			t.Errorf("%s: etcd lease %+v, %v", key, left, err)
		}
	}
	if s := f.Stats(); s.Joined != 200 || s.Joins != 200 || s.Join.Len() != 200 || s.Errors != 0 {
		t.Errorf("%d joined, %d measured, %d errors", s.Joined, s.Join.Len(), s.Errors)
	}
	f.end()
	left := n.keys()
	if !maps.EqualFunc(left, others, func(k stored, v string) bool { return k.value == v }) {
		t.Errorf("left at the end: %v", slices.Collect(maps.Keys(left)))
	}
	for id := range leases {
		if n.alive(id) {
			t.Errorf("etcd lease %x was not revoked", id)
		}
	}
	if joined := f.Stats().Joined; joined != 0 {
		t.Errorf("%d joined at the end", joined)
	}
}

func TestFleetChurns(t *testing.T) {
	n := newNetwork(t)
	f := n.fleet(FleetOptions{Leases: 20, Churn: 200, Watchers: 3, Leave: true}, wide)
	f.filled()
	first := n.keys()
	f.until("all were replaced, and some of them again", func(s FleetStats) bool {
		if k := len(n.keys()); k > 20 {
			t.Fatalf("%d keys", k)
		}
		return s.Churned > 50
	})
	s := f.until("each watcher saw fifty hosts join", func(s FleetStats) bool { return s.Delivered >= 3*50 })
	if s.Watching != 3 || s.Delivery.Len() == 0 || s.Errors != 0 {
		t.Errorf("%d watchers, %d measured, %d errors, the last: %s", s.Watching, s.Delivery.Len(), s.Errors, s.LastError)
	}
	f.end() // what was under way has ended by then
	last := n.keys()
	if s := f.Stats(); len(last) != 20 || s.Joined != 20 || s.Joins != 20+s.Churned {
		t.Errorf("%d keys at the end, %d joined; %d joins for %d churned", len(last), s.Joined, s.Joins, s.Churned)
	}
	for key, k := range first {
		if k == last[key] {
			t.Errorf("%s is still there", key)
		}
		if n.alive(k.lease) {
			t.Errorf("the etcd lease of %s, whose host left, was not revoked", key)
		}
	}
}

// A network with as many subnets as hosts can be churned, and a time limit ends it.
func TestFleetFillsTheNetwork(t *testing.T) {
	n := newNetwork(t)
	f := n.fleet(FleetOptions{Leases: 3, Churn: 100, For: 300 * time.Millisecond, Leave: true}, narrow)
	select {
	case <-f.ended:
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	f.end()
	if s := f.Stats(); s.Churned == 0 || s.Errors != 0 || s.Joined != 3 {
		t.Errorf("%d joined, %d churned, %d errors: %s", s.Joined, s.Churned, s.Errors, s.LastError)
	}
	if keys := n.keys(); len(keys) != 3 {
		t.Errorf("keys %v", keys)
	}
}

func TestFleetLeavesItsLeases(t *testing.T) {
	n := newNetwork(t)
	f := n.fleet(FleetOptions{Leases: 10, Leave: true}, wide)
	f.filled()
	before := n.keys()
	f.end()
	if after := n.keys(); len(after) != 10 || !maps.Equal(after, before) {
		t.Errorf("keys %v, were %v", after, before)
	}
	for key, k := range before {
		if !n.alive(k.lease) {
			t.Errorf("the etcd lease of %s is gone", key)
		}
	}
	// Another fleet finds the first one's hosts, and takes nothing of theirs.
	second := n.fleet(FleetOptions{Leases: 10}, wide)
	second.filled()
	addresses := map[string]bool{}
	for key, k := range n.keys() {
		l, err := subnet.ParseLease(key, []byte(k.value))
		if err != nil {
			t.Fatal(err)
		}
		addresses[l.PublicIP.V4.String()] = true
	}
	if len(addresses) != 20 {
		t.Errorf("%d addresses", len(addresses))
	}
	second.end()
	if after := n.keys(); !maps.Equal(after, before) {
		t.Errorf("keys %v, were %v", after, before)
	}
}

func TestFleetFull(t *testing.T) {
	n := newNetwork(t)
	n.put("10.5.2.0-24", value("192.0.2.1"), clientv3.WithLease(n.grant()))
	f := n.fleet(FleetOptions{Leases: 3}, narrow)
	<-f.ended
	text := "only 2 more hosts fit, not 3: out of subnets: of 3 for IPv4, 1 are leased and 0 reserved; release some (tulle lease ls) or enlarge the network (tulle config set)"
	if err := f.stop(); !errors.Is(err, errFull) || err.Error() != text {
		t.Errorf("error %q, want %q", err, text)
	}
	if keys := n.keys(); len(keys) != 1 {
		t.Errorf("keys %v", keys)
	}
}

// Somebody else takes what looked free: no host writes over it, and all is taken back.
func TestFleetLosesARace(t *testing.T) {
	n := newNetwork(t)
	f := n.fleet(FleetOptions{Leases: 2, Churn: 50}, narrow)
	f.filled()
	var theirs string
	f.until("a free subnet is taken", func(FleetStats) bool {
		for _, key := range []string{"10.5.1.0-24", "10.5.2.0-24", "10.5.3.0-24"} {
			name := n.options.Prefix + "/subnets/" + key
			done, err := n.raw.Txn(t.Context()).If(clientv3.Compare(clientv3.Version(name), "=", 0)).
				Then(clientv3.OpPut(name, value("192.0.2.9"))).Commit()
			if err != nil {
				t.Fatal(err)
			}
			if done.Succeeded {
				theirs = key
				return true
			}
		}
		return false
	})
	churned := f.Stats().Churned
	f.until("all others were tried in turn", func(s FleetStats) bool { return s.Churned > churned+6 })
	f.end()
	if keys := n.keys(); len(keys) != 1 || keys[theirs].value != value("192.0.2.9") {
		t.Errorf("keys %v", keys)
	}
	if s := f.Stats(); s.Errors != 0 {
		t.Errorf("%d errors: %s", s.Errors, s.LastError)
	}
}

func TestFleetAddressesInNetwork(t *testing.T) {
	f := newNetwork(t).fleet(FleetOptions{Leases: 1}, `{"Network":"198.19.0.0/16"}`)
	<-f.ended
	if err := f.stop(); err == nil || !strings.Contains(err.Error(), "overlaps 198.18.0.0/15") {
		t.Errorf("error %v", err)
	}
}

func TestLatencies(t *testing.T) {
	var l latencies
	for i := range 1000 {
		l.add(time.Duration(i+1) * 100 * time.Microsecond) // up to 100 ms
	}
	earlier := l.now()
	for q, want := range map[float64]time.Duration{0.5: 50 * time.Millisecond, 0.99: 99 * time.Millisecond, 1: 100 * time.Millisecond} {
		if got := earlier.Quantile(q); got > want || got < want*15/16 {
			t.Errorf("quantile %v is %s, want %s less a sixteenth at most", q, got, want)
		}
	}
	for _, d := range []time.Duration{-time.Second, 7 * time.Microsecond, time.Hour, 1000 * time.Hour} {
		l.add(d)
	}
	since := l.now().Since(earlier)
	if since.Len() != 4 || since.Quantile(0.25) != 0 || since.Quantile(0.5) != 7*time.Microsecond {
		t.Errorf("of 4 since: %d, %s, %s", since.Len(), since.Quantile(0.25), since.Quantile(0.5))
	}
	if (Latencies{}).Quantile(0.5) != 0 {
		t.Error("a quantile of nothing")
	}
}
