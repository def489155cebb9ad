package docker

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/subnet"
)

func TestParseEnv(t *testing.T) {
	v4 := func(text string) subnet.Pair[netip.Prefix] {
		return subnet.PairOf(subnet.IPv4, netip.MustParsePrefix(text))
	}
	both := func(one, other string) subnet.Pair[netip.Prefix] {
		return subnet.Pair[netip.Prefix]{V4: netip.MustParsePrefix(one), V6: netip.MustParsePrefix(other)}
	}
	bridge, network := v4("10.5.65.1/24"), v4("10.5.0.0/16")
	bridges := both("10.5.65.1/24", "fd00:0:0:1::1/64")
	for name, test := range map[string]struct {
		text string
		want Env
	}{
		"flannel": {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.65.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n", Env{Network: network, Subnet: bridge, Bridge: bridge, MTU: 1450, Masquerade: true}},
		"tulle": {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.65.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n" +
			"DOCKER_OPTS=\"--bip=10.5.65.1/24 --mtu=1450\"\n", Env{Network: network, Subnet: bridge, Bridge: bridge, MTU: 1450}},
		"attach": {"FLANNEL_SUBNET=10.5.65.1/24\nTULLE_ATTACH=10.5.65.128/25\n", Env{Subnet: bridge, Bridge: bridge, Attach: v4("10.5.65.128/25")}},
		"one segment": {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.65.1/24\nTULLE_BRIDGE=10.5.65.1/16\n",
			Env{Network: network, Subnet: bridge, Bridge: v4("10.5.65.1/16")}},
		"dual-stack": {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.65.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_MTU=1430\n",
			Env{Network: both("10.5.0.0/16", "fd00::/48"), Subnet: bridges, Bridge: bridges, MTU: 1430}},
		"one segment of both": {"FLANNEL_SUBNET=10.5.65.1/24\nTULLE_BRIDGE=10.5.65.1/16\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nTULLE_IPV6_BRIDGE=fd00:0:0:1::1/48\n",
			Env{Subnet: bridges, Bridge: both("10.5.65.1/16", "fd00:0:0:1::1/48")}},
		"IPv6":    {"FLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\n", Env{Subnet: subnet.Pair[netip.Prefix]{V6: bridges.V6}, Bridge: subnet.Pair[netip.Prefix]{V6: bridges.V6}}},
		"by hand": {"# mine\n\nexport FLANNEL_SUBNET='10.5.65.1/24'\r\nFLANNEL_MTU=\"9000\"\nnoise\nFLANNEL_MTU=1450", Env{Subnet: bridge, Bridge: bridge, MTU: 1450}},
		"no MTU":  {"FLANNEL_SUBNET=10.5.65.1/24", Env{Subnet: bridge, Bridge: bridge}},
	} {
		got, err := parseEnv(test.text)
		if err != nil || got != test.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, test.want)
		}
		if again, err := parseEnv(string(got.Text())); got.Network.V4.IsValid() && got.MTU > 0 && (err != nil || again != got) {
			t.Errorf("%s: written and read again it is %+v, %v", name, again, err)
		}
	}
	for text, want := range map[string]string{
		"":                                   "neither FLANNEL_SUBNET nor FLANNEL_IPV6_SUBNET",
		"FLANNEL_SUBNET=\n":                  "neither FLANNEL_SUBNET nor FLANNEL_IPV6_SUBNET",
		"#FLANNEL_SUBNET=10.5.65.1/24\n":     "neither FLANNEL_SUBNET nor FLANNEL_IPV6_SUBNET",
		"FLANNEL_IPV6_SUBNET=10.5.65.1/24\n": "fd00:0:0:1::1/64",
		"FLANNEL_SUBNET=1.2.3.4/24\nFLANNEL_IPV6_SUBNET=fd00::1\n":       "FLANNEL_IPV6_SUBNET=fd00::1 is not an IPv6 address",
		"FLANNEL_IPV6_SUBNET=fd00::1/64\nTULLE_IPV6_BRIDGE=fd00::2/48\n": "not fd00::1 with a shorter prefix",
		"FLANNEL_SUBNET=1.2.3.4/24\nTULLE_ATTACH=1.2.4.0/25":             "not a part of 1.2.3.0/24",
		"FLANNEL_SUBNET=1.2.3.4/24\nTULLE_ATTACH=1.2.3.0/25":             "without the bridge's address",
		"FLANNEL_SUBNET=1.2.3.4/24\nTULLE_ATTACH=1.2.3.0/24":             "not a part of",
		"FLANNEL_SUBNET=1.2.3.4/24\nTULLE_BRIDGE=1.2.3.5/16":             "not 1.2.3.4 with a shorter prefix",
		"FLANNEL_SUBNET=1.2.3.4/24\nTULLE_BRIDGE=1.2.3.4/25":             "not 1.2.3.4 with a shorter prefix",
		"FLANNEL_SUBNET=1.2.3.4/24\nTULLE_BRIDGE=1.2.3.4":                "not 1.2.3.4 with a shorter prefix",
		"FLANNEL_SUBNET=10.5.65.1\n":                                     "10.5.1.1/24",
		"FLANNEL_SUBNET=fd00::1/64\n":                                    "10.5.1.1/24",
		"FLANNEL_SUBNET=1.2.3.4/24 --debug\n":                            "10.5.1.1/24",
		"FLANNEL_SUBNET=1.2.3.4/24\nFLANNEL_MTU=x":                       "68 to 65535",
		"FLANNEL_SUBNET=1.2.3.4/24\nFLANNEL_MTU=0":                       "68 to 65535",
		"FLANNEL_SUBNET=1.2.3.4/24\nFLANNEL_MTU=100000":                  "68 to 65535",
	} {
		if _, err := parseEnv(text); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v; want one line with %q", text, err, want)
		}
	}
}

