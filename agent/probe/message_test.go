package probe

import (
	"bytes"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

func row(addr string, n int) (row []entry) {
	a := netip.MustParseAddr(addr)
	for i := range n {
		row = append(row, entry{a, uint32(i)})
		a = a.Next()
	}
	return row
}

func TestMessage(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.5.1.0"), netip.MustParseAddr("2001:db8::")
	for _, m := range []message{
		{sender: v4, age: -1},
		{sender: v6, age: 0, path: Underlay, token: 1<<32 - 1},
		{sender: v4, age: 1234 * time.Millisecond, row: row("10.5.0.0", 46)},
		{sender: v6, age: 49 * 24 * time.Hour, row: row("2001:db8::", 18)},
		{sender: v4, age: -1, row: []entry{{v4, noAnswer}}},
	} {
		b := m.append(nil)
		got, ok := parseMessage(b)
		if !ok || !reflect.DeepEqual(got, m) || len(b) > messageMost || entriesMost(m.sender) < len(m.row) {
			t.Errorf("%+v in %d bytes became %+v, %v", m, len(b), got, ok)
		}
	}
	long := message{sender: v4, age: 100 * 24 * time.Hour, row: append(row("2001:db8::", 3), row("10.5.0.0", 99)...)}
	got, ok := parseMessage(long.append([]byte("before"))[len("before"):])
	if !ok || len(got.row) != 46 || got.row[0].to != netip.MustParseAddr("10.5.0.0") || got.age < 49*24*time.Hour {
		t.Errorf("what does not fit is not left out: %v, %+v", ok, got)
	}
}

func FuzzMessage(f *testing.F) {
	good := message{sender: netip.MustParseAddr("10.5.1.0"), age: time.Second, row: row("10.5.0.0", 3)}.append(nil)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(good[:messageHeader])
	f.Add(message{path: Underlay, sender: netip.MustParseAddr("2001:db8::"), age: -1, row: row("2001:db8::", 18)}.append(nil))
	f.Add(bytes.Repeat([]byte{255}, messageMost))
	for i := range messageHeader {
		bad := bytes.Clone(good)
		bad[i] ^= 255
		f.Add(bad)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := parseMessage(b)
		if !ok {
			return
		}
		if len(m.row) > entriesMost(m.sender) || m.path < 0 || m.path >= paths || !m.sender.IsValid() {
			t.Fatalf("%+v", m)
		}
		if again, ok := parseMessage(m.append(nil)); !ok || !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v became %+v", m, again)
		}
	})
}
