package agent

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// full is a registry that has all metrics that there are, each with all values that its labels can have, but for etcd's
// operations: package etcd names those.
func full(operations ...string) (*prometheus.Registry, *metrics) {
	registry := prometheus.NewRegistry()
	m := newMetrics(registry, "1.2.3")
	for look := atChanges; look <= atEverything; look++ {
		m.pass(look, time.Millisecond, nil)
	}
	count := outcome{chains: 1, Changes: backend.Changes{
		Links: backend.Delta[string, backend.Link]{Del: map[string]backend.Link{"a": {}}}, Addrs: backend.Delta[backend.Addr, struct{}]{Del: map[backend.Addr]struct{}{{}: {}}},
		FDB: backend.Delta[backend.FDBKey, netip.Addr]{Del: map[backend.FDBKey]netip.Addr{{}: {}}}, Neighbours: backend.Delta[backend.NeighbourKey, backend.MAC]{Del: map[backend.NeighbourKey]backend.MAC{{}: {}}},
		Routes: backend.Delta[netip.Prefix, backend.Route]{Del: map[netip.Prefix]backend.Route{{}: {}}}, Sysctls: backend.Delta[string, string]{Set: map[string]string{"a": ""}},
		Floods: backend.Delta[backend.Flood, struct{}]{Del: map[backend.Flood]struct{}{{}: {}}}, Tunnels: backend.Delta[string, backend.Tunnel]{Del: map[string]backend.Tunnel{"a": {}}},
		Endpoints: backend.Delta[backend.EndpointKey, netip.AddrPort]{Del: map[backend.EndpointKey]netip.AddrPort{{}: {}}}, Peers: backend.Delta[backend.PeerKey, backend.Peer]{Del: map[backend.PeerKey]backend.Peer{{}: {}}},
		Hooks: backend.Delta[string, subnet.Lease]{Del: map[string]subnet.Lease{"a": {}}},
	}}.count()
	m.changed(count)
	m.pass(atHost, time.Second, &backend.Failure{Count: count, Err: errors.New("no room")})
	for table, n := range count {
		m.drifted(table, n)
	}
	reasons := map[subnet.Reason]int{}
	for i, r := range []subnet.Reason{subnet.BadKey, subnet.BadValue, subnet.BadAddress, subnet.OutOfNetwork, subnet.OnUnderlay, subnet.Overlap,
		subnet.Conflict, subnet.OwnAddress, subnet.BadMAC, subnet.WrongVNI, subnet.NotOnLink, subnet.OtherFamily, subnet.WrongBackend} {
		reasons[r] = i + 1
	}
	m.reject(reasons)
	for _, path := range []string{"overlay", "underlay"} {
		m.probed(path, time.Millisecond, true)
		m.probed(path, 0, false)
	}
	probe := &api.Probe{RTT: 0.001}
	registry.MustRegister(newPeerSeries(func() api.Peers {
		return api.Peers{Peers: []api.Peer{{Key: "10.5.2.0-24", State: api.Reachable, Overlay: probe, Underlay: probe}, {Key: "10.5.3.0-24", State: api.Unreachable}}}
	}))
	RegisterCarried(registry, func() Carried {
		return Carried{Traffic{3, 300}, Traffic{4, 400}, map[string]uint64{"no-peer": 1, "spoofed": 2, "not-ip": 0, "refused": 0}}
	})
	store := NewStoreMetrics(registry)
	for _, operation := range operations {
		store.Request(operation, time.Millisecond, nil)
	}
	return registry, m
}

// documented is a row of docs/metrics.md.
type documented struct {
	kind, help string
	labels     map[string][]string // with their values, sorted; nil for any
}

var (
	rowRegex   = regexp.MustCompile("^\\| `(\\w+)` \\| (\\w+) \\| (.*?) ?\\| (.*?) \\| (.*?) \\|$")
	labelRegex = regexp.MustCompile("^`(\\w+)`(?:: (.*))?$")
)

func readDocumented(t *testing.T) map[string]documented {
	t.Helper()
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]documented{}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		row := rowRegex.FindStringSubmatch(strings.TrimSpace(line))
		if row == nil || row[5] == "" {
			t.Fatalf("not a row of the table: %s", line)
		}
		d := documented{row[2], row[4], map[string][]string{}}
		for _, label := range strings.Split(row[3], "; ") {
			m := labelRegex.FindStringSubmatch(label)
			if label == "" {
				continue
			} else if m == nil {
				t.Fatalf("%s: not a label: %s", row[1], label)
			}
			var values []string
			if m[2] != "" {
				values = strings.Split(strings.ReplaceAll(m[2], "`", ""), ", ")
			}
			slices.Sort(values)
			d.labels[m[1]] = values
		}
		rows[row[1]] = d
	}
	return rows
}

