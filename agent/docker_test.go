package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// dualHost has a network of both families.
func dualHost() (h backend.Host) {
	h.Bridge = "docker0"
	h.Config.Range = subnet.Pair[subnet.Range]{V4: subnet.Range{Network: netip.MustParsePrefix("10.5.0.0/16")}, V6: subnet.Range{Network: netip.MustParsePrefix("fd00::/48")}}
	h.Self.Subnet = subnet.Pair[netip.Prefix]{V4: netip.MustParsePrefix("10.5.1.0/24"), V6: netip.MustParsePrefix("fd00:0:0:1::/64")}
	return h
}

// TestCheckBridge has a bridge that lacks one family's address, or has another beside it. Every bridge has a link-local one.
func TestCheckBridge(t *testing.T) {
	for addrs, want := range map[string]string{
		"10.5.1.1/24 fd00:0:0:1::1/64 fe80::1/64":       "",
		"10.5.1.1/24 fe80::1/64":                        "docker0 has 10.5.1.1/24, not this host's fd00:0:0:1::1/64",
		"10.5.1.1/24 fd00:0:0:9::1/64":                  "not this host's fd00:0:0:1::1/64",
		"172.17.0.1/16 fd00:0:0:1::1/64":                "not this host's 10.5.1.1/24",
		"10.5.1.1/24 fd00:0:0:1::1/64 fd00:0:0:9::1/64": "docker0 has fd00:0:0:9::1/64 beside this host's fd00:0:0:1::1/64",
		"10.5.1.1/24 10.5.9.1/24 fd00:0:0:9::1/64":      "not this host's fd00:0:0:1::1/64",
		"": "docker0 has no address, not this host's",
		"10.5.1.1/24 10.5.9.1/24 fd00:0:0:1::1/64 fe80::1:2/64": "docker0 has 10.5.9.1/24 beside this host's 10.5.1.1/24",
	} {
		r := newRig(t, "")
		r.kernel.addrs = map[backend.Addr]struct{}{}
		for text := range strings.FieldsSeq(addrs) {
			r.kernel.addrs[backend.Addr{Dev: "docker0", Prefix: netip.MustParsePrefix(text)}] = struct{}{}
		}
		if err := r.agent.checkBridge(dualHost()); err != nil {
			t.Fatal(err)
		}
		got := r.agent.state.warnings["bridge"]
		if !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q, want %q", addrs, got, want)
		}
		if lacking := strings.Contains(want, "not this host's"); (r.agent.state.bridged == subnet.Pair[bool]{V4: true, V6: true}) == lacking {
			t.Errorf("%s: the bridge has its addresses: %v", addrs, r.agent.state.bridged)
		}
	}
}

func TestCheckDaemonJSON(t *testing.T) {
	r := newRig(t, "")
	r.agent.config.DaemonJSON = filepath.Join(t.TempDir(), "daemon.json")
	for text, want := range map[string]string{
		`{"fixed-cidr": "10.5.1.0/25", "ip-masq": false}`:                    "", // neither is among the options
		`{"ipv6": true, "fixed-cidr-v6": "fd00:0:0:1::/64"}`:                 "sets fixed-cidr-v6, ipv6, and",
		`{"bip": "10.5.1.1/24", "mtu": 1430, "default-address-pools": null}`: "sets bip, mtu, and",
	} {
		if err := os.WriteFile(r.agent.config.DaemonJSON, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		r.agent.checkDaemonJSON(env(dualHost(), 1430))
		if got := r.agent.state.warnings["daemon.json"]; !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}
