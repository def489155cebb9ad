package netfilter

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

var update = flag.Bool("update", false, "write the results in testdata anew")

// policies are those of the goldens in testdata, by name.
func policies() map[string]backend.Firewall {
	docker := dual(besideDocker())
	docker.From = backend.Devices{"tulle.1", "tulle-v6.1"}
	marked := besideDocker()
	marked.Mark = 0x1000000
	segment := dual(besideDocker())
	segment.From = backend.Devices{"docker0"}
	unknown := besideDocker()
	unknown.From = backend.Devices{}
	bridgeless := besideDocker()
	bridgeless.Bridge = ""
	masquerade := dual(besideDocker())
	masquerade.Forward, masquerade.Masquerade.V6 = false, false
	forward := besideDocker()
	forward.Masquerade = subnet.Pair[bool]{}
	return map[string]backend.Firewall{"dual-stack": docker, "docker-nftables": marked, "l2": segment, "devices-unknown": unknown,
		"no-bridge": bridgeless, "masquerade-only": masquerade, "forward-only": forward, "nothing": {}}
}

// golden compares a section of a policy's golden with what it should be, or writes it.
func golden(t *testing.T, name, section, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txtar")
	archive, err := txtar.ParseFile(path)
	if os.IsNotExist(err) && *update {
		archive, err = &txtar.Archive{}, nil
	}
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(archive.Files, func(f txtar.File) bool { return f.Name == section })
	if *update {
		if i < 0 {
			i, archive.Files = len(archive.Files), append(archive.Files, txtar.File{Name: section})
		}
		archive.Files[i].Data = []byte(got)
		if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if i < 0 || string(archive.Files[i].Data) != got {
		t.Errorf("%s: %s is\n%s", path, section, got)
	}
}

// What a policy asks for is iptables' rules, and where Docker's rules are and the others are nftables' a few of them.
func TestPolicies(t *testing.T) {
	for name, f := range policies() {
		all, _ := chosen{name: string(IPTables)}.divide(f, subnet.Pair[bool]{V4: true, V6: true})
		few, _ := chosen{name: string(NFTables)}.divide(f, subnet.Pair[bool]{V4: true, V6: true})
		golden(t, name, "policy", f.String())
		golden(t, name, "iptables", text(all))
		golden(t, name, "beside nftables", text(few))
	}
}

// text is chains in the words of iptables.
func text(chains []chain) string {
	var b strings.Builder
	for _, c := range chains {
		tool, _ := toolName(c.family)
		for _, line := range c.lines(true) {
			b.WriteString(tool + " -t " + c.table + " -A " + c.name + " " + line + "\n")
		}
	}
	return b.String()
}

// The same in nftables is what nft prints.
func TestPoliciesInNFTables(t *testing.T) {
	for name, f := range policies() {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			s.applyBy(NFTables, f)
			golden(t, name, "nftables", s.table())
		})
	}
}
