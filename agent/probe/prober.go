package probe

import (
	"context"
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Options are how a Prober works. The zero value is how it should.
type Options struct {
	// Observe, if set, hears what became of each probe: it was answered after a trip (0 if nobody knows, as the wall clock was set
	// meanwhile), or lost.
	Observe func(p Path, trip time.Duration, answered bool)
	// Turned, if set, hears of each peer that is unreachable from now on, or reachable again.
	Turned func(key string, r Result)
	Tick   time.Duration // 1 s if 0, and then what is said of seconds here is true
	Wait   time.Duration // how long an answer may take: 2 s if 0
}

// Prober probes peers' targets by both paths: each every 5 s as long as there are five at most; of more, five every 5 s, each once before
// any a second time. New ones are probed within a second, and those whose last probe over the overlay was lost in each second until it
// is known what to think of them; three of both together. Where more than a hundred are new or suspect, there is no such hurry: it is
// eight every 5 s then. What that costs does not depend on how many peers there are.
//
// All methods may be called by any goroutine. Observe and Turned are called by Run's, without a lock.
type Prober struct {
	Options
	base time.Time
	id   uint16        // of our echo requests
	news chan struct{} // of a peer; capacity one

	mu      sync.Mutex
	table   *table
	mesh    mesh
	selfKey string
	self    []Target
}

// New makes a Prober that knows no peers.
func New(o Options) *Prober {
	if o.Tick == 0 {
		o.Tick = time.Second
	}
	if o.Wait == 0 {
		o.Wait = answerWait
	}
	return &Prober{Options: o, base: time.Now().Add(-time.Second), id: uint16(rand.Uint32()), news: make(chan struct{}, 1), table: newTable()}
}

// now takes the monotonic reading off the wall clock's time: the difference of two is that of the clock, set or not.
func (p *Prober) now() moment {
	now := time.Now()
	return moment{now.Sub(p.base), now.Round(0)}
}

// SetSelf says who this host is, and which addresses of its own the probes come from: by each path, the first of the peer's family.
// Before that there are none; to a family that this host has no address of, neither.
func (p *Prober) SetSelf(key string, self ...Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.selfKey != key || !slices.Equal(p.self, self) {
		p.selfKey, p.self, p.mesh.stale = key, self, true
	}
}

// from is where probes of to come from; not valid if there can be none.
func (p *Prober) from(path Path, to netip.Addr) netip.Addr {
	for _, t := range p.self {
		if a := t.on(path); a.IsValid() && a.BitLen() == to.BitLen() {
			return a
		}
	}
	return netip.Addr{}
}

// overlay is this host's address that others know it by in a Mesh.
func (p *Prober) overlay() netip.Addr {
	for _, t := range p.self {
		if t.Overlay.IsValid() {
			return t.Overlay
		}
	}
	return netip.Addr{}
}

// Set says where a peer is: its target, or two, of either family. What is known of it is kept if that is no news.
func (p *Prober) Set(key string, targets ...Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set(key, targets...)
}

func (p *Prober) set(key string, targets ...Target) {
	old := p.table.peers[key]
	if p.table.set(key, targets...) {
		p.mesh.touch(old)
		p.mesh.touch(p.table.peers[key])
		select {
		case p.news <- struct{}{}:
		default:
		}
	}
}

// Drop forgets a peer.
func (p *Prober) Drop(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(key)
}

func (p *Prober) drop(key string) {
	p.mesh.touch(p.table.peers[key])
	p.table.drop(key)
}

// Reset says which peers there are; others are forgotten. What is known of those that stay where they were is kept.
func (p *Prober) Reset(targets iter.Seq2[string, []Target]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	stays := make(map[string]struct{}, len(p.table.peers))
	for key, t := range targets {
		stays[key] = struct{}{}
		p.set(key, t...)
	}
	for key := range p.table.peers {
		if _, ok := stays[key]; !ok {
			p.drop(key)
		}
	}
}

// Result is what is known of a peer, if it is one: by the worst of its targets.
func (p *Prober) Result(key string) (Result, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	peer := p.table.peers[key]
	if peer == nil {
		return Result{}, false
	}
	return peer.worst().result(p.now()), true
}

// Results are what is known of a peer by each of its targets.
func (p *Prober) Results(key string) (all []Result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for peer := range p.table.peers[key].all() {
		all = append(all, peer.result(p.now()))
	}
	return all
}

// Count counts the peers by state: each by that of the worst of its targets.
func (p *Prober) Count() (reachable, unreachable, unknown int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.table.count
	return c[Reachable], c[Unreachable], c[Unknown]
}

// Mesh is what this host and others have measured. What others said is forgotten after 5 minutes, or three rounds of probing
// everybody if those take longer.
func (p *Prober) Mesh() Mesh {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.chooseMesh()
	round := time.Duration(len(p.table.order)*rest/few) * p.Tick
	since := p.now().at - max(meshAge, 3*round)
	var m Mesh
	for _, from := range p.mesh.hosts {
		m.Keys = append(m.Keys, p.key(from))
		row := make([]time.Duration, len(p.mesh.hosts))
		for i, to := range p.mesh.hosts {
			if from == p.overlay() {
				row[i] = trip(p.table.byOverlay[to].measured())
			} else {
				row[i] = trip(p.mesh.between(from, to, since))
			}
		}
		m.RTT = append(m.RTT, row)
	}
	return m
}

func (p *Prober) key(overlay netip.Addr) string {
	if overlay == p.overlay() {
		return p.selfKey
	}
	return p.table.byOverlay[overlay].key
}

func (p *Prober) chooseMesh() {
	if p.mesh.stale {
		p.mesh.choose(p.table.byOverlay, p.overlay())
	}
}

// Run probes until ctx ends, and returns nil then; otherwise it is an error that says why there can be no probes.
func (p *Prober) Run(ctx context.Context) error {
	sockets := map[int]*socket{}
	defer func() {
		for _, s := range sockets {
			s.close()
		}
	}()
	if err := p.open(sockets, familyOf(netip.IPv4Unspecified())); err != nil { // so that a lack of permission is found at once
		return err
	}
	last := time.Now()
	timer := time.NewTimer(p.Tick)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.news:
			timer.Reset(time.Until(last.Add(p.Tick)))
			continue
		case <-timer.C:
		}
		passed := time.Since(last)
		last = last.Add(passed)
		wait, err := p.tick(sockets, max(1, int(passed.Round(p.Tick)/p.Tick)))
		if err != nil {
			return err
		}
		timer.Reset(time.Until(last.Add(wait)))
	}
}

