package subnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// parseConfig parses a config that must be good.
func parseConfig(t testing.TB, text string) Config {
	t.Helper()
	c, unknown, err := ParseConfig([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if len(unknown) > 0 {
		t.Fatalf("%s: unknown keys %q", text, unknown)
	}
	return c
}

// rangeOf returns the range of a config that has no key but a network and a subnet length; 0 leaves the length out.
func rangeOf(t testing.TB, network string, length int) Range {
	t.Helper()
	key := ""
	if strings.Contains(network, ":") {
		key = "IPv6"
	}
	text := fmt.Sprintf(`{"EnableIPv4": %t, "EnableIPv6": %t, "%sNetwork": %q, "%sSubnetLen": %d}`, key == "", key != "", key, network, key, length)
	c := parseConfig(t, text)
	for _, r := range c.Range.All() {
		return r
	}
	t.Fatalf("%s has no range", text)
	return Range{}
}

func show(r Range) string { return fmt.Sprintf("%s /%d %s-%s", r.Network, r.SubnetLen, r.Min, r.Max) }

func TestParseConfigDefaults(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		network string
		length  int
		want    string
	}{
		{"10.0.0.0/8", 0, "10.0.0.0/8 /24 10.0.1.0-10.255.255.0"},
		{"10.5.0.0/16", 0, "10.5.0.0/16 /24 10.5.1.0-10.5.255.0"},
		{"10.5.77.1/16", 0, "10.5.0.0/16 /24 10.5.1.0-10.5.255.0"}, // host bits don't matter
		{"10.5.0.0/22", 0, "10.5.0.0/22 /24 10.5.1.0-10.5.3.0"},
		{"10.5.0.0/23", 0, "10.5.0.0/23 /25 10.5.0.128-10.5.1.128"},
		{"10.5.0.0/24", 0, "10.5.0.0/24 /26 10.5.0.64-10.5.0.192"},
		{"10.5.0.0/28", 0, "10.5.0.0/28 /30 10.5.0.4-10.5.0.12"},
		{"10.5.0.0/16", 18, "10.5.0.0/16 /18 10.5.64.0-10.5.192.0"},
		{"10.5.0.0/16", 30, "10.5.0.0/16 /30 10.5.0.4-10.5.255.252"},
		{"fd12:3456::/32", 0, "fd12:3456::/32 /64 fd12:3456:0:1::-fd12:3456:ffff:ffff::"},
		{"fd12:3456::/48", 0, "fd12:3456::/48 /64 fd12:3456:0:1::-fd12:3456:0:ffff::"},
		{"fd12:3456::/62", 0, "fd12:3456::/62 /64 fd12:3456:0:1::-fd12:3456:0:3::"},
		{"fd12:3456::/63", 0, "fd12:3456::/63 /65 fd12:3456:0:0:8000::-fd12:3456:0:1:8000::"},
		{"fd12:3456::/64", 0, "fd12:3456::/64 /66 fd12:3456:0:0:4000::-fd12:3456:0:0:c000::"},
		{"fd12:3456::/124", 0, "fd12:3456::/124 /126 fd12:3456::4-fd12:3456::c"},
		{"fd12:3456::/120", 126, "fd12:3456::/120 /126 fd12:3456::4-fd12:3456::fc"},
		{"fd00::/8", 64, "fd00::/8 /64 fd00:0:0:1::-fdff:ffff:ffff:ffff::"},
	} {
		t.Run(fmt.Sprintf("%s %d", test.network, test.length), func(t *testing.T) {
			if got := show(rangeOf(t, test.network, test.length)); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestParseConfig(t *testing.T) {
	t.Parallel()
	v4 := Range{netip.MustParsePrefix("10.5.0.0/16"), 24, netip.MustParseAddr("10.5.1.0"), netip.MustParseAddr("10.5.255.0")}
	v6 := Range{netip.MustParsePrefix("fd12:3456::/48"), 64, netip.MustParseAddr("fd12:3456:0:1::"), netip.MustParseAddr("fd12:3456:0:ffff::")}
	for _, test := range []struct {
		name, text string
		want       Config
	}{
		{"the shortest", `{"Network":"10.5.0.0/16"}`, Config{Range: Pair[Range]{V4: v4}}},
		{"flannel's documentation",
			`{"Network":"10.5.0.0/16","SubnetLen":24,"SubnetMin":"10.5.1.0","SubnetMax":"10.5.254.0","Backend":{"Type":"vxlan","VNI":1,"Port":8472}}`,
			Config{Range: Pair[Range]{V4: Range{v4.Network, 24, v4.Min, netip.MustParseAddr("10.5.254.0")}},
				Backend: Backend{"vxlan", `{"Type":"vxlan","VNI":1,"Port":8472}`}}},
		{"the first subnet too, if asked for", `{"Network":"10.5.0.0/16","SubnetMin":"10.5.0.0"}`,
			Config{Range: Pair[Range]{V4: Range{v4.Network, 24, v4.Network.Addr(), v4.Max}}}},
		{"a single subnet", `{"Network":"10.5.0.0/16","SubnetMin":"10.5.7.0","SubnetMax":"10.5.7.0"}`,
			Config{Range: Pair[Range]{V4: Range{v4.Network, 24, netip.MustParseAddr("10.5.7.0"), netip.MustParseAddr("10.5.7.0")}}}},
		{"type in any case", `{"Network":"10.5.0.0/16","Backend":{"Type":"VXLAN"}}`, Config{Range: Pair[Range]{V4: v4}, Backend: Backend{"vxlan", `{"Type":"VXLAN"}`}}},
		{"keys in any case", `{"network":"10.5.0.0/16","backend":{"type":"Host-GW"}}`, Config{Range: Pair[Range]{V4: v4}, Backend: Backend{"host-gw", `{"type":"Host-GW"}`}}},
		{"backend without a type", `{"Network":"10.5.0.0/16","Backend":{ "VNI" : 7 }}`, Config{Range: Pair[Range]{V4: v4}, Backend: Backend{"", `{"VNI":7}`}}},
		{"backend null", `{"Network":"10.5.0.0/16","Backend":null}`, Config{Range: Pair[Range]{V4: v4}}},
		{"nftables", `{"Network":"10.5.0.0/16","EnableNFTables":true}`, Config{Range: Pair[Range]{V4: v4}, NFTables: true}},
		{"IPv6 network without EnableIPv6", `{"Network":"10.5.0.0/16","IPv6Network":"not looked at"}`, Config{Range: Pair[Range]{V4: v4}}},
		{"dual stack", `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12:3456::/48"}`, Config{Range: Pair[Range]{v4, v6}}},
		{"IPv6 only", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd12:3456::/48"}`, Config{Range: Pair[Range]{V6: v6}}},
		{"whitespace around", " \n{\"Network\":\"10.5.0.0/16\"}\n\t ", Config{Range: Pair[Range]{V4: v4}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := parseConfig(t, test.text); got != test.want {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

func TestParseConfigErrors(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, text, want string }{
		{"empty", ``, "JSON: not an object: EOF"},
		{"cut short", `{"Network":"10.5`, "JSON: not an object: unexpected EOF"},
		{"not JSON", `{Network}`, "JSON: invalid character 'N' looking for beginning of object key string, at byte 2"},
		{"an array", `[]`, "JSON: not an object"},
		{"null", `null`, "JSON: not an object"},
		{"a string", `"10.5.0.0/16"`, "JSON: not an object"},
		{"trailing garbage", `{"Network":"10.5.0.0/16"} x`, "JSON: something follows the object's closing brace"},
		{"two objects", `{"Network":"10.5.0.0/16"}{}`, "JSON: something follows the object's closing brace"},
		{"trailing brace", `{"Network":"10.5.0.0/16"}}`, "JSON: something follows the object's closing brace"},

		{"number for a string", `{"Network":10}`, "Network: a number does not belong here, a string does"},
		{"string for a number", `{"Network":"10.5.0.0/16","SubnetLen":"24"}`, "SubnetLen: a string does not belong here, a whole number in range does"},
		{"fraction", `{"Network":"10.5.0.0/16","SubnetLen":24.5}`, "SubnetLen: a number 24.5 does not belong here, a whole number in range does"},
		{"huge", `{"Network":"10.5.0.0/16","SubnetLen":1e30}`, "SubnetLen: a number 1e30 does not belong here, a whole number in range does"},
		{"string for a bool", `{"Network":"10.5.0.0/16","EnableIPv6":"yes"}`, "EnableIPv6: a string does not belong here, true or false does"},
		{"backend not an object", `{"Network":"10.5.0.0/16","Backend":"vxlan"}`, "Backend: not an object"},
		{"backend an array", `{"Network":"10.5.0.0/16","Backend":[]}`, "Backend: not an object"},
		{"type not a string", `{"Network":"10.5.0.0/16","Backend":{"Type":1}}`, "Backend.Type: a number does not belong here, a string does"},

		{"no network", `{}`, `Network: missing: the network needs a range, for example "10.5.0.0/16"`},
		{"no IPv6 network", `{"Network":"10.5.0.0/16","EnableIPv6":true}`, `IPv6Network: missing: the network needs a range, for example "fd12:3456::/48"`},
		{"no family", `{"EnableIPv4":false,"Network":"10.5.0.0/16"}`, "EnableIPv4: false, and EnableIPv6 is not true: the network has no address family: switch one on"},
		{"no length", `{"Network":"10.5.0.0"}`, `Network: "10.5.0.0" is not a range like 10.5.0.0/16`},
		{"no address", `{"Network":"docker0"}`, `Network: "docker0" is not a range like 10.5.0.0/16`},
		{"IPv6 in Network", `{"Network":"fd00::/48"}`, "Network: fd00::/48 is not IPv4, as 10.5.0.0/16 is"},
		{"IPv4 in IPv6Network", `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"10.6.0.0/16"}`, "IPv6Network: 10.6.0.0/16 is not IPv6, as fd12:3456::/48 is"},
		{"IPv4-mapped", `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"::ffff:10.6.0.0/112"}`, "IPv6Network: ::ffff:10.6.0.0/112 is not IPv6, as fd12:3456::/48 is"},
		{"multicast", `{"Network":"239.0.0.0/8"}`, "Network: 239.0.0.0/8 is not a unicast range, as 10.5.0.0/16 is"},
		{"IPv6 multicast", `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"ff05::/16"}`, "IPv6Network: ff05::/16 is not a unicast range, as fd12:3456::/48 is"},
		{"loopback", `{"Network":"127.0.0.0/8"}`, "Network: 127.0.0.0/8 is not a unicast range, as 10.5.0.0/16 is"},
		{"everything", `{"Network":"0.0.0.0/0"}`, "Network: 0.0.0.0/0 is not a unicast range, as 10.5.0.0/16 is"},

		{"too long", `{"Network":"10.5.0.0/16","SubnetLen":31}`, "SubnetLen: 31 is not within 18 (10.5.0.0/16 has no room for four subnets otherwise) and 30"},
		{"too short", `{"Network":"10.5.0.0/16","SubnetLen":17}`, "SubnetLen: 17 is not within 18 (10.5.0.0/16 has no room for four subnets otherwise) and 30"},
		{"negative", `{"Network":"10.5.0.0/16","SubnetLen":-1}`, "SubnetLen: -1 is not within 18 (10.5.0.0/16 has no room for four subnets otherwise) and 30"},
		{"no room for any", `{"Network":"10.5.0.0/29"}`, "Network: 10.5.0.0/29 has no room for four subnets of length 30: take a larger range, as 10.5.0.0/16 is"},
		{"IPv6 too long", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd12::/64","IPv6SubnetLen":127}`, "IPv6SubnetLen: 127 is not within 66 (fd12::/64 has no room for four subnets otherwise) and 126"},
		{"IPv6 too short", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd12::/64","IPv6SubnetLen":65}`, "IPv6SubnetLen: 65 is not within 66 (fd12::/64 has no room for four subnets otherwise) and 126"},
		{"IPv6 too many", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd12::/32","IPv6SubnetLen":95}`, "IPv6SubnetLen: 95 makes more than 2^62 subnets of fd12::/32: 94 is the longest for that"},

		{"Min above Max", `{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.8.0"}`, "SubnetMin: 10.5.9.0 is above SubnetMax 10.5.8.0"},
		{"Max below the default Min", `{"Network":"10.5.0.0/16","SubnetMax":"10.5.0.0"}`, "SubnetMin: 10.5.1.0 is above SubnetMax 10.5.0.0"},
		{"Min off boundary", `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.1"}`, "SubnetMin: 10.5.1.1 is not on a /24 boundary; 10.5.1.0 is"},
		{"Max off boundary", `{"Network":"10.5.0.0/16","SubnetLen":22,"SubnetMax":"10.5.6.0"}`, "SubnetMax: 10.5.6.0 is not on a /22 boundary; 10.5.4.0 is"},
		{"Min outside", `{"Network":"10.5.0.0/16","SubnetMin":"10.4.0.0"}`, "SubnetMin: 10.4.0.0 is outside the network 10.5.0.0/16"},
		{"Max outside", `{"Network":"10.5.0.0/16","SubnetMax":"10.6.0.0"}`, "SubnetMax: 10.6.0.0 is outside the network 10.5.0.0/16"},
		{"Min of the other family", `{"Network":"10.5.0.0/16","SubnetMin":"fd12::"}`, "SubnetMin: fd12:: is outside the network 10.5.0.0/16"},
		{"Min IPv4-mapped", `{"Network":"10.5.0.0/16","SubnetMin":"::ffff:10.5.1.0"}`, "SubnetMin: ::ffff:10.5.1.0 is outside the network 10.5.0.0/16"},
		{"Min a prefix", `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0/24"}`, `SubnetMin: "10.5.1.0/24" is not an address`},
		{"IPv6 Min above Max", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd12::/48","IPv6SubnetMin":"fd12:0:0:9::","IPv6SubnetMax":"fd12:0:0:8::"}`,
			"IPv6SubnetMin: fd12:0:0:9:: is above IPv6SubnetMax fd12:0:0:8::"},
		{"IPv6 Min with a zone", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd12::/48","IPv6SubnetMin":"fd12::%eth0"}`, `IPv6SubnetMin: "fd12::%eth0" is not an address`},
		{"IPv6 link-local", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fe80::/48"}`, `IPv6Network: fe80::/48 is not a unicast range, as fd12:3456::/48 is`},
		{"IPv6 Max off boundary", `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd12::/48","IPv6SubnetMax":"fd12::1"}`, "IPv6SubnetMax: fd12::1 is not on a /64 boundary; fd12:: is"},
		{"dual stack, IPv4 wrong", `{"Network":"10.5.0.0/30","EnableIPv6":true,"IPv6Network":"fd12::/48"}`, "Network: 10.5.0.0/30 has no room for four subnets of length 30: take a larger range, as 10.5.0.0/16 is"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := ParseConfig([]byte(test.text))
			var wrong *ConfigError
			if !errors.As(err, &wrong) {
				t.Fatalf("got %v, want a ConfigError", err)
			}
			if wrong.Error() != test.want {
				t.Errorf("got  %s\nwant %s", wrong, test.want)
			}
		})
	}
}

func TestParseConfigUnknownKeys(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text string
		want []string
	}{
		{`{"Network":"10.5.0.0/16","Zone":1,"SubnetLength":24,"Backend":{"Colour":1}}`, []string{"SubnetLength", "Zone"}}, // Backend's are package backend's
		{`{"NETWORK":"10.5.0.0/16"}`, nil},
		{`{"Network":"10.5.0.0/99","Zone":1}`, []string{"Zone"}}, // listed though the config is wrong: it may be why
	} {
		if _, unknown, _ := ParseConfig([]byte(test.text)); !slices.Equal(unknown, test.want) {
			t.Errorf("%s: got %q, want %q", test.text, unknown, test.want)
		}
	}
	if got := UnknownKeys([]byte(`[`), nil); got != nil {
		t.Errorf("of what isn't an object: %q", got)
	}
}

func FuzzParseConfig(f *testing.F) {
	for _, text := range []string{
		`{"Network":"10.5.0.0/16","SubnetLen":24,"SubnetMin":"10.5.1.0","SubnetMax":"10.5.254.0","Backend":{"Type":"vxlan","VNI":1,"Port":8472}}`,
		`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/8","IPv6SubnetLen":64,"IPv6SubnetMin":"fd00:0:0:1::","IPv6SubnetMax":"fdff::"}`,
		`{"Network":"10.5.0.0/28","EnableIPv6":true,"IPv6Network":"fd12:3456::/124","Unknown":[{}]}`,
		`{"Network":"10.5.0.0/16","Backend":{"Type":5}}`, `{"Network":"::ffff:10.5.0.0/112"}`, `{} x`, `null`, `{"Backend":null}`, ``,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, _, err := ParseConfig(data)
		var wrong *ConfigError
		if err != nil {
			if !errors.As(err, &wrong) || wrong.Key == "" || wrong.Reason == "" {
				t.Errorf("%#v is not a ConfigError with key and reason", err)
			}
			return
		}
		if c.Range == (Pair[Range]{}) {
			t.Error("neither family has a range")
		}
		for family, r := range c.Range.All() {
			checkRange(t, family, r)
		}
		if c.Backend.Options == "" && c.Backend.Type != "" {
			t.Errorf("type %q out of nothing", c.Backend.Type)
		}
	})
}

// checkRange checks what the users of a Range rely on.
func checkRange(t *testing.T, f Family, r Range) {
	t.Helper()
	if r.Network != r.Network.Masked() || FamilyOf(r.Network.Addr()) != f || r.Network.Addr().Is4In6() {
		t.Errorf("%s: not a network of %s", show(r), f)
	}
	if bits := r.SubnetLen - r.Network.Bits(); bits < 2 || bits > 62 || r.SubnetLen > limits[f].longest {
		t.Errorf("%s: subnet length", show(r))
	}
	for _, a := range []netip.Addr{r.Min, r.Max} {
		p := netip.PrefixFrom(a, r.SubnetLen)
		if !r.Contains(p) || !r.Network.Contains(a) {
			t.Errorf("%s: %s is not one of its subnets", show(r), p)
		}
	}
	pool := r.Pool(nil)
	if n := r.Len(); n == 0 || n > 1<<62 || pool.Len() != n {
		t.Errorf("%s: %d subnets, %d free when none is taken", show(r), n, pool.Len())
	}
	if p, ok := pool.Pick("192.0.2.1"); !ok || !r.Contains(p) {
		t.Errorf("%s: picked %s", show(r), p)
	}
}
