package probe

import (
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// How often peers are probed. It costs 0.4 ms of a core when nothing is in its caches, and 0.1 ms more for each peer, nearly all of
// it the kernel's (BenchmarkTick): so on a quiet network nothing happens but every few ticks, and not for many peers, to stay below
// 0.02 %.
const (
	rest     = 5 // ticks in one, as long as nobody is new or suspect
	few      = 5 // peers that are probed each time; of more, so many
	urgent   = 3 // peers beside that in a tick, which are new or suspect
	doubtful = 2 // of these, suspect
	crowd    = 100
	spare    = 1000
)

// table is the peers and when they are probed. It has no clock: it is told the time.
type table struct {
	peers     map[string]*peer // each host's first target
	byOverlay map[netip.Addr]*peer
	order     []*peer // a round, shuffled
	next      int     // place in order
	credit    int     // of the rotation: a tick adds one for each of a few peers, and a probe takes rest
	newcomers []*peer // never probed; and some that have been, or are gone
	suspects  []*peer // likewise
	flights   []flight
	seq       uint16 // the next flight's
	count     [Unreachable + 1]int
	left      int // peers that are gone since the maps were made

	outcomes []outcome // that nobody was told of yet
	turned   []*peer
}

// flight is a probe on its way.
type flight struct {
	*peer
	path     Path
	sent     moment
	token    uint32 // what the answer must have
	answered bool
}

// outcome is what became of a probe.
type outcome struct {
	path     Path
	trip     time.Duration
	answered bool
}

func newTable() *table {
	return &table{peers: map[string]*peer{}, byOverlay: map[netip.Addr]*peer{}}
}

// set tells where a peer is. One that moved is another.
func (t *table) set(key string, targets ...Target) (changed bool) {
	if p := t.peers[key]; p.at(targets) {
		return false
	}
	t.drop(key)
	for _, target := range targets {
		t.add(&peer{key: key, target: target, index: int32(len(t.order))})
	}
	return true
}

// add adds one of a peer's targets, after those that there are.
func (t *table) add(p *peer) {
	p.next = p
	if first := t.peers[p.key]; first == nil {
		t.peers[p.key] = p
		t.count[Unknown]++
	} else { // there are two at most
		p.next, first.next = first, p
	}
	if p.target.Overlay.IsValid() {
		t.byOverlay[p.target.Overlay] = p
	}
	t.order = append(t.order, p)
	t.newcomers = append(t.newcomers, p)
}

func (t *table) drop(key string) {
	p := t.peers[key]
	if p == nil {
		return
	}
	delete(t.peers, key)
	t.count[p.worst().state]--
	for q := range p.all() {
		t.remove(q)
	}
	if t.left++; t.left > len(t.peers)/8+spare { // a map keeps the room of the most it ever held
		t.peers, t.byOverlay = maps.Collect(maps.All(t.peers)), maps.Collect(maps.All(t.byOverlay))
		t.order, t.left = slices.Clone(t.order), 0
	}
}

// remove takes one of a dropped peer's targets out.
func (t *table) remove(p *peer) {
	if t.byOverlay[p.target.Overlay] == p {
		delete(t.byOverlay, p.target.Overlay)
	}
	hole, last := int(p.index), len(t.order)-1
	if hole < t.next { // the round's done part gets one shorter
		t.next--
		t.move(t.next, hole)
		hole = t.next
	}
	if hole < last {
		t.move(last, hole)
	}
	t.order[last] = nil
	t.order = t.order[:last]
	p.index = -1
}

func (t *table) move(from, to int) {
	t.order[to] = t.order[from]
	t.order[to].index = int32(to)
}

// crowded tells that so many are new or suspect that no hurry would help: they are all probed in turn.
func (t *table) crowded() bool { return len(t.newcomers)+len(t.suspects) > crowd }

// quiet tells that nothing is worth a tick by itself: nobody is new or suspect, or too many are, and of nobody the first answer may
// come.
func (t *table) quiet() bool {
	if t.crowded() {
		return true
	}
	first := func(f flight) bool { return !f.answered && !f.gone() && State(f.state) == Unknown }
	return len(t.newcomers) == 0 && len(t.suspects) == 0 && !slices.ContainsFunc(t.flights, first)
}

// choose says who is probed now, so many ticks after the last time: those that may be about to become unreachable, but not so many
// that they keep the others out; new ones; and whose turn it is.
func (t *table) choose(ticks int) []*peer {
	var chosen []*peer
	for n := len(t.suspects); n > 0 && len(chosen) < doubtful; n-- {
		p := t.suspects[0]
		t.suspects = t.suspects[1:]
		if p.queued = p.suspect() && !p.gone(); p.queued {
			t.suspects = append(t.suspects, p)
			chosen = append(chosen, p)
		}
	}
	for len(t.newcomers) > 0 && len(chosen) < urgent {
		if p := t.newcomers[0]; p.fresh() && !p.gone() {
			chosen = append(chosen, p)
		}
		t.newcomers = t.newcomers[1:]
	}
	t.credit = min(t.credit+ticks*min(len(t.order), few), rest*few)
	for n := 2 * len(t.order); n > 0 && t.credit >= rest; n-- { // this round's, and the next one's
		if p := t.inTurn(); (t.crowded() || !p.suspect()) && !slices.Contains(chosen, p) {
			chosen = append(chosen, p)
			t.credit -= rest
		}
	}
	return chosen
}

// inTurn returns whose turn it is in the rotation.
func (t *table) inTurn() *peer {
	if t.next >= len(t.order) {
		t.next = 0
		rand.Shuffle(len(t.order), func(i, j int) {
			p := t.order[i]
			t.move(j, i)
			t.order[j], p.index = p, int32(j)
		})
	}
	t.next++
	return t.order[t.next-1]
}

// depart notes a probe that is about to be sent, and returns its sequence number.
func (t *table) depart(f flight) uint16 {
	f.records[f.path].sent = f.sent.at
	t.flights = append(t.flights, f)
	t.seq++
	return t.seq - 1
}

// flight finds a probe by its sequence number: those on their way are numbered without a gap.
func (t *table) flight(seq uint16) *flight {
	if back := int(t.seq - seq); back > 0 && back <= len(t.flights) {
		return &t.flights[len(t.flights)-back]
	}
	return nil
}

// arrive notes an answer, which came at now. The trip is 0 if it isn't known.
func (t *table) arrive(f *flight, now, trip time.Duration) {
	f.answered = true
	if f.gone() {
		return
	}
	t.outcomes = append(t.outcomes, outcome{f.path, trip, true})
	r := &f.records[f.path]
	r.add(0)
	r.answered = now
	if trip > 0 {
		r.trip = micros(trip)
	}
	if f.path == Overlay {
		f.heard = max(f.heard, now)
		f.failures = 0
		t.become(f.peer, Reachable)
	}
}

// expire takes the probes out that are answered, and those that were sent before a time, which are lost.
func (t *table) expire(before time.Duration) {
	for len(t.flights) > 0 {
		f := &t.flights[0]
		if !f.answered {
			if f.sent.at >= before {
				return
			}
			t.lose(f)
		}
		t.flights[0] = flight{}
		t.flights = t.flights[1:]
	}
}

func (t *table) lose(f *flight) {
	if f.gone() {
		return
	}
	t.outcomes = append(t.outcomes, outcome{path: f.path})
	r := &f.records[f.path]
	r.add(1)
	if f.path != Overlay || f.sent.at < r.answered { // a later one has been answered already
		return
	}
	f.failures = min(f.failures, math.MaxUint16-1) + 1
	if f.failures >= failuresUnreachable {
		t.become(f.peer, Unreachable)
	} else if !f.queued {
		f.queued = true
		t.suspects = append(t.suspects, f.peer)
	}
}

// become changes a target's state, and so maybe that of its host. That a new one can be reached is no news.
func (t *table) become(p *peer, s State) {
	was := State(p.worst().state)
	p.state = uint8(s)
	now := State(p.worst().state)
	if was == now {
		return
	}
	t.count[was]--
	t.count[now]++
	if was != Unknown || now == Unreachable {
		t.turned = append(t.turned, t.peers[p.key])
	}
}

// micros is a trip in µs, one at least.
func micros(d time.Duration) uint32 { return uint32(min(max(d.Microseconds(), 1), noAnswer-1)) }
