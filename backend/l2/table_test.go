package l2

import (
	"net/netip"
	"testing"
	"time"
)

var start = time.Unix(1_700_000_000, 0)

func TestTableForgets(t *testing.T) {
	table := newTable()
	table.hear(ipA, start)
	table.hear(ipB, start.Add(time.Minute))
	table.hear(ipA, start.Add(2*time.Minute))
	if e := table.outdated(start.Add(time.Minute + memory)); e != nil {
		t.Errorf("%s was heard of %s ago, and is outdated", e.ip, memory)
	}
	e := table.outdated(start.Add(time.Minute + memory + 1))
	if e == nil || e.ip != ipB {
		t.Fatalf("%v is outdated, want %s", e, ipB)
	}
	table.forget(e)
	if table.forget(e); table.find(ipB) != nil || table.find(ipA) == nil || len(table.all()) != 1 {
		t.Errorf("it has %v", table.all())
	}
	if e := table.outdated(start.Add(time.Minute + memory + 1)); e != nil {
		t.Errorf("%s is outdated", e.ip)
	}
}

// A flood of senders takes no more room than there is, and what was heard of last stays.
func TestTableIsBounded(t *testing.T) {
	table := newTable()
	ip := netip.MustParseAddr("10.0.0.0")
	for n := range 2 * tableMost {
		ip = ip.Next()
		table.hear(ip, start.Add(time.Duration(n)))
		for e := table.outdated(start); e != nil; e = table.outdated(start) {
			table.forget(e)
		}
	}
	if n := len(table.all()); n != tableMost || table.find(ip) == nil {
		t.Errorf("%d entries, the last %v", n, table.find(ip))
	}
}

func TestTableAsks(t *testing.T) {
	table := newTable()
	a, b := table.hear(ipA, start), table.hear(ipB, start)
	if !table.ask(a, start) || table.ask(a, start.Add(time.Millisecond)) || !table.ask(b, start.Add(time.Millisecond)) {
		t.Error("each is asked once until it has answered")
	}
	table.hear(ipA, start.Add(2*time.Millisecond))
	if !table.ask(a, start.Add(3*time.Millisecond)) {
		t.Error("it has answered, and is not asked again")
	}
	if silent := table.silent(start.Add(patience)); len(silent) != 0 {
		t.Errorf("%s had no time yet", silent[0].ip)
	}
	if silent := table.silent(start.Add(time.Millisecond + patience)); len(silent) != 1 || silent[0] != b {
		t.Errorf("%v are silent, want %s", silent, ipB)
	}
	table.forget(a)
	if silent := table.silent(start.Add(time.Minute)); len(silent) != 0 || len(table.asked) != 0 {
		t.Errorf("%v are silent, which is forgotten", silent)
	}
}
