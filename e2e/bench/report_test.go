package main

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func testReport() *report {
	r := &report{Machine: machine{Tulle: "tulle 1", Kernel: "6.1", CPU: "a CPU", CPUs: 2}}
	c := r.curve("start", "Start", "peers", "s")
	c.add("agent", 1000, []float64{0.3, 0.1, 0.2})
	c.add("agent", 10000, []float64{1.5, 1.6, 5})
	r.add(figure{Name: "start", Unit: "s", Value: c.last("agent").Value, Bar: r.unlessQuick(0.8), Floor: 2.5})
	r.add(figure{Name: "changes", Value: 0, Bar: always(0)})
	r.add(figure{Name: "calls", Value: 5, Note: "Range 1"})
	return r
}

func TestPrint(t *testing.T) {
	var out strings.Builder
	err := testReport().print(&out)
	if err == nil || err.Error() != "not met: start" {
		t.Errorf("print: %v, want that start is not met", err)
	}
	want := `tulle 1, Linux 6.1, 2 × a CPU

FIGURE   MEASURED  BAR        MET  × IP -BATCH  NOTE
start    1.60 s    ≤ 0.800 s  NO   2.50
changes  0         ≤ 0        yes
calls    5                                      Range 1

CURVE  LINE   GROWTH
start  agent  10,000 : 1,000 peers = 8 : 1
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

func TestQuick(t *testing.T) {
	r := &report{Quick: true}
	r.add(figure{Name: "slow", Value: 9, Bar: r.unlessQuick(1)})
	if err := r.print(&strings.Builder{}); err != nil {
		t.Errorf("a quick run judged a time: %v", err)
	}
	r.add(figure{Name: "changes", Value: 1, Bar: always(0)})
	if err := r.print(&strings.Builder{}); err == nil {
		t.Error("a quick run judged no count")
	}
}

func TestReportFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "new", "bench.json")
	if err := testReport().write(file); err != nil {
		t.Fatal(err)
	}
	got, err := readReport(file)
	if err != nil || !reflect.DeepEqual(got, testReport()) {
		t.Errorf("read %+v, %v; wrote %+v", got, err, testReport())
	}
}

func TestCompare(t *testing.T) {
	newer := testReport()
	newer.Figures[0].Value = 0.8
	newer.Figures[1].Name = "renamed"
	newer.Curves[0].Lines[0].Points[0].Value = 0.3
	var out strings.Builder
	compare(&out, testReport(), newer)
	want := `old: tulle 1
new: tulle 1

WHAT                        OLD      NEW      NEW : OLD
start                       1.60 s   0.800 s  0.50
calls                       5        5        1.00
start, agent, 1,000 peers   0.200 s  0.300 s  1.50
start, agent, 10,000 peers  1.60 s   1.60 s   1.00
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

func TestQuantile(t *testing.T) {
	values := []float64{5, 1, 4, 2, 3}
	for q, want := range map[float64]float64{0: 1, 0.5: 3, 0.8: 4, 0.99: 5, 1: 5} {
		if got := quantile(values, q); got != want {
			t.Errorf("quantile %g of %v is %g, want %g", q, values, got, want)
		}
	}
}

func TestRounded(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 5: "5", 12345: "12,345", 1234567: "1,234,567", 0.0123: "0.012", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 999.6: "1,000"} {
		if got := rounded(v); got != want {
			t.Errorf("%g is written %s, want %s", v, got, want)
		}
	}
}

func TestExcess(t *testing.T) {
	for _, c := range []struct {
		passes  float64
		elapsed time.Duration
		want    float64
	}{{0, time.Second, 0}, {1, time.Second, 0}, {2, time.Second, 1}, {2, 31 * time.Second, 0}, {1000, 31 * time.Second, 998}} {
		if got := (joins{passes: c.passes, elapsed: c.elapsed}).excess(); got != c.want {
			t.Errorf("%g passes in %s: %g beyond one each 30 s, want %g", c.passes, c.elapsed, got, c.want)
		}
	}
}

func TestSumOf(t *testing.T) {
	const body = "# HELP a_total x\na_total{t=\"1 2\"} 3\na_total{t=\"b\"} 1e+01\na_total_more 7\nb_total 5\n"
	for name, want := range map[string]float64{"a_total{": 13, `a_total{t="b"}`: 10, "b_total": 5, "c_total": 0} {
		if got, err := sumOf(body, name); err != nil || got != want {
			t.Errorf("%s is %g, %v, want %g", name, got, err, want)
		}
	}
}

// TestPeers checks that no two peers that exist at the same time share a subnet, an address or a MAC.
func TestPeers(t *testing.T) {
	seen := map[any]int{}
	p := &peers{agent: nth(7).Subnet.V4}
	for range 140000 {
		p.join()
		l := p.live[len(p.live)-1]
		for _, what := range []any{l.Subnet.V4, l.PublicIP.V4, l.Data.V4} {
			if at, ok := seen[what]; ok && p.made-at < 50000 {
				t.Fatalf("%v is that of peers %d and %d", what, at, p.made)
			}
			seen[what] = p.made
		}
		if l.Subnet.V4 == p.agent {
			t.Fatalf("peer %d has the agent's subnet", p.made)
		}
	}
}
