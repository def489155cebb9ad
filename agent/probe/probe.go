// Package probe finds out whether other hosts can be reached, how long that takes, and what gets lost: over the overlay, and
// over the underlay that carries it. All it needs of a peer is a kernel that answers ICMP echo requests; peers that run a Prober
// too tell each other more (see message). It changes nothing on this host, and knows nothing of leases: what is to be probed it
// is told.
package probe

import (
	"iter"
	"math/bits"
	"net/netip"
	"slices"
	"time"
)

// Path is a way to a peer.
type Path int

// The paths.
const (
	Overlay Path = iota
	Underlay
	paths
)

func (p Path) String() string { return [...]string{"overlay", "underlay"}[p] }

// Target is where a host is probed: its address inside the overlay, and that on the underlay that packets for it are sent to. A path
// whose address is missing is not probed. A host has a Target for each family inside, which may fail one by one: each is probed as
// if it were a host of its own, in turn with all others, so that hosts with two cost no more than others do.
type Target struct{ Overlay, Underlay netip.Addr }

func (t Target) on(p Path) netip.Addr { return [...]netip.Addr{t.Overlay, t.Underlay}[p] }

// State is what the probes over the overlay say of a peer.
type State int

// The states of a peer.
const (
	Unknown     State = iota // none was answered, and less than three were lost
	Reachable                // of the last three, one was answered
	Unreachable              // the last three or more were lost
)

func (s State) String() string { return [...]string{"unknown", "reachable", "unreachable"}[s] }

// Result is what is known of a peer by one of its Targets. A time is zero if it never came to that.
type Result struct {
	Target   Target
	State    State
	Paths    [paths]PathResult // by Path
	HeardUs  time.Time         // when it last got a packet of ours over the overlay, by its own word
	Heard    time.Time         // when we last got a packet of its over the overlay, be it an answer
	Failures int               // probes over the overlay lost in a row
}

// PathResult is what came of probing a peer by one path.
type PathResult struct {
	Trip     time.Duration // there and back, of the last answer, to a microsecond; 0 if not known
	Loss     float64       // share of the last probes, eight at most, 0 to 1
	Failures int           // of these, lost in a row until now
	Sent     time.Time     // the last probe
	Answered time.Time     // the last answer
}

// failuresUnreachable is how many probes in a row must be lost until a peer is unreachable.
const failuresUnreachable = 3

// peer is a host that is probed, by one of its targets. Times are those since the Prober was made, 0 for never. There may be 10,000
// of them.
type peer struct {
	key      string
	next     *peer // the host's next target, the first after the last; itself, if it has one only
	target   Target
	records  [paths]record
	heardUs  time.Duration
	heard    time.Duration
	index    int32 // in table.order; negative if it is no peer any more
	failures uint16
	state    uint8
	queued   bool // it is in table.suspects
}

// record is what came of probing a peer by one path.
type record struct {
	sent, answered time.Duration
	trip           uint32 // µs
	lost           uint8  // a bit for each of the last probes, the last is the lowest
	count          uint8  // of these bits that mean something
}

func (r *record) add(lost uint8) {
	r.lost = r.lost<<1 | lost
	r.count = min(r.count+1, 8)
}

func (p *peer) gone() bool { return p.index < 0 }

// all are a host's targets from p on.
func (p *peer) all() iter.Seq[*peer] {
	return func(yield func(*peer) bool) {
		for q, done := p, p == nil; !done; {
			next := q.next
			if !yield(q) {
				return
			}
			q, done = next, next == p
		}
	}
}

// at reports whether these are a host's targets, p the first.
func (p *peer) at(targets []Target) bool {
	var have []Target
	for q := range p.all() {
		have = append(have, q.target)
	}
	return slices.Equal(have, targets)
}

// worst is what says most of a host's targets: one that is unreachable, else one that is not known, else the first.
func (p *peer) worst() *peer {
	rank, worst := [...]int{Reachable: 0, Unknown: 1, Unreachable: 2}, p
	for q := range p.all() {
		if rank[q.state] > rank[worst.state] {
			worst = q
		}
	}
	return worst
}

// fresh tells that it was never probed.
func (p *peer) fresh() bool { return p.records[Overlay].sent == 0 && p.records[Underlay].sent == 0 }

// suspect tells that it may be about to become unreachable.
func (p *peer) suspect() bool { return p.failures > 0 && p.failures < failuresUnreachable }

// moment is a time by both clocks: since the Prober was made, which nobody sets, and the wall's.
type moment struct {
	at   time.Duration
	wall time.Time
}

// measured is the trip to a peer in µs, noAnswer, or 0 if not known, as it is for who is none.
func (p *peer) measured() uint32 {
	switch {
	case p == nil:
		return 0
	case State(p.state) == Unreachable:
		return noAnswer
	}
	return p.records[Overlay].trip
}

// result is for others to read, with the wall clock's times as of now: it may have been set since then.
func (p *peer) result(now moment) Result {
	at := func(t time.Duration) time.Time {
		if t == 0 {
			return time.Time{}
		}
		return now.wall.Add(t - now.at)
	}
	r := Result{Target: p.target, State: State(p.state), HeardUs: at(p.heardUs), Heard: at(p.heard), Failures: int(p.failures)}
	for i, x := range p.records {
		r.Paths[i] = PathResult{Trip: time.Duration(x.trip) * time.Microsecond, Sent: at(x.sent), Answered: at(x.answered)}
		if x.count > 0 {
			r.Paths[i].Loss = float64(bits.OnesCount8(x.lost)) / float64(x.count)
			r.Paths[i].Failures = bits.TrailingZeros8(^x.lost)
		}
	}
	return r
}
