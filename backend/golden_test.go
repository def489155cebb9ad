package backend

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/tulle-net/tulle/subnet"
)

var update = flag.Bool("update", false, "write the states and rejections in testdata anew")

// TestGoldens plans each host in testdata: config, host and leases go in, state and rejected come out.
func TestGoldens(t *testing.T) {
	t.Parallel()
	files, _ := filepath.Glob("testdata/*.txtar")
	if len(files) == 0 {
		t.Fatal("no files")
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p := goldenPlan(t, archive)
			got := map[string]string{"state": p.State().String(), "rejected": rejections(p)}
			for i, f := range archive.Files {
				want, ok := got[f.Name]
				if !ok {
					continue
				}
				delete(got, f.Name)
				if *update {
					archive.Files[i].Data = []byte(want)
				} else if want != string(f.Data) {
					t.Errorf("%s\n%swant\n%s", f.Name, want, f.Data)
				}
			}
			if len(got) > 0 {
				t.Errorf("no section %v", slices.Collect(maps.Keys(got)))
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// The hostile hosts' goldens must not lag behind the reasons that there are.
func TestGoldenHasEveryReason(t *testing.T) {
	t.Parallel()
	for file, others := range map[string][]subnet.Reason{"hostile": {subnet.OtherFamily}, "hostile-ipv6": nil} {
		archive, err := txtar.ParseFile("testdata/" + file + ".txtar")
		if err != nil {
			t.Fatal(err)
		}
		text := rejections(goldenPlan(t, archive))
		for _, reason := range append(others, subnet.BadKey, subnet.BadValue, subnet.BadAddress, subnet.OutOfNetwork, subnet.OnUnderlay,
			subnet.Overlap, subnet.Conflict, subnet.OwnAddress, subnet.BadMAC, subnet.WrongVNI, subnet.WrongBackend) {
			if !strings.Contains(text, ": "+string(reason)+": ") {
				t.Errorf("%s: nothing is rejected for %s", file, reason)
			}
		}
	}
}

// rejections are sorted lines KEY: reason: detail.
func rejections(p *Plan) string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(p.Rejected())) {
		r := p.Rejected()[key]
		fmt.Fprintf(&b, "%s: %s\n", key, &r)
	}
	return b.String()
}

func goldenPlan(t *testing.T, archive *txtar.Archive) *Plan {
	t.Helper()
	section := map[string]string{}
	for _, f := range archive.Files {
		section[f.Name] = string(f.Data)
	}
	cfg := mustConfig(t, section["config"])
	b := mustBackend(t, cfg)
	p, err := NewPlan(b, parseHost(t, cfg, section["host"]), parseLeases(t, section["leases"]))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustConfig(t testing.TB, text string) subnet.Config {
	t.Helper()
	cfg, _, err := subnet.ParseConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func mustBackend(t testing.TB, cfg subnet.Config) Backend {
	t.Helper()
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// parseHost reads lines of a word and its value. Local and public addresses are repeated for IPv6, on-link prefixes at will.
func parseHost(t *testing.T, cfg subnet.Config, text string) Host {
	t.Helper()
	h := Host{Config: cfg}
	for line := range strings.Lines(text) {
		word, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		var err error
		switch word {
		case "device":
			h.Underlay.Device = value
		case "mtu":
			_, err = fmt.Sscan(value, &h.Underlay.MTU)
		case "local", "public":
			a := netip.MustParseAddr(value)
			if word == "local" {
				*h.Underlay.Local.At(subnet.FamilyOf(a)) = a
			} else {
				*h.Underlay.Public.At(subnet.FamilyOf(a)) = a
			}
		case "onlink":
			h.Underlay.OnLink = append(h.Underlay.OnLink, netip.MustParsePrefix(value))
		case "other":
			device, prefix, _ := strings.Cut(value, " ")
			h.Underlay.Others = append(h.Underlay.Others, Addr{device, netip.MustParsePrefix(prefix)})
		case "accept-ra":
			h.Underlay.AcceptRA = append(h.Underlay.AcceptRA, value)
		case "subnet":
			p := netip.MustParsePrefix(value)
			*h.Self.Subnet.At(subnet.FamilyOf(p.Addr())) = p
		case "bridge":
			h.Bridge = value
		case "key":
			var k Key
			k, err = ParseKey(value)
			h.Facts.Key = Secret(k)
		case "userspace":
			h.Facts.Userspace = true
		case "masquerade":
			h.Masquerade.V4 = true
		case "masquerade-ipv6":
			h.Masquerade.V6 = true
		case "forward":
			h.Forward = true
		default:
			err = fmt.Errorf("unknown word %q", word)
		}
		if err != nil {
			t.Fatalf("host: %s: %v", strings.TrimSpace(line), err)
		}
	}
	h.Self.PublicIP = h.Underlay.Public
	return h
}

// parseLeases reads lines of a key and a value, the oldest first; "reserved" before them stands for a key without an etcd
// lease.
func parseLeases(t *testing.T, text string) map[string]subnet.Entry {
	t.Helper()
	entries := map[string]subnet.Entry{}
	for line := range strings.Lines(text) {
		line, reserved := strings.CutPrefix(strings.TrimSpace(line), "reserved ")
		key, value, _ := strings.Cut(line, " ")
		if _, twice := entries[key]; twice {
			t.Fatalf("leases: %s is there twice", key)
		}
		l, err := subnet.ParseLease(key, []byte(value))
		entries[key] = subnet.Entry{Lease: l, Created: int64(len(entries) + 1), Reserved: reserved, Err: err}
	}
	return entries
}
