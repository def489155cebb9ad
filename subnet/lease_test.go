package subnet

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

// flannelLeases are keys and values that flanneld 0.28.9 wrote, byte for byte, and one of tulle's own reservations.
var flannelLeases = []struct {
	name, key, value string
	want             Lease
}{
	{"vxlan", "10.5.65.0-24",
		`{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"a6:59:a7:17:56:cd"}}`,
		Lease{subnets("10.5.65.0/24"), addrs("192.168.50.11"), "vxlan", Pair[string]{V4: `{"VNI":1,"VtepMAC":"a6:59:a7:17:56:cd"}`}}},
	{"dual stack", "10.5.85.0-24&fd12:3456:0:34::-64",
		`{"PublicIP":"192.168.50.11","PublicIPv6":"fd00:50::11","BackendType":"vxlan","BackendData":{"VNI":42,"VtepMAC":"42:72:01:02:03:04"},"BackendV6Data":{"VNI":42,"VtepMAC":"0a:07:01:02:03:04"}}`,
		Lease{subnets("10.5.85.0/24", "fd12:3456:0:34::/64"), addrs("192.168.50.11", "fd00:50::11"), "vxlan",
			Pair[string]{`{"VNI":42,"VtepMAC":"42:72:01:02:03:04"}`, `{"VNI":42,"VtepMAC":"0a:07:01:02:03:04"}`}}},
	{"host-gw", "10.5.65.0-24", `{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"host-gw"}`,
		Lease{Subnet: subnets("10.5.65.0/24"), PublicIP: addrs("192.168.50.11"), Backend: "host-gw"}},
	{"ipip", "10.5.65.0-24", `{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"ipip"}`,
		Lease{Subnet: subnets("10.5.65.0/24"), PublicIP: addrs("192.168.50.11"), Backend: "ipip"}},
	{"udp, alloc, a reservation", "10.5.65.0-24", `{"PublicIP":"192.168.50.11","PublicIPv6":null}`,
		Lease{Subnet: subnets("10.5.65.0/24"), PublicIP: addrs("192.168.50.11")}},
	{"wireguard", "10.5.85.0-24&fd12:3456:0:34::-64",
		`{"PublicIP":"192.168.50.11","PublicIPv6":"fd00:50::11","BackendType":"wireguard","BackendData":{"PublicKey":"kK+/abc=","Port":51820},"BackendV6Data":{"PublicKey":"kK+/abc=","Port":51821}}`,
		Lease{subnets("10.5.85.0/24", "fd12:3456:0:34::/64"), addrs("192.168.50.11", "fd00:50::11"), "wireguard",
			Pair[string]{`{"PublicKey":"kK+/abc=","Port":51820}`, `{"PublicKey":"kK+/abc=","Port":51821}`}}},
	{"extension", "10.5.65.0-24", `{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"extension","BackendData":"tun0 <up> & \"running\"\n"}`,
		Lease{subnets("10.5.65.0/24"), addrs("192.168.50.11"), "extension", Pair[string]{V4: `"tun0 <up> & \"running\"\n"`}}},
	{"IPv6 only", "fd12:3456:0:34::-64", `{"PublicIP":null,"PublicIPv6":"fd00:50::11","BackendType":"host-gw"}`,
		Lease{Subnet: subnets("fd12:3456:0:34::/64"), PublicIP: addrs("fd00:50::11"), Backend: "host-gw"}},
}

func subnets(prefixes ...string) (p Pair[netip.Prefix]) {
	for _, text := range prefixes {
		prefix := netip.MustParsePrefix(text)
		*p.At(FamilyOf(prefix.Addr())) = prefix
	}
	return p
}

func addrs(texts ...string) (p Pair[netip.Addr]) {
	for _, text := range texts {
		a := netip.MustParseAddr(text)
		*p.At(FamilyOf(a)) = a
	}
	return p
}

func TestLeaseRoundTrip(t *testing.T) {
	t.Parallel()
	for _, test := range flannelLeases {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseLease(test.key, []byte(test.value))
			if err != nil {
				t.Fatal(err)
			}
			if got != test.want {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
			if key := got.Key(); key != test.key {
				t.Errorf("key %q, want %q", key, test.key)
			}
			if value := string(got.MarshalValue()); value != test.value {
				t.Errorf("value %s\nwant  %s", value, test.value)
			}
			if idle := got.Idle(); idle != (got.Backend == "") {
				t.Errorf("idle: %t", idle)
			}
		})
	}
}