func (p *Prober) open(sockets map[int]*socket, f family) error {
	if sockets[f.domain] == nil {
		s, err := openSocket(f, p.id)
		if err != nil {
			return err
		}
		sockets[f.domain] = s
	}
	return nil
}

// tick reads what has come, judges what has not, sends what is next, and tells what is new. So many ticks have passed since the
// last one; it returns when the next is due.
func (p *Prober) tick(sockets map[int]*socket, ticks int) (wait time.Duration, err error) {
	p.mu.Lock()
	p.chooseMesh()
	now := p.now()
	for _, s := range sockets {
		s.drain(s.replies, func(a packet) { p.answer(a, now) })
		s.drain(s.requests, func(a packet) { p.request(a, now) })
	}
	p.table.expire(now.at - p.Wait + p.Tick/10) // the tick that sent it may have been late
	err = p.send(sockets, ticks)
	wait = p.Tick
	if p.table.quiet() {
		wait *= rest
	}
	outcomes, turned := p.table.outcomes, p.table.turned
	p.table.outcomes, p.table.turned = nil, nil
	results := make([]Result, len(turned))
	for i, peer := range turned {
		results[i] = peer.worst().result(now)
	}
	p.mu.Unlock()

	if p.Observe != nil {
		for _, o := range outcomes {
			p.Observe(o.path, o.trip, o.answered)
		}
	}
	if p.Turned != nil {
		for i, peer := range turned {
			p.Turned(peer.key, results[i])
		}
	}
	return wait, err
}

// send probes whoever is chosen. That the kernel won't send a packet is like losing it: no route, or a packet filter's refusal.
func (p *Prober) send(sockets map[int]*socket, ticks int) error {
	if len(p.self) == 0 {
		return nil
	}
	p.mesh.measure()
	for _, peer := range p.table.choose(ticks) {
		for path := range paths {
			to := peer.target.on(path)
			from := p.from(path, to)
			if !from.IsValid() {
				continue
			}
			f := familyOf(to)
			if err := p.open(sockets, f); err != nil {
				return err
			}
			flight := flight{peer: peer, path: path, sent: p.now(), token: rand.Uint32()}
			message := p.message(flight).append(make([]byte, 0, messageMost))
			request, err := f.echo(int(p.id), int(p.table.depart(flight)), message)
			if err == nil {
				_ = sockets[f.domain].send(from, to, request)
			}
		}
	}
	return nil
}

func (p *Prober) message(f flight) message {
	m := message{path: f.path, token: f.token, age: -1, sender: p.from(Overlay, f.target.Overlay)}
	if f.heard != 0 {
		m.age = f.sent.at - f.heard
	}
	if f.path == Overlay {
		m.row = p.mesh.tell(entry{f.target.Overlay, f.measured()})
	}
	return m
}

// answer takes what looks like an answer to one of our probes. Its trip is by the wall clock, the only one that the kernel stamps
// packets with. If that was set since, it was most likely after the answer came: it waits for the next tick much longer than it was on its
// way, and where somebody sets the clock a little again and again, no trip would ever be known. A trip that can't be is unknown.
func (p *Prober) answer(a packet, now moment) {
	f := p.table.flight(a.seq())
	token, ok := tokenOf(a.message[icmpHeader:])
	if f == nil || f.answered || !ok || token != f.token || a.from != f.target.on(f.path) {
		return
	}
	trip := a.at.Sub(f.sent.wall)
	step := now.wall.Sub(f.sent.wall) - (now.at - f.sent.at)
	switch {
	case trip >= 0 && trip <= p.Wait:
		p.table.arrive(f, f.sent.at+trip, max(trip, time.Microsecond))
	case trip < 0 || step.Abs() > time.Millisecond:
		p.table.arrive(f, now.at, 0)
	}
}

// request takes what looks like a probe of another host: only if it comes from a peer's address. The kernel has answered it.
func (p *Prober) request(a packet, now moment) {
	m, ok := parseMessage(a.message[icmpHeader:])
	if !ok {
		return
	}
	peer := p.table.byOverlay[m.sender]
	if peer == nil || a.from != peer.target.on(m.path) {
		return
	}
	at := now.at
	if since := now.wall.Sub(a.at); since > 0 && since < 2*rest*p.Tick { // else the wall clock was set
		at -= since
	}
	if m.age >= 0 {
		peer.heardUs = max(peer.heardUs, at-m.age)
	}
	if m.path == Overlay {
		peer.heard = max(peer.heard, at)
		p.mesh.hear(m.sender, m.row, at)
	}
}
