package page

import (
	"cmp"
	"slices"

	"github.com/tulle-net/tulle/agent/api"
)

// maxRows is how many peers have a row of their own.
const maxRows = 200

// table is the peers as the page lists them: first those that need somebody.
type table struct {
	Counts []count // of all peers
	Rows   []api.Peer
	More   []count // of those that have no row
}

// count says how many peers are in a state.
type count struct {
	State api.State
	N     int
}

func newTable(peers []api.Peer) table {
	sorted := slices.Clone(peers)
	slices.SortStableFunc(sorted, func(a, b api.Peer) int { return cmp.Compare(rank(a), rank(b)) })
	rows := min(maxRows, len(sorted))
	return table{Counts: counts(sorted), Rows: sorted[:rows], More: counts(sorted[rows:])}
}

// rank orders peers: the lower, the more does one need somebody.
func rank(p api.Peer) int {
	switch lossy := p.Overlay != nil && p.Overlay.Loss > 0; {
	case p.State == api.Unreachable:
		return 0
	case p.State == api.LeftOut:
		return 1
	case p.State == api.Reachable && lossy:
		return 2
	case p.State != api.Reachable:
		return 3
	}
	return 4
}

// counts counts peers by state, the worst first, without states that none is in.
func counts(peers []api.Peer) (c []count) {
	n := map[api.State]int{}
	for _, p := range peers {
		n[state(p.State)]++
	}
	for _, s := range []api.State{api.Unreachable, api.LeftOut, api.Unknown, api.Reachable} {
		if n[s] > 0 {
			c = append(c, count{s, n[s]})
		}
	}
	return c
}

// state is s, or Unknown if the page has no sign for it.
func state(s api.State) api.State {
	switch s {
	case api.Reachable, api.Unreachable, api.LeftOut:
		return s
	}
	return api.Unknown
}

// says puts a state in words.
func says(s api.State) string {
	switch state(s) {
	case api.Reachable:
		return "reachable"
	case api.Unreachable:
		return "unreachable"
	case api.LeftOut:
		return "left out"
	}
	return "not known"
}
