package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

// prometheus is a real one, on a lab's underlay, with the shipped configuration.
type prometheus struct {
	*testing.T
	client http.Client
}

const prometheusAddress = "127.0.0.1:9090"

// startPrometheus starts one. Of the shipped files it changes only this: the addresses of the hosts, and to save time the
// intervals (1 s), and for how long something must be wrong until an alert fires (2 s, where it is up to 5 minutes). What is in
// prometheus.yml for agents with TLS and a token is taken in if secured, a directory with what agents have for that, is not "".
func startPrometheus(t *testing.T, l *lab.Lab, secured string) *prometheus {
	t.Helper()
	dir := t.TempDir()
	var targets []string
	for _, h := range l.Nodes {
		targets = append(targets, fmt.Sprintf("%q", instance(h)))
	}
	change := func(name, pattern, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		before, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			before, err = os.ReadFile(filepath.Join("../deploy/prometheus", name))
		}
		if err != nil {
			t.Fatal(err)
		}
		re := regexp.MustCompile(pattern)
		if !re.Match(before) {
			t.Fatalf("%s has nothing like %s", name, pattern)
		}
		if err := os.WriteFile(path, re.ReplaceAllLiteral(before, []byte(text)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	change("prometheus.yml", `interval: 15s`, "interval: 1s")
	change("prometheus.yml", `targets: \["192.*\]`, "targets: ["+strings.Join(targets, ", ")+"]")
	change("rules.yml", `for: [1-5]m`, "for: 2s")
	if secured != "" {
		change("prometheus.yml", `# scheme: https`, "scheme: https")
		change("prometheus.yml", `# tls_config: \{ca_file: tulle-ca.pem\}`, "tls_config: {ca_file: "+secured+"/ca.pem}")
		change("prometheus.yml", `# authorization: \{credentials_file: tulle-token\}`, "authorization: {credentials_file: "+secured+"/token}")
	}
	log, err := os.Create(filepath.Join(l.Dir(), "prometheus.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("prometheus", "--config.file", filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path", filepath.Join(dir, "data"),
		"--web.listen-address", prometheusAddress)
	cmd.Stdout, cmd.Stderr = log, log
	if err := lab.In(l.Underlay(), cmd.Start); err != nil {
		t.Fatalf("%v: e2e/prepare test installs it", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	p := &prometheus{T: t}
	p.client.Transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = lab.In(l.Underlay(), func() error {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}}
	return p
}

// instance is what Prometheus calls a host.
func instance(h *lab.Host) string { return net.JoinHostPort(h.Address.String(), "9494") }

// ask decodes the data that Prometheus answers into v.
func (p *prometheus) ask(path string, query url.Values, v any) error {
	ctx, cancel := context.WithTimeout(p.Context(), 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+prometheusAddress+"/api/v1/"+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	answer, err := p.client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	var decoded struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.Unmarshal(text, &decoded); err != nil {
		return fmt.Errorf("%s: %w: %.100s", path, err, text)
	}
	if decoded.Status != "success" {
		return fmt.Errorf("%s: %s", path, decoded.Error)
	}
	return json.Unmarshal(decoded.Data, v)
}

// query returns an instant query's values, as text, by the series' labels.
func (p *prometheus) query(expr string) (map[string]string, error) {
	var data struct {
		Result []struct {
			Metric map[string]string
			Value  [2]any
		}
	}
	if err := p.ask("query", url.Values{"query": {expr}}, &data); err != nil {
		return nil, fmt.Errorf("%s: %w", expr, err)
	}
	values := map[string]string{}
	for _, r := range data.Result {
		values[fmt.Sprint(r.Metric)] = fmt.Sprint(r.Value[1])
	}
	return values, nil
}

// want waits until a query without labels has a value.
func (p *prometheus) want(limit time.Duration, expr, value string) {
	p.Helper()
	eventually(p.T, limit, expr+" is "+value, func() error {
		got, err := p.query(expr)
		if err == nil && (len(got) != 1 || got["map[]"] != value) {
			err = fmt.Errorf("it is %v", got)
		}
		return err
	})
}

// firing returns the alerts that fire, as in "TulleDown 192.0.2.11:9494", with their texts.
func (p *prometheus) firing() (map[string]string, error) {
	var data struct {
		Alerts []struct {
			Labels, Annotations map[string]string
			State               string
		}
	}
	if err := p.ask("alerts", nil, &data); err != nil {
		return nil, err
	}
	firing := map[string]string{}
	for _, a := range data.Alerts {
		if a.State == "firing" {
			firing[strings.TrimSpace(a.Labels["alertname"]+" "+a.Labels["instance"])] = a.Annotations["summary"] + "\n" + a.Annotations["description"]
		}
	}
	return firing, nil
}

// fires waits until exactly these alerts fire, and returns their texts.
func (p *prometheus) fires(limit time.Duration, alerts ...string) (firing map[string]string) {
	p.Helper()
	eventually(p.T, limit, fmt.Sprintf("these alerts fire: %v", alerts), func() (err error) {
		if firing, err = p.firing(); err != nil {
			return err
		}
		if len(firing) != len(alerts) || slices.ContainsFunc(alerts, func(a string) bool { return firing[a] == "" }) {
			return fmt.Errorf("there are %v", firing)
		}
		return nil
	})
	return firing
}

// TestPrometheus has a real Prometheus watch three hosts, while an agent dies and a host is cut off.
func TestPrometheus(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3, Agent: []string{"--listen", "0.0.0.0:9494", "--peer-metrics"}})
	p := startPrometheus(t, l, "")
	const soon = 60 * time.Second
	p.want(soon, `sum(up{job="tulle"})`, "3")
	p.want(soon, `sum(tulle_ready)`, "3")
	p.want(soon, `sum(tulle_peers{state="reachable"})`, "6")
	p.want(soon, `sum(tulle_peer_reachable)`, "6")
	p.want(soon, `count(tulle_peer_round_trip_seconds > 0)`, "12")
	p.want(soon, `count(tulle_etcd_watch_lag_seconds > 0 < 1)`, "3")
	for _, h := range l.Nodes {
		promtool(t, get(t, h, "/metrics"), "check", "metrics")
	}
	p.rulesHold(soon)
	p.dashboardAnswers(soon)
	p.fires(soon)

	killed := l.Nodes[1]
	if err := killed.Agent.Stop(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	down := "TulleDown " + instance(killed)
	text := p.fires(soon, down)[down]
	if !strings.HasPrefix(text, instance(killed)+": the agent does not answer\n") || !strings.Contains(text, "tulle doctor") {
		t.Errorf("the alert says %q", text)
	}
	if err := l.StartAgent(t.Context(), killed); err != nil {
		t.Fatal(err)
	}
	p.fires(soon)

	cut := l.Nodes[2]
	for _, chain := range []string{"INPUT", "OUTPUT"} {
		in(t, cut.Namespace, "iptables", "-I", chain, "-p", "udp", "--dport", "8472", "-j", "DROP")
	}
	off := "TulleHostCutOff " + instance(cut)
	p.fires(soon, "TullePeersUnreachable", off)
	eventually(t, soon, "the alert tells of all hosts", func() error { // it fires when the first has found out
		firing, err := p.firing()
		if text := firing["TullePeersUnreachable"]; err == nil &&
			!strings.HasPrefix(text, "3 hosts can't reach all of their peers over the overlay\nThe first are "+instance(cut)+" (2 peers) ") {
			err = fmt.Errorf("it says %q", text)
		}
		return err
	})
	p.want(soon, `sum(tulle_peer_reachable)`, "2")

	// A peer that is gone for good leaves no series behind.
	if err := cut.Agent.Stop(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Tulle(t.Context(), "", "lease", "release", cut.Container.Subnet.String()); err != nil {
		t.Fatal(err)
	}
	p.fires(soon, "TulleDown "+instance(cut))
	p.want(soon, `count(tulle_peer_reachable)`, "2")
	p.want(soon, `count(tulle_peer_round_trip_seconds)`, "4")
	p.want(soon, `sum(tulle_peers)`, "2")
}

// TestPrometheusTLS has a real Prometheus watch hosts that want a token, by TLS, while the token and the certificate change.
func TestPrometheusTLS(t *testing.T) {
	t.Parallel()
	dir := listenFiles(t)
	l := newLab(t, lab.Options{Hosts: 2, Agent: append(listenArgs(dir), "--pprof")})
	h, from := l.Nodes[0], l.Nodes[1]
	want := func(path, token string, code int, text string) {
		t.Helper()
		gotCode, got, err := ask(t.Context(), from, "https://"+instance(h)+path, token)
		if err != nil || gotCode != code || !strings.Contains(got, text) {
			t.Errorf("%s: %d %.200q, %v; want %d and %q", path, gotCode, got, err, code, text)
		}
	}
	for _, path := range []string{"/", "/metrics", "/v1/status", "/debug/pprof/", "/nothing"} {
		want(path, "", 401, "a token is needed")
		want(path, "another-token-than-it-is", 401, "a token is needed")
	}
	want("/readyz", "", 200, "ready\n")
	want("/healthz", "", 200, "alive\n")
	want("/readyz", listenToken, 200, h.Container.Subnet.Addr().String()+"-24, 1 peers")
	want("/", listenToken, 200, "<h1>"+h.Name+"</h1>")
	want("/debug/pprof/goroutine?debug=1", listenToken, 200, "goroutine profile: total")
	p := startPrometheus(t, l, dir)
	const soon = 60 * time.Second
	p.want(soon, `sum(up{job="tulle"})`, "2")
	p.want(soon, `sum(tulle_ready)`, "2")
	const another = "another-token-for-tomorrow"
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte(another), 0o600); err != nil {
		t.Fatal(err)
	}
	want("/metrics", listenToken, 401, "a token is needed")
	next := listenFiles(t)
	for _, name := range []string{"ca.pem", "cert.pem", "key.pem"} {
		if err := os.Rename(filepath.Join(next, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	changed := time.Now().Add(time.Second).Unix()
	p.want(soon, fmt.Sprintf(`count(timestamp(up{job="tulle"} == 1) > %d)`, changed), "2")
	for _, h := range l.Nodes {
		if log := logOf(t, l, h); strings.Contains(log, listenToken) || strings.Contains(log, another) || strings.Contains(log, "level=WARN") {
			t.Errorf("%s has logged\n%s", h.Name, log)
		}
	}
}

// rulesHold waits until all rules were evaluated, and none of them failed.
func (p *prometheus) rulesHold(limit time.Duration) {
	p.Helper()
	shipped, err := os.ReadFile("../deploy/prometheus/rules.yml")
	if err != nil {
		p.Fatal(err)
	}
	want := len(regexp.MustCompile(`(?m)^ +- (alert|record): `).FindAll(shipped, -1))
	eventually(p.T, limit, fmt.Sprintf("%d rules hold", want), func() error {
		var data struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError string }
			}
		}
		if err := p.ask("rules", nil, &data); err != nil {
			return err
		}
		n := 0
		for _, g := range data.Groups {
			for _, r := range g.Rules {
				if n++; r.Health != "ok" {
					return fmt.Errorf("%s is %s: %s", r.Name, r.Health, r.LastError)
				}
			}
		}
		if n != want {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
}

// dashboardAnswers asks all that the dashboard does, until there are answers. What is empty as long as all is well may be so.
func (p *prometheus) dashboardAnswers(limit time.Duration) {
	p.Helper()
	d, _ := fleetDashboard(p.T)
	empty := []string{"Hosts with the most unreachable peers 1", "Hosts that lose most, overlay 1", "Leases left out 1", "Failures 2", "Peers that are out of reach 1"}
	for what, expr := range d.queries() {
		eventually(p.T, limit, "the dashboard shows "+what, func() error {
			answer, err := p.query(expr)
			if err == nil && len(answer) == 0 && !slices.Contains(empty, what) {
				err = fmt.Errorf("no series for %s", expr)
			}
			return err
		})
	}
}
