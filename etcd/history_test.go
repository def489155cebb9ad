package etcd

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// cluster is an etcd of one test's own, whose data can be kept, lost and brought back.
type cluster struct {
	*network
	dir  string
	stop func()
}

func newCluster(t *testing.T) *cluster {
	t.Parallel() // it waits for connections to be made anew
	url := freeURL()
	c := &cluster{dir: t.TempDir() + "/data"}
	c.stop = serveFor(t, ServerOptions{DataDir: c.dir, ListenClientUrls: []string{url}})
	c.network = networkAt(t, url)
	c.options.Grace = time.Hour
	c.config(wide)
	return c
}

// start runs etcd with the data in dir, or with none.
func (c *cluster) start(dir string) {
	c.t.Helper()
	if err := os.RemoveAll(c.dir); err != nil {
		c.t.Fatal(err)
	}
	if dir != "" {
		if err := os.CopyFS(c.dir, os.DirFS(dir)); err != nil {
			c.t.Fatal(err)
		}
	}
	c.stop = serveFor(c.t, ServerOptions{DataDir: c.dir, ListenClientUrls: c.options.Endpoints})
}

// backup copies what etcd has.
func (c *cluster) backup() string {
	c.t.Helper()
	c.stop()
	dir := c.t.TempDir() + "/backup"
	if err := os.CopyFS(dir, os.DirFS(c.dir)); err != nil {
		c.t.Fatal(err)
	}
	c.start(dir)
	return dir
}

// loses fails the test if a node ever forgets one of keys, from now on.
func (h *node) loses(keys []string, ok func() bool) func() bool {
	return func() bool {
		for _, key := range keys {
			if _, known := h.entries[key]; !known && key != h.key() {
				h.t.Errorf("%s forgot %s", h.key(), key)
			}
		}
		return ok()
	}
}

// hosts joins so many, and returns them when each has seen all.
func (c *cluster) hosts(n int) (hosts []*node, keys []string) {
	c.t.Helper()
	for i := range n {
		hosts = append(hosts, c.join(want(fmt.Sprintf("192.0.2.%d", i+1), wide)))
	}
	for _, h := range hosts {
		h.sees(c.network)
		keys = append(keys, h.key())
	}
	return hosts, keys
}

// back waits until all of hosts hold keys again, and etcd has them; none may have forgotten another meanwhile.
func (c *cluster) back(hosts []*node, keys []string) {
	c.t.Helper()
	for i, h := range hosts {
		h.until("holds "+keys[i]+" again", h.loses(keys, func() bool {
			return h.last.Err == nil && h.last.Alert != "" && h.key() == keys[i] && h.last.Own.Err == nil && c.keys()[keys[i]].lease != 0
		}))
	}
	for _, h := range hosts {
		h.sees(c.network)
	}
}

func TestWiped(t *testing.T) {
	c := newCluster(t)
	hosts, keys := c.hosts(3)
	dead, gone := hosts[2], keys[2]
	dead.stop()
	before := c.keys()
	c.stop()
	c.start("")
	c.back(hosts[:2], keys)
	h := hosts[0]
	h.until("the dead one's key is back", func() bool { return c.keys()[gone].value == before[gone].value })
	for i, key := range keys[:2] {
		if now := c.keys()[key]; now.value != before[key].value {
			t.Errorf("host %d: stored is %+v, before %+v", i, now, before[key])
		}
	}
	if h.last.Config.Revision != 0 {
		t.Error("a wiped etcd has a config")
	}
	left, err := c.raw.TimeToLive(t.Context(), clientv3.LeaseID(c.keys()[gone].lease))
	if err != nil || left.GrantedTTL > 3601 || left.GrantedTTL < 3000 {
		t.Errorf("it has %+v, %v; want what is left of the grace period", left, err)
	}
	newcomer := c.join(want("192.0.2.77", wide))
	if slices.Contains(keys, newcomer.key()) {
		t.Errorf("a new host has %s", newcomer.key())
	}
}

// After the grace period a peer that has not come back is forgotten, here and in etcd.
func TestGraceEnds(t *testing.T) {
	c := newCluster(t)
	c.options.Grace = 4 * time.Second
	hosts, keys := c.hosts(2)
	hosts[1].stop()
	c.stop()
	c.start("")
	h := hosts[0]
	h.until("etcd's loss is noticed", func() bool { return h.last.Alert != "" })
	h.until("the peer is forgotten", func() bool {
		_, stored := c.keys()[keys[1]]
		_, known := h.entries[keys[1]]
		return !stored && !known
	})
	h.until("no alert", func() bool { return h.last.Alert == "" })
	h.holds(keys[0])
}

