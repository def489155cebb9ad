package extension

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// FuzzRecall begins a life with what is in the place of what an earlier one remembered. What is taken in is written again, and read so.
func FuzzRecall(f *testing.F) {
	good, err := json.Marshal(memory{Begun: &backend.Extension{Shutdown: "true"}, Told: []told{{By: &backend.Extension{SubnetAdd: "true"}, Peers: []subnet.Lease{peer(2, "data")}}}})
	if err != nil {
		f.Fatal(err)
	}
	for _, text := range []string{string(good), "", "{}", "null", "[]", `{"Told":[{}]}`, `{"Told":[{"By":{},"Peers":[{}]}]}`, `{"Told":[{"By":{},"Peers":[{"Subnet":{"V4":"10.5.2.0/99"}}]}]}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parse(text)
		if err != nil {
			return
		}
		c := New(Options{File: filepath.Join(t.TempDir(), "extension.json"), Log: slog.New(slog.DiscardHandler)})
		if err := os.WriteFile(c.File, text, 0o600); err != nil {
			t.Fatal(err)
		}
		c.recall()
		for key, said := range c.told {
			if said.by == nil || said.lease.Key() != key {
				t.Errorf("%s: %+v", key, said)
			}
			for _, variable := range c.about("SubnetRemoveCommand", "true", said).env {
				if name, _, ok := strings.Cut(variable, "="); !ok || name == "" {
					t.Errorf("a command would have %q", variable)
				}
			}
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parse(again); err != nil {
			t.Errorf("%s: %v", again, err)
		}
	})
}

// FuzzEnvironment has a shell be told of what anybody may write into a lease: it is data there, each variable a line of its own.
func FuzzEnvironment(f *testing.F) {
	for _, data := range []string{"", "$(echo out)", "`echo out`", "a\nTULLE_PEER_KEY=forged", "'\"\\", "=", "-e", "日本"} {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data string) {
		l := peer(2, "")
		text, err := json.Marshal(data)
		if err != nil || backend.CheckPrinted(data) != nil {
			return
		}
		l.Data.V4 = string(text)
		c := New(Options{Log: slog.New(slog.DiscardHandler)})
		c.mu.Lock() // which run lets go of
		out, err := c.run(t.Context(), c.about("SubnetAddCommand", `printf '%s|%s|' "$TULLE_PEER_DATA" "$TULLE_PEER_KEY"`, telling{by: &backend.Extension{}, lease: l}))
		c.mu.Unlock()
		if want := strings.TrimSpace(data + "|" + l.Key() + "|"); err != nil || out != want {
			t.Errorf("a command is told %q, %v, want %q", out, err, want)
		}
	})
}