func FuzzParseEnv(f *testing.F) {
	f.Add("FLANNEL_SUBNET=10.5.65.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n")
	f.Add("FLANNEL_SUBNET=10.5.65.1/24\nTULLE_BRIDGE=10.5.65.1/16\nTULLE_ATTACH=10.5.65.128/25\n")
	f.Fuzz(func(t *testing.T, text string) {
		e, err := parseEnv(text)
		if err != nil {
			return
		}
		for _, o := range e.Options() { // they end up between quotes in a file that shells and systemd read
			if strings.ContainsAny(string(o), " \t\r\n\"'$`\\") {
				t.Errorf("%q gives the option %q", text, o)
			}
		}
	})
}

func TestVariables(t *testing.T) {
	bridge := subnet.PairOf(subnet.IPv4, netip.MustParsePrefix("10.5.65.1/24"))
	options := append(Env{Bridge: bridge, Subnet: bridge, MTU: 1450, Masquerade: true}.Options(), Needs(Version{29, 0, 0}, NFTables).Options...)
	got := string(Variables(options, Style{Each: true, Combined: "DOCKER_OPTS"}, []string{"DOCKER_OPTS=--icc=false", "DOCKER_OPT_ZZ=--debug", "DOCKER_OPT_MTU=--mtu=9", "PATH=/bin"}))
	want := `DOCKER_OPT_ALLOWDIRECTROUTING="--allow-direct-routing=true"
DOCKER_OPT_BIP="--bip=10.5.65.1/24"
DOCKER_OPT_BRIDGEACCEPTFWMARK="--bridge-accept-fwmark=0x1000000/0x1000000"
DOCKER_OPT_IPMASQ="--ip-masq=false"
DOCKER_OPT_MTU="--mtu=1450"
DOCKER_OPT_ZZ="--debug"
DOCKER_OPTS="--icc=false --allow-direct-routing=true --bip=10.5.65.1/24 --bridge-accept-fwmark=0x1000000/0x1000000 --ip-masq=false --mtu=1450 --debug "
`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestFamilies has networks of either family and of both, and dockerds that know --bip6 and that don't.
func TestFamilies(t *testing.T) {
	const v4, v6 = "FLANNEL_SUBNET=10.5.65.1/24\n", "FLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\n"
	const masquerade = "FLANNEL_IPMASQ=true\n"
	for text, want := range map[string]struct{ all, common, refused string }{
		v4 + v6: {"--bip=10.5.65.1/24 --ipv6 --bip6=fd00:0:0:1::1/64 --fixed-cidr-v6=fd00:0:0:1::/64",
			"--bip=10.5.65.1/24 --ipv6 --fixed-cidr-v6=fd00:0:0:1::/64", ""},
		v4 + v6 + masquerade: {"--bip=10.5.65.1/24 --ipv6 --bip6=fd00:0:0:1::1/64 --fixed-cidr-v6=fd00:0:0:1::/64 --ip-masq=false",
			"--bip=10.5.65.1/24 --ipv6 --fixed-cidr-v6=fd00:0:0:1::/64 --ip-masq=false", ""},
		v6 + masquerade: {"--ipv6 --bip6=fd00:0:0:1::1/64 --fixed-cidr-v6=fd00:0:0:1::/64", "--ipv6 --fixed-cidr-v6=fd00:0:0:1::/64", ""}, // IPv4 is Docker's own
		v6 + "TULLE_IPV6_BRIDGE=fd00:0:0:1::1/48": {"--ipv6 --bip6=fd00:0:0:1::1/48 --fixed-cidr-v6=fd00:0:0:1::/64", "--ipv6 --fixed-cidr-v6=fd00:0:0:1::/64", "Docker 28 can"},
	} {
		e, err := parseEnv(text)
		if got := strings.Trim(fmt.Sprint(e.Options()), "[]"); err != nil || got != want.all {
			t.Errorf("%q: %s, %v; want %s", text, got, err, want.all)
		}
		if got := strings.Trim(fmt.Sprint(e.Common()), "[]"); got != want.common {
			t.Errorf("%q: for all versions %s; want %s", text, got, want.common)
		}
		if err := e.Check(Version{20, 10, 24}); (err != nil) != (want.refused != "") || err != nil && !strings.Contains(err.Error(), want.refused) {
			t.Errorf("%q with Docker 20.10: %v; want %q", text, err, want.refused)
		}
		if err := e.Check(Version{28, 0, 0}); err != nil {
			t.Errorf("%q with Docker 28: %v", text, err)
		}
	}
}

// TestFixedCIDR has addresses in the bridge's subnet that Docker must not hand out: those of tulle attach, and those of other hosts.
func TestFixedCIDR(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "--bip=10.5.65.1/24",
		"TULLE_ATTACH=10.5.65.128/25": "--bip=10.5.65.1/24 --fixed-cidr=10.5.65.0/25",
		"TULLE_BRIDGE=10.5.65.1/16":   "--bip=10.5.65.1/16 --fixed-cidr=10.5.65.0/24",
		"TULLE_BRIDGE=10.5.65.1/16\nTULLE_ATTACH=10.5.65.128/25\n": "--bip=10.5.65.1/16 --fixed-cidr=10.5.65.0/25",
	} {
		e, err := parseEnv("FLANNEL_SUBNET=10.5.65.1/24\n" + text)
		if got := strings.Trim(fmt.Sprint(e.Options()), "[]"); err != nil || got != want {
			t.Errorf("%q: %s, %v; want %s", text, got, err, want)
		}
	}
}