// A backup knows the first host, not the second, and of the third another subnet.
func TestRestored(t *testing.T) {
	c := newCluster(t)
	first := c.join(want("192.0.2.1", wide))
	third := c.join(previous(want("192.0.2.3", wide), "10.5.33.0/24"))
	backup := c.backup()
	second := c.join(want("192.0.2.2", wide))
	third.Want(want("192.0.2.3", `{"Network":"10.5.0.0/16","SubnetMin":"10.5.200.0"}`))
	third.until("another subnet", func() bool { return third.key() != "10.5.33.0-24" })
	hosts := []*node{first, second, third}
	var keys []string
	for _, h := range hosts {
		h.sees(c.network)
		keys = append(keys, h.key())
	}
	c.stop()
	c.start(backup)
	c.back(hosts, keys)
}

// By the time that a host comes back, etcd's new history is longer than the old one was.
func TestWipedAndOvertaken(t *testing.T) {
	c, w := newCluster(t), &wire{}
	a := c.join(want("192.0.2.1", wide))
	b := c.join(want("192.0.2.2", wide), w.dial())
	b.sees(c.network)
	keys := []string{a.key(), b.key()}
	a.stop()
	w.cut()
	b.until("out of reach", func() bool { return b.last.Err != nil })
	c.stop()
	c.start("")
	for range 50 {
		c.config(wide)
	}
	w.mend()
	c.back([]*node{b}, keys[1:])
	b.until("the other's key is back", b.loses(keys, func() bool { return c.keys()[keys[0]].value != "" }))
}

// A host is cut off before the watch has told it of its own first write, and etcd is wiped: what it wrote it knows.
func TestWipedBeforeTheWatchTold(t *testing.T) {
	c, w, slow := newCluster(t), &wire{}, slowWatch{make(chan struct{})}
	h := c.join(want("192.0.2.1", wide), w.dial(), slow.dial())
	key := h.key()
	w.cut()
	h.until("out of reach", func() bool { return h.last.Err != nil })
	c.stop()
	c.start("")
	c.config(wide)
	c.put(key, value("192.0.2.9"), clientv3.WithLease(c.grant())) // at the same revision
	close(slow.open)
	w.mend()
	h.until("noticed", func() bool { return h.last.Alert != "" && h.last.Err == nil })
	h.until("taken back", func() bool { return strings.Contains(c.keys()[key].value, "192.0.2.1") })
	h.holds(key)
}

// A new host takes a subnet before its holder has noticed that etcd was wiped. The holder has containers there.
func TestNewcomerYields(t *testing.T) {
	c, w := newCluster(t), &wire{}
	old := c.join(want("192.0.2.1", wide), w.dial())
	key := old.key()
	w.cut()
	old.until("out of reach", func() bool { return old.last.Err != nil })
	c.stop()
	c.start("")
	c.config(wide)
	newcomer := c.join(previous(want("192.0.2.9", wide), strings.Replace(key, "-", "/", 1)))
	if newcomer.key() != key {
		t.Fatalf("the new host has %s", newcomer.key())
	}
	w.mend()
	old.until("taken back", func() bool { return strings.Contains(c.keys()[key].value, "192.0.2.1") })
	newcomer.until("another subnet", func() bool { return newcomer.last.Own.Held() && newcomer.key() != key && newcomer.last.Own.Rival == "" })
	old.holds(key)
	if now := c.keys(); len(now) != 2 || now[newcomer.key()].lease == 0 {
		t.Errorf("stored is %v", now)
	}
}

// An operator deletes a live host's key, which the host writes again: its peers lose no packet for it.
func TestDeletedAndWrittenAgain(t *testing.T) {
	n := newNetwork(t)
	h, peer := n.join(want("192.0.2.1", wide)), n.join(want("192.0.2.2", wide))
	h.sees(n)
	key := peer.key()
	before := n.keys()[key]
	n.release(strings.Replace(key, "-", "/", 1))
	h.until("written again", h.loses([]string{key}, func() bool { return h.entries[key].Created > before.createRev }))
	peer.until("held again", func() bool { return peer.key() == key && peer.last.Own.Revision > before.modified })
	peer.stop()
	n.release(strings.Replace(key, "-", "/", 1))
	h.until("gone for good", func() bool { _, known := h.entries[key]; return !known })
}

