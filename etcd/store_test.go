package etcd

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"

	"github.com/tulle-net/tulle/subnet"
)

// flanneld renews by writing the same value under another etcd lease, each host once a day.
func TestFlannelRenewalWakesNobody(t *testing.T) {
	n := newNetwork(t)
	n.put("10.5.2.0-24", value("192.0.2.2"), clientv3.WithLease(n.grant()))
	h := n.node()
	h.listed()
	if len(h.entries) != 1 {
		t.Fatalf("entries are %v", h.entries)
	}
	h.entries = map[string]subnet.Entry{}
	n.put("10.5.2.0-24", value("192.0.2.2"), clientv3.WithLease(n.grant()))
	h.sees(n)
	if len(h.entries) != 0 {
		t.Errorf("a renewal is told: %v", h.entries)
	}
	n.put("10.5.2.0-24", value("192.0.2.2")) // now a reservation, which is news
	h.until("reserved", func() bool { return h.entries["10.5.2.0-24"].Reserved })
}

func TestEventsFold(t *testing.T) {
	n := newNetwork(t)
	n.put("10.5.9.0-24", value("192.0.2.9"))
	h := n.node()
	h.listed()
	for i := range 10 {
		n.put("10.5.2.0-24", value(fmt.Sprintf("192.0.2.%d", 100+i)))
		n.put("10.5.3.0-24", value(fmt.Sprintf("192.0.2.%d", 200+i)))
	}
	n.release("10.5.3.0/24")
	n.release("10.5.9.0/24")
	end := n.keys()["10.5.2.0-24"]
	h.pendingUntil(end.modified+3, "10.5.3.0-24", "10.5.9.0-24") // one more put, two deletions, which are believed a moment later
	u := h.Take()
	last, other, gone := u.Leases["10.5.2.0-24"], u.Leases["10.5.3.0-24"], u.Leases["10.5.9.0-24"]
	if len(u.Leases) != 3 || u.Reset || last.Lease.PublicIP.V4.String() != "192.0.2.109" || last.Created != end.createRev || other != (subnet.Entry{}) || gone != (subnet.Entry{}) {
		t.Errorf("the update is %+v", u)
	}
	if again := h.Take(); len(again.Leases) != 0 || again.Revision != u.Revision {
		t.Errorf("taken twice: %+v", again)
	}
}

// pendingUntil waits until all up to the revision has arrived, and that keys are gone, and takes nothing of it.
func (h *node) pendingUntil(revision int64, gone ...string) {
	h.t.Helper()
	deadline := time.After(patience)
	for {
		h.mu.Lock()
		pending := h.pending.Revision
		left := slices.ContainsFunc(gone, func(key string) bool { e, told := h.pending.Leases[key]; return !told || e != (subnet.Entry{}) })
		h.mu.Unlock()
		if pending >= revision && !left {
			return
		}
		select {
		case <-h.Changed():
		case <-deadline:
			h.t.Fatalf("after %s only revision %d has arrived, not %d", patience, pending, revision)
		}
	}
}

