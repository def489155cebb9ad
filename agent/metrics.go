package agent

import (
	"maps"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// metrics are what the agent tells Prometheus. docs/metrics.md has them all.
type metrics struct {
	passes    *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	errors    prometheus.Counter
	changes   *prometheus.CounterVec
	failures  *prometheus.CounterVec
	drift     *prometheus.CounterVec
	rejected  *prometheus.GaugeVec
	expiry    prometheus.Gauge
	connected prometheus.Gauge
	readiness prometheus.Gauge
	trips     *prometheus.HistogramVec
	probes    *prometheus.CounterVec
	lost      *prometheus.CounterVec
	peers     *peerStates

	reasons map[subnet.Reason]int // as rejected has it
}

func newMetrics(registry *prometheus.Registry, version string) *metrics {
	factory := promauto.With(registry)
	counters := func(name, help, label string, values ...string) *prometheus.CounterVec {
		v := factory.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		for _, value := range values { // what begins at one, not at zero, is no increase
			v.WithLabelValues(value)
		}
		return v
	}
	gauge := func(name, help string) prometheus.Gauge {
		return factory.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	tables := []string{"link", "address", "fdb", "flood", "neighbour", "route", "sysctl", "tunnel", "endpoint", "peer", "hook", "firewall"}
	paths := []string{"overlay", "underlay"}
	m := &metrics{
		passes: counters("tulle_passes_total", "Passes of the loop, by what they compared with the plan: everything, what no peer has a part in (host), the firewall, or nothing beside the changes.", "scope"),
		duration: factory.NewHistogramVec(prometheus.HistogramOpts{Name: "tulle_pass_duration_seconds", Help: "How long a pass took, by scope.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}, []string{"scope"}),
		errors:    factory.NewCounter(prometheus.CounterOpts{Name: "tulle_pass_errors_total", Help: "Passes that failed in whole or in part."}),
		changes:   counters("tulle_changes_total", "Entries set or deleted, by table.", "table"),
		failures:  counters("tulle_change_errors_total", "Entries that could not be set or deleted, by table.", "table", tables...),
		drift:     counters("tulle_drift_repaired_total", "Entries that somebody else had changed and that were restored, by table.", "table", tables...),
		rejected:  factory.NewGaugeVec(prometheus.GaugeOpts{Name: "tulle_leases_rejected", Help: "Leases that are left out, by reason."}, []string{"reason"}),
		expiry:    gauge("tulle_lease_expiry_timestamp_seconds", "When this host's lease expires unless it is renewed; 0 if it holds none, or one that does not expire."),
		connected: gauge("tulle_etcd_connected", "1 while etcd is in reach."),
		readiness: gauge("tulle_ready", "1 while everything is programmed and the lease is held."),
		trips: factory.NewHistogramVec(prometheus.HistogramOpts{Name: "tulle_probe_round_trip_seconds", Help: "How long probes took there and back, over all peers, by path.",
			Buckets: []float64{1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1, 2}}, []string{"path"}),
		probes: counters("tulle_probes_total", "Probes that were answered or lost, over all peers, by path.", "path", paths...),
		lost:   counters("tulle_probes_lost_total", "Probes that were not answered within 2 seconds, over all peers, by path.", "path", paths...),
		peers:  &peerStates{desc: prometheus.NewDesc("tulle_peers", "Peers that are programmed, by what the probes over the overlay say of them.", []string{"state"}, nil)},
	}
	factory.NewGaugeFunc(prometheus.GaugeOpts{Name: "tulle_build_info", Help: "1, with the version in its labels.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()}}, func() float64 { return 1 })
	registry.MustRegister(m.peers, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) pass(look scope, took time.Duration, err error) {
	m.passes.WithLabelValues(look.String()).Inc()
	m.duration.WithLabelValues(look.String()).Observe(took.Seconds())
	if err == nil {
		return
	}
	m.errors.Inc()
	for table, n := range backend.Failed(err) {
		m.failures.WithLabelValues(table).Add(float64(n))
	}
}

func (m *metrics) changed(count map[string]int) {
	for table, n := range count {
		m.changes.WithLabelValues(table).Add(float64(n))
	}
}

func (m *metrics) drifted(table string, n int) { m.drift.WithLabelValues(table).Add(float64(n)) }

// probed notes what became of a probe: the time that the answer took, or that there was none.
func (m *metrics) probed(path string, trip time.Duration, answered bool) {
	m.probes.WithLabelValues(path).Inc()
	switch {
	case answered && trip > 0: // else somebody set the clock meanwhile, and nobody knows
		m.trips.WithLabelValues(path).Observe(trip.Seconds())
	case !answered:
		m.lost.WithLabelValues(path).Inc()
	}
}

func (m *metrics) state(s *state) {
	m.connected.Set(flag(s.etcd == nil))
	m.expiry.Set(0)
	if at := expiry(s.own); !at.IsZero() {
		m.expiry.Set(float64(at.Unix()))
	}
	if s.plan == nil {
		return
	}
	m.peers.programmed.Store(int64(s.plan.Peers()))
	m.reject(s.plan.Reasons())
}

// reject notes how many leases are left out by reason. They may be thousands, and are nearly always what they were.
func (m *metrics) reject(reasons map[subnet.Reason]int) {
	if maps.Equal(m.reasons, reasons) {
		return
	}
	m.reasons = maps.Clone(reasons)
	m.rejected.Reset()
	for reason, n := range reasons {
		m.rejected.WithLabelValues(string(reason)).Set(float64(n))
	}
}

func (m *metrics) ready(ready bool) { m.readiness.Set(flag(ready)) }

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// peerStates tells how many peers are in which state when it is asked: between two passes probes may be answered or lost. It
// waits for nothing, so that an agent whose pass hangs can be seen.
type peerStates struct {
	desc       *prometheus.Desc
	programmed atomic.Int64
	// probed returns how many of the peers are reachable, and how many are not; nil while nobody probes. Set it before the
	// first scrape.
	probed func() (reachable, unreachable int)
}

// Describe is prometheus.Collector's.
func (p *peerStates) Describe(descs chan<- *prometheus.Desc) { descs <- p.desc }

// Collect is prometheus.Collector's.
func (p *peerStates) Collect(series chan<- prometheus.Metric) {
	total, reachable, unreachable := int(p.programmed.Load()), 0, 0
	if p.probed != nil {
		reachable, unreachable = p.probed()
	}
	for state, n := range map[api.State]int{api.Reachable: reachable, api.Unreachable: unreachable, api.Unknown: max(0, total-reachable-unreachable)} {
		series <- prometheus.MustNewConstMetric(p.desc, prometheus.GaugeValue, float64(n), string(state))
	}
}

// Carried is what this process has carried by itself since it started, and what it has not, in packets of the overlay: only with a
// backend that asks for it.
type Carried struct {
	Sent, Received Traffic
	Dropped        map[string]uint64 // packets, by reason
}

// Traffic is what passed in one direction.
type Traffic struct{ Packets, Bytes uint64 }

// carriedSeries tells what was carried when it is asked.
type carriedSeries struct {
	packets, bytes, dropped *prometheus.Desc
	now                     func() Carried
}

// RegisterCarried registers metrics of what this process carries by itself.
func RegisterCarried(registry *prometheus.Registry, now func() Carried) {
	registry.MustRegister(&carriedSeries{now: now,
		packets: prometheus.NewDesc("tulle_carried_packets_total", "The overlay's packets that the agent carried by itself, by direction.", []string{"direction"}, nil),
		bytes:   prometheus.NewDesc("tulle_carried_bytes_total", "Their bytes, inside the tunnel, by direction.", []string{"direction"}, nil),
		dropped: prometheus.NewDesc("tulle_carried_dropped_total", "The overlay's packets that the agent dropped, by reason.", []string{"reason"}, nil),
	})
}

// Describe is prometheus.Collector's.
func (s *carriedSeries) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.packets, s.bytes, s.dropped} {
		descs <- d
	}
}

// Collect is prometheus.Collector's.
func (s *carriedSeries) Collect(series chan<- prometheus.Metric) {
	count := func(d *prometheus.Desc, n uint64, label string) {
		series <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), label)
	}
	c := s.now()
	for direction, t := range map[string]Traffic{"sent": c.Sent, "received": c.Received} {
		count(s.packets, t.Packets, direction)
		count(s.bytes, t.Bytes, direction)
	}
	for reason, n := range c.Dropped {
		count(s.dropped, n, reason)
	}
}

// peerSeries has series for each peer, as it is when it is asked: those of a peer that left are gone.
type peerSeries struct {
	trip, reachable *prometheus.Desc
	peers           func() api.Peers
}

func newPeerSeries(peers func() api.Peers) *peerSeries {
	return &peerSeries{peers: peers,
		trip:      prometheus.NewDesc("tulle_peer_round_trip_seconds", "How long the last answered probe of this peer took there and back, by path; no series before the first answer.", []string{"peer", "path"}, nil),
		reachable: prometheus.NewDesc("tulle_peer_reachable", "1 if the peer answers over the overlay, 0 if not; no series before that is known.", []string{"peer"}, nil),
	}
}

// Describe is prometheus.Collector's.
func (p *peerSeries) Describe(descs chan<- *prometheus.Desc) { descs <- p.trip; descs <- p.reachable }

// Collect is prometheus.Collector's.
func (p *peerSeries) Collect(series chan<- prometheus.Metric) {
	for _, peer := range p.peers().Peers {
		if peer.State == api.Reachable || peer.State == api.Unreachable {
			series <- prometheus.MustNewConstMetric(p.reachable, prometheus.GaugeValue, flag(peer.State == api.Reachable), peer.Key)
		}
		for path, probe := range map[string]*api.Probe{"overlay": peer.Overlay, "underlay": peer.Underlay} {
			if probe != nil && probe.RTT > 0 {
				series <- prometheus.MustNewConstMetric(p.trip, prometheus.GaugeValue, probe.RTT, peer.Key, path)
			}
		}
	}
}

// StoreMetrics are what the lease store tells Prometheus.
type StoreMetrics struct {
	requests, errors *prometheus.CounterVec
	duration         *prometheus.HistogramVec
	lag              prometheus.Gauge
}

// NewStoreMetrics registers them.
func NewStoreMetrics(registry *prometheus.Registry) *StoreMetrics {
	factory, label := promauto.With(registry), []string{"operation"}
	return &StoreMetrics{
		requests: factory.NewCounterVec(prometheus.CounterOpts{Name: "tulle_etcd_requests_total", Help: "Calls to etcd, by operation."}, label),
		errors:   factory.NewCounterVec(prometheus.CounterOpts{Name: "tulle_etcd_request_errors_total", Help: "Calls to etcd that failed, by operation."}, label),
		duration: factory.NewHistogramVec(prometheus.HistogramOpts{Name: "tulle_etcd_request_duration_seconds", Help: "How long a call to etcd took, by operation; of a stream, until its first answer.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 7)}, label),
		lag: factory.NewGauge(prometheus.GaugeOpts{Name: "tulle_etcd_watch_lag_seconds", Help: "How far the watch was behind etcd when that was last measured, at most; as long as it does not catch up, by now. 0 before the first time."}),
	}
}

// Request notes a call to etcd that has ended: which, how long it took, and why it failed, if it did. It is for any goroutine.
func (m *StoreMetrics) Request(operation string, took time.Duration, err error) {
	m.requests.WithLabelValues(operation).Inc()
	m.duration.WithLabelValues(operation).Observe(took.Seconds())
	m.errors.WithLabelValues(operation).Add(flag(err != nil))
}

// Lag notes how far the watch is behind etcd.
func (m *StoreMetrics) Lag(lag time.Duration) { m.lag.Set(lag.Seconds()) }

// expiry is when a lease expires; zero if never. What is left is told by a clock that nobody sets: one that is set by hours,
// or by NTP, moves the answer with it, and makes no lease expire.
func expiry(own subnet.Own) time.Time {
	if !own.Held() || own.Reserved {
		return time.Time{}
	}
	return time.Now().Add(time.Until(own.Renewed.Add(own.TTL))).Round(time.Second)
}
