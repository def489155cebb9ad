package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// report is all that one run measured.
type report struct {
	Machine machine  `json:"machine"`
	Quick   bool     `json:"quick,omitempty"`
	Figures []figure `json:"figures"`
	Curves  []*curve `json:"curves"`
}

type machine struct {
	Kernel string `json:"kernel"`
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Go     string `json:"go"`
	Tulle  string `json:"tulle"`
}

// figure is one number, and what it must not exceed.
type figure struct {
	Name    string    `json:"name"`
	Unit    string    `json:"unit,omitempty"`
	Value   float64   `json:"value"`
	Bar     *float64  `json:"bar,omitempty"` // at most; nil for a number that is only told
	Met     bool      `json:"met"`
	Floor   float64   `json:"times_floor,omitempty"` // how many times what `ip -batch` takes
	Note    string    `json:"note,omitempty"`
	Samples []float64 `json:"samples,omitempty"`
}

// curve shows how a cost grows.
type curve struct {
	Name  string `json:"name"`
	Title string `json:"title"`
	X     string `json:"x"` // what there are more and more of
	Unit  string `json:"unit"`
	Lines []line `json:"lines"`
}

type line struct {
	Name   string  `json:"name"`
	Growth string  `json:"growth"`
	Points []point `json:"points"`
}

type point struct {
	N       int       `json:"n"`
	Value   float64   `json:"value"`
	Samples []float64 `json:"samples,omitempty"`
}

func (r *report) add(f figure) {
	f.Met = f.Bar == nil || f.Value <= *f.Bar
	r.Figures = append(r.Figures, f)
}

// unlessQuick is a bar that depends on size or time.
func (r *report) unlessQuick(most float64) *float64 {
	if r.Quick {
		return nil
	}
	return &most
}

// always is a bar that depends on neither.
func always(most float64) *float64 { return &most }

func (r *report) curve(name, title, x, unit string) *curve {
	c := &curve{Name: name, Title: title, X: x, Unit: unit}
	r.Curves = append(r.Curves, c)
	return c
}

// add adds the median of samples to a line.
func (c *curve) add(name string, n int, samples []float64) {
	c.point(name, n, quantile(samples, 0.5), samples)
}

func (c *curve) point(name string, n int, value float64, samples []float64) {
	i := slices.IndexFunc(c.Lines, func(l line) bool { return l.Name == name })
	if i < 0 {
		i = len(c.Lines)
		c.Lines = append(c.Lines, line{Name: name})
	}
	c.Lines[i].Points = append(c.Lines[i].Points, point{n, value, samples})
	c.Lines[i].Growth = fmt.Sprintf("%s = %s : 1", c.spanned(name), rounded(c.growth(name)))
}

func (c *curve) points(name string) []point {
	return c.Lines[slices.IndexFunc(c.Lines, func(l line) bool { return l.Name == name })].Points
}

func (c *curve) last(name string) point { p := c.points(name); return p[len(p)-1] }

// growth is how many times the first value the last is; 0 if the first is.
func (c *curve) growth(name string) float64 {
	first := c.points(name)[0].Value
	if first == 0 {
		return 0
	}
	return c.last(name).Value / first
}

// spanned is what growth compares.
func (c *curve) spanned(name string) string {
	return fmt.Sprintf("%s : %s %s", thousands(c.last(name).N), thousands(c.points(name)[0].N), c.X)
}