func TestListsAnewAfterCompaction(t *testing.T) {
	n, w := newNetwork(t), &wire{}
	n.config(wide)
	n.put("10.5.2.0-24", value("192.0.2.2"))
	h := n.node(w.dial())
	h.listed()
	if !h.last.Reset || len(h.last.Leases) != 1 {
		t.Errorf("the first update is %+v", h.last)
	}
	n.put("10.5.3.0-24", value("192.0.2.3"))
	h.until("one more", func() bool { return len(h.entries) == 2 })
	if h.last.Reset {
		t.Error("an event is told as the whole set")
	}
	w.cut()
	h.until("out of reach", func() bool { return h.last.Err != nil })
	n.release("10.5.2.0/24")
	n.put("10.5.4.0-24", value("192.0.2.4"))
	n.put("10.5.5.0-24", value("192.0.2.5"))
	if _, err := n.raw.Compact(t.Context(), n.keys()["10.5.5.0-24"].modified, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	w.mend()
	h.until("the whole set", func() bool { return h.last.Reset })
	_, left := h.entries["10.5.2.0-24"]
	if len(h.entries) != 3 || left || h.last.Err != nil || !h.last.Config.Usable() {
		t.Errorf("entries are %v, update %+v", h.entries, h.last)
	}
}

// What was written while the connection was away is told without a new list.
func TestWatchGap(t *testing.T) {
	n, w, count := newNetwork(t), &wire{}, calls{}
	h := n.join(want("192.0.2.1", wide), append(count.dial(), w.dial())...)
	key := h.key()
	w.cut()
	h.until("out of reach", func() bool { return h.last.Err != nil })
	if text := h.last.Err.Error(); text != "no connection to etcd at "+shared {
		t.Errorf("the error is %q", text)
	}
	if h.key() != key || h.last.Own.Err != nil {
		t.Errorf("own is %+v", h.last.Own)
	}
	n.put("10.5.2.0-24", value("192.0.2.2"))
	w.mend()
	h.until("seen", func() bool { return h.entries["10.5.2.0-24"].Created != 0 })
	h.until("in reach", func() bool { return h.last.Err == nil })
	if got := count.counted(); got["Range"] != 2 || got["Txn"] != 1 || h.key() != key { // one list, and one look at the newest key
		t.Errorf("calls %v, own %+v", got, h.last.Own)
	}
}

// A watch that etcd cancels, as it does without a leader, goes on where it was: nothing is missed, nothing listed.
func TestWatchCancelled(t *testing.T) {
	n, broken, count := newNetwork(t), &brokenWatch{}, calls{}
	h := n.join(want("192.0.2.1", wide), append(count.dial(), broken.dial())...)
	key := h.key()
	h.sees(n)
	for i := range 3 {
		broken.next.Store(true)
		peer := fmt.Sprintf("10.5.%d.0-24", i+2)
		n.put(peer, value("192.0.2.2"))
		h.until("out of reach", func() bool { return h.last.Err != nil })
		if text := h.last.Err.Error(); text != "etcd ended the watch" {
			t.Errorf("the error is %q", text)
		}
		h.until("seen", func() bool { return h.last.Err == nil && h.entries[peer].Created != 0 })
	}
	h.holds(key)
	if lists := count.lists(); lists != 1 || h.last.Alert != "" {
		t.Errorf("%d lists; alert %q", lists, h.last.Alert)
	}
}

func TestMalformedDisturbNobody(t *testing.T) {
	n := newNetwork(t)
	bad := map[string]string{
		"nonsense": "x", "": "x", "10.5.2.0-33": value("192.0.2.2"), "10.5.2.1-24": value("192.0.2.2"), "10.5.3.0-24": "not JSON",
		"10.5.4.0-24": `{}`, "10.5.5.0-24": `{"PublicIP":"224.0.0.1"}`, "10.5.6.0-24": strings.Repeat("x", 1<<20), "10.5.7.0-24/more": value("192.0.2.7"),
		"10.5.8.0-24": "\x00\xff",
	}
	put := func(keys ...string) {
		for _, key := range keys {
			n.put(key, bad[key])
		}
	}
	put("nonsense", "", "10.5.2.0-33", "10.5.3.0-24", "10.5.6.0-24")
	n.put("10.99.0.0-24", value("192.0.2.9")) // outside: who has a plan refuses it
	h := n.join(want("192.0.2.1", wide))
	for key := range bad {
		put(key)
	}
	h.sees(n)
	for key := range bad {
		reject := (*subnet.Reject)(nil)
		if e := h.entries[key]; !errors.As(e.Err, &reject) || e.Lease != (subnet.Lease{}) {
			t.Errorf("%q: %+v", key, e)
		}
	}
	if e := h.entries["10.99.0.0-24"]; e.Err != nil || !e.Lease.Subnet.V4.IsValid() {
		t.Errorf("a lease outside: %+v", e)
	}
	if _, ok := h.entries[h.key()]; !ok || len(h.entries) != len(bad)+2 {
		t.Errorf("entries are %v", h.entries)
	}
	if taken := h.last.Own.Lease.Subnet.V4.String(); taken == "10.5.3.0/24" || taken == "10.5.6.0/24" {
		t.Errorf("%s has a key already, if a malformed one", taken)
	}
}

func TestConfigFollowed(t *testing.T) {
	n := newNetwork(t)
	h := n.node()
	h.listed()
	if h.last.Config.Revision != 0 {
		t.Errorf("config is %+v", h.last.Config)
	}
	n.config(`{"Network":"10.5.0.0/16","Colour":"red"}`)
	h.until("a config", func() bool { return h.last.Config.Usable() })
	if c := h.last.Config; c.Config.Range.V4.Network.String() != "10.5.0.0/16" || fmt.Sprint(c.Unknown) != "[Colour]" {
		t.Errorf("config is %+v", c)
	}
	n.config(`{"Network":7}`)
	h.until("a bad config", func() bool { return h.last.Config.Err != nil })
	if _, err := n.raw.Delete(t.Context(), n.options.Prefix+"/config"); err != nil {
		t.Fatal(err)
	}
	h.until("no config", func() bool { return h.last.Config.Revision == 0 })
}

func TestEtcdComesLate(t *testing.T) {
	t.Parallel() // it waits for timeouts
	url := freeURL()
	o := Options{Endpoints: []string{url}, Prefix: "/late"}
	h := start(t, o)
	h.Want(want("192.0.2.1", wide))
	h.until("an error", func() bool { return h.last.Err != nil })
	if text := h.last.Err.Error(); !strings.Contains(text, url) || !strings.Contains(text, "connection refused") || strings.Contains(text, "rpc error") {
		t.Errorf("the error is %q", text)
	}
	serveFor(t, ServerOptions{DataDir: t.TempDir(), ListenClientUrls: []string{url}})
	h.listed()
	h.held()
}

func TestEtcdRestarts(t *testing.T) {
	t.Parallel()
	url, dir := freeURL(), t.TempDir()
	stop := serveFor(t, ServerOptions{DataDir: dir, ListenClientUrls: []string{url}})
	n := networkAt(t, url)
	n.put("10.5.2.0-24", value("192.0.2.2"))
	h := n.join(want("192.0.2.1", wide))
	before, key := n.keys(), h.key()
	stop()
	h.until("out of reach", func() bool { return h.last.Err != nil })
	if h.key() != key || h.last.Own.Err != nil {
		t.Errorf("own is %+v while etcd is away", h.last.Own)
	}
	serveFor(t, ServerOptions{DataDir: dir, ListenClientUrls: []string{url}})
	n.put("10.5.3.0-24", value("192.0.2.3"))
	h.until("in reach", func() bool { return h.last.Err == nil && h.entries["10.5.3.0-24"].Created != 0 })
	h.sees(n)
	after := n.keys()
	if len(h.entries) != 3 || h.key() != key || after[key] != before[key] || len(after) != 3 {
		t.Errorf("own %s, before %s; entries %v; stored is %v, before %v", h.key(), key, h.entries, after, before)
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	n := newNetwork(t)
	h := n.join(want("192.0.2.1", wide))
	h.stop()
	n.raw.Close()
	deadline := time.After(patience)
	for {
		left := goroutines("tulle/etcd.(*session)", "tulle/etcd.(*Store)", "client/v3.", "grpc.(*ClientConn)")
		if left == "" {
			return
		}
		select {
		case <-deadline:
			t.Fatal(left)
		default:
			runtime.Gosched()
		}
	}
}

// goroutines returns the stacks that name one of calls. Etcd itself, which runs in this process, has clients of its own.
func goroutines(calls ...string) string {
	all := make([]byte, 4<<20)
	var found []string
	for _, stack := range strings.Split(string(all[:runtime.Stack(all, true)]), "\n\n") {
		for _, call := range calls {
			if strings.Contains(stack, call) && !strings.Contains(stack, "etcd/server/v3") && !strings.Contains(stack, "TestNothing") {
				found = append(found, stack)
				break
			}
		}
	}
	return strings.Join(found, "\n\n")
}

// A host whose address changed keeps its subnet, and does not wait for a connection from the old address to time out.
func TestAddressChange(t *testing.T) {
	n, w := newNetwork(t), &wire{}
	h := n.join(want("192.0.2.1", wide), w.dial())
	key, before := h.key(), n.keys()[h.key()]
	r := want("192.0.2.7", wide)
	h.Want(r)
	h.until("the new address", func() bool { return h.last.Own.Lease.PublicIP == r.PublicIP })
	h.holds(key)
	if now := n.keys(); len(now) != 1 || now[key].createRev != before.createRev || now[key].lease != before.lease || !strings.Contains(now[key].value, "192.0.2.7") {
		t.Errorf("stored is %v, before %v", now, before)
	}
	if made := w.connections(); made != 2 {
		t.Errorf("%d connections, want a new one for the new address", made)
	}
	r.Data.V4 = `{"VNI":2,"VtepMAC":"02:00:00:00:00:09"}`
	h.Want(r)
	h.until("the new data", func() bool { return h.last.Own.Lease.Data == r.Data })
	if made := w.connections(); made != 2 {
		t.Errorf("%d connections: one for other data", made)
	}
}

// blink is a connection that is lost and made anew before anybody looks.
type blink struct{ changes int }

func (*blink) GetState() connectivity.State { return connectivity.Ready }

func (b *blink) WaitForStateChange(ctx context.Context, _ connectivity.State) bool {
	b.changes++
	return b.changes == 1 && ctx.Err() == nil
}

// A connection that was lost for a moment may lead to another etcd: it counts as lost, however it is when we look. (Seen on a busy
// machine: a host went on with an etcd that had been wiped, and never said that the config was gone.)
func TestLostForAMoment(t *testing.T) {
	if !wasLost(t.Context(), &blink{}) {
		t.Error("it was not noticed")
	}
}
