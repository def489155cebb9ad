package docker

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseEnv(t *testing.T) {
	bridge, network := netip.MustParsePrefix("10.5.65.1/24"), netip.MustParsePrefix("10.5.0.0/16")
	for name, test := range map[string]struct {
		text string
		want Env
	}{
		"flannel": {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.65.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n", Env{Network: network, Subnet: bridge, Bridge: bridge, MTU: 1450, Masquerade: true}},
		"tulle": {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.65.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n" +
			"DOCKER_OPTS=\"--bip=10.5.65.1/24 --ip-masq=true --mtu=1450\"\n", Env{Network: network, Subnet: bridge, Bridge: bridge, MTU: 1450}},
		"attach": {"FLANNEL_SUBNET=10.5.65.1/24\nTULLE_ATTACH=10.5.65.128/25\n", Env{Subnet: bridge, Bridge: bridge, Attach: netip.MustParsePrefix("10.5.65.128/25")}},
		"one segment": {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.65.1/24\nTULLE_BRIDGE=10.5.65.1/16\n",
			Env{Network: network, Subnet: bridge, Bridge: netip.MustParsePrefix("10.5.65.1/16")}},
		"dual-stack": {"FLANNEL_SUBNET=10.5.65.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_MTU=1430\n", Env{Subnet: bridge, Bridge: bridge, MTU: 1430}},
		"by hand":    {"# mine\n\nexport FLANNEL_SUBNET='10.5.65.1/24'\r\nFLANNEL_MTU=\"9000\"\nnoise\nFLANNEL_MTU=1450", Env{Subnet: bridge, Bridge: bridge, MTU: 1450}},
		"no MTU":     {"FLANNEL_SUBNET=10.5.65.1/24", Env{Subnet: bridge, Bridge: bridge}},
	} {
		if got, err := parseEnv(test.text); err != nil || got != test.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, test.want)
		}
	}
	for text, want := range map[string]string{
		"":                                 "no FLANNEL_SUBNET",
		"FLANNEL_SUBNET=\n":                "no FLANNEL_SUBNET",
		"#FLANNEL_SUBNET=10.5.65.1/24\n":   "no FLANNEL_SUBNET",
		"FLANNEL_IPV6_SUBNET=fd00::1/64\n": "no FLANNEL_SUBNET",
		"FLANNEL_SUBNET=1.2.3.4/24\nTULLE_ATTACH=1.2.4.0/25": "not a part of 1.2.3.0/24",
		"FLANNEL_SUBNET=1.2.3.4/24\nTULLE_ATTACH=1.2.3.0/25": "without the bridge's address",
		"FLANNEL_SUBNET=1.2.3.4/24\nTULLE_ATTACH=1.2.3.0/24": "not a part of",
		"FLANNEL_SUBNET=1.2.3.4/24\nTULLE_BRIDGE=1.2.3.5/16": "not 1.2.3.4 with a shorter prefix",
		"FLANNEL_SUBNET=1.2.3.4/24\nTULLE_BRIDGE=1.2.3.4/25": "not 1.2.3.4 with a shorter prefix",
		"FLANNEL_SUBNET=1.2.3.4/24\nTULLE_BRIDGE=1.2.3.4":    "not 1.2.3.4 with a shorter prefix",
		"FLANNEL_SUBNET=10.5.65.1\n":                         "10.5.1.1/24",
		"FLANNEL_SUBNET=fd00::1/64\n":                        "10.5.1.1/24",
		"FLANNEL_SUBNET=1.2.3.4/24 --debug\n":                "10.5.1.1/24",
		"FLANNEL_SUBNET=1.2.3.4/24\nFLANNEL_MTU=x":           "68 to 65535",
		"FLANNEL_SUBNET=1.2.3.4/24\nFLANNEL_MTU=0":           "68 to 65535",
		"FLANNEL_SUBNET=1.2.3.4/24\nFLANNEL_MTU=100000":      "68 to 65535",
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
	options := append(Env{Subnet: netip.MustParsePrefix("10.5.65.1/24"), Bridge: netip.MustParsePrefix("10.5.65.1/24"), MTU: 1450, Masquerade: true}.Options(), Needs(Version{29, 0, 0}, NFTables).Options...)
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
