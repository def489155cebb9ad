package agent

import (
	"maps"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/tulle-net/tulle/subnet"
)

// metrics are what the agent tells Prometheus.
type metrics struct {
	passes    *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	errors    prometheus.Counter
	changes   *prometheus.CounterVec
	drift     *prometheus.CounterVec
	peers     prometheus.Gauge
	rejected  *prometheus.GaugeVec
	expiry    prometheus.Gauge
	connected prometheus.Gauge
	readiness prometheus.Gauge
}

func newMetrics(registry *prometheus.Registry, version string) *metrics {
	m := &metrics{
		passes:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tulle_passes_total", Help: "Passes of the loop, by what they compared with the plan: everything, what no peer has a part in (host), the firewall, or nothing beside the changes."}, []string{"scope"}),
		duration:  prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "tulle_pass_duration_seconds", Help: "How long a pass took, by scope.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}, []string{"scope"}),
		errors:    prometheus.NewCounter(prometheus.CounterOpts{Name: "tulle_pass_errors_total", Help: "Passes that failed in whole or in part."}),
		changes:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tulle_changes_total", Help: "Entries set or deleted, by table."}, []string{"table"}),
		drift:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tulle_drift_repaired_total", Help: "Entries that somebody else had changed and that were restored, by table."}, []string{"table"}),
		peers:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "tulle_peers", Help: "Peers that are programmed."}),
		rejected:  prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tulle_leases_rejected", Help: "Leases that are left out, by reason."}, []string{"reason"}),
		expiry:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "tulle_lease_expiry_timestamp_seconds", Help: "When this host's lease expires unless it is renewed; 0 if it holds none, or one that does not expire."}),
		connected: prometheus.NewGauge(prometheus.GaugeOpts{Name: "tulle_etcd_connected", Help: "1 while etcd is in reach."}),
		readiness: prometheus.NewGauge(prometheus.GaugeOpts{Name: "tulle_ready", Help: "1 while everything is programmed and the lease is held."}),
	}
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tulle_build_info", Help: "1, with the version in its labels.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()}}, func() float64 { return 1 })
	registry.MustRegister(m.passes, m.duration, m.errors, m.changes, m.drift, m.peers, m.rejected, m.expiry, m.connected, m.readiness, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) pass(look scope, took time.Duration, err error) {
	m.passes.WithLabelValues(look.String()).Inc()
	m.duration.WithLabelValues(look.String()).Observe(took.Seconds())
	if err != nil {
		m.errors.Inc()
	}
}

func (m *metrics) changed(count map[string]int) {
	for table, n := range maps.All(count) {
		m.changes.WithLabelValues(table).Add(float64(n))
	}
}

func (m *metrics) drifted(table string, n int) { m.drift.WithLabelValues(table).Add(float64(n)) }

func (m *metrics) state(s *state) {
	m.connected.Set(flag(s.etcd == nil))
	m.expiry.Set(0)
	if at := expiry(s.own); !at.IsZero() {
		m.expiry.Set(float64(at.Unix()))
	}
	if s.plan == nil {
		return
	}
	m.peers.Set(float64(len(s.plan.State().Routes)))
	m.rejected.Reset()
	for _, r := range s.plan.Rejected() {
		m.rejected.WithLabelValues(string(r.Reason)).Inc()
	}
}

func (m *metrics) ready(ready bool) { m.readiness.Set(flag(ready)) }

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// expiry is when a lease expires; zero if never. What is left is told by a clock that nobody sets: one that is set by hours,
// or by NTP, moves the answer with it, and makes no lease expire.
func expiry(own subnet.Own) time.Time {
	if !own.Held() || own.Reserved {
		return time.Time{}
	}
	return time.Now().Add(time.Until(own.Renewed.Add(own.TTL))).Round(time.Second)
}
