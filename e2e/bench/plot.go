package main

import (
	"fmt"
	"html"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// The plot's size and where its axes are, pixels.
const (
	plotWidth, plotHeight = 640, 400
	plotLeft, plotRight   = 70, 610
	plotTop, plotBottom   = 75, 345
)

// drawAll draws each curve as a file of its name.
func drawAll(dir string, curves []*curve) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, c := range curves {
		if err := os.WriteFile(filepath.Join(dir, c.Name+".svg"), []byte(draw(c)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// axis is linear, from 0 to a round number.
type axis struct {
	step, end float64
	from, to  float64 // pixels
}

// newAxis returns an axis that most fits on, with four to ten steps of 1, 2 or 5 times a power of ten.
func newAxis(most, from, to float64) axis {
	if most <= 0 {
		most = 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(most/4)))
	step := unit
	for _, factor := range []float64{2, 5} {
		if factor*unit <= most/4 {
			step = factor * unit
		}
	}
	return axis{step, step * math.Ceil(most/step-1e-9), from, to}
}

// at is where v is, in pixels.
func (a axis) at(v float64) float64 { return a.from + (a.to-a.from)*v/a.end }

// ticks are the values that are marked.
func (a axis) ticks() (values []float64) {
	for i := 0; float64(i)*a.step <= a.end*(1+1e-9); i++ {
		values = append(values, float64(i)*a.step)
	}
	return values
}

// tick writes a value that is marked, with the digits that the step has.
func (a axis) tick(v float64) string {
	if digits := int(math.Ceil(-math.Log10(a.step) - 1e-9)); digits > 0 {
		return fmt.Sprintf("%.*f", digits, v)
	}
	return thousands(int(math.Round(v)))
}

// draw returns a curve as SVG, on a white ground of its own: the page that shows it may be dark.
func draw(c *curve) string {
	mostN, most := 0.0, 0.0
	for _, l := range c.Lines {
		for _, p := range l.Points {
			mostN, most = max(mostN, float64(p.N)), max(most, p.Value)
		}
	}
	x, y := newAxis(mostN, plotLeft, plotRight), newAxis(most, plotBottom, plotTop)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="12" fill="#222">`+"\n",
		plotWidth, plotHeight, plotWidth, plotHeight)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", plotWidth, plotHeight)
	text(&b, plotLeft, 25, `font-size="14" font-weight="bold"`, c.Title)
	for _, v := range x.ticks() {
		segment(&b, x.at(v), plotBottom, x.at(v), plotBottom+5, "#222")
		text(&b, x.at(v), plotBottom+20, `text-anchor="middle"`, x.tick(v))
	}
	for _, v := range y.ticks() {
		segment(&b, plotLeft, y.at(v), plotRight, y.at(v), "#ddd")
		text(&b, plotLeft-8, y.at(v)+4, `text-anchor="end"`, y.tick(v))
	}
	segment(&b, plotLeft, plotBottom, plotRight, plotBottom, "#222")
	segment(&b, plotLeft, plotTop, plotLeft, plotBottom, "#222")
	text(&b, plotRight, plotBottom+40, `text-anchor="end"`, c.X)
	text(&b, plotLeft-8, plotTop-12, `text-anchor="end"`, c.Unit)
	for i, l := range c.Lines {
		drawLine(&b, i, l, x, y)
	}
	return b.String() + "</svg>\n"
}

// drawLine draws the i-th line of a curve, and its place in the legend.
func drawLine(b *strings.Builder, i int, l line, x, y axis) {
	color := []string{"#1764ab", "#d1495b", "#777"}[i%3]
	dash := []string{"", ` stroke-dasharray="7 4"`, ` stroke-dasharray="2 3"`}[i%3]
	var places []string
	for _, p := range l.Points {
		places = append(places, fmt.Sprintf("%.1f,%.1f", x.at(float64(p.N)), y.at(p.Value)))
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x.at(float64(p.N)), y.at(p.Value), color)
	}
	fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"%s/>`+"\n", strings.Join(places, " "), color, dash)
	left := float64(plotLeft + 190*i)
	fmt.Fprintf(b, `<line x1="%.1f" y1="45" x2="%.1f" y2="45" stroke="%s" stroke-width="2"%s/>`+"\n", left, left+30, color, dash)
	text(b, left+36, 49, "", l.Name)
}

func segment(b *strings.Builder, x1, y1, x2, y2 float64, color string) {
	fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`+"\n", x1, y1, x2, y2, color)
}

func text(b *strings.Builder, x, y float64, attributes, s string) {
	if attributes != "" {
		attributes = " " + attributes
	}
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f"%s>%s</text>`+"\n", x, y, attributes, html.EscapeString(s))
}
