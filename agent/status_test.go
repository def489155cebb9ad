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
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/subnet"
)

func (r *rig) get(method, path string) (int, string) {
	answer := httptest.NewRecorder()
	r.agent.handlers().Known.ServeHTTP(answer, httptest.NewRequest(method, path, nil))
	return answer.Code, answer.Body.String()
}

func TestHTTP(t *testing.T) {
	bubble(t, func(r *rig) {
		for _, path := range []string{"/healthz", "/readyz", api.PathStatus, "/metrics"} {
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
		want("/nothing", 404, "404 page not found\n")
		if code, text := r.get(http.MethodGet, "/"); code != 200 || !strings.Contains(text, "nothing is programmed yet") {
			r.Errorf("the page: %d %s", code, text)
		}
		want("/debug/pprof/", 404, "404 page not found\n")
		r.ready()
		want("/readyz", 200, "10.5.1.0-24, 0 peers\n")
		r.own(func(o *subnet.Own) { *o = subnet.Own{Err: errors.New("out of subnets")} })
		want("/readyz", 503, "lease lost: out of subnets\n")
		want("/healthz", 200, "alive\n")
	})
}

// Anyone may know whether an agent is ready, and nothing else.
func TestProbes(t *testing.T) {
	bubble(t, func(r *rig) {
		want := func(path string, code int, text string) {
			r.Helper()
			answer := httptest.NewRecorder()
			r.agent.handlers().Anyone.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
			if got := answer.Body.String(); answer.Code != code || got != text {
				r.Errorf("%s: %d %q, want %d %q", path, answer.Code, got, code, text)
			}
		}
		want("/healthz", 200, "alive\n")
		want("/readyz", 503, "not ready\n")
		r.ready()
		want("/readyz", 200, "ready\n")
		for _, path := range []string{"/", "/metrics", api.PathStatus, api.PathEvents} {
			want(path, 404, "404 page not found\n")
		}
	})
}

func TestStatusJSON(t *testing.T) {
	bubble(t, func(r *rig) {
		status := func() string {
			_, text := r.get(http.MethodGet, api.PathStatus)
			return strings.ReplaceAll(text, r.agent.config.RunDir, "/run/tulle")
		}
		if text := status(); text != `{
  "api": 1,
  "version": "1.2.3",
  "host": "host1",
  "started": "2000-01-01T00:00:00Z",
  "ready": false,
  "reason": "nothing is programmed yet",
  "network": {},
  "underlay": {},
  "etcd": {
    "connected": true,
    "revision": 0
  },
  "docker": {
    "bridge": "docker0",
    "env_file": "/run/tulle/subnet.env"
  },
  "peers": {
    "total": 0,
    "reachable": 0,
    "unreachable": 0,
    "unknown": 0
  },
  "probing": false
}
` {
			r.Errorf("at first\n%s", text)
		}
		r.ready()
		bad := peer(3)
		bad.Lease.PublicIP.V4 = r.kernel.underlay.Public.V4
		r.put(peer(2), bad)
		r.kernel.finds(routes(1))
		ring(r.kernel.doorbell)
		r.settle()
		if text := status(); text != `{
  "api": 1,
  "version": "1.2.3",
  "host": "host1",
  "started": "2000-01-01T00:00:00Z",
  "ready": true,
  "reason": "10.5.1.0-24, 1 peers",
  "lease": {
    "key": "10.5.1.0-24",
    "subnets": [
      "10.5.1.0/24"
    ],
    "expires": "2023-11-15T22:13:20Z",
    "renewed": "2023-11-14T22:13:20Z"
  },
  "network": {
    "ranges": [
      "10.5.0.0/16"
    ],
    "backend": "vxlan",
    "device": "tulle.1",
    "kind": "vxlan",
    "vni": 1,
    "port": 8472,
    "mtu": 1450
  },
  "underlay": {
    "device": "eth0",
    "mtu": 1500,
    "addresses": [
      "192.0.2.1"
    ],
    "public_ips": [
      "192.0.2.1"
    ]
  },
  "etcd": {
    "connected": true,
    "revision": 3
  },
  "docker": {
    "bridge": "docker0",
    "addresses": [
      "10.5.1.1/24"
    ],
    "env_file": "/run/tulle/subnet.env"
  },
  "peers": {
    "total": 1,
    "reachable": 0,
    "unreachable": 0,
    "unknown": 1
  },
  "left_out": {
    "own-address": 1
  },
  "repaired": {
    "route": 1
  },
  "probing": false
}
` {
			r.Errorf("in the end\n%s", text)
		}
		r.own(func(o *subnet.Own) { o.Reserved, o.TTL = true, 0 })
		if l := r.agent.Status().Lease; l == nil || l.Expires != nil || !l.Reserved {
			r.Errorf("a reservation: %+v", l)
		}
	})
}

func TestPeersTold(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		bad := peer(3)
		bad.Lease.PublicIP.V4 = r.kernel.underlay.Public.V4
		unreadable := subnet.Entry{Err: subnet.Rejectf(subnet.BadKey, "not a subnet")}
		r.store.publish(func(u *subnet.Update) { u.Leases["nonsense"] = unreadable })
		r.put(peer(12), peer(2), bad)
		peers := r.agent.Peers()
		for _, p := range peers.Peers { // in one pass, or in two
			if since := time.Since(*p.Changed); since > time.Second {
				r.Errorf("%s changed %s ago", p.Key, since)
			}
			*p.Changed = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
		}
		if text, err := json.Marshal(peers); err != nil || string(text) != `{"api":1,"peers":[`+
			`{"key":"10.5.2.0-24","subnets":["10.5.2.0/24"],"public_ips":["192.0.2.2"],"state":"unknown","changed":"2000-01-01T00:00:00Z"},`+
			`{"key":"10.5.3.0-24","subnets":["10.5.3.0/24"],"public_ips":["192.0.2.1"],"state":"left-out","why":"own-address: 192.0.2.1 is this host's own address","changed":"2000-01-01T00:00:00Z"},`+
			`{"key":"10.5.12.0-24","subnets":["10.5.12.0/24"],"public_ips":["192.0.2.12"],"state":"unknown","changed":"2000-01-01T00:00:00Z"},`+
			`{"key":"nonsense","state":"left-out","why":"bad-key: not a subnet","changed":"2000-01-01T00:00:00Z"}]}` {
			r.Errorf("%s, %v", text, err)
		}
	})
}

