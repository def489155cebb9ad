package doctor

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/netfilter"
	"github.com/tulle-net/tulle/e2e/netnstest"
	"github.com/tulle-net/tulle/subnet"
)

var update = flag.Bool("update", false, "write the results in testdata anew")

// TestFirewallGoldens asks each packet filter in testdata what it does to packets.
func TestFirewallGoldens(t *testing.T) {
	t.Parallel()
	files, _ := filepath.Glob("testdata/firewall/*.txtar")
	if len(files) == 0 {
		t.Fatal("no files")
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(file)
			if err != nil || len(archive.Files) != 2 {
				t.Fatal(err, "want the sections save and verdicts")
			}
			filter := ParseFilter(string(archive.Files[0].Data))
			var got strings.Builder
			for line := range strings.Lines(string(archive.Files[1].Data)) {
				if question, _, _ := strings.Cut(strings.TrimSpace(line), " => "); !strings.HasPrefix(line, "  ") {
					got.WriteString(question + " => " + verdictOf(t, filter, question))
				}
			}
			compareGolden(t, file, archive, 1, got.String())
		})
	}
}

// compareGolden compares a section of an archive with what came out, or writes it.
func compareGolden(t *testing.T, file string, archive *txtar.Archive, section int, got string) {
	t.Helper()
	if want := string(archive.Files[section].Data); got == want {
		return
	} else if !*update {
		t.Errorf("%s\nwant\n%s", got, want)
		return
	}
	archive.Files[section].Data = []byte(got)
	if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
		t.Fatal(err)
	}
}

// verdictOf asks as in "filter FORWARD in docker0 out tulle.1 src 10.5.1.2 dst 10.5.2.2 tcp 80 NEW".
func verdictOf(t *testing.T, f Filter, question string) string {
	t.Helper()
	words := strings.Fields(question)
	p := Packet{}
	for rest := words[2:]; len(rest) > 0; rest = rest[1:] {
		switch {
		case rest[0] == "local" || rest[0] == "bridged":
			p.Local, p.Bridged = p.Local || rest[0] == "local", p.Bridged || rest[0] == "bridged"
			continue
		case strings.ToUpper(rest[0]) == rest[0]:
			p.State = rest[0]
			continue
		case rest[0] == "icmp":
			p.Protocol = rest[0]
			continue
		}
		value := rest[1]
		number, _ := strconv.ParseUint(value, 0, 32)
		switch rest[0] {
		case "in":
			p.In = value
		case "out":
			p.Out = value
		case "src":
			p.Src = netip.MustParseAddr(value)
		case "dst":
			p.Dst = netip.MustParseAddr(value)
		case "tcp", "udp":
			p.Protocol, p.Port = rest[0], uint16(number)
		case "sport":
			p.SourcePort = uint16(number)
		case "mark":
			p.Mark = uint32(number)
		default:
			t.Fatalf("%s: what is %q?", question, rest[0])
		}
		rest = rest[1:]
	}
	v := f.Verdict(words[0], words[1], p)
	if v.Sure != (len(v.Doubtful) == 0) || v.Accept == slices.Contains([]string{"DROP", "REJECT"}, v.Target) {
		t.Errorf("%s: %+v contradicts itself", question, v)
	}
	text := fmt.Sprintf("%s at %s %d: %s", v.Target, v.Chain, v.Position, v.Rule)
	if v.Mark != p.Mark {
		text += fmt.Sprintf(", marked %#x", v.Mark)
	}
	for _, rule := range v.Doubtful {
		text += "\n  but for " + rule
	}
	return text + "\n"
}

