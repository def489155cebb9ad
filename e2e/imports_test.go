package e2e

import (
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestImports holds up the arrows of docs/architecture.md: who may import whom. A package that is not listed is new, and has
// to find its place first.
func TestImports(t *testing.T) {
	const module = "github.com/tulle-net/tulle/"
	allowed := map[string][]string{
		"subnet":            {},
		"backend":           {"subnet"},
		"backend/extension": {"backend", "subnet"},
		"backend/firewalld": {"backend", "subnet"},
		"backend/kernel":    {"backend", "subnet"},
		"backend/l2":        {"backend", "backend/kernel", "subnet"},
		"backend/netfilter": {"backend", "subnet"},
		"backend/udp":       {"backend", "subnet"},
		"backend/wireguard": {"backend", "subnet"},
		"etcd":              {"subnet"},
		"agent":             {"agent/api", "agent/docker", "agent/flannel", "agent/page", "agent/probe", "backend", "subnet"},
		"agent/api":         {"backend", "subnet"},
		"agent/attach":      {"backend"},
		"agent/docker":      {"subnet"},
		"agent/flannel":     {"agent/docker"},
		"agent/page":        {"agent/api"},
		"agent/probe":       {},
		"doctor":            {"agent/api", "agent/docker", "agent/probe", "backend", "backend/kernel", "backend/netfilter", "subnet"},
		"e2e":               {"agent/api", "e2e/lab"},
		"e2e/bench":         {"backend", "backend/kernel", "e2e/lab", "etcd", "subnet"},
		"e2e/bench/data":    {"e2e/lab"},
		"e2e/browser":       {},
		"e2e/document":      {},
		"e2e/lab":           {"agent/api"},
		"e2e/netnstest":     {},
		"cmd/tulle": {
			"agent", "agent/api", "agent/attach", "agent/docker", "agent/flannel",
			"backend", "backend/extension", "backend/firewalld", "backend/kernel", "backend/l2", "backend/netfilter", "backend/udp", "backend/wireguard",
			"doctor", "e2e/lab", "etcd", "subnet",
		},
	}
	list := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	list.Dir = ".."
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, module)
		may, known := allowed[name]
		if !known {
			t.Errorf("package %s has no place in the table of who imports whom", name)
		}
		for _, path := range p.Imports {
			imported, ours := strings.CutPrefix(path, module)
			if ours && !slices.Contains(may, imported) {
				t.Errorf("%s imports %s, which it may not", name, imported)
			}
			if name == "subnet" && strings.Contains(path, ".") {
				t.Errorf("subnet imports %s: it is standard library only", path)
			}
		}
	}
}
