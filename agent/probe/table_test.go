package probe

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
	"unsafe"
)

// clockwork is a table and what it has sent, with a clock of its own that goes a second a tick.
type clockwork struct {
	*testing.T
	*table
	now    moment
	dead   map[string]bool
	losses map[string]int // of the next probes of a peer, how many are lost
	lost   map[uint16]bool
	probed map[string][]int // in which ticks, by the id of a target
	tick   int
	last   int // tick in which something was done
	most   int // probed in one tick
	told   []string
}

func newClockwork(t *testing.T, peers int) *clockwork {
	c := &clockwork{T: t, table: newTable(), now: later(time.Second), dead: map[string]bool{},
		losses: map[string]int{}, lost: map[uint16]bool{}, probed: map[string][]int{}}
	for i := range peers {
		c.set(name(i), target(i))
	}
	return c
}

// later is a moment by two clocks of which neither was set.
func later(at time.Duration) moment {
	return moment{at, time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC).Add(at)}
}

func name(i int) string { return fmt.Sprintf("peer-%05d", i) }

func target(i int) Target {
	at := func(a, b byte) netip.Addr { return netip.AddrFrom4([4]byte{a, b, byte(i >> 8), byte(i)}) }
	return Target{at(10, 5), at(192, 0)}
}

// run lets ticks pass. Who is not dead answers after a millisecond, and is read at the next tick.
func (c *clockwork) run(ticks int) {
	c.Helper()
	for range ticks {
		c.tick++
		c.now = later(c.now.at + time.Second)
		if c.quiet() && c.tick-c.last < rest {
			continue
		}
		for i := range c.flights {
			if f := &c.flights[i]; !f.answered && !c.lost[c.seq-uint16(len(c.flights)-i)] {
				c.arrive(f, f.sent.at+time.Millisecond, time.Millisecond)
			}
		}
		c.expire(c.now.at - answerWait + 100*time.Millisecond)
		chosen := c.choose(c.tick - c.last)
		c.last = c.tick
		for _, p := range chosen {
			if slices.Contains(c.probed[id(p)], c.tick) {
				c.Errorf("%s is probed twice in tick %d", id(p), c.tick)
			}
			c.probed[id(p)] = append(c.probed[id(p)], c.tick)
			for path := range paths {
				seq := c.depart(flight{peer: p, path: path, sent: c.now})
				if c.lost[seq] = c.dead[id(p)] || c.losses[p.key] > 0; c.lost[seq] && path == Underlay {
					c.losses[p.key]--
				}
				if f := c.flight(seq); f == nil || f.peer != p || f.path != path {
					c.Fatalf("flight %d is not found by its number", seq)
				}
			}
		}
		c.most = max(c.most, len(chosen))
		for _, p := range c.turned {
			c.told = append(c.told, fmt.Sprint(p.key, " ", State(p.worst().state)))
		}
		c.turned, c.outcomes = nil, nil
		if len(c.order) <= 1000 || c.tick%100 == 0 {
			c.consistent()
		}
	}
}

func (c *clockwork) consistent() {
	c.Helper()
	var count [Unreachable + 1]int
	targets := 0
	for _, first := range c.peers {
		count[first.worst().state]++
		for p := range first.all() {
			targets++
			if c.order[p.index] != p || p.key != first.key {
				c.Fatalf("%s is not in its place", id(p))
			}
		}
	}
	if len(c.order) != targets || count != c.count {
		c.Fatalf("%d in order, %d peers, counted %v instead of %v", len(c.order), len(c.peers), c.count, count)
	}
	if most := 2 * 3 * (few + urgent); len(c.flights) > most {
		c.Fatalf("%d flights", len(c.flights))
	}
}

// id names a peer's target.
func id(p *peer) string {
	if p.target.Overlay.Is4() {
		return p.key
	}
	return p.key + " by IPv6"
}

// gap is the longest time between two probes of any peer, in ticks.
func (c *clockwork) gap() (gap int) {
	for _, ticks := range c.probed {
		for i := range ticks[1:] {
			gap = max(gap, ticks[i+1]-ticks[i])
		}
	}
	return gap
}

// target6 is target's other family, on the same underlay.
func target6(i int) Target {
	return Target{netip.AddrFrom16([16]byte{0xfd, 5: byte(i >> 8), 6: byte(i)}), target(i).Underlay}
}

