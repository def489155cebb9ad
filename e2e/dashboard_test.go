package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// panel is one of a dashboard's, as far as the tests look at it.
type panel struct {
	ID          int
	Title, Type string
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct{ Expr string }
	Panels      []panel // of a row that is folded
}

type dashboard struct{ Panels []panel }

// fleetDashboard reads deploy/grafana/tulle.json.
func fleetDashboard(t *testing.T) (d dashboard, text string) {
	t.Helper()
	raw, err := os.ReadFile("../deploy/grafana/tulle.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	return d, string(raw)
}

// all are the dashboard's panels, those in folded rows too.
func (d dashboard) all() (panels []panel) {
	for _, p := range d.Panels {
		panels = append(append(panels, p), p.Panels...)
	}
	return panels
}

// queries are the dashboard's, by panel and number, with values in the place of its variables.
func (d dashboard) queries() map[string]string {
	fill := strings.NewReplacer("$job", "tulle", "$instance", ".*", "$__rate_interval", "1m")
	queries := map[string]string{}
	for _, p := range d.all() {
		for i, target := range p.Targets {
			queries[fmt.Sprintf("%s %d", p.Title, i+1)] = fill.Replace(target.Expr)
		}
	}
	return queries
}

// metricNames are the names of the metrics that docs/metrics.md has, with what a histogram makes of them.
func metricNames(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{"up": true}
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (\\w+) ").FindAllStringSubmatch(string(text), -1) {
		names[row[1]] = true
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if row[2] == "histogram" {
				names[row[1]+suffix] = true
			}
		}
	}
	if len(names) < 20 {
		t.Fatalf("docs/metrics.md has only %v", names)
	}
	return names
}

// checkNames looks for metrics in PromQL that don't exist. Those of a process' own are client_golang's.
func checkNames(t *testing.T, what, expr string, names map[string]bool) {
	t.Helper()
	found := regexp.MustCompile(`\b(tulle_\w+|up)\b`).FindAllString(expr, -1)
	if len(found) == 0 && !strings.Contains(expr, "process_") {
		t.Errorf("%s asks for nothing of ours: %s", what, expr)
	}
	for _, name := range found {
		if !names[name] {
			t.Errorf("%s asks for %s, which docs/metrics.md does not have", what, name)
		}
	}
}

func TestDashboard(t *testing.T) {
	d, text := fleetDashboard(t)
	names := metricNames(t)
	asked := map[string]bool{}
	for what, expr := range d.queries() {
		checkNames(t, what, expr, names)
		for name := range names {
			if strings.Contains(expr, name) {
				asked[name] = true
			}
		}
	}
	for name := range names {
		base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
		if !asked[base] {
			t.Errorf("the dashboard does not show %s", base)
		}
	}
	ids := map[int]string{}
	for _, p := range d.all() {
		if other, taken := ids[p.ID]; taken || p.ID == 0 {
			t.Errorf("%q and %q both have the id %d", p.Title, other, p.ID)
		}
		ids[p.ID] = p.Title
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%q asks for nothing", p.Title)
		}
	}
	for _, uid := range regexp.MustCompile(`"datasource": \{\s*"type": "prometheus",\s*"uid": "([^"]*)"`).FindAllStringSubmatch(text, -1) {
		if uid[1] != "${datasource}" {
			t.Errorf("a data source is %q, not the one that is chosen at the top", uid[1])
		}
	}
	checkGrid(t, d.Panels)
	for _, p := range d.Panels {
		checkGrid(t, p.Panels)
	}
}

// checkGrid wants panels beside and below each other, in Grafana's 24 columns.
func checkGrid(t *testing.T, panels []panel) {
	t.Helper()
	for i, p := range panels {
		a := p.GridPos
		if a.W < 1 || a.H < 1 || a.X < 0 || a.Y < 0 || a.X+a.W > 24 {
			t.Errorf("%q is at %+v", p.Title, a)
		}
		for _, q := range panels[:i] {
			if b := q.GridPos; a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%q at %+v covers %q at %+v", p.Title, a, q.Title, b)
			}
		}
	}
}

// TestPromQL has promtool read all that is written in its language: the shipped configuration, the rules and their tests, and
// the dashboard's queries, which it knows as rules only.
func TestPromQL(t *testing.T) {
	d, _ := fleetDashboard(t)
	names := metricNames(t)
	var rules strings.Builder
	rules.WriteString("groups:\n- name: dashboard\n  rules:\n")
	for _, expr := range d.queries() {
		fmt.Fprintf(&rules, "  - {record: a, expr: %q}\n", expr)
	}
	path := filepath.Join(t.TempDir(), "dashboard.yml")
	if err := os.WriteFile(path, []byte(rules.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	promtool(t, "", "check", "rules", "--lint=none", path)
	promtool(t, "", "check", "config", "prometheus.yml")
	promtool(t, "", "test", "rules", "rules_test.yml")
	shipped, err := os.ReadFile("../deploy/prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	records := regexp.MustCompile(`record: \S+:(\S+):\S+`)
	for _, record := range records.FindAllStringSubmatch(string(shipped), -1) {
		names[record[1]] = true
	}
	checkNames(t, "rules.yml", string(shipped), names)
	tests, err := os.ReadFile("../deploy/prometheus/rules_test.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, alert := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(shipped), -1) {
		if n := strings.Count(string(tests), "alertname: "+alert[1]+"\n"); n < 2 || !strings.Contains(string(tests), "alertname: "+alert[1]+"\n        exp_alerts") {
			t.Errorf("no test that %s fires, and when it does not", alert[1])
		}
	}
}

// promtool runs in deploy/prometheus.
func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "promtool", args...)
	cmd.Dir, cmd.Stdin = "../deploy/prometheus", strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
