package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Status is what /status answers, in JSON.
type Status struct {
	Version  string         `json:"version"`
	Ready    bool           `json:"ready"`
	Reason   string         `json:"reason"`
	Lease    string         `json:"lease,omitempty"`   // key of the lease held, as in 10.5.1.0-24
	Expires  *time.Time     `json:"expires,omitempty"` // absent for a reservation
	PublicIP netip.Addr     `json:"public_ip"`
	Device   string         `json:"device,omitempty"` // underlay
	MTU      int            `json:"mtu,omitempty"`    // of the overlay, bytes
	Etcd     string         `json:"etcd"`             // "connected", or why not
	Revision int64          `json:"etcd_revision"`
	Peers    int            `json:"peers"`
	Rejected map[string]int `json:"rejected,omitempty"` // leases left out, by reason
	Drift    map[string]int `json:"drift_repaired,omitempty"`
	Warnings []string       `json:"warnings,omitempty"` // what an operator should do something about
}

// Status returns how the agent is.
func (a *Agent) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := &a.state
	status := Status{Version: a.config.Version, Etcd: "connected", Revision: s.revision, Lease: s.own.Lease.Key(), Rejected: map[string]int{}, Drift: map[string]int{}}
	status.Ready, status.Reason = s.ready()
	if s.etcd != nil {
		status.Etcd = s.etcd.Error()
	}
	if at := expiry(s.own).UTC(); !at.IsZero() {
		status.Expires = &at
	}
	for _, topic := range slices.Sorted(maps.Keys(s.warnings)) {
		status.Warnings = append(status.Warnings, s.warnings[topic])
	}
	for table, n := range s.drift {
		status.Drift[table] = n
	}
	if s.plan == nil {
		return status
	}
	u := s.plan.Host().Underlay
	status.PublicIP, status.Device = u.Public.V4, u.Device
	status.MTU, status.Peers = s.plan.State().MTU, len(s.plan.State().Routes)
	for _, r := range s.plan.Rejected() {
		status.Rejected[string(r.Reason)]++
	}
	return status
}

// listen opens the status server's socket; nil for no address.
func listen(address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--listen %s: %w: is another agent running here? --listen= switches the status server off", address, err)
	}
	return l, nil
}

// serve answers until ctx ends.
func (a *Agent) serve(ctx context.Context, l net.Listener) error {
	if l == nil {
		return nil
	}
	server := &http.Server{Handler: crash(a.handler()), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("status server: %w", err)
	}
	return nil
}

// crash makes a handler's panic end the process, as it does anywhere else: net/http would log it and go on, with who knows
// what lock held.
func crash(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil {
				stack := debug.Stack()
				go func() { panic(fmt.Sprintf("%v\n%s", p, stack)) }()
				select {}
			}
		}()
		h.ServeHTTP(w, r)
	})
}

func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		status := a.Status()
		if !status.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintln(w, status.Reason)
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(a.Status()) // the client is gone: nobody to tell
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{}))
	return mux
}
