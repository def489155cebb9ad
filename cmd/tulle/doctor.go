package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/tulle-net/tulle/doctor"
)

type doctorCmd struct {
	agentFlags `embed:""`
	etcdFlags  `embed:""`
	JSON       bool `name:"json" help:"Print JSON."`
}

// Run checks the host and the way to its peers. The exit code is 1 if something is wrong, and 2 if nothing is known to be wrong
// but not all could be checked.
func (c *doctorCmd) Run(ctx context.Context) error {
	options, err := c.etcdFlags.options()
	if err != nil {
		complain("tulle: %v\n", err)
		return exitCode(2)
	}
	report := doctor.Examine(doctor.Look(ctx, doctor.Options{RunDir: c.RunDir, Fallback: direct{options, c.RunDir}, Say: sayDoing()}))
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.JSON {
		enc := json.NewEncoder(escaper{os.Stdout})
		enc.SetIndent("", "  ")
		if err := enc.Encode(report); err != nil {
			return err
		}
	} else {
		printReport(stdout(), report)
	}
	if code := report.Code(); code != 0 {
		return exitCode(code)
	}
	return nil
}

// sayDoing says on a terminal what is being done. Each line replaces the one before, and "" the last.
func sayDoing() func(string) {
	if !isTerminal(os.Stderr) {
		return func(string) {}
	}
	return func(doing string) {
		if doing != "" {
			doing += "…"
		}
		fmt.Fprintf(os.Stderr, "\r\x1b[K%s", doing)
	}
}

func printReport(s screen, r doctor.Report) {
	for _, f := range r.Findings {
		fmt.Fprintf(s.w, "%s  %s\n", s.paint(bad, f.Check), clean(f.What))
		s.field("evidence", f.Evidence)
		s.field("fix", f.Fix)
		fmt.Fprintln(s.w)
	}
	for _, line := range unchecked(r.Unchecked) {
		fmt.Fprintf(s.w, "%s  %s\n", s.paint(warn, "not checked"), clean(line))
	}
	verdict := "nothing found"
	if len(r.Findings) > 0 {
		verdict = plural(len(r.Findings), "finding")
	}
	verdict += ": " + plural(len(r.Clean), "check") + " clean"
	if n := len(r.Unchecked); n > 0 {
		verdict += fmt.Sprintf(", %d could not be made", n)
	}
	fmt.Fprintln(s.w, verdict)
}

// field prints a finding's field, its lines below each other.
func (s screen) field(name, text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(s.w, "  %s  %s\n", s.paint(dim, fmt.Sprintf("%-8s", name)), clean(strings.TrimRight(line, "\n")))
		name = ""
	}
}

// unchecked says which checks could not be made and why, those with one cause together.
func unchecked(list []doctor.Unchecked) (lines []string) {
	var causes []string
	names := map[string][]string{}
	for _, u := range list {
		if !slices.Contains(causes, u.Why) {
			causes = append(causes, u.Why)
		}
		names[u.Why] = append(names[u.Why], u.Check)
	}
	const most = 6
	for _, why := range causes {
		list := names[why]
		if more := len(list) - most; more > 1 {
			list = append(list[:most:most], fmt.Sprintf("%d more", more))
		}
		lines = append(lines, fmt.Sprintf("%s: %s", strings.Join(list, ", "), why))
	}
	return lines
}
