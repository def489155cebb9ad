package main

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func TestAxis(t *testing.T) {
	for most, want := range map[float64][]string{
		10000: {"0", "2,000", "4,000", "6,000", "8,000", "10,000"},
		0.71:  {"0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8"},
		2.05:  {"0.0", "0.5", "1.0", "1.5", "2.0", "2.5"},
		41:    {"0", "10", "20", "30", "40", "50"},
		0:     {"0.0", "0.2", "0.4", "0.6", "0.8", "1.0"},
	} {
		a, ticks := newAxis(most, 0, 100), []string(nil)
		for _, v := range a.ticks() {
			ticks = append(ticks, a.tick(v))
		}
		if !slices.Equal(ticks, want) {
			t.Errorf("an axis for %g has %q, want %q", most, ticks, want)
		}
		if a.at(most) > 100 {
			t.Errorf("%g is beyond the end of its axis", most)
		}
	}
}

func TestDraw(t *testing.T) {
	c := &curve{Title: "Cost & growth", X: "peers", Unit: "s"}
	for n := 1000; n <= 4000; n += 1000 {
		c.point("agent", n, float64(n)/8000, nil)
		c.point("floor", n, float64(n)/10000, nil)
	}
	svg := draw(c)
	for _, want := range []string{"Cost &amp; growth", ">agent<", ">floor<", ">peers<", ">4,000<", ">0.5<",
		`points="205.0,277.5 340.0,210.0 475.0,142.5 610.0,75.0"`} {
		if !strings.Contains(svg, want) {
			t.Errorf("the plot lacks %s:\n%s", want, svg)
		}
	}
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("not XML: %v", err)
		}
	}
}
