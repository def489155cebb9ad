package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/probe"
	"github.com/tulle-net/tulle/agent/server"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// rig is an agent between fakes.
type rig struct {
	*testing.T
	store    *fakeStore
	kernel   *fakeKernel
	firewall *fakeFirewall
	registry *prometheus.Registry
	agent    *Agent
	log      *transcript
}

func newRig(t *testing.T, listen string) *rig {
	local := subnet.PairOf(subnet.IPv4, netip.MustParseAddr("192.0.2.1"))
	r := &rig{T: t, log: &transcript{}, registry: prometheus.NewRegistry(),
		store: &fakeStore{changed: make(chan struct{}, 1), pending: subnet.Update{Leases: map[string]subnet.Entry{}}},
		kernel: &fakeKernel{doorbell: make(chan struct{}, 1), underlay: backend.Underlay{Device: "eth0", MTU: 1500, Local: local, Public: local,
			OnLink: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}},
		firewall: &fakeFirewall{doorbell: make(chan struct{}, 1)},
	}
	handler := slog.NewTextHandler(r.log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	config := Config{RunDir: filepath.Join(t.TempDir(), "run"), SubnetFile: "subnet.env", Listen: server.Options{Address: listen}, SetConfig: "tulle config set -", Version: "1.2.3", Host: "host1",
		Options: backend.Options{Bridge: "docker0", Masquerade: subnet.PairOf(subnet.IPv4, true), Forward: true}}
	if listen != "" { // sockets would keep a bubble's clock from moving
		config.Socket = api.Socket(config.RunDir)
	}
	r.agent = New(config, r.store, r.kernel, r.firewall, nil, r.registry, slog.New(handler))
	return r
}

// run runs the agent until stop is called.
func (r *rig) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.agent.Run(ctx) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			r.Errorf("Run: %v", err)
		}
	}
}

// bubble runs test with an agent whose clock is synctest's: it moves when the agent waits, so no time passes unseen.
func bubble(t *testing.T, test func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "")
		r.agent.prober = probe.New(probe.Options{}) // it does not run: there is nobody to probe
		defer r.run()()
		test(r)
	})
}

// pass lets d go by, and the agent do what it then does.
func (r *rig) pass(d time.Duration) {
	time.Sleep(d) // of the bubble's clock
	synctest.Wait()
}

// settle lets one pass come.
func (r *rig) settle() { r.pass(100 * time.Millisecond) }

const vxlan = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`

// list publishes a first list without leases.
func (r *rig) list(config string) {
	r.store.publish(func(u *subnet.Update) {
		u.Reset, u.Revision = true, u.Revision+1
		u.Config = parsed(config, u.Revision)
	})
	r.settle()
}

func parsed(text string, revision int64) subnet.StoredConfig {
	if text == "" {
		return subnet.StoredConfig{}
	}
	c, unknown, err := subnet.ParseConfig([]byte(text))
	return subnet.StoredConfig{Revision: revision, Text: text, Config: c, Unknown: unknown, Err: err}
}

func (r *rig) setConfig(text string) {
	r.store.publish(func(u *subnet.Update) {
		u.Revision++
		u.Config = parsed(text, u.Revision)
	})
	r.settle()
}

// hold publishes that the host holds a subnet.
func (r *rig) hold(p string) {
	lease := r.store.lastWant().Lease(subnet.PairOf(subnet.IPv4, netip.MustParsePrefix(p)))
	r.store.publish(func(u *subnet.Update) {
		u.Own = subnet.Own{Lease: lease, Revision: 7, Renewed: time.Unix(1700000000, 0), TTL: 24 * time.Hour}
	})
	r.settle()
}

func (r *rig) own(change func(o *subnet.Own)) {
	r.store.publish(func(u *subnet.Update) { change(&u.Own) })
	r.settle()
}

// ready brings the agent to where it holds 10.5.1.0/24 and has programmed that.
func (r *rig) ready() {
	r.Helper()
	r.list(vxlan)
	r.hold("10.5.1.0/24")
	r.wantReady(true, "10.5.1.0-24, 0 peers")
}

// put publishes leases; a zero Entry for one that is gone.
func (r *rig) put(leases ...subnet.Entry) {
	r.store.publish(func(u *subnet.Update) {
		for _, e := range leases {
			u.Revision++
			u.Leases[e.Lease.Key()] = e
		}
	})
	r.settle()
}

func (r *rig) remove(keys ...string) {
	r.store.publish(func(u *subnet.Update) {
		for _, key := range keys {
			u.Leases[key] = subnet.Entry{}
		}
	})
	r.settle()
}

// peer is the lease 10.5.N.0/24 of 192.0.2.N.
func peer(n int) subnet.Entry {
	return subnet.Entry{Created: int64(n), Lease: subnet.Lease{
		Subnet:   subnet.PairOf(subnet.IPv4, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(n), 0}), 24)),
		PublicIP: subnet.PairOf(subnet.IPv4, netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})),
		Backend:  "vxlan", Data: subnet.PairOf(subnet.IPv4, fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:00:00:%02x"}`, n))}}
}

func (r *rig) wantReady(ready bool, reason string) {
	r.Helper()
	if s := r.agent.Status(); s.Ready != ready || s.Reason != reason {
		r.Errorf("ready %t: %q, want %t: %q", s.Ready, s.Reason, ready, reason)
	}
}

// wantLog takes what was logged since it was last called, and compares it.
func (r *rig) wantLog(lines ...string) {
	r.Helper()
	got := r.log.take()
	if want := strings.Join(append(lines, ""), "\n"); got != want {
		r.Errorf("logged:\n%swant:\n%s", got, want)
	}
}

// transcript is what was logged.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *transcript) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *transcript) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.text.Reset()
	return l.text.String()
}

// metric is the value of a counter or gauge, its labels' values joined to its name.
func (r *rig) metric(name string) float64 {
	r.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			full := f.GetName()
			for _, l := range m.GetLabel() {
				full += " " + l.GetValue()
			}
			values[full] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	v, ok := values[name]
	if !ok {
		r.Errorf("no metric %q among %v", name, slices.Collect(maps.Keys(values)))
	}
	return v
}
