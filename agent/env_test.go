package agent

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// envAgent is an agent that has a lease of p and writes its files to dir, and what it logs.
func envAgent(t *testing.T, dir, p string) (*Agent, *bytes.Buffer) {
	t.Helper()
	config, _, err := subnet.ParseConfig([]byte(`{"Network":"10.5.0.0/16"}`))
	if err != nil {
		t.Fatal(err)
	}
	b, err := backend.New(config)
	if err != nil {
		t.Fatal(err)
	}
	address := subnet.PairOf(subnet.IPv4, netip.MustParseAddr("192.0.2.1"))
	host := backend.Host{Config: config, Self: subnet.Lease{Subnet: subnet.PairOf(subnet.IPv4, netip.MustParsePrefix(p)), PublicIP: address},
		Underlay: backend.Underlay{Device: "eth0", MTU: 1500, Local: address, Public: address}}
	plan, err := backend.NewPlan(b, host, map[string]subnet.Entry{})
	if err != nil {
		t.Fatal(err)
	}
	log := &bytes.Buffer{}
	a := &Agent{log: slog.New(slog.NewTextHandler(log, nil)), state: newState(),
		config: Config{SubnetFile: filepath.Join(dir, "run", "subnet.env"), StateFile: filepath.Join(dir, "state", "subnet.env")}}
	a.state.plan = plan
	return a, log
}

func TestWriteEnv(t *testing.T) {
	dir := t.TempDir()
	for _, p := range []string{"10.5.7.0/24", "10.5.8.0/24"} {
		a, _ := envAgent(t, dir, p)
		if err := a.writeEnv(1450); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{a.config.SubnetFile, a.config.StateFile} {
			if held, err := previousSubnet(path); err != nil || held.V4.String() != p {
				t.Errorf("%s holds %s, not %s; %v", path, held.V4, p, err)
			}
		}
		before, after := stat(t, a.config.StateFile), os.FileInfo(nil)
		if err := a.writeEnv(1450); err != nil {
			t.Fatal(err)
		}
		if after = stat(t, a.config.StateFile); !os.SameFile(before, after) || after.Mode() != 0o644 {
			t.Errorf("%s was written again, or has mode %s", a.config.StateFile, after.Mode())
		}
	}
}

// TestWriteEnvNoState has a state directory that can't be made: the env file is written all the same, and one line says so.
func TestWriteEnvNoState(t *testing.T) {
	dir := t.TempDir()
	a, log := envAgent(t, dir, "10.5.7.0/24")
	write(t, filepath.Join(dir, "state"), "a file")
	for range 2 {
		if err := a.writeEnv(1450); err != nil {
			t.Fatal(err)
		}
	}
	if held := a.previous(); held.V4.String() != "10.5.7.0/24" {
		t.Errorf("the env file holds %s", held.V4)
	}
	if n := strings.Count(log.String(), "another subnet"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, log)
	}
}

func TestPrevious(t *testing.T) {
	for _, test := range []struct{ name, run, state, want, warning string }{
		{name: "first start"},
		{name: "restart", run: "FLANNEL_SUBNET=10.5.7.1/24\n", state: "FLANNEL_SUBNET=10.5.8.1/24\n", want: "10.5.7.0/24"},
		{name: "reboot", state: "FLANNEL_SUBNET=10.5.8.1/24\n", want: "10.5.8.0/24"},
		{name: "empty", run: "\n", state: "FLANNEL_SUBNET=10.5.8.1/24\n", want: "10.5.8.0/24"},
		{name: "damaged", run: "FLANNEL_SUBNET=10.5.7.1\n", state: "FLANNEL_SUBNET=10.5.8.1/24\n", want: "10.5.8.0/24", warning: "run/subnet.env"},
		{name: "both damaged", run: "FLANNEL_SUBNET=", state: "FLANNEL_SUBNET=10.5.8.1/240\n", warning: "state/subnet.env"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			a, log := envAgent(t, dir, "10.5.9.0/24")
			for path, text := range map[string]string{a.config.SubnetFile: test.run, a.config.StateFile: test.state} {
				if text != "" {
					write(t, path, text)
				}
			}
			var want subnet.Pair[netip.Prefix]
			if test.want != "" {
				want.V4 = netip.MustParsePrefix(test.want)
			}
			if held := a.previous(); held != want {
				t.Errorf("previous: %v, want %v", held, want)
			}
			if !strings.Contains(log.String(), test.warning) || test.warning == "" && log.Len() > 0 {
				t.Errorf("warning about %q expected:\n%s", test.warning, log)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func stat(t *testing.T, path string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}