// Of the last thousand changes none is forgotten, and of all that ever were not more than two thousand are kept.
func TestRecently(t *testing.T) {
	t.Parallel()
	var r recently
	start := time.Unix(1700000000, 0)
	for i := range 5500 {
		r.note(fmt.Sprint(i), start.Add(time.Duration(i)))
	}
	r.note("5499", start.Add(time.Hour))
	for i := 4501; i < 5499; i++ {
		if at, known := r.of(fmt.Sprint(i)); !known || !at.Equal(start.Add(time.Duration(i))) {
			t.Fatalf("%d is forgotten, or changed at %s", i, at)
		}
	}
	if at, _ := r.of("5499"); !at.Equal(start.Add(time.Hour)) {
		t.Errorf("what changed twice did at %s", at)
	}
	if _, known := r.of("1"); known || len(r.now)+len(r.before) > 2000 {
		t.Errorf("%d are kept", len(r.now)+len(r.before))
	}
}

func TestView(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.put(peer(2), peer(3))
		v := r.agent.View(netip.MustParseAddr("10.5.3.7"))
		if len(v.Leases) != 1 || v.Leases["10.5.3.0-24"].Value != string(peer(3).Lease.MarshalValue()) || v.Leases["10.5.3.0-24"].Created != 3 {
			r.Errorf("leases that cover 10.5.3.7: %+v", v.Leases)
		}
		if v.Config != vxlan || v.Self.Key != "10.5.1.0-24" || v.Underlay.Device != "eth0" || v.Options.Bridge != "docker0" {
			r.Errorf("%+v", v)
		}
		if all := r.agent.View(netip.Addr{}).Leases; len(all) != 2 {
			r.Errorf("all leases: %+v", all)
		}
		if code, text := r.get(http.MethodGet, api.PathView+"?address=web"); code != 400 || text != `{"error":"address: \"web\" is not an IP address"}`+"\n" {
			r.Errorf("%d %s", code, text)
		}
	})
}

func TestEtcdNow(t *testing.T) {
	bubble(t, func(r *rig) {
		if text, err := json.Marshal(r.agent.Etcd(t.Context(), "")); err != nil || string(text) !=
			`{"api":1,"endpoints":[{"url":"http://192.0.2.1:2379","version":"3.7.3","took_seconds":0.001,"clock_seconds":3}],"revision":9,"ttl_seconds":0}` {
			r.Errorf("%s, %v", text, err)
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
			`tulle_build_info{goversion="` + runtime.Version() + `",version="1.2.3"} 1`, "tulle_etcd_connected 1", "tulle_ready 1", `tulle_peers{state="unknown"} 1`,
			`tulle_leases_rejected{reason="own-address"} 1`, "tulle_lease_expiry_timestamp_seconds 1.7000864e+09", `tulle_changes_total{table="route"} 2`,
			`tulle_drift_repaired_total{table="route"} 1`, "tulle_pass_errors_total 1", `tulle_passes_total{scope="changes"} 1`,
			`tulle_pass_duration_seconds_count{scope="everything"} 3`, "go_goroutines ", "process_open_fds ",
		} {
			if !strings.Contains(text, "\n"+line) {
				r.Errorf("no %s in\n%s", line, text)
			}
		}
		r.own(func(o *subnet.Own) { *o = subnet.Own{Err: errors.New("out of subnets")} })
		if r.metric("tulle_ready") != 0 || r.metric("tulle_peers unknown") != 1 {
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
