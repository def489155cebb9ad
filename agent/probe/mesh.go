package probe

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

const (
	meshMost = 64 // hosts
	meshAge  = 5 * time.Minute
)

// Mesh is how long packets take over the overlay between hosts, there and back, as they tell each other: between 64 hosts at
// most, those with the lowest overlay addresses, so that all hosts know of the same ones, and this host. They are of one family, that
// of this host's first.
type Mesh struct {
	Keys []string          // by overlay address
	RTT  [][]time.Duration // from host to host, by their places in Keys; 0 if not known, negative if there was no answer
}

// mesh is what hosts have told.
type mesh struct {
	hosts []netip.Addr // sorted
	peers []*peer      // the same, without this host
	self  netip.Addr
	told  bool // this host is among those that others want to know of
	stale bool // hosts must be chosen anew
	slot  map[netip.Addr]int
	cells [][meshMost]cell // from slot to slot; none until somebody tells something
	own   []entry          // what we tell others
}

type cell struct {
	trip uint32 // µs, or noAnswer; 0 if nobody told
	at   uint32 // s since the Prober was made
}

// touch notes that a host is new or gone.
func (m *mesh) touch(host *peer) {
	for p := range host.all() {
		m.touchAt(p.target.Overlay)
	}
}

func (m *mesh) touchAt(a netip.Addr) {
	highest := len(m.hosts) - 1
	if !m.told && m.self.IsValid() {
		highest-- // the last is this host
	}
	m.stale = m.stale || len(m.hosts) < meshMost || a.Compare(m.hosts[highest]) <= 0
}

// choose takes the lowest addresses, and self. What was told of those that stay stays.
func (m *mesh) choose(peers map[netip.Addr]*peer, self netip.Addr) {
	m.stale, m.self = false, self
	all := make([]netip.Addr, 0, len(peers)+1)
	for a := range peers {
		if !self.IsValid() || a.BitLen() == self.BitLen() { // who has two addresses is there once
			all = append(all, a)
		}
	}
	if _, ok := peers[self]; self.IsValid() && !ok {
		all = append(all, self)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	m.hosts = slices.Clone(all[:min(len(all), meshMost)])
	if m.told = slices.Contains(m.hosts, self); !m.told && self.IsValid() {
		m.hosts[meshMost-1] = self // the list is full, or self would be in it
	}
	m.peers = m.peers[:0]
	for _, a := range m.hosts {
		if p := peers[a]; p != nil {
			m.peers = append(m.peers, p)
		}
	}
	m.seat()
}

// seat gives each host a slot, and wipes those of who has none any more.
func (m *mesh) seat() {
	free := make([]bool, meshMost)
	for i := range free {
		free[i] = true
	}
	kept := map[netip.Addr]int{}
	for _, a := range m.hosts {
		if i, ok := m.slot[a]; ok {
			kept[a], free[i] = i, false
		}
	}
	m.slot = kept
	for _, a := range m.hosts {
		if _, ok := kept[a]; !ok {
			i := slices.Index(free, true)
			kept[a], free[i] = i, false
			m.wipe(i)
		}
	}
}

func (m *mesh) wipe(slot int) {
	for i := range m.cells {
		m.cells[i][slot] = cell{}
		if i == slot {
			m.cells[i] = [meshMost]cell{}
		}
	}
}

// hear keeps what a host tells of hosts that we want to know of.
func (m *mesh) hear(from netip.Addr, row []entry, now time.Duration) {
	i, ok := m.slot[from]
	if !ok {
		return
	}
	if m.cells == nil {
		m.cells = make([][meshMost]cell, meshMost)
	}
	for _, e := range row {
		if j, ok := m.slot[e.to]; ok && i != j {
			m.cells[i][j] = cell{e.trip, uint32(now.Seconds())}
		}
	}
}

// measure notes what we tell others: what we know of the ways to all hosts.
func (m *mesh) measure() {
	m.own = m.own[:0]
	for _, p := range m.peers {
		if trip := p.measured(); trip != 0 && m.told {
			m.own = append(m.own, entry{p.target.Overlay, trip})
		}
	}
}

// tell chooses what a host is told, after the way to itself: as much as fits, from a random place on.
func (m *mesh) tell(itself entry) []entry {
	row := append(make([]entry, 0, entriesMost(itself.to)), itself)
	for i, start := 0, rand.IntN(len(m.own)+1); i < len(m.own) && len(row) < cap(row); i++ {
		if e := m.own[(start+i)%len(m.own)]; e.to != itself.to {
			row = append(row, e)
		}
	}
	return row
}

// between is what a host told of the way to another: 0 if nothing, or nothing after the time since.
func (m *mesh) between(from, to netip.Addr, since time.Duration) uint32 {
	if m.cells == nil {
		return 0
	}
	c := m.cells[m.slot[from]][m.slot[to]]
	if time.Duration(c.at)*time.Second < since {
		return 0
	}
	return c.trip
}

// trip is a trip as a Mesh has it.
func trip(micros uint32) time.Duration {
	if micros == noAnswer {
		return -1
	}
	return time.Duration(micros) * time.Microsecond
}