func TestParseLeaseTolerates(t *testing.T) {
	t.Parallel()
	want := Lease{subnets("10.5.65.0/24"), addrs("192.168.50.11"), "vxlan", Pair[string]{V4: `{"VNI":1}`}}
	for _, test := range []struct{ name, value string }{
		{"whitespace", " {\"PublicIP\" : \"192.168.50.11\",\n\"BackendType\":\"vxlan\", \"BackendData\": { \"VNI\": 1 } }\n"},
		{"unknown fields", `{"PublicIP":"192.168.50.11","BackendType":"vxlan","BackendData":{"VNI":1},"Zone":{"a":[1]}}`},
		{"type in any case", `{"PublicIP":"192.168.50.11","BackendType":"VXLAN","BackendData":{"VNI":1}}`},
		{"an empty address", `{"PublicIP":"192.168.50.11","PublicIPv6":"","BackendType":"vxlan","BackendData":{"VNI":1}}`},
		{"an unspecified address", `{"PublicIP":"192.168.50.11","PublicIPv6":"::","BackendType":"vxlan","BackendData":{"VNI":1}}`},
		{"null data", `{"PublicIP":"192.168.50.11","BackendType":"vxlan","BackendData":{"VNI":1},"BackendV6Data":null}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got, err := ParseLease("10.5.65.0-24", []byte(test.value)); got != want || err != nil {
				t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
			}
		})
	}
}

func TestParseLeaseRejects(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, value string
		want        Reason
		detail      string // the start of it
	}{
		{"empty", ``, BadValue, "not a lease: unexpected end of JSON input"},
		{"cut short", `{"PublicIP":"192.1`, BadValue, "not a lease: unexpected end of JSON input"},
		{"not JSON", `hello`, BadValue, "not a lease: invalid character 'h'"},
		{"trailing garbage", `{"PublicIP":"192.168.50.11"}}`, BadValue, "not a lease: invalid character '}'"},
		{"an array", `[{"PublicIP":"192.168.50.11"}]`, BadValue, "not a lease: json: cannot unmarshal array"},
		{"a number", `1`, BadValue, "not a lease: json: cannot unmarshal number"},
		{"1 MiB", `{"PublicIP":"192.168.50.11","BackendType":"` + strings.Repeat("x", 1<<20) + `"}`, BadValue, "1048621 bytes, more than 16384"},
		{"type not a string", `{"PublicIP":"192.168.50.11","BackendType":1}`, BadValue, "not a lease: json: cannot unmarshal number"},
		{"address not a string", `{"PublicIP":3232248331}`, BadValue, "not a lease: json: cannot unmarshal number"},
		{"address an array", `{"PublicIP":["192.168.50.11"]}`, BadValue, "not a lease: json: cannot unmarshal array"},
		{"not an address", `{"PublicIP":"host1"}`, BadValue, `not a lease: ParseAddr("host1")`},
		{"a prefix", `{"PublicIP":"192.168.50.11/24"}`, BadValue, `not a lease: ParseAddr("192.168.50.11/24")`},

		{"null", `null`, BadAddress, "no public address"},
		{"no address", `{"BackendType":"vxlan"}`, BadAddress, "no public address"},
		{"null addresses", `{"PublicIP":null,"PublicIPv6":null}`, BadAddress, "no public address"},
		{"unspecified", `{"PublicIP":"0.0.0.0"}`, BadAddress, "no public address"},
		{"IPv4 as IPv6", `{"PublicIP":"192.168.50.11","PublicIPv6":"192.168.50.11"}`, BadAddress, "192.168.50.11 can't be a host's public IPv6 address"},
		{"IPv6 as IPv4", `{"PublicIP":"fd00:50::11"}`, BadAddress, "fd00:50::11 can't be a host's public IPv4 address"},
		{"IPv4-mapped as IPv4", `{"PublicIP":"::ffff:192.168.50.11"}`, BadAddress, "::ffff:192.168.50.11 can't be a host's public IPv4 address"},
		{"IPv4-mapped as IPv6", `{"PublicIPv6":"::ffff:192.168.50.11"}`, BadAddress, "::ffff:192.168.50.11 can't be a host's public IPv6 address"},
		{"multicast", `{"PublicIP":"239.1.1.1"}`, BadAddress, "239.1.1.1 can't be"},
		{"IPv6 multicast", `{"PublicIPv6":"ff02::1"}`, BadAddress, "ff02::1 can't be"},
		{"loopback", `{"PublicIP":"127.0.0.1"}`, BadAddress, "127.0.0.1 can't be"},
		{"IPv6 loopback", `{"PublicIPv6":"::1"}`, BadAddress, "::1 can't be"},
		{"zone", `{"PublicIPv6":"fe80::1%eth0"}`, BadAddress, "fe80::1%eth0 can't be"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := ParseLease("10.5.65.0-24", []byte(test.value))
			checkReject(t, err, test.want, test.detail)
		})
	}
}

// What is stored nearly always must not take the long way.
func TestParseUsual(t *testing.T) {
	t.Parallel()
	for _, test := range flannelLeases {
		got, ok := parseUsual(test.want.Subnet, []byte(test.value))
		if want := test.want.Backend != ""; ok != want || ok && got != test.want {
			t.Errorf("%s: got %+v, %t", test.name, got, ok)
		}
	}
	for _, value := range []string{
		`{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":null}`,
		`{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI": 1}}`,
		`{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1},"TulleClaim":"web-1"}`,
		`{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1}`,
		`{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"VXLAN","BackendData":{"VNI":1}}`,
		`{"PublicIP":"0.0.0.0","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1}}`,
		`{"PublicIP":"fd00::1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1}}`,
		`{"PublicIP":null,"PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1}}`,
		`{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":}`,
		`{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendV6Data":}`,
		`{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{"VNI":1}}`,
		`{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendV6Data":{"VNI":1},"BackendData":{"VNI":1}}`,
		`{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendV6Data":{"VNI":1},"BackendV6Data":{"VNI":2}}`,
		`{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan""BackendData":{"VNI":1}}`,
	} {
		if got, ok := parseUsual(subnets("10.5.65.0/24"), []byte(value)); ok {
			t.Errorf("%s: got %+v", value, got)
		}
	}
}

func checkReject(t *testing.T, err error, reason Reason, detail string) {
	t.Helper()
	var r *Reject
	if !errors.As(err, &r) {
		t.Fatalf("got %v, want a Reject", err)
	}
	if r.Reason != reason || !strings.HasPrefix(r.Detail, detail) {
		t.Errorf("got  %s\nwant %s: %s…", r, reason, detail)
	}
}

func TestParseKey(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		key  string
		want Pair[netip.Prefix]
	}{
		{"10.5.65.0-24", subnets("10.5.65.0/24")},
		{"10.5.65.4-30", subnets("10.5.65.4/30")},
		{"10.5.65.7-32", subnets("10.5.65.7/32")},
		{"fd12:3456:0:34::-64", subnets("fd12:3456:0:34::/64")},
		{"10.5.85.0-24&fd12:3456:0:34::-64", subnets("10.5.85.0/24", "fd12:3456:0:34::/64")},
	} {
		got, err := ParseKey(test.key)
		if err != nil || got != test.want {
			t.Errorf("%s: got %v, %v, want %v", test.key, got, err, test.want)
		}
		if key := FormatKey(got); key != test.key {
			t.Errorf("%s: formatted as %s", test.key, key)
		}
	}
}

