package page

import (
	"fmt"
	"html/template"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/dustin/go-humanize"

	"github.com/tulle-net/tulle/agent/api"
)

// maxText is how many characters of a text the page shows.
const maxText = 500

// words are the template's functions: how numbers and times read.
func words(now time.Time) template.FuncMap {
	return template.FuncMap{
		"ago":       func(t time.Time) string { return humanize.RelTime(t, now, "ago", "from now") },
		"clock":     func(t time.Time) string { return clock(t, now) },
		"stamp":     func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"number":    func(n int) string { return humanize.Comma(int64(n)) },
		"rtt":       func(p *api.Probe, s api.State) string { return answer(p, s, now) },
		"loss":      loss,
		"text":      func(s string) string { return short(s, maxText) },
		"short":     short,
		"prefixes":  list[netip.Prefix],
		"addresses": list[netip.Addr],
		"names":     list[string],
		"state":     state,
		"says":      says,
		"subnet":    subnet,
	}
}

// milliseconds writes a round trip, given in seconds, with about three digits.
func milliseconds(seconds float64) string {
	switch ms := seconds * 1000; {
	case ms < 0.1:
		return fmt.Sprintf("%.3f", ms)
	case ms < 10:
		return fmt.Sprintf("%.2f", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f", ms)
	default:
		return fmt.Sprintf("%.0f", ms)
	}
}

// answer is the round trip of a peer's path, or since when there is none.
func answer(p *api.Probe, s api.State, now time.Time) string {
	if p == nil {
		return "–"
	}
	silent := p.Loss == 1 || s == api.Unreachable && p.Loss > 0 && p.Answer.Before(p.Sent)
	switch {
	case p.Answer.IsZero():
		return "none yet"
	case silent:
		return "none since " + clock(p.Answer, now)
	}
	return milliseconds(p.RTT) + " ms"
}

// loss is the share of a path's probes that were lost. What is not nothing, or not everything, does not read as if it were.
func loss(p *api.Probe) string {
	switch {
	case p == nil:
		return "–"
	case p.Loss > 0 && p.Loss < 0.01:
		return "< 1 %"
	case p.Loss > 0.99 && p.Loss < 1:
		return "> 99 %"
	}
	return fmt.Sprintf("%.0f %%", 100*p.Loss)
}

// clock is a time of day in UTC, with its date unless that is today's.
func clock(t, now time.Time) string {
	if t, now := t.UTC(), now.UTC(); t.Format(time.DateOnly) != now.Format(time.DateOnly) {
		return t.Format("2 Jan 15:04:05")
	}
	return t.UTC().Format(time.TimeOnly)
}

// short cuts s after so many characters, and replaces those that print nothing, or turn the text around.
func short(s string, limit int) string {
	var b strings.Builder
	for _, r := range s {
		if limit--; limit < 0 {
			return b.String() + "…"
		}
		if !unicode.IsPrint(r) {
			r = '�'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// list writes what it is given one after another: addresses, prefixes, names.
func list[T any](items []T) string {
	const most = 4
	var b strings.Builder
	for i, item := range items[:min(most, len(items))] {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(short(fmt.Sprint(item), maxText))
	}
	if more := len(items) - most; more > 0 {
		fmt.Fprintf(&b, " and %d more", more)
	}
	return b.String()
}

// subnet writes a lease's key as its subnets, as in 10.5.1.0/24, fd12::/64.
func subnet(key string) string {
	return short(strings.NewReplacer("-", "/", "&", ", ").Replace(key), 100)
}

// first is the subnet that a host is called by where there is little room: the first.
func first(key string) string {
	key, _, _ = strings.Cut(key, "&")
	return subnet(key)
}
