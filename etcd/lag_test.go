package etcd

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/proxy/grpcproxy"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// lags are what a Store said of its lag. It probes all the time.
type lags chan time.Duration

func (l lags) node(n *network, o Options) *node {
	n.t.Helper()
	o.Lag = func(lag time.Duration) {
		select {
		case l <- lag:
		default: // more than any test wants to know
		}
	}
	h := prepare(n.t, o)
	h.probeWait = func() time.Duration { return 50 * time.Millisecond }
	h.run()
	h.listed()
	h.Want(want("192.0.2.1", wide))
	h.held()
	return h
}

// until waits for a lag that is ok.
func (l lags) until(t *testing.T, what string, ok func(time.Duration) bool) (lag time.Duration) {
	t.Helper()
	for deadline := time.After(patience); ; {
		select {
		case lag = <-l:
			if ok(lag) {
				return lag
			}
		case <-deadline:
			t.Fatalf("no lag that is %s; the last was %s", what, lag)
		}
	}
}

// watchMessages counts what is sent to etcd over streams of watches, and changes what comes.
type watchMessages struct {
	sent   atomic.Int64
	change func(ctx context.Context, r *etcdserverpb.WatchResponse)
}

func (w *watchMessages) dial() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
		s, err := stream(ctx, desc, cc, method, o...)
		if operation(method) != "watch" || err != nil {
			return s, err
		}
		return messageStream{s, w}, nil
	})}
}

type messageStream struct {
	grpc.ClientStream
	w *watchMessages
}

func (s messageStream) SendMsg(m any) error {
	s.w.sent.Add(1)
	return s.ClientStream.SendMsg(m)
}

func (s messageStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil && s.w.change != nil {
		s.w.change(s.Context(), m.(*etcdserverpb.WatchResponse))
	}
	return err
}

// TestLag measures with each etcd that there is, and with etcd's own proxy: all of them know a second watch.
func TestLag(t *testing.T) {
	for name, url := range map[string]func(*testing.T) string{
		"embedded": func(*testing.T) string { return shared }, "Debian's": serveDebian, "grpc-proxy": serveProxy,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := networkAt(t, url(t))
			n.config(wide)
			var w watchMessages
			l := make(lags, 10000)
			n.options.DialOptions = w.dial()
			h := l.node(n, n.options)
			before, measured := w.sent.Load(), 0
			l.until(t, "the tenth", func(lag time.Duration) bool {
				if measured++; lag <= 0 || lag > patience {
					t.Errorf("a lag of %s", lag)
				}
				return measured == 10
			})
			if sent := int(w.sent.Load() - before); sent > 2*(measured+2) { // another may be under way at both ends
				t.Errorf("%d messages for %d measurements, want two each", sent, measured)
			}
			n.put("10.5.77.0-24", value("192.0.2.77"))
			h.until("the watch itself goes on", func() bool { return h.entries["10.5.77.0-24"] != h.entries["none"] })
		})
	}
}

// TestLagOfAWatchHeldBack holds back what a watch is told, not what other calls are, as a stuck proxy or a full buffer would.
func TestLagOfAWatchHeldBack(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.config(wide)
	open, first := make(chan struct{}), true // our own watch stands already
	w := watchMessages{change: func(ctx context.Context, r *etcdserverpb.WatchResponse) {
		if first {
			first = false
			return
		}
		select {
		case <-open:
		case <-ctx.Done():
		}
	}}
	l := make(lags, 10000)
	n.options.DialOptions = w.dial()
	l.node(n, n.options)
	long := l.until(t, "half a second, told while it lasts", func(lag time.Duration) bool { return lag > 500*time.Millisecond })
	l.until(t, "longer, as time goes by", func(lag time.Duration) bool { return lag > long })
	close(open)
	l.until(t, "short again", func(lag time.Duration) bool { return lag < long/2 })
}

// TestLagOfAMemberBehind has the watch's member of etcd be behind the one that answers other calls.
func TestLagOfAMemberBehind(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.config(wide)
	started := time.Now()
	w := watchMessages{change: func(_ context.Context, r *etcdserverpb.WatchResponse) {
		if r.Created && time.Since(started) < time.Second {
			r.Header.Revision = 1
		}
	}}
	l := make(lags, 10000)
	n.options.DialOptions = w.dial()
	l.node(n, n.options)
	l.until(t, "nearly the time that the member was behind", func(lag time.Duration) bool { return lag > 500*time.Millisecond })
	l.until(t, "short again", func(lag time.Duration) bool { return lag < 250*time.Millisecond })
}

// TestLagOfAFarEtcd lets all that etcd says come late.
func TestLagOfAFarEtcd(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.config(wide)
	const late = 200 * time.Millisecond
	n.options.DialOptions = []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		return lateConn{conn, late}, err
	})}
	l := make(lags, 10000)
	l.node(n, n.options)
	for range 3 {
		if lag := l.until(t, "one", func(time.Duration) bool { return true }); lag < late {
			t.Errorf("a lag of %s, and everything comes %s late", lag, late)
		}
	}
}

// lateConn hands on what it receives so much later.
type lateConn struct {
	net.Conn
	late time.Duration
}

func (c lateConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	<-time.After(c.late)
	return n, err
}

// serveDebian runs Debian's etcd 3.4, as e2e/prepare unpacks it.
func serveDebian(t *testing.T) string {
	path, err := filepath.Abs("../bin/debian/usr/bin/etcd")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("TULLE_TEST_ROOT") != "" {
			t.Fatalf("%v: e2e/prepare test unpacks it", err)
		}
		t.Skip(err)
	}
	url := freeURL()
	cmd := exec.Command(path, "--data-dir", t.TempDir(), "--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", "http://127.0.0.1:0")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return url
}

// serveProxy runs `etcd grpc-proxy` in front of the shared etcd.
func serveProxy(t *testing.T) string {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{shared}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	kv, _ := grpcproxy.NewKvProxy(client)
	watch, _ := grpcproxy.NewWatchProxy(client.Ctx(), zap.NewNop(), client)
	lease, _ := grpcproxy.NewLeaseProxy(client.Ctx(), client)
	server := grpc.NewServer()
	etcdserverpb.RegisterKVServer(server, kv)
	etcdserverpb.RegisterWatchServer(server, watch)
	etcdserverpb.RegisterLeaseServer(server, lease)
	etcdserverpb.RegisterMaintenanceServer(server, grpcproxy.NewMaintenanceProxy(client))
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		client.Close() // or the proxy would wait for its watches
		server.Stop()
		<-ended
	})
	return "http://" + strings.TrimPrefix(l.Addr().String(), "http://")
}