// flannel drops every peer at a key below subnets that has no IPv4 subnet, also below any other path that begins so.
func TestPath(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ path, key, reject string }{
		{"subnets/10.5.65.0-24", "10.5.65.0-24", ""},
		{"subnets/10.5.85.0-24&fd12:3456:0:34::-64", "10.5.85.0-24&fd12:3456:0:34::-64", ""},
		{"ipv6-subnets/fd12:3456:0:34::-64", "fd12:3456:0:34::-64", ""},
		{"subnets/fd12:3456:0:34::-64", "subnets/fd12:3456:0:34::-64", "in the wrong place"},
		{"ipv6-subnets/10.5.65.0-24", "ipv6-subnets/10.5.65.0-24", "in the wrong place"},
		{"ipv6-subnets/10.5.85.0-24&fd12:3456:0:34::-64", "ipv6-subnets/10.5.85.0-24&fd12:3456:0:34::-64", "in the wrong place"},
		{"subnets/subnets/10.5.65.0-24", "subnets/subnets/10.5.65.0-24", "in the wrong place"},
		{"subnets/nonsense", "nonsense", "not a subnet"},
		{"ipv6-subnets/nonsense", "ipv6-subnets/nonsense", "in the wrong place"},
	} {
		key, ok := KeyAt(test.path)
		if !ok || key != test.key || Path(key) != test.path {
			t.Errorf("%s: got %q, %t, which is at %s", test.path, key, ok, Path(key))
		}
		if _, err := ParseKey(key); test.reject == "" && err != nil {
			t.Errorf("%s: %v", key, err)
		} else if test.reject != "" {
			checkReject(t, err, BadKey, test.reject)
		}
	}
	for _, path := range []string{"config", "", "subnets", "subnets6/fd12::-64", "ipv6-subnets"} {
		if key, ok := KeyAt(path); ok {
			t.Errorf("%s: got %q", path, key)
		}
	}
}

