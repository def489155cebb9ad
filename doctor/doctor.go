// Package doctor finds out why containers don't reach each other. It looks at the host, at its agent, at etcd and at the way to
// the peers, and changes nothing. The checks are pure: what was seen is in Facts, and each Check says what is wrong with them.
package doctor

import (
	"fmt"
	"slices"
)

// APIVersion is the version of Report as JSON. It changes when a reader of before would misread it; a field more is no change.
const APIVersion = 1

// Part is one of the things that Facts tell of.
type Part string

// The parts.
const (
	PartAgent    Part = "agent"    // its own word: Status and Peers
	PartNetwork  Part = "network"  // its config and leases, and what they make of this host: Plan
	PartEtcd     Part = "etcd"     // Etcd
	PartHost     Part = "host"     // Devices, Routes, Policies and Sysctls
	PartKernel   Part = "kernel"   // what it can do
	PartFilter   Part = "filter"   // Filter
	PartPrograms Part = "programs" // Programs
	PartEnv      Part = "env"      // Env
	PartPaths    Part = "paths"    // Paths, but for:
	PartLong     Part = "long"     // Path.Longest
	PartChecksum Part = "checksum" // Path.Checksum
	PartForward  Part = "forward"  // what Filter does to packets in FORWARD; this and the next three only if that can be told
	PartRaw      Part = "raw"      // and in table raw
	PartBridged  Part = "bridged"  // and to those that pass the bridge
	PartOuter    Part = "outer"    // and to those that carry the overlay's
)

// Check looks for one kind of fault.
type Check struct {
	Name  string                // as a reader of JSON knows it; docs/troubleshooting.md has a line for each
	Title string                // what is well if it finds nothing
	Needs []Part                // of Facts; without any of them it can't be made
	Find  func(Facts) []Finding // their Check is filled in by Examine
}

// Finding is something that is wrong.
type Finding struct {
	Check    string `json:"check"`
	What     string `json:"what"`
	Evidence string `json:"evidence"` // what was seen, in the words of the program that shows it
	Fix      string `json:"fix"`      // what to do, mostly a command
}

// Unchecked is a check that could not be made.
type Unchecked struct {
	Check string `json:"check"`
	Why   string `json:"why"`
}

// Report is what came of all checks: each is in exactly one of the lists, but may have several findings.
type Report struct {
	API       int         `json:"api"`
	Host      string      `json:"host"`
	Findings  []Finding   `json:"findings"`
	Clean     []string    `json:"clean"` // names of checks
	Unchecked []Unchecked `json:"unchecked"`
}

// Examine makes all checks.
func Examine(f Facts) Report {
	r := Report{API: APIVersion, Host: f.Host, Findings: []Finding{}, Clean: []string{}, Unchecked: []Unchecked{}}
	f = f.doubting()
	for _, c := range Checks() {
		missing := slices.IndexFunc(c.Needs, func(p Part) bool { return f.Unseen[p] != "" })
		if missing >= 0 {
			r.Unchecked = append(r.Unchecked, Unchecked{c.Name, f.Unseen[c.Needs[missing]]})
			continue
		}
		findings := c.Find(f)
		for _, found := range findings {
			found.Check = c.Name
			r.Findings = append(r.Findings, found)
		}
		if len(findings) == 0 {
			r.Clean = append(r.Clean, c.Name)
		}
	}
	return r
}

// Code is the exit code that says it in short: 0 if all is well, 1 if something isn't, 2 if nothing is known to be wrong but not
// all could be checked.
func (r Report) Code() int {
	switch {
	case len(r.Findings) > 0:
		return 1
	case len(r.Unchecked) > 0:
		return 2
	}
	return 0
}

// count writes a number of things.
func count(n int, thing string) string {
	switch n {
	case 0:
		return "no " + thing + "s"
	case 1:
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
