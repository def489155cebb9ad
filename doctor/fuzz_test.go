package doctor

import (
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/tulle-net/tulle/subnet"
)

// FuzzParseFilter reads what may be said to be iptables-save's, and asks what becomes of packets.
func FuzzParseFilter(f *testing.F) {
	files, _ := filepath.Glob("testdata/firewall/*.txtar")
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(archive.Files[0].Data))
	}
	f.Add("*filter\n:FORWARD DROP [0:0]\n:A - [0:0]\n:B - [0:0]\n-A FORWARD -j A\n-A A -j B\n-A B -g A\n")
	f.Add("*filter\n-A FORWARD -m comment --comment \"\\\"\n-A FORWARD ! -s 10.5.0.0/99 ! -j\n-A\n[1:2] -A FORWARD -m mark --mark 0x1/0x/ -j MARK --set-xmark\n")
	packets := []Packet{
		{In: "tulle.1", Out: "docker0", Src: netip.MustParseAddr("10.5.2.7"), Dst: netip.MustParseAddr("10.5.1.7"), Protocol: "icmp", State: "NEW"},
		{In: "docker0", Out: "tulle.1", Src: netip.MustParseAddr("10.5.1.7"), Dst: netip.MustParseAddr("10.5.2.7"), Protocol: "tcp", Port: 80, State: "ESTABLISHED"},
		{In: "eth0", Src: netip.MustParseAddr("192.0.2.2"), Dst: netip.MustParseAddr("192.0.2.1"), Protocol: "udp", Port: 8472, Local: true}}
	f.Fuzz(func(t *testing.T, save string) {
		filter := ParseFilter(save)
		for _, table := range []string{"filter", "raw", "nat", "mangle"} {
			for _, chain := range []string{"FORWARD", "INPUT", "OUTPUT", "PREROUTING", "POSTROUTING"} {
				for _, p := range packets {
					v := filter.Verdict(table, chain, p)
					if v.Sure != (len(v.Doubtful) == 0) || v.Accept == slices.Contains([]string{"DROP", "REJECT"}, v.Target) {
						t.Fatalf("%+v contradicts itself", v)
					}
					_ = (dropped{family: subnet.IPv4, table: table, Verdict: v}).without()
				}
			}
		}
	})
}

// FuzzParseForeign reads what may be said to be nft's.
func FuzzParseForeign(f *testing.F) {
	f.Add([]byte(`{"nftables":[{"chain":{"family":"inet","table":"mine","name":"forward","hook":"forward","policy":"drop"}},{"rule":{"family":"ip","table":"x","expr":[{"drop":null}]}}]}`))
	f.Add([]byte(`{"nftables":[{"chain":null,"rule":{"expr":7}}]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, c := range parseForeign(text) {
			if c.hook == "" || c.text == "" {
				t.Errorf("%+v", c)
			}
		}
	})
}