func TestSameHost(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		a, b Pair[netip.Addr]
		want bool
	}{
		{addrs("192.0.2.1"), addrs("192.0.2.1"), true},
		{addrs("192.0.2.1"), addrs("192.0.2.2"), false},
		{addrs("fd00::1"), addrs("fd00::1"), true},
		{addrs("fd00::1"), addrs("fd00::2"), false},
		{addrs("192.0.2.1"), addrs("192.0.2.1", "fd00::1"), true},
		{addrs("fd00::1"), addrs("192.0.2.1", "fd00::1"), true},
		{addrs("fd00::2"), addrs("192.0.2.1", "fd00::1"), false},
		{addrs("192.0.2.1", "fd00::1"), addrs("192.0.2.1", "fd00::2"), true},
		{addrs("192.0.2.1", "fd00::1"), addrs("192.0.2.2", "fd00::1"), false},
		{addrs("192.0.2.1"), addrs("fd00::1"), false},
		{addrs("192.0.2.1"), addrs(), false},
		{addrs(), addrs(), false},
	} {
		if ab, ba := SameHost(test.a, test.b), SameHost(test.b, test.a); ab != test.want || ba != test.want {
			t.Errorf("%v and %v: %t, and the other way round %t", test.a, test.b, ab, ba)
		}
	}
}

// Two spellings of a key would be two keys for one subnet.
func TestParseKeyRejects(t *testing.T) {
	t.Parallel()
	for _, key := range []string{
		"", "&", "-", "10.5.65.0", "10.5.65.0-", "-24", "10.5.65.0/24", "10.5.65.0_24", "subnets/10.5.65.0-24", "docker0-24",
		"10.5.65.0-024", "10.5.65.0-+24", "10.5.65.0-0x18", "10.5.65.0- 24", " 10.5.65.0-24", "10.5.065.0-24", "10.5.65-24",
		"10.5.65.0-24 ", "10.5.65.0-24/", "10.5.65.0-24-24", "10.5.65.0-24&", "&10.5.65.0-24", "10.5.65.0-24\n", "10.5.65.0-24\x00",
		"10.5.65.0-33", "10.5.65.0--1", "10.5.65.0-280", "10.5.65.0-99999999999999999999", "0.0.0.0-0", "::-0",
		"10.5.65.1-24", "10.5.65.0-23", "fd12:3456:0:34::1-64", "10.5.85.0-24&fd12:3456:0:34::1-64",
		"fd12:3456:0:34::-129", "FD12:3456:0:34::-64", "fd12:3456:0:34:0::-64", "fd12:3456:0:34:0:0:0:0-64", "fd12:3456:0:0034::-64", "fe80::%eth0-64",
		"fd12:3456:0:34::-64&10.5.85.0-24", "10.5.85.0-24&10.5.86.0-24", "fd12::-64&fd13::-64", "10.5.85.0-24&fd12::-64&fd13::-64",
		"ipv6-subnets/fd12:3456:0:34::-64", "subnets/fd12:3456:0:34::-64", "10.5.85.0-24,fd12:3456:0:34::-64", "::ffff:10.5.65.0-120", "10.5.65.0-24&::ffff:10.5.65.0-120", "::10.5.65.0-120",
	} {
		t.Run(key, func(t *testing.T) {
			_, err := ParseKey(key)
			checkReject(t, err, BadKey, "")
			_, err = ParseLease(key, []byte(`{"PublicIP":"192.168.50.11"}`))
			checkReject(t, err, BadKey, "")
		})
	}
}

