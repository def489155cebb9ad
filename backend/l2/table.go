package l2

import (
	"container/list"
	"net/netip"
	"time"

	"github.com/tulle-net/tulle/backend"
)

const (
	// tableMost bounds what a flood of made-up senders can take of the kernel's memory: some 8 MiB.
	tableMost = 1 << 14
	// memory is how long an address is known that is not heard of. It is less than the 300 s that a VXLAN device and a bridge
	// know a MAC for by default (FDB_AGE_DEFAULT, drivers/net/vxlan/vxlan_core.c): a probe must not be flooded.
	memory = 4 * time.Minute
	// patience is how long an answer to a probe may take: a second is what hosts wait for ARP (RFC 1122, 2.3.2.1).
	patience = time.Second
)

// entry is an address behind a peer.
type entry struct {
	ip      netip.Addr
	mac     backend.MAC
	heard   time.Time // last
	written time.Time // to the kernel
	asked   time.Time // when it was asked whether it is there; zero if it has answered
	lost    bool      // it did not answer, and the kernel does not have it
}

// table is what addresses are known, and which was not heard of for the longest.
type table struct {
	entries map[netip.Addr]*list.Element
	byHeard *list.List // of *entry, the last heard first
	asked   []question // the first asked first
}

// question is when an entry was asked. It is over once that isn't when it was last asked.
type question struct {
	entry *entry
	at    time.Time
}

func newTable() *table { return &table{entries: map[netip.Addr]*list.Element{}, byHeard: list.New()} }

// find returns what is known of an address, nil for nothing.
func (t *table) find(ip netip.Addr) *entry {
	if e, known := t.entries[ip]; known {
		return e.Value.(*entry)
	}
	return nil
}

// hear notes that an address was heard of, for the first time perhaps.
func (t *table) hear(ip netip.Addr, now time.Time) *entry {
	element, known := t.entries[ip]
	if known {
		t.byHeard.MoveToFront(element)
	} else {
		element = t.byHeard.PushFront(&entry{ip: ip})
		t.entries[ip] = element
	}
	e := element.Value.(*entry)
	e.heard, e.asked = now, time.Time{}
	return e
}

// forget takes an entry out.
func (t *table) forget(e *entry) {
	if element, known := t.entries[e.ip]; known && element.Value == e {
		t.byHeard.Remove(element)
		delete(t.entries, e.ip)
	}
}

// ask notes that e was asked. It reports false if it was, and has not answered yet.
func (t *table) ask(e *entry, now time.Time) bool {
	if !e.asked.IsZero() {
		return false
	}
	e.asked = now
	t.asked = append(t.asked, question{e, now})
	return true
}

// silent returns those that have not answered in time.
func (t *table) silent(now time.Time) (silent []*entry) {
	for len(t.asked) > 0 {
		q := t.asked[0]
		waiting := q.entry.asked == q.at
		if waiting && now.Before(q.at.Add(patience)) {
			break
		}
		if t.asked = t.asked[1:]; waiting && t.find(q.entry.ip) == q.entry {
			silent = append(silent, q.entry)
		}
	}
	return silent
}

// outdated returns an entry that there is no more room for, or that was not heard of for too long; nil if there is none.
func (t *table) outdated(now time.Time) *entry {
	last := t.byHeard.Back()
	if last == nil {
		return nil
	}
	if e := last.Value.(*entry); len(t.entries) > tableMost || now.Sub(e.heard) > memory {
		return e
	}
	return nil
}

// all are all entries.
func (t *table) all() []*entry {
	all := make([]*entry, 0, len(t.entries))
	for e := t.byHeard.Front(); e != nil; e = e.Next() {
		all = append(all, e.Value.(*entry))
	}
	return all
}
