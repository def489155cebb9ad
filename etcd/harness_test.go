package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/tulle-net/tulle/subnet"
)

const patience = 30 * time.Second // how long a condition may take to come true on a loaded machine

// shared is the etcd of all tests that neither stop it nor need it to be set up in a special way.
var shared string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "tulle-etcd")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	shared = freeURL()
	stop, err := serve(ServerOptions{DataDir: dir, ListenClientUrls: []string{shared}})
	if err != nil {
		panic(err)
	}
	defer stop()
	return m.Run()
}

// serve runs etcd until stop is called. Nobody connects to the peer port of a lone member, so any will do.
func serve(o ServerOptions) (stop func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	o.Name, o.ListenPeerUrls, o.InitialClusterState, o.InitialClusterToken = "default", []string{"http://127.0.0.1:0"}, "new", "tulle"
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- Serve(ctx, o, func([]string) { close(ready) }) }()
	stop = func() { cancel(); <-ended }
	select {
	case <-ready:
		return stop, nil
	case err := <-ended:
		cancel()
		return nil, fmt.Errorf("etcd ended before it served: %w", err)
	}
}

// serveFor runs etcd for one test.
func serveFor(t *testing.T, o ServerOptions) (stop func()) {
	t.Helper()
	stop, err := serve(o)
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(stop)
	t.Cleanup(stop)
	return stop
}

// freeURL names a port that nobody listens on. It is below the kernel's range for outgoing connections: none of them can
// take it while an etcd is being restarted there.
func freeURL() string {
	for {
		address := fmt.Sprintf("127.0.0.1:%d", 20000+rand.N(12000))
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return "http://" + address
		}
	}
}

var networks atomic.Int64

// network is one network of its own in an etcd.
type network struct {
	t       *testing.T
	options Options
	raw     *clientv3.Client // what others write, malformed or not
}

func newNetwork(t *testing.T) *network { return networkAt(t, shared) }

func networkAt(t *testing.T, url string) *network {
	t.Helper()
	raw, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	return &network{t, Options{Endpoints: []string{url}, Prefix: fmt.Sprintf("/test/%d", networks.Add(1))}, raw}
}

func (n *network) client() *Client {
	return &Client{etcd: n.raw, options: n.options, files: newFiles(n.options), prefix: n.options.Prefix}
}

// put writes the key as somebody else would.
func (n *network) put(key, value string, o ...clientv3.OpOption) {
	n.t.Helper()
	if _, err := n.raw.Put(n.t.Context(), n.client().subnetKey(key), value, o...); err != nil {
		n.t.Fatal(err)
	}
}

func (n *network) config(text string) {
	n.t.Helper()
	if _, err := n.raw.Put(n.t.Context(), n.options.Prefix+"/config", text); err != nil {
		n.t.Fatal(err)
	}
}

func (n *network) grant() clientv3.LeaseID {
	n.t.Helper()
	granted, err := n.raw.Grant(n.t.Context(), LeaseTTL)
	if err != nil {
		n.t.Fatal(err)
	}
	return granted.ID
}

// stored is a key as etcd has it.
type stored struct {
	value                      string
	lease, modified, createRev int64
}

// keys returns all leases that are stored.
func (n *network) keys() map[string]stored {
	n.t.Helper()
	got, err := n.raw.Get(n.t.Context(), n.client().network(), clientv3.WithPrefix())
	if err != nil {
		n.t.Fatal(err)
	}
	keys := map[string]stored{}
	for key, kv := range n.client().leases(got.Kvs) {
		keys[key] = stored{string(kv.Value), kv.Lease, kv.ModRevision, kv.CreateRevision}
	}
	return keys
}

// fill writes as many of the network's subnets as are to be taken, each for a host of its own.
func (n *network) fill(r subnet.Pair[subnet.Range], taken int) {
	n.t.Helper()
	var puts []clientv3.Op
	var pools subnet.Pair[*subnet.Pool]
	for f, r := range r.All() {
		*pools.At(f) = r.Pool(nil)
	}
	for a, id := netip.MustParseAddr("172.16.0.0"), n.grant(); taken > 0; taken-- {
		a = a.Next()
		subnets, _ := subnet.PickEach(pools, a.String())
		for f, p := range subnets.All() {
			pools.Of(f).Take(p)
		}
		name := n.client().subnetKey(subnet.FormatKey(subnets))
		if puts = append(puts, clientv3.OpPut(name, value(a.String()), clientv3.WithLease(id))); len(puts) < 128 && taken > 1 {
			continue
		}
		if _, err := n.raw.Txn(n.t.Context()).Then(puts...).Commit(); err != nil {
			n.t.Fatal(err)
		}
		puts = nil
	}
}