// Others who share etcd may have it compacted every few minutes, past what we know: hosts whose watch goes on list nothing.
func TestProbeOfWhatIsCompacted(t *testing.T) {
	n, count := newNetwork(t), calls{}
	n.put("10.5.2.0-24", value("192.0.2.2"), clientv3.WithLease(n.grant()))
	options := n.options
	options.DialOptions = count.dial()
	client, err := Dial(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	s := session{store: NewStore(options), client: client, records: map[string]record{}}
	if err := s.list(t.Context()); err != nil {
		t.Fatal(err)
	}
	compact := func() {
		t.Helper()
		done, err := n.raw.Put(t.Context(), "/somebody/else's", "")
		if err == nil {
			_, err = n.raw.Compact(t.Context(), done.Header.Revision)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for what, change := range map[string]func(){"unchanged": func() {}, "changed": func() { n.put("10.5.2.0-24", value("192.0.2.3")) }} {
		change()
		compact()
		if err := s.probe(t.Context()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	r := s.records["10.5.2.0-24"]
	s.history.revision, r.modified = n.keys()["10.5.2.0-24"].modified+1, r.modified-1
	s.records["10.5.2.0-24"] = r
	if err := s.probe(t.Context()); !errors.Is(err, errRewritten) {
		t.Errorf("another history: %v", err)
	}
	if lists := count.lists(); lists != 1 {
		t.Errorf("%d lists", lists)
	}
}

func TestNoSpace(t *testing.T) {
	t.Parallel()
	url := freeURL()
	serveFor(t, ServerOptions{DataDir: t.TempDir(), ListenClientUrls: []string{url}, QuotaBackendBytes: 1 << 20})
	n := networkAt(t, url)
	w := &wire{}
	h := n.join(want("192.0.2.1", wide), w.dial())
	key := h.key()
	for full := false; !full; {
		_, err := n.raw.Put(t.Context(), "/junk", strings.Repeat("x", 200<<10))
		full = err != nil
	}
	w.cut()
	h.until("out of reach", func() bool { return h.last.Err != nil })
	w.mend()
	h.until("the alarm is told", func() bool { return strings.Contains(h.last.Alert, "NOSPACE") && h.last.Err == nil })
	h.holds(key)
	other := n.node()
	other.Want(want("192.0.2.2", wide))
	other.until("it can't join", func() bool { return other.last.Own.Err != nil })
	if text := other.last.Own.Err.Error(); text != errNoSpace {
		t.Errorf("a host that can't join says %q", text)
	}
	again := n.join(after(h.last.Own, want("192.0.2.1", wide)))
	again.holds(key)
	freeSpace(n)
	other.held()
	w.cut()
	h.until("out of reach", func() bool { return h.last.Err != nil })
	w.mend()
	h.until("no alarm", func() bool { return h.last.Alert == "" && h.last.Err == nil })
}

// freeSpace does what the alarm's text says.
func freeSpace(n *network) {
	n.t.Helper()
	got, err := n.raw.Get(n.t.Context(), "/junk")
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.raw.Delete(n.t.Context(), "/junk"); err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.raw.Compact(n.t.Context(), got.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.raw.Defragment(n.t.Context(), n.options.Endpoints[0]); err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.raw.AlarmDisarm(n.t.Context(), &clientv3.AlarmMember{}); err != nil {
		n.t.Fatal(err)
	}
}

// Hosts that lost etcd together neither list anew when it is back nor arrive in one instant, and an outage costs little.
func TestNoStampede(t *testing.T) {
	const hosts = 60
	n, w, count := newNetwork(t), &wire{retry: make(chan struct{})}, calls{}
	var nodes [hosts]*node
	for i := range nodes {
		nodes[i] = n.join(want(fmt.Sprintf("192.0.2.%d", i+1), wide), append(count.dial(), w.dial())...)
	}
	for _, h := range nodes {
		h.sees(n)
	}
	before := count.counted()
	w.cut()
	for _, h := range nodes {
		h.until("out of reach", func() bool { return h.last.Err != nil })
	}
	began := time.Now()
	for w.attempts() < hosts*4 { // each has tried more than once
		select {
		case <-w.retry:
		case <-time.After(patience):
			t.Fatal("nobody tries any more")
		}
	}
	rate := float64(w.attempts()) / hosts / time.Since(began).Seconds()
	w.mend()
	var back sync.WaitGroup
	for _, h := range nodes {
		back.Go(func() { h.until("in reach", func() bool { return h.last.Err == nil }) })
	}
	back.Wait()
	after := count.counted()
	maps.DeleteFunc(after, func(call string, n int) bool { return n == before[call] })
	spread := w.spread()
	t.Logf("%d hosts: %.1f attempts a second each while etcd was away; back over %s; calls before %v, after %v", hosts, rate, spread, before, after)
	if after["Txn"] != 0 || after["LeaseGrant"] != 0 {
		t.Errorf("a return wrote: %v, before %v", after, before)
	}
	if lists := count.lists(); lists != hosts {
		t.Errorf("%d lists, want one for each host, when it joined", lists)
	}
	if rate > 6 { // about 3, and 4 where the machine is slow to see that etcd is away; a stampede is far more
		t.Errorf("%.1f attempts a second while etcd is away", rate)
	}
	if spread < time.Second {
		t.Errorf("all are back within %s", spread)
	}
}
