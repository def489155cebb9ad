package udp

import (
	"net/netip"
	"testing"

	"github.com/tulle-net/tulle/backend"
)

type endpoints = backend.Delta[backend.EndpointKey, netip.AddrPort]

func TestTable(t *testing.T) {
	table := newTable()
	set := func(prefix, to string) {
		k := backend.EndpointKey{Prefix: netip.MustParsePrefix(prefix)}
		table.change(endpoints{Set: map[backend.EndpointKey]netip.AddrPort{k: netip.MustParseAddrPort(to)}})
	}
	is := func(address, want string) {
		t.Helper()
		got := ""
		if e := table.lookup(netip.MustParseAddr(address)); e != nil {
			got = e.String()
			if e.socket.String() != got {
				t.Errorf("the socket's address is %s", e.socket)
			}
		}
		if got != want {
			t.Errorf("%s is at %q, want %q", address, got, want)
		}
	}
	is("10.5.2.2", "")
	set("10.5.0.0/16", "192.0.2.1:1")
	set("10.5.2.0/24", "192.0.2.2:2")
	set("10.5.2.0/24", "192.0.2.3:3")
	set("fd00:5::/64", "[2001:db8::1]:4")
	is("10.5.2.2", "192.0.2.3:3")
	is("10.5.3.2", "192.0.2.1:1")
	is("10.6.0.1", "")
	is("fd00:5::1", "[2001:db8::1]:4")
	table.change(endpoints{Del: map[backend.EndpointKey]netip.AddrPort{
		{Prefix: netip.MustParsePrefix("10.5.2.0/24")}: {}, {Prefix: netip.MustParsePrefix("10.5.9.0/24")}: {}}})
	is("10.5.2.2", "192.0.2.1:1")

	table.change(crowd) // many at once
	is("10.0.7.7", "10.0.7.0:8285")
	is("fd00:5::1", "[2001:db8::1]:4")
	table.change(endpoints{Del: crowd.Set})
	is("10.0.7.7", "")
	n := 0
	for range table.all {
		n++
	}
	if n != 2 {
		t.Errorf("%d entries, want 2", n)
	}
}

// crowd is ten thousand peers.
var crowd = func() endpoints {
	d := endpoints{Set: map[backend.EndpointKey]netip.AddrPort{}}
	for n := range 10000 {
		d.Set[nth(n)] = netip.AddrPortFrom(nth(n).Prefix.Addr(), port)
	}
	return d
}()

func nth(n int) backend.EndpointKey {
	return backend.EndpointKey{Dev: dev, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 24)}
}

// BenchmarkTable is about ten thousand entries.
func BenchmarkTable(b *testing.B) {
	table := newTable()
	table.change(crowd)
	b.Run("lookup", func(b *testing.B) {
		n := 0
		for b.Loop() {
			n = (n + 7919) % 10000
			if table.lookup(nth(n).Prefix.Addr()) == nil {
				b.Fatal("not found")
			}
		}
	})
	b.Run("change one", func(b *testing.B) {
		d := endpoints{Set: map[backend.EndpointKey]netip.AddrPort{nth(5000): endpointOf(5)}}
		for b.Loop() {
			table.change(d)
		}
	})
	b.Run("fill", func(b *testing.B) {
		for b.Loop() {
			newTable().change(crowd)
		}
	})
}