// A host with both families is probed by each in turn, which costs no more than other hosts do; it is reachable if it is by both.
func TestTwoTargets(t *testing.T) {
	c := newClockwork(t, 0)
	for i := range 10 {
		c.set(name(i), target(i), target6(i))
	}
	c.run(600)
	probes := 0
	for _, ticks := range c.probed {
		probes += len(ticks)
	}
	if len(c.probed) != 20 || c.count != [Unreachable + 1]int{Reachable: 10} || c.most > few || probes > 600/rest*few+20 {
		t.Errorf("%d targets were probed, %v, %d at most in a tick, %d in all", len(c.probed), c.count, c.most, probes)
	}
	c.dead[name(3)+" by IPv6"] = true
	c.run(50)
	if c.count != [...]int{Reachable: 9, Unreachable: 1} || c.peers[name(3)].worst().target != target6(3) {
		t.Errorf("%v, %+v", c.count, c.peers[name(3)].worst())
	}
	c.dead[name(3)] = true
	c.run(50)
	c.dead[name(3)+" by IPv6"] = false
	c.run(50)
	if c.count[Unreachable] != 1 || c.peers[name(3)].worst().target != target(3) {
		t.Errorf("%v, %+v", c.count, c.peers[name(3)].worst())
	}
	c.dead[name(3)] = false
	c.run(50)
	if want := []string{name(3) + " unreachable", name(3) + " reachable"}; !slices.Equal(c.told, want) {
		t.Errorf("told %q, want %q", c.told, want)
	}
	c.set(name(3), target(3)) // without IPv6 now
	c.set(name(4), target6(4))
	c.drop(name(5))
	c.run(100)
	if c.count != [Unreachable + 1]int{Reachable: 9} || len(c.order) != 16 {
		t.Errorf("%v of %d targets", c.count, len(c.order))
	}
}

func TestSchedule(t *testing.T) {
	for _, test := range []struct{ peers, ticks, first, gap, most int }{
		{1, 100, 1, 5, 1}, // first: by when each was probed; one tick more may go by before a first answer is read
		{3, 100, 1, 5, 3},
		{5, 200, 2, 10, 5},
		{6, 200, 2, 15, 5},
		{25, 500, 8, 50, 5},
		{1000, 3000, 700, 2000, few + urgent},
		{10000, 15000, 6500, 15000, few + urgent},
	} {
		c := newClockwork(t, test.peers)
		c.run(test.ticks)
		sum := 0
		for i := range test.peers {
			ticks := c.probed[name(i)]
			if sum += len(ticks); len(ticks) == 0 || ticks[0] > test.first {
				t.Fatalf("%d peers: %s is probed in ticks %v", test.peers, name(i), ticks)
			}
		}
		if c.gap() > test.gap+1 || c.most > test.most {
			t.Errorf("%d peers: %d ticks between two probes of one, %d probes in a tick", test.peers, c.gap(), c.most)
		}
		want := min(test.peers, few) * test.ticks / rest
		if sum < want-few || sum > want+test.peers {
			t.Errorf("%d peers: %d probes in %d ticks", test.peers, sum, test.ticks)
		}
		if c.count[Reachable] != test.peers || len(c.told) > 0 {
			t.Errorf("%d peers: %v, told %v", test.peers, c.count, c.told)
		}
	}
}

func TestUnreachable(t *testing.T) {
	c := newClockwork(t, 100)
	c.run(100)
	c.dead["peer-00007"] = true
	c.run(100 + 100 + 10) // a round or two until it is probed, then it is suspect at once
	if got := State(c.peers["peer-00007"].state); got != Unreachable || c.count != [3]int{0, 99, 1} {
		t.Errorf("it is %s, %v", got, c.count)
	}
	lost := c.probed["peer-00007"]
	if !slices.ContainsFunc(lost, func(n int) bool { return slices.Contains(lost, n+1) && slices.Contains(lost, n+2) }) {
		t.Errorf("a suspect was not probed at each tick: %v", lost)
	}
	before := len(c.probed["peer-00007"])
	c.run(1000) // ten rounds
	if again := len(c.probed["peer-00007"]) - before; again < 9 || again > 11 {
		t.Errorf("an unreachable peer was probed %d times in ten rounds", again)
	}
	c.dead = nil
	c.run(205)
	if want := []string{"peer-00007 unreachable", "peer-00007 reachable"}; !slices.Equal(c.told, want) || c.count[Reachable] != 100 {
		t.Errorf("told %q, %v", c.told, c.count)
	}
	if r := c.peers["peer-00007"].result(c.now); r.Failures != 0 || r.Paths[Overlay].Trip != time.Millisecond {
		t.Errorf("%+v", r)
	}
}

// It takes three lost in a row to be unreachable, and nothing answered since: an answer to a later probe counts more than an
// earlier one's loss. (Of three, the third is given up when the fourth is already answered.)
func TestFewLost(t *testing.T) {
	for losses, want := range [][]string{nil, nil, nil, nil, {"peer-00000 unreachable", "peer-00000 reachable"}} {
		c := newClockwork(t, 1)
		c.run(6)
		c.losses["peer-00000"] = losses
		c.run(20)
		p := c.peers["peer-00000"]
		if p.failures != 0 || State(p.state) != Reachable || !slices.Equal(c.told, want) || c.losses["peer-00000"] > 0 {
			t.Errorf("after %d lost in a row: %+v, told %q, probed %v", losses, p, c.told, c.probed)
		}
		if got := p.result(c.now).Paths[Underlay].Loss; (got == 0) != (losses == 0) {
			t.Errorf("after %d lost in a row: a loss of %v", losses, got)
		}
	}
	c := newClockwork(t, 1)
	p := c.peers["peer-00000"]
	for i := range 2 {
		c.depart(flight{peer: p, sent: later(time.Duration(i+1) * time.Second)})
	}
	c.arrive(c.flight(1), 2*time.Second+time.Millisecond, time.Millisecond)
	c.expire(time.Minute)
	if p.failures != 0 || p.records[Overlay].lost != 1 || p.records[Overlay].count != 2 || len(c.flights) != 0 {
		t.Errorf("the first lost, the second answered: %+v", p)
	}
}