func (n *network) release(p string) {
	n.t.Helper()
	if _, err := n.client().Release(n.t.Context(), p); err != nil {
		n.t.Fatal(err)
	}
}

// node is a Store, and what an agent would have taken from it.
type node struct {
	*Store
	t       *testing.T
	last    subnet.Update
	entries map[string]subnet.Entry
	errs    []string // that were told, in turn
	stop    func()
}

// node runs a Store until the test ends or stop is called.
func (n *network) node(o ...grpc.DialOption) *node {
	n.t.Helper()
	options := n.options
	options.DialOptions = o
	return start(n.t, options)
}

func start(t *testing.T, o Options) *node {
	h := prepare(t, o)
	h.run()
	return h
}

// prepare returns a Store that does not run yet.
func prepare(t *testing.T, o Options) *node {
	h := &node{Store: NewStore(o), t: t, entries: map[string]subnet.Entry{}}
	if o.Grace == 0 { // few tests have a holder that must find the time to answer
		h.answerWait = 100 * time.Millisecond
	}
	return h
}

func (h *node) run() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			h.t.Errorf("Run: %v", err)
		}
	})
	h.t.Cleanup(h.stop)
}

// join runs a Store that wants what r says, and waits until it holds a lease.
func (n *network) join(r subnet.Request, o ...grpc.DialOption) *node {
	n.t.Helper()
	h := n.node(o...)
	h.listed()
	h.Want(r)
	h.held()
	return h
}

// until takes updates until ok.
func (h *node) until(what string, ok func() bool) {
	h.t.Helper()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-h.Changed():
			h.last = h.Take()
			h.entries = h.last.Merge(h.entries)
			h.note()
		case <-deadline:
			h.t.Fatalf("after %s still not: %s; own %+v; error %v; entries %v", patience, what, h.last.Own, h.last.Err, h.entries)
		}
	}
}

// note keeps what the last update says of errors, if that is news.
func (h *node) note() {
	text := ""
	for _, err := range []error{h.last.Err, h.last.Own.Err} {
		if err != nil && err.Error() != text {
			text += err.Error()
		}
	}
	if text != "" && (len(h.errs) == 0 || h.errs[len(h.errs)-1] != text) {
		h.errs = append(h.errs, text)
	}
}

func (h *node) listed() {
	h.t.Helper()
	h.until("listed", func() bool { return h.last.Err == nil && h.last.Revision != 0 })
}

func (h *node) held() string {
	h.t.Helper()
	h.until("a lease held", func() bool { return h.last.Own.Held() && h.last.Own.Err == nil })
	return h.key()
}

func (h *node) key() string { return h.last.Own.Lease.Key() }

// holds waits until the subnet is held.
func (h *node) holds(key string) {
	h.t.Helper()
	h.until("holds "+key, func() bool { return h.key() == key && h.last.Own.Err == nil })
}

// sees waits until the update that has the revision of now has arrived, and all before it.
func (h *node) sees(n *network) {
	h.t.Helper()
	done, err := n.raw.Put(h.t.Context(), n.options.Prefix+"/mark", "")
	if err != nil {
		h.t.Fatal(err)
	}
	h.until("caught up", func() bool { return h.last.Revision >= done.Header.Revision })
}

// want is a request of the host with the addresses, for a subnet of the network.
func want(host, config string) subnet.Request {
	c, _, err := subnet.ParseConfig([]byte(config))
	if err != nil {
		panic(err)
	}
	return subnet.Request{Range: c.Range, PublicIP: addresses(host), Backend: "vxlan", Data: subnet.PairOf(subnet.IPv4, `{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}`)}
}

// after is r of a host whose last life left own behind.
func after(own subnet.Own, r subnet.Request) subnet.Request {
	r.Previous, r.Revision = own.Lease.Subnet, own.Revision
	return r
}

func previous(r subnet.Request, p string) subnet.Request {
	r.Previous = subnet.PairOf(subnet.IPv4, netip.MustParsePrefix(p))
	return r
}