func TestJSON(t *testing.T) {
	got, err := JSON([]Option{"--bip=10.5.65.1/24", "--ip-masq=false", "--mtu=1450", "--allow-direct-routing", "--bridge-accept-fwmark=0x1000000/0x1000000"})
	want := `{
  "allow-direct-routing": true,
  "bip": "10.5.65.1/24",
  "bridge-accept-fwmark": "0x1000000/0x1000000",
  "ip-masq": false,
  "mtu": 1450
}
`
	if err != nil || string(got) != want {
		t.Errorf("got (%v):\n%s\nwant:\n%s", err, got, want)
	}
}

func TestConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.json")
	if c, err := ReadConfig(path); err != nil || c != nil {
		t.Errorf("no file: %v, %v", c, err)
	}
	if c, err := ReadConfig(""); err != nil || c != nil {
		t.Errorf("no path: %v, %v", c, err)
	}
	options := []Option{"--mtu=1450", "--bip=10.5.65.1/24", "--ip-masq=false", "--fixed-cidr=10.5.65.0/25"}
	for _, test := range []struct {
		text     string
		clashes  []string
		firewall Firewall
	}{
		{"", nil, IPTables},
		{" \n", nil, IPTables},
		{"{}", nil, IPTables},
		{`{"log-driver": "json-file", "mtu-of-something": 1}`, nil, IPTables},
		{`{"bip": "10.5.65.1/24"}`, []string{"bip"}, IPTables}, // the same value doesn't help
		{`{"mtu": null, "ip-masq": true, "fixed-cidr": "", "bip": ""}`, []string{"bip", "fixed-cidr", "ip-masq", "mtu"}, IPTables},
		{`{"firewall-backend": "nftables"}`, nil, NFTables},
		{`{"firewall-backend": "iptables", "default-network-opts": {"bridge": {"mtu": "1"}}}`, nil, IPTables},
		{`{"firewall-backend": 1}`, nil, IPTables},
	} {
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := ReadConfig(path)
		if err != nil || !slices.Equal(c.Clashes(options), test.clashes) || c.Firewall() != test.firewall {
			t.Errorf("%s: %v, %s, %v", test.text, c.Clashes(options), c.Firewall(), err)
		}
	}
	for _, text := range []string{"{", "[]", "bip: 1", `{"bip": "10.5.65.1/24",}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadConfig(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v; want an error that names the file", text, err)
		}
	}
}