// quantile is the smallest of values that is not below the q-th part of them.
func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// print prints the table. Its error names the figures that are above their bars.
func (r *report) print(out io.Writer) error {
	fmt.Fprintf(out, "%s, Linux %s, %d × %s\n\n", r.Machine.Tulle, r.Machine.Kernel, r.Machine.CPUs, r.Machine.CPU)
	rows, missed := [][]string{{"FIGURE", "MEASURED", "BAR", "MET", "× IP -BATCH", "NOTE"}}, []string(nil)
	for _, f := range r.Figures {
		bar, met, floor := "", "", ""
		if f.Bar != nil {
			bar, met = "≤ "+amount(*f.Bar, f.Unit), "yes"
		}
		if !f.Met {
			met, missed = "NO", append(missed, f.Name)
		}
		if f.Floor > 0 {
			floor = rounded(f.Floor)
		}
		rows = append(rows, []string{f.Name, amount(f.Value, f.Unit), bar, met, floor, f.Note})
	}
	curves := [][]string{nil, {"CURVE", "LINE", "GROWTH"}}
	for _, c := range r.Curves {
		for _, l := range c.Lines {
			curves = append(curves, []string{c.Name, l.Name, l.Growth})
		}
	}
	printTable(out, rows)
	printTable(out, curves)
	if len(missed) == 0 {
		return nil
	}
	return errors.New("not met: " + strings.Join(missed, "; "))
}

// printTable prints rows with their columns aligned.
func printTable(out io.Writer, rows [][]string) {
	var widths [10]int
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		line := ""
		for i, cell := range row {
			line += fmt.Sprintf("%-*s", widths[i]+2, cell)
		}
		fmt.Fprintln(out, strings.TrimRight(line, " "))
	}
}

func amount(v float64, unit string) string { return strings.TrimSpace(rounded(v) + " " + unit) }

// rounded writes v with three digits, or with as many as its whole part has.
func rounded(v float64) string {
	switch a := math.Abs(v); {
	case v == math.Trunc(v) && a < 1e9, a >= 100:
		return thousands(int(math.Round(v)))
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	default:
		return strconv.FormatFloat(v, 'f', 3, 64)
	}
}

func (r *report) write(file string) error {
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

func readReport(file string) (*report, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := &report{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

// measured is a figure or a point of a curve, by a name that tells it from all others.
type measured struct {
	name, unit string
	value      float64
}

func (r *report) all() (all []measured) {
	for _, f := range r.Figures {
		all = append(all, measured{f.Name, f.Unit, f.Value})
	}
	for _, c := range r.Curves {
		for _, l := range c.Lines {
			for _, p := range l.Points {
				all = append(all, measured{fmt.Sprintf("%s, %s, %s %s", c.Name, l.Name, thousands(p.N), c.X), c.Unit, p.Value})
			}
		}
	}
	return all
}

// compare prints what both reports have.
func compare(out io.Writer, older, newer *report) {
	rows, before := [][]string{{"WHAT", "OLD", "NEW", "NEW : OLD"}}, map[string]measured{}
	for _, m := range older.all() {
		before[m.name] = m
	}
	for _, m := range newer.all() {
		was, known := before[m.name]
		switch {
		case !known:
			continue
		case was.value == 0:
			rows = append(rows, []string{m.name, amount(was.value, m.unit), amount(m.value, m.unit), "-"})
		default:
			rows = append(rows, []string{m.name, amount(was.value, m.unit), amount(m.value, m.unit), strconv.FormatFloat(m.value/was.value, 'f', 2, 64)})
		}
	}
	fmt.Fprintf(out, "old: %s\nnew: %s\n\n", older.Machine.Tulle, newer.Machine.Tulle)
	printTable(out, rows)
}

// machineOf says what is measured, and on what.
func machineOf(binary string) machine {
	m := machine{CPUs: runtime.NumCPU(), Go: runtime.Version(), CPU: "an unknown CPU", Tulle: binary}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = string(u.Release[:bytes.IndexByte(u.Release[:], 0)])
	}
	info, _ := os.ReadFile("/proc/cpuinfo")
	for text := range strings.Lines(string(info)) {
		if name, value, _ := strings.Cut(text, ":"); strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
		}
	}
	if out, err := exec.Command(binary, "version").Output(); err == nil {
		m.Tulle = strings.TrimSpace(string(out))
	}
	return m
}