// TestDocumented compares docs/metrics.md with what is registered, both ways.
func TestDocumented(t *testing.T) {
	rows := readDocumented(t)
	registry, _ := full(rows["tulle_etcd_requests_total"].labels["operation"]...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "go_") || strings.HasPrefix(f.GetName(), "process_") {
			continue
		}
		got := documented{strings.ToLower(f.GetType().String()), f.GetHelp(), map[string][]string{}}
		for _, series := range f.GetMetric() {
			for _, l := range series.GetLabel() {
				got.labels[l.GetName()] = append(got.labels[l.GetName()], l.GetValue())
			}
		}
		for label, values := range got.labels {
			slices.Sort(values)
			if got.labels[label] = slices.Compact(values); label == "version" || label == "goversion" || label == "peer" {
				got.labels[label] = nil
			}
		}
		want, ok := rows[f.GetName()]
		if !ok {
			t.Errorf("%s is not in docs/metrics.md", f.GetName())
		} else if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s is\n%v, and in docs/metrics.md\n%v", f.GetName(), got, want)
		}
		delete(rows, f.GetName())
	}
	for name := range rows {
		t.Errorf("%s is in docs/metrics.md and nowhere else", name)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) != 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

// seriesOf are a registry's counters and gauges, and histograms' counts, by name with the labels' values behind it.
func seriesOf(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			values[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return values
}

func TestMetricValues(t *testing.T) {
	registry, m := full("range")
	m.pass(atFirewall, time.Second, errors.Join(errors.New("etcd is away"), &backend.Failure{Count: map[string]int{"route": 5}, Err: errors.New("no room")}))
	m.peers.programmed.Store(10)
	m.peers.probed = func() (int, int) { return 5, 2 }
	got := seriesOf(t, registry)
	for name, want := range map[string]float64{
		"tulle_pass_errors_total": 2, "tulle_change_errors_total route": 6, "tulle_change_errors_total firewall": 1, "tulle_passes_total firewall": 2,
		"tulle_peers reachable": 5, "tulle_peers unreachable": 2, "tulle_peers unknown": 3,
		"tulle_probes_total overlay": 2, "tulle_probes_lost_total overlay": 1, "tulle_probe_round_trip_seconds overlay": 1,
		"tulle_carried_packets_total sent": 3, "tulle_carried_bytes_total received": 400, "tulle_carried_dropped_total spoofed": 2,
		"tulle_peer_reachable 10.5.2.0-24": 1, "tulle_peer_reachable 10.5.3.0-24": 0, "tulle_peer_round_trip_seconds underlay 10.5.2.0-24": 0.001,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %g (%t), want %g", name, v, ok, want)
		}
	}
	if _, ok := got["tulle_peer_round_trip_seconds overlay 10.5.3.0-24"]; ok {
		t.Error("a peer that never answered has a round trip")
	}
	m.peers.programmed.Store(6) // a peer left, which the prober has not heard of yet
	if n := seriesOf(t, registry)["tulle_peers unknown"]; n != 0 {
		t.Errorf("%g peers are unknown", n)
	}
}

func TestStoreMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := NewStoreMetrics(registry)
	m.Request("range", time.Second, nil)
	m.Request("range", time.Second, errors.New("down"))
	m.Lag(1500 * time.Millisecond)
	if got, want := seriesOf(t, registry), (map[string]float64{"tulle_etcd_requests_total range": 2, "tulle_etcd_request_errors_total range": 1,
		"tulle_etcd_request_duration_seconds range": 2, "tulle_etcd_watch_lag_seconds": 1.5}); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestRejectedSeries has reasons come and go, and costs nothing if they stay.
func TestRejectedSeries(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := newMetrics(registry, "1.2.3")
	for _, reasons := range []map[subnet.Reason]int{{subnet.BadMAC: 2}, {subnet.BadMAC: 1, subnet.Overlap: 3}, {}, {subnet.Overlap: 1}} {
		m.reject(reasons)
		got := map[subnet.Reason]int{}
		for name, v := range seriesOf(t, registry) {
			if reason, ok := strings.CutPrefix(name, "tulle_leases_rejected "); ok {
				got[subnet.Reason(reason)] = int(v)
			}
		}
		if !maps.Equal(got, reasons) {
			t.Errorf("%v, want %v", got, reasons)
		}
	}
	same := map[subnet.Reason]int{subnet.Overlap: 1}
	if n := testing.AllocsPerRun(100, func() { m.reject(same) }); n != 0 {
		t.Errorf("%g allocations for nothing new", n)
	}
}

// TestPeerMetrics switches each peer's own series on.
func TestPeerMetrics(t *testing.T) {
	r := newRig(t, "")
	r.agent.config.PerPeer = true
	registry := prometheus.NewRegistry()
	New(r.agent.config, r.store, r.kernel, r.firewall, nil, registry, r.agent.log)
	if err := registry.Register(newPeerSeries(r.agent.Peers)); !errors.As(err, &prometheus.AlreadyRegisteredError{}) {
		t.Errorf("the peers' series are not registered: %v", err)
	}
	if err := r.registry.Register(newPeerSeries(r.agent.Peers)); err != nil {
		t.Errorf("the peers' series are registered unasked: %v", err)
	}
}