func TestPair(t *testing.T) {
	t.Parallel()
	both := subnets("10.5.85.0/24", "fd12:3456:0:34::/64")
	for _, test := range []struct {
		pair Pair[netip.Prefix]
		want string
	}{
		{Pair[netip.Prefix]{}, "[]"},
		{PairOf(IPv4, both.V4), "[IPv4 10.5.85.0/24]"},
		{PairOf(IPv6, both.V6), "[IPv6 fd12:3456:0:34::/64]"},
		{both, "[IPv4 10.5.85.0/24 IPv6 fd12:3456:0:34::/64]"},
	} {
		var got []any
		for f, p := range test.pair.All() {
			got = append(got, f, p)
			if f.Bits() != p.Addr().BitLen() || test.pair.Of(f) != p {
				t.Errorf("%v: %s is of %d bits, %s", test.pair, f, f.Bits(), p)
			}
		}
		if fmt.Sprint(got) != test.want {
			t.Errorf("got %v, want %s", got, test.want)
		}
	}
	for f := range both.All() {
		if f != IPv4 {
			t.Errorf("%s comes first", f)
		}
		break
	}
}

func TestUpdateMerge(t *testing.T) {
	t.Parallel()
	entry := func(created int64) Entry { return Entry{Created: created} }
	for _, test := range []struct {
		name   string
		before map[string]Entry
		update Update
		want   map[string]Entry
	}{
		{"nothing", map[string]Entry{"a": entry(1)}, Update{}, map[string]Entry{"a": entry(1)}},
		{"one comes, one changes, one goes", map[string]Entry{"a": entry(1), "b": entry(2)},
			Update{Leases: map[string]Entry{"a": {}, "b": entry(3), "c": entry(4), "d": {}}}, map[string]Entry{"b": entry(3), "c": entry(4)}},
		{"the whole set", map[string]Entry{"a": entry(1)}, Update{Reset: true, Leases: map[string]Entry{"b": entry(2)}}, map[string]Entry{"b": entry(2)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.update.Merge(test.before); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestRequest(t *testing.T) {
	t.Parallel()
	full := Request{
		Range: Pair[Range]{V4: rangeOf(t, "10.5.0.0/16", 24)}, PublicIP: addrs("192.168.50.11"), Previous: subnets("10.5.65.0/24"), Revision: 7,
		Exclude: []netip.Prefix{netip.MustParsePrefix("10.5.1.0/24")}, Backend: "vxlan", Data: Pair[string]{V4: "{}"},
	}
	for i := range reflect.TypeFor[Request]().NumField() {
		other := full
		reflect.ValueOf(&other).Elem().Field(i).SetZero()
		if full.Equal(other) || other.Equal(full) || !other.Equal(other) {
			t.Errorf("a request without %s is taken for one with it", reflect.TypeFor[Request]().Field(i).Name)
		}
	}
	want := Lease{subnets("10.5.66.0/24"), full.PublicIP, full.Backend, full.Data}
	if got := full.Lease(want.Subnet); got != want {
		t.Errorf("its lease is %+v, want %+v", got, want)
	}
	if (Own{}).Held() || !(Own{Lease: want}).Held() {
		t.Error("Held")
	}
	if (StoredConfig{}).Usable() || (StoredConfig{Revision: 1, Err: errors.New("bad")}).Usable() || !(StoredConfig{Revision: 1}).Usable() {
		t.Error("Usable")
	}
}

func FuzzParseKey(f *testing.F) {
	for _, l := range flannelLeases {
		f.Add(l.key)
	}
	for _, key := range []string{"subnets/fd12::-64", "ipv6-subnets/10.5.65.0-24", "fd12:3456:0:34::-126", "10.5.65.4-30&fd12:3456::4-126", "", "10.5.65.0--1", "10.5.65.1-24", "::-0", "::ffff:10.5.0.0-112", "fe80::%eth0-64", "fd12::-64&10.5.0.0-24", "10.5.65.0-024"} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		subnets, err := ParseKey(key)
		if err != nil {
			checkReject(t, err, BadKey, "")
			return
		}
		if got := FormatKey(subnets); got != key {
			t.Errorf("formatted as %q", got)
		}
		if subnets == (Pair[netip.Prefix]{}) {
			t.Error("no subnet")
		}
		if there, ok := KeyAt(Path(key)); !ok || there != key {
			t.Errorf("at %s there is %q", Path(key), there)
		}
		if isFlannels := strings.HasPrefix(Path(key), "subnets"); isFlannels != subnets.V4.IsValid() {
			t.Errorf("stored at %s", Path(key))
		}
		for family, p := range subnets.All() {
			if !p.IsValid() || p != p.Masked() || FamilyOf(p.Addr()) != family || p.Bits() == 0 {
				t.Errorf("%s subnet %s", family, p)
			}
		}
	})
}

// Whatever is stored below the prefix has one name, and that leads back to it.
func FuzzKeyAt(f *testing.F) {
	for _, path := range []string{"config", "subnets/10.5.65.0-24", "subnets/10.5.65.0-24&fd12::-64", "ipv6-subnets/fd12::-64", "subnets/fd12::-64", "ipv6-subnets/10.5.65.0-24",
		"ipv6-subnets/10.5.65.0-24&fd12::-64", "subnets/subnets/fd12::-64", "subnets/ipv6-subnets/fd12::-64", "ipv6-subnets/ipv6-subnets/x:", "subnets/", "subnets", "ipv6-subnets/", "subnets6/fd12::-64"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		key, ok := KeyAt(path)
		if below := strings.HasPrefix(path, "subnets/") || strings.HasPrefix(path, "ipv6-subnets/"); ok != below {
			t.Fatalf("a lease: %t", ok)
		}
		if ok && Path(key) != path {
			t.Errorf("%q is at %q", key, Path(key))
		}
		if subnets, err := ParseKey(key); ok && err == nil && Path(FormatKey(subnets)) != path {
			t.Errorf("%v is at %q", subnets, Path(FormatKey(subnets)))
		}
	})
}

func FuzzParseLease(f *testing.F) {
	for _, l := range flannelLeases {
		f.Add(l.key, []byte(l.value))
	}
	f.Add("fd12::-64", []byte(`{"PublicIP":"192.0.2.1","PublicIPv6":"fd00::1","BackendType":"a","BackendData":}`))
	f.Add("10.5.65.0-24", []byte(`{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"a","BackendData":1},"BackendType":"b","BackendData":2}`))
	f.Add("fd12:3456:0:34::-64", []byte(`{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1}}`))
	f.Add("10.5.85.0-24&fd12:3456:0:34::-64", []byte(`{"PublicIP":null,"PublicIPv6":"fd00::1","BackendType":"vxlan","BackendV6Data":{"VNI":1}}`))
	for _, value := range []string{``, `null`, `[]`, `{}`, `{"PublicIP":"fd00::1"}`, `{"PublicIPv6":"::ffff:1.2.3.4"}`, `{"PublicIP":"1.2.3.4","BackendData":"<\u2028&>"}`,
		`{"publicip":"1.2.3.4","PublicIP":null}`, `{"PublicIP":"1.2.3.4","BackendData":null,"BackendV6Data": [ 1e5 ]}`} {
		f.Add("10.5.65.0-24", []byte(value))
	}
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		l, err := ParseLease(key, value)
		if err != nil {
			if r := (*Reject)(nil); !errors.As(err, &r) || r.Reason == "" || r.Detail == "" {
				t.Errorf("%#v is not a Reject with a reason and a detail", err)
			}
			if l != (Lease{}) {
				t.Errorf("half a lease: %+v", l)
			}
			return
		}
		if l.Key() != key {
			t.Errorf("key %q", l.Key())
		}
		if !SameHost(l.PublicIP, l.PublicIP) {
			t.Errorf("%v is not its own host's", l.PublicIP)
		}
		if slow, err := ParseLease(key, append(value[:len(value):len(value)], ' ')); len(value) < maxValue && (slow != l || err != nil) {
			t.Errorf("got %+v, and %+v, %v by encoding/json", l, slow, err)
		}
		again := l.MarshalValue()
		if len(again) > maxValue {
			return // a long backend type, each of its broken bytes now three
		}
		if back, err := ParseLease(key, again); back != l || err != nil {
			t.Errorf("got %+v, %v, want %+v", back, err, l)
		}
	})
}

func BenchmarkParseLease(b *testing.B) {
	for _, l := range flannelLeases[:2] {
		b.Run(l.name, func(b *testing.B) {
			value := []byte(l.value)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ParseLease(l.key, value); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkMarshalValue(b *testing.B) {
	l := flannelLeases[0].want
	b.ReportAllocs()
	for b.Loop() {
		l.MarshalValue()
	}
}

func BenchmarkParseKey(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseKey("10.5.65.0-24"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFormatKey(b *testing.B) {
	p := subnets("10.5.65.0/24")
	b.ReportAllocs()
	for b.Loop() {
		FormatKey(p)
	}
}
