package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/tulle-net/tulle/subnet"
)

func (r *rig) get(method, path string) (int, string) {
	answer := httptest.NewRecorder()
	r.agent.handler().ServeHTTP(answer, httptest.NewRequest(method, path, nil))
	return answer.Code, answer.Body.String()
}

func TestHTTP(t *testing.T) {
	bubble(t, func(r *rig) {
		for _, path := range []string{"/healthz", "/readyz", "/status", "/metrics"} {
			for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
				if code, _ := r.get(method, path); code != http.StatusMethodNotAllowed {
					r.Errorf("%s %s: %d", method, path, code)
				}
			}
		}
		want := func(path string, code int, text string) {
			r.Helper()
			if gotCode, got := r.get(http.MethodGet, path); gotCode != code || got != text {
				r.Errorf("%s: %d %q, want %d %q", path, gotCode, got, code, text)
			}
		}
		want("/healthz", 200, "alive\n")
		want("/readyz", 503, "nothing is programmed yet\n")
		want("/", 404, "404 page not found\n")
		want("/debug/pprof/", 404, "404 page not found\n")
		r.ready()
		want("/readyz", 200, "10.5.1.0-24, 0 peers\n")
		r.own(func(o *subnet.Own) { *o = subnet.Own{Err: errors.New("out of subnets")} })
		want("/readyz", 503, "lease lost: out of subnets\n")
		want("/healthz", 200, "alive\n")
	})
}

func TestStatusJSON(t *testing.T) {
	bubble(t, func(r *rig) {
		if _, text := r.get(http.MethodGet, "/status"); strings.TrimSpace(text) != strings.TrimSpace(`
{
  "version": "1.2.3",
  "ready": false,
  "reason": "nothing is programmed yet",
  "public_ip": "",
  "etcd": "connected",
  "etcd_revision": 0,
  "peers": 0
}`) {
			r.Errorf("at first\n%s", text)
		}
		r.ready()
		bad := peer(3)
		bad.Lease.PublicIP.V4 = r.kernel.underlay.Public.V4
		r.put(peer(2), bad)
		r.kernel.finds(routes(1))
		ring(r.kernel.doorbell)
		r.settle()
		if _, text := r.get(http.MethodGet, "/status"); strings.TrimSpace(text) != strings.TrimSpace(`
{
  "version": "1.2.3",
  "ready": true,
  "reason": "10.5.1.0-24, 1 peers",
  "lease": "10.5.1.0-24",
  "expires": "2023-11-15T22:13:20Z",
  "public_ip": "192.0.2.1",
  "device": "eth0",
  "mtu": 1450,
  "etcd": "connected",
  "etcd_revision": 3,
  "peers": 1,
  "rejected": {
    "own-address": 1
  },
  "drift_repaired": {
    "route": 1
  }
}`) {
			r.Errorf("in the end\n%s", text)
		}
		r.own(func(o *subnet.Own) { o.Reserved, o.TTL = true, 0 })
		_, text := r.get(http.MethodGet, "/status")
		var fields map[string]any
		if err := json.Unmarshal([]byte(text), &fields); err != nil || fields["expires"] != nil {
			r.Errorf("a reservation, %v:\n%s", err, text)
		}
	})
}

func TestMetrics(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		bad := peer(3)
		bad.Lease.PublicIP.V4 = r.kernel.underlay.Public.V4
		r.put(peer(2), bad)
		r.kernel.finds(routes(1))
		ring(r.kernel.doorbell)
		r.settle()
		families, err := r.registry.Gather()
		if err != nil {
			r.Fatal(err)
		}
		problems, err := promlint.NewWithMetricFamilies(families).Lint()
		if err != nil || len(problems) != 0 {
			r.Errorf("%v, %v", problems, err)
		}
		_, text := r.get(http.MethodGet, "/metrics")
		for _, line := range []string{
			`tulle_build_info{goversion="` + runtime.Version() + `",version="1.2.3"} 1`, "tulle_etcd_connected 1", "tulle_ready 1", "tulle_peers 1",
			`tulle_leases_rejected{reason="own-address"} 1`, "tulle_lease_expiry_timestamp_seconds 1.7000864e+09", `tulle_changes_total{table="route"} 2`,
			`tulle_drift_repaired_total{table="route"} 1`, "tulle_pass_errors_total 1", `tulle_passes_total{scope="changes"} 1`,
			`tulle_pass_duration_seconds_count{scope="everything"} 3`, "go_goroutines ", "process_open_fds ",
		} {
			if !strings.Contains(text, "\n"+line) {
				r.Errorf("no %s in\n%s", line, text)
			}
		}
		r.own(func(o *subnet.Own) { *o = subnet.Own{Err: errors.New("out of subnets")} })
		if r.metric("tulle_ready") != 0 || r.metric("tulle_peers") != 1 {
			r.Error("the lease is lost: still ready, or without peers")
		}
	})
}

// The whole agent, on a real clock and socket.
func TestRun(t *testing.T) {
	before := runtime.NumGoroutine()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	taken := newRig(t, address)
	err = taken.agent.Run(t.Context())
	if text := "--listen " + address + ": "; err == nil || !strings.HasPrefix(err.Error(), text) || !strings.HasSuffix(err.Error(), "--listen= switches the status server off") {
		t.Errorf("the address is taken: %v", err)
	}
	l.Close()
	r := newRig(t, address)
	stop := r.run()
	deadline, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{}}
	for { // until it listens
		request, _ := http.NewRequestWithContext(deadline, http.MethodGet, fmt.Sprintf("http://%s/healthz", address), nil)
		answer, err := client.Do(request)
		if err == nil {
			body, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			if string(body) != "alive\n" || err != nil {
				t.Errorf("%q, %v", body, err)
			}
			break
		}
		if deadline.Err() != nil {
			t.Fatal(err)
		}
	}
	if _, err := Lock(r.agent.config.RunDir); err == nil {
		t.Error("a running agent holds no lock")
	}
	stop()
	client.CloseIdleConnections()
	for runtime.NumGoroutine() > before && deadline.Err() == nil {
		runtime.Gosched()
	}
	if n := runtime.NumGoroutine(); n > before {
		all := make([]byte, 1<<20)
		t.Errorf("%d goroutines, %d before:\n%s", n, before, all[:runtime.Stack(all, true)])
	}
	if unlock, err := Lock(r.agent.config.RunDir); err != nil {
		t.Error(err)
	} else {
		unlock()
	}
	if _, err := os.Stat(r.agent.config.SubnetFile); err == nil {
		t.Error("an env file without a lease")
	}
}