// A packet must pass legacy tables and nftables' both, and what they doubt adds up.
func TestTwoFilters(t *testing.T) {
	t.Parallel()
	save := func(rules string) ruleset {
		return ParseFilter("*filter\n:FORWARD ACCEPT [0:0]\n:OTHER - [0:0]\n" + rules + "COMMIT\n").sets[0]
	}
	pass, drop, doubt := save("-A FORWARD -j ACCEPT\n"), save("-A FORWARD -j DROP\n"), save("-A FORWARD -m set --match-set x src -j DROP\n")
	native := foreign{"forward", "nftables' table inet a", "inet"}
	for _, test := range []struct {
		filter       Filter
		accept, sure bool
	}{
		{Filter{}, true, true},
		{Filter{sets: []ruleset{pass, pass}}, true, true},
		{Filter{sets: []ruleset{pass, drop}}, false, true},
		{Filter{sets: []ruleset{drop, pass}}, false, true},
		{Filter{sets: []ruleset{pass, doubt}}, true, false},
		{Filter{sets: []ruleset{doubt, pass}}, true, false},
		{Filter{sets: []ruleset{pass}, foreign: []foreign{native}}, true, false},
		{Filter{sets: []ruleset{drop}, foreign: []foreign{native}}, false, true},
		{Filter{sets: []ruleset{pass}, foreign: []foreign{{"input", "x", "ip"}}}, true, true},
	} {
		if v := test.filter.Verdict("filter", "FORWARD", Packet{}); v.Accept != test.accept || v.Sure != test.sure {
			t.Errorf("%+v: %+v", test.filter, v)
		}
	}
}

// Of nftables' own chains those are named whose table drops something, at the hook that each is at.
func TestForeign(t *testing.T) {
	t.Parallel()
	got := parseForeign([]byte(`{"nftables": [{"metainfo": {"version": "1.0.6"}},
		{"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
		{"chain": {"family": "inet", "table": "quiet", "name": "f", "hook": "forward", "policy": "accept"}},
		{"rule": {"family": "inet", "table": "quiet", "chain": "f", "expr": [{"accept": null}]}},
		{"chain": {"family": "inet", "table": "policy", "name": "in", "hook": "input", "policy": "drop"}},
		{"chain": {"family": "ip6", "table": "six", "name": "in", "hook": "input", "policy": "drop"}},
		{"chain": {"family": "inet", "table": "zones", "name": "filter_FORWARD", "hook": "forward", "policy": "accept"}},
		{"chain": {"family": "inet", "table": "zones", "name": "own"}},
		{"chain": {"family": "inet", "table": "tulle", "name": "prerouting-raw", "hook": "prerouting", "policy": "accept"}},
		{"rule": {"family": "inet", "table": "tulle", "chain": "prerouting-raw", "expr": [{"drop": null}]}},
		{"rule": {"family": "inet", "table": "zones", "chain": "own", "expr": [{"reject": {"type": "icmpx"}}]}}]}`))
	if len(got) != 3 || got[0].hook != "input" || !strings.Contains(got[0].text, "inet policy") || got[1].family != "ip6" || got[2].hook != "forward" || !strings.Contains(got[2].text, "filter_FORWARD") {
		t.Errorf("%+v", got)
	}
	if got := parseForeign([]byte("no JSON")); got != nil {
		t.Errorf("%+v", got)
	}
}

