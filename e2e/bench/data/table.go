package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// table is lines of cells, the first of them the header.
type table [][]string

func (b *bench) pathTable() table {
	head, mtu := []string{""}, []string{"MTU (bytes)"}
	for _, p := range b.Overlay.Paths {
		head, mtu = append(head, p.Name), append(mtu, fmt.Sprint(p.MTU))
	}
	t := table{append(head, "routed : underlay", "VXLAN : underlay", "VXLAN : routed")}
	for _, r := range b.Overlay.Rows {
		line := []string{fmt.Sprintf("%s (%s)", r.Name, r.Unit)}
		for _, p := range b.Overlay.Paths {
			line = append(line, number(median(r.Samples[p.Name])))
		}
		under, routed, vxlan := median(r.Samples["underlay"]), median(r.Samples["routed"]), median(r.Samples["VXLAN"])
		if r.Unit == lost { // nothing is lost for being carried: it is what comes faster than it can be read
			under, routed = math.NaN(), math.NaN()
		}
		t = append(t, append(line, ratio(routed, under), ratio(vxlan, under), ratio(vxlan, routed)))
	}
	return append(t, append(mtu, "", "", ""))
}

func (b *bench) offloadTable() table {
	t := table{{"VXLAN, TCP, 1 stream", "whole (Gbit/s)", "ratio", "in frames (Gbit/s)", "ratio", "correct transfers"}}
	for _, r := range b.Offloads {
		all := b.Offloads[0]
		whole, frames := median(r.Whole), median(r.Frames)
		t = append(t, []string{r.Name, number(whole), ratio(whole, median(all.Whole)), number(frames), ratio(frames, median(all.Frames)),
			fmt.Sprintf("%d of %d", r.Correct, r.Transfers)})
	}
	return t
}

// median is not a number if there are no samples.
func median(samples []float64) float64 {
	if len(samples) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(samples))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// ratio is empty if one of the two is missing.
func ratio(a, b float64) string {
	if math.IsNaN(a / b) {
		return ""
	}
	return fmt.Sprintf("%.2f", a/b)
}

// number has no more digits than a measurement is worth.
func number(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v > 0 && v < 0.1:
		return fmt.Sprintf("%.3f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// text aligns the first column left and the others right.
func (t table) text() string {
	var s strings.Builder
	for _, line := range t {
		for n, cell := range line {
			width := 0
			for _, other := range t {
				width = max(width, utf8.RuneCountInString(other[n]))
			}
			if n == 0 {
				width = -width
			} else {
				s.WriteString("  ")
			}
			fmt.Fprintf(&s, "%*s", width, cell)
		}
		s.WriteString("\n")
	}
	return s.String()
}

func (t table) markdown() string {
	var s strings.Builder
	for n, line := range t {
		fmt.Fprintf(&s, "| %s |\n", strings.Join(line, " | "))
		if n == 0 {
			fmt.Fprintf(&s, "| --- |%s\n", strings.Repeat(" ---: |", len(line)-1))
		}
	}
	return s.String()
}