// value is a flannel host's lease.
func value(host string) string {
	return fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}}`, host)
}

const (
	wide   = `{"Network":"10.5.0.0/16"}`
	narrow = `{"Network":"10.5.0.0/22"}` // 10.5.1.0/24, 10.5.2.0/24, 10.5.3.0/24
	dual   = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12::/48"}`
	only6  = `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd12::/48"}`
)

// calls counts RPCs by name, "KeepAlive" for each message that renews and "Event" for each that a watch tells.
type calls struct {
	mu     sync.Mutex
	n      map[string]int
	listed int // Ranges of more than one key
}

func (c *calls) lists() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.listed
}

func (c *calls) count(method string) { c.add(filepath.Base(method), 1) }

func (c *calls) add(what string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	if n > 0 {
		c.n[what] += n
	}
}

func (c *calls) counted() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := map[string]int{}
	for k, v := range c.n {
		n[k] = v
	}
	return n
}

func (c *calls) dial() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			c.count(method)
			if r, ok := req.(*etcdserverpb.RangeRequest); ok && len(r.RangeEnd) > 0 {
				c.mu.Lock()
				c.listed++
				c.mu.Unlock()
			}
			return invoke(ctx, method, req, reply, cc, o...)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
			c.count(method)
			s, err := stream(ctx, desc, cc, method, o...)
			return countedStream{s, c}, err
		}),
	}
}

type countedStream struct {
	grpc.ClientStream
	calls *calls
}

func (s countedStream) SendMsg(m any) error {
	if _, ok := m.(*etcdserverpb.LeaseKeepAliveRequest); ok {
		s.calls.add("KeepAlive", 1)
	}
	return s.ClientStream.SendMsg(m)
}

func (s countedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if r, ok := m.(*etcdserverpb.WatchResponse); ok && err == nil {
		s.calls.add("Event", len(r.Events))
	}
	return err
}

// brokenWatch swallows what the watch tells next, and has etcd cancel it in its place.
type brokenWatch struct{ next atomic.Bool }

func (w *brokenWatch) dial() grpc.DialOption {
	return grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
		s, err := stream(ctx, desc, cc, method, o...)
		if filepath.Base(filepath.Dir(method)) != "etcdserverpb.Watch" || err != nil {
			return s, err
		}
		return brokenStream{s, w}, nil
	})
}

type brokenStream struct {
	grpc.ClientStream
	watch *brokenWatch
}

func (s brokenStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if r := m.(*etcdserverpb.WatchResponse); err == nil && !r.Created && s.watch.next.CompareAndSwap(true, false) {
		r.Events, r.Canceled, r.CancelReason = nil, true, "for the test"
	}
	return err
}

// slowWatch keeps a watch's events back until open is closed: etcd does not promise when they come.
type slowWatch struct{ open chan struct{} }

func (w slowWatch) dial() grpc.DialOption {
	return grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
		s, err := stream(ctx, desc, cc, method, o...)
		if filepath.Base(filepath.Dir(method)) != "etcdserverpb.Watch" || err != nil {
			return s, err
		}
		return slowStream{s, w.open}, nil
	})
}

type slowStream struct {
	grpc.ClientStream
	open chan struct{}
}

func (s slowStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if m.(*etcdserverpb.WatchResponse).Created {
		return err
	}
	select {
	case <-s.open:
	case <-s.Context().Done():
	}
	return err
}

// wire is a host's way to etcd, which can be cut.
type wire struct {
	mu    sync.Mutex
	down  bool
	conns []net.Conn
	tried int           // while it was down
	retry chan struct{} // receives at a try, if somebody waits for one
	made  []time.Time   // connections since it was mended
}

var errDown = errors.New("the wire is cut")

func (w *wire) dial() grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.down {
			w.tried++
			select {
			case w.retry <- struct{}{}:
			default:
			}
			return nil, errDown
		}
		w.made = append(w.made, time.Now())
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			w.conns = append(w.conns, conn)
		}
		return conn, err
	})
}

func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = true
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}

func (w *wire) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down, w.made = false, nil
}

// attempts is how often a connection was tried while the wire was cut.
func (w *wire) attempts() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tried
}

// connections is how many were made since the wire was mended, or at all.
func (w *wire) connections() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.made)
}

// spread is the time from the first to the last connection since the wire was mended.
func (w *wire) spread() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.made[len(w.made)-1].Sub(w.made[0])
}