// However many peers don't answer, the others don't wait for them.
func TestManyDead(t *testing.T) {
	c := newClockwork(t, 200)
	c.run(200)
	for i := range 100 {
		c.dead[name(i)] = true
	}
	clear(c.probed)
	c.run(800)
	for i := range 200 {
		if got := State(c.peers[name(i)].state); (got == Unreachable) != c.dead[name(i)] {
			t.Errorf("%s is %s", name(i), got)
		}
	}
	if c.most > few+urgent || c.gap() > 450 {
		t.Errorf("%d probed in a tick, %d ticks between two probes of one", c.most, c.gap())
	}
	if len(c.told) != 100 {
		t.Errorf("told %q", c.told)
	}
}

func TestChange(t *testing.T) {
	c := newClockwork(t, 50)
	c.run(7)
	for i := range 500 { // while probes are on their way
		switch i % 4 {
		case 0:
			c.drop(name(i % 50))
		case 1:
			c.set(name(i%50), target(i))
		case 2:
			c.set(name(i+50), target(i+50))
		}
		c.run(1)
	}
	c.set("new", target(5000))
	c.run(1)
	if got := c.probed["new"]; !slices.Equal(got, []int{c.tick}) {
		t.Errorf("a new one is probed in ticks %v, and this is %d", got, c.tick)
	}
	p := c.peers["new"]
	if c.set("new", target(5000)) || c.peers["new"] != p {
		t.Error("a peer that is set again is not kept")
	}
	if !c.set("new", target(5001)) || c.peers["new"] == p || c.byOverlay[target(5000).Overlay] != nil {
		t.Error("a peer that moved is kept")
	}
	for key := range c.peers {
		c.drop(key)
	}
	c.run(3)
	if len(c.byOverlay) != 0 || len(c.flights) != 0 || len(c.newcomers) != 0 || len(c.suspects) != 0 {
		t.Errorf("left: %d addresses, %d flights, %d new, %d suspects", len(c.byOverlay), len(c.flights), len(c.newcomers), len(c.suspects))
	}
}

// Whoever is dropped, and however far the round is, the others keep their places.
func TestDrop(t *testing.T) {
	for peers := 1; peers <= 4; peers++ {
		for done := 0; done <= peers; done++ {
			for dropped := range peers {
				c := newClockwork(t, peers)
				for range done {
					c.inTurn()
				}
				order := slices.Clone(c.order)
				c.drop(order[dropped].key)
				for i, p := range c.order {
					if int(p.index) != i {
						t.Fatalf("%d peers, %d of them done, one dropped at %d: the one at %d takes itself to be at %d", peers, done, dropped, i, p.index)
					}
				}
				if want := done - map[bool]int{true: 1}[dropped < done]; c.next != want || len(c.order) != peers-1 {
					t.Errorf("%d peers, %d of them done, one dropped at %d: %d done, %d left", peers, done, dropped, c.next, len(c.order))
				}
			}
		}
	}
}

func TestRecord(t *testing.T) {
	for _, test := range []struct {
		outcomes string
		loss     float64
	}{{"", 0}, {"a", 0}, {"l", 1}, {"al", 0.5}, {"llllllll", 1}, {"llllllllaaaaaaa", 0.125}, {"lllllllaaaaaaaa", 0}} {
		var p peer
		for _, o := range test.outcomes {
			p.records[Underlay].add(map[rune]uint8{'l': 1}[o])
		}
		if got := p.result(later(0)).Paths[Underlay].Loss; got != test.loss {
			t.Errorf("%q: %v", test.outcomes, got)
		}
	}
}

// The times of a Result are the wall clock's as it is now.
func TestResultTimes(t *testing.T) {
	p := peer{heard: time.Minute, heardUs: -time.Second}
	set := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	r := p.result(moment{time.Hour, set})
	if !r.Heard.Equal(set.Add(-59*time.Minute)) || !r.HeardUs.Equal(set.Add(-time.Hour-time.Second)) || !r.Paths[Overlay].Sent.IsZero() {
		t.Errorf("%+v", r)
	}
}

func TestPeerSize(t *testing.T) {
	if size := unsafe.Sizeof(peer{}); size > 144 { // the runtime's next size is 160
		t.Errorf("a peer takes %d bytes", size)
	}
}