// TestReadFilter has rules in nftables by iptables, in the legacy tables, and in a table of nftables' own: all three count.
func TestReadFilter(t *testing.T) {
	run := shell(t)
	p := Packet{In: "docker0", Out: "tulle.1", Src: netip.MustParseAddr("10.5.1.2"), Dst: netip.MustParseAddr("10.5.2.2"), Protocol: "icmp", State: "NEW"}
	for _, step := range []struct {
		command      string
		accept, sure bool
		says         string
	}{
		{"true", true, true, "policy ACCEPT of FORWARD"},
		{"iptables-nft -A FORWARD -s 10.5.0.0/16 -m comment --comment 'a \"b\" -j DROP' -j ACCEPT && iptables-nft -P FORWARD DROP", true, true, "comment"},
		{"iptables-legacy -A FORWARD ! -o docker0 -j DROP", false, true, "-A FORWARD ! -o docker0 -j DROP"},
		{"iptables-legacy -F FORWARD", true, true, "policy ACCEPT of FORWARD"},
		{"nft add table inet mine && nft 'add chain inet mine f { type filter hook forward priority 0; policy drop; }'", true, false, "policy ACCEPT of FORWARD"},
	} {
		run(step.command)
		f, err := ReadFilter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if v := f.Verdict("filter", "FORWARD", p); v.Accept != step.accept || v.Sure != step.sure || !strings.Contains(v.Rule, step.says) {
			t.Errorf("after %s: %+v", step.command, v)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := ReadFilter(t.Context()); err == nil || !strings.Contains(err.Error(), "apt install iptables") {
		t.Errorf("without iptables: %v", err)
	}
}

// shell returns what runs commands in a network namespace of the test's own, which the calling goroutine is in, too.
func shell(t *testing.T) (run func(command string)) {
	netnstest.Enter(t)
	return func(command string) {
		t.Helper()
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
}

// The agent's own table in nftables is asked first, and what it says about a source is the last word.
func TestOwnTable(t *testing.T) {
	run := shell(t)
	policy := backend.Firewall{Network: subnet.Pair[netip.Prefix]{V4: netip.MustParsePrefix("10.5.0.0/16"), V6: netip.MustParsePrefix("fd00:5::/48")},
		Subnet:     subnet.Pair[netip.Prefix]{V4: netip.MustParsePrefix("10.5.1.0/24"), V6: netip.MustParsePrefix("fd00:5:0:1::/64")},
		Masquerade: subnet.Pair[bool]{V4: true, V6: true}, Forward: true, Bridge: "docker0", From: backend.Devices{"tulle.1"}}
	filter, err := netfilter.Open(netfilter.NFTables)
	if err != nil {
		t.Fatal(err)
	}
	defer filter.Close()
	if _, err := filter.Apply(t.Context(), policy); err != nil {
		t.Fatal(err)
	}
	run("iptables-nft -t nat -A POSTROUTING -s 10.5.1.0/24 ! -o docker0 -j MASQUERADE && ip6tables-nft -t nat -A POSTROUTING -s fd00:5:0:1::/64 ! -o docker0 -j MASQUERADE")
	f, err := ReadFilter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.addOwn(policy); err != nil {
		t.Fatal(err)
	}
	for question, want := range map[string]string{
		"nat POSTROUTING out tulle.1 src 10.5.1.2 dst 10.5.2.2":                                "ACCEPT",
		"nat POSTROUTING out eth0 src 10.5.1.2 dst 192.0.2.9":                                  "MASQUERADE",
		"nat POSTROUTING out tulle.1 src fd00:5:0:1::2 dst fd00:5:0:2::2":                      "ACCEPT",
		"nat POSTROUTING out eth0 src fd00:5:0:1::2 dst 2001:db8::9":                           "MASQUERADE",
		"raw PREROUTING in tulle.1 src 10.5.2.2 dst 10.5.1.2":                                  "ACCEPT",
		"raw PREROUTING in eth0 src 10.5.2.2 dst 10.5.1.2":                                     "DROP",
		"raw PREROUTING in eth0 src fd00:5:0:2::2 dst fd00:5:0:1::2":                           "DROP",
		"filter FORWARD in tulle.1 out docker0 src fd00:5:0:2::2 dst fd00:5:0:1::2 tcp 80 NEW": "ACCEPT",
	} {
		if got := verdictOf(t, f, question); !strings.HasPrefix(got, want+" ") || strings.Contains(got, "but for") {
			t.Errorf("%s: %s", question, got)
		}
	}
}

// However rules are written, reading them and asking them ends, and gives a verdict with its rule.
func FuzzFilter(f *testing.F) {
	files, _ := filepath.Glob("testdata/firewall/*.txtar")
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(archive.Files[0].Data))
	}
	f.Add("*filter\n:FORWARD - [0:0]\n-A FORWARD -j FORWARD\n-A FORWARD -m \n-A FORWARD -g\n-A FORWARD \"\\")
	p := Packet{In: "docker0", Out: "tulle.1", Src: netip.MustParseAddr("10.5.1.2"), Dst: netip.MustParseAddr("10.5.2.2"), Protocol: "icmp", State: "NEW"}
	f.Fuzz(func(t *testing.T, save string) {
		filter := ParseFilter(save)
		for _, chain := range []string{"FORWARD", "INPUT"} {
			v := filter.Verdict("filter", chain, p)
			if v.Rule == "" || v.Target == "" || v.Chain == "" || v.Sure != (len(v.Doubtful) == 0) {
				t.Errorf("%+v", v)
			}
		}
	})
}
