package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const flannelEnv = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.65.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"

// The lines of mk-docker-opts.sh for flannelEnv.
const (
	bipLine    = "DOCKER_OPT_BIP=\"--bip=10.5.65.1/24\"\n"
	masqLine   = "DOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n"
	mtuLine    = "DOCKER_OPT_MTU=\"--mtu=1450\"\n"
	eachLines  = bipLine + masqLine + mtuLine
	combined   = "=\" --bip=10.5.65.1/24 --ip-masq=false --mtu=1450 \"\n"
	noMasqLine = "DOCKER_OPTS=\" --bip=10.5.65.1/24 --mtu=1450 \"\n"
)

// bench is a directory with all that the command reads: an env file, a dockerd, a daemon.json.
type bench struct {
	dir, env, dockerd, daemonJSON string
}

func newBench(t *testing.T, env, version, daemonJSON string) bench {
	t.Helper()
	dir := t.TempDir()
	b := bench{dir, filepath.Join(dir, "subnet.env"), filepath.Join(dir, "dockerd"), filepath.Join(dir, "daemon.json")}
	b.write(t, b.env, env, 0o644)
	b.write(t, b.daemonJSON, daemonJSON, 0o644)
	if version != "" {
		b.write(t, b.dockerd, fmt.Sprintf("#!/bin/sh\n[ $# = 1 ] || exit 1\necho 'Docker version %s, build 1234567'\n", version), 0o755)
	}
	for _, variable := range os.Environ() {
		if name, value, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "DOCKER_OPT") {
			t.Setenv(name, value) // so that it comes back
			os.Unsetenv(name)
		}
	}
	return b
}

func (b bench) write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// run runs the command, and returns what it prints and its exit code.
func (b bench) run(t *testing.T, flags ...string) (stdout, stderr string, code int) {
	t.Helper()
	outFile, errFile := capture(t, &os.Stdout), capture(t, &os.Stderr)
	code = run(append([]string{"docker-opts", "-f", b.env, "--dockerd", b.dockerd, "--daemon-json", b.daemonJSON}, flags...))
	return outFile(), errFile(), code
}

// capture redirects one of the process's streams to a file, until the function that it returns is called.
func capture(t *testing.T, stream **os.File) func() string {
	t.Helper()
	before := *stream
	f, err := os.Create(filepath.Join(t.TempDir(), "stream"))
	if err != nil {
		t.Fatal(err)
	}
	*stream = f
	return func() string {
		*stream = before
		defer f.Close()
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
}

// TestDockerOptsGoldens: byte for byte what mk-docker-opts.sh writes, for each combination of flags. (The script knows -m by
// its help alone, and stops at it.)
func TestDockerOptsGoldens(t *testing.T) {
	b := newBench(t, flannelEnv, "20.10.24+dfsg1", "")
	for flags, want := range map[string]string{
		"":                               eachLines + "DOCKER_OPTS" + combined,
		"-i":                             eachLines,
		"-c":                             "DOCKER_OPTS" + combined,
		"-i -c":                          eachLines + "DOCKER_OPTS" + combined,
		"-ic":                            eachLines + "DOCKER_OPTS" + combined,
		"-k OPTS":                        eachLines + "OPTS" + combined,
		"-i -k OPTS":                     eachLines,
		"-c -k OPTS":                     "OPTS" + combined,
		"-i -c -k OPTS":                  eachLines + "OPTS" + combined,
		"-m":                             bipLine + mtuLine + noMasqLine,
		"-m -i":                          bipLine + mtuLine,
		"-m -c":                          noMasqLine,
		"-m -i -c":                       bipLine + mtuLine + noMasqLine,
		"-m -k DOCKER_OPTS":              bipLine + mtuLine + noMasqLine,
		"-m -i -k OPTS":                  bipLine + mtuLine,
		"-m -c -k DOCKER_OPTS":           noMasqLine,
		"-mic -k DOCKER_OPTS":            bipLine + mtuLine + noMasqLine,
		"--format json":                  "{\n  \"bip\": \"10.5.65.1/24\",\n  \"ip-masq\": false,\n  \"mtu\": 1450\n}\n",
		"--format json -m":               "{\n  \"bip\": \"10.5.65.1/24\",\n  \"mtu\": 1450\n}\n",
		"--firewall-backend nftables -c": "DOCKER_OPTS" + combined, // 20.10 has none
	} {
		stdout, stderr, code := b.run(t, append(strings.Fields(flags), "-d", "-")...)
		if stdout != want || stderr != "" || code != 0 {
			t.Errorf("%s: exit code %d, %s\ngot:\n%s\nwant:\n%s", flags, code, stderr, stdout, want)
		}
	}
}

// TestDockerOptsIPv6 has what each version knows, and a network that it can't be part of.
func TestDockerOptsIPv6(t *testing.T) {
	const dual = "FLANNEL_SUBNET=10.5.65.1/24\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_IPMASQ=true\n"
	const segment = dual + "TULLE_BRIDGE=10.5.65.1/16\nTULLE_IPV6_BRIDGE=fd00:0:0:1::1/48\n"
	for _, test := range []struct{ env, version, want, refused string }{
		{dual, "20.10.24", "--bip=10.5.65.1/24 --fixed-cidr-v6=fd00:0:0:1::/64 --ip-masq=false --ipv6", ""},
		{dual, "28.5.2", "--bip6=fd00:0:0:1::1/64 --bip=10.5.65.1/24 --fixed-cidr-v6=fd00:0:0:1::/64 --ip-masq=false --ipv6", ""},
		{segment, "28.5.2", "--bip6=fd00:0:0:1::1/48 --bip=10.5.65.1/16 --fixed-cidr-v6=fd00:0:0:1::/64 --fixed-cidr=10.5.65.0/24 --ip-masq=false --ipv6", ""},
		{segment, "20.10.24", "", "Docker 28 can"},
	} {
		b := newBench(t, test.env, test.version, "{}")
		stdout, stderr, code := b.run(t, "-c", "-d", "-")
		options := strings.Fields(strings.Trim(strings.TrimPrefix(stdout, "DOCKER_OPTS="), "\"\n"))
		slices.Sort(options)
		if got := strings.Join(options, " "); got != test.want || code != 0 != (test.refused != "") || !strings.Contains(stderr, test.refused) {
			t.Errorf("%q for %s: exit code %d, %s%s", test.env, test.version, code, stdout, stderr)
		}
	}
}

func TestDockerOptsEnvFiles(t *testing.T) {
	for env, want := range map[string]string{
		"FLANNEL_SUBNET=10.5.65.1/24\n":                                       " --bip=10.5.65.1/24 ",
		"FLANNEL_SUBNET=10.5.65.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false": " --bip=10.5.65.1/24 --mtu=1450 ",
		// The agent's has the options themselves, which must not come twice.
		flannelEnv + "DOCKER_OPTS=\"--bip=10.5.65.1/24 --ip-masq=false --mtu=1450\"\n": " --bip=10.5.65.1/24 --ip-masq=false --mtu=1450 ",
	} {
		b := newBench(t, env, "28.5.2", "{}")
		stdout, stderr, code := b.run(t, "-c", "-d", "-")
		if stdout != "DOCKER_OPTS=\""+want+"\"\n" || stderr != "" || code != 0 {
			t.Errorf("%q: exit code %d, %s%s", env, code, stdout, stderr)
		}
	}
}

// TestDockerOptsInherits: like the script, it takes up the options that its environment has.
func TestDockerOptsInherits(t *testing.T) {
	b := newBench(t, flannelEnv, "20.10.24", "")
	t.Setenv("DOCKER_OPTS", "--icc=false")
	t.Setenv("DOCKER_OPT_ZZ", "--debug")
	want := eachLines + "DOCKER_OPT_ZZ=\"--debug\"\nDOCKER_OPTS=\"--icc=false --bip=10.5.65.1/24 --ip-masq=false --mtu=1450 --debug \"\n"
	if stdout, stderr, code := b.run(t, "-d", "-"); stdout != want || code != 0 {
		t.Errorf("exit code %d, %s\ngot:\n%s\nwant:\n%s", code, stderr, stdout, want)
	}
}

func TestDockerOptsVersions(t *testing.T) {
	const nftables = "DOCKER_OPTS=\" --allow-direct-routing=true --bip=10.5.65.1/24 --bridge-accept-fwmark=0x1000000/0x1000000 --ip-masq=false --mtu=1450 \"\n"
	const nftablesConfig = `{"firewall-backend": "nftables"}`
	for _, test := range []struct {
		version, config, flags string
		want, says             string
	}{
		{"29.7.0", nftablesConfig, "-c", nftables, ""},
		{"29.7.0", "{}", "-c --firewall-backend nftables", nftables, ""},
		{"29.7.0", nftablesConfig, "-c --firewall-backend iptables", "DOCKER_OPTS" + combined, ""},
		{"29.7.0", "{}", "-c", "DOCKER_OPTS" + combined, ""},
		{"30.0.0", "{}", "-c", "DOCKER_OPTS" + combined, "30.0.0"},
		{"30.0.0", nftablesConfig, "-c", "DOCKER_OPTS" + combined, "30.0.0"}, // asked, the fake says no
		{"19.03.15", "{}", "-c", "DOCKER_OPTS" + combined, "19.3.15"},
		{"dev", nftablesConfig, "-c", "DOCKER_OPTS" + combined, "not a Docker version"},
		{"", nftablesConfig, "-c", "DOCKER_OPTS" + combined, "no such file"},
	} {
		b := newBench(t, flannelEnv, test.version, test.config)
		stdout, stderr, code := b.run(t, append(strings.Fields(test.flags), "-d", "-")...)
		lines := strings.Count(stderr, "\n")
		if stdout != test.want || code != 0 || !strings.Contains(stderr, test.says) || (test.says != "") != (lines == 1) {
			t.Errorf("%+v: exit code %d\nstdout: %s\nstderr: %s", test, code, stdout, stderr)
		}
	}
}

func TestDockerOptsFile(t *testing.T) {
	b := newBench(t, flannelEnv, "20.10.24", "")
	path, link := filepath.Join(b.dir, "docker_opts.env"), filepath.Join(b.dir, "link")
	b.write(t, path, strings.Repeat("old\n", 1000), 0o600)
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, output := range []string{path, link, path} {
		if stdout, stderr, code := b.run(t, "-c", "-d", output); stdout != "" || stderr != "" || code != 0 {
			t.Fatalf("exit code %d, %s%s", code, stdout, stderr)
		}
		info, err := os.Stat(path)
		if text, _ := os.ReadFile(path); err != nil || string(text) != "DOCKER_OPTS"+combined || info.Mode() != 0o644 {
			t.Errorf("%v, %v:\n%s", info.Mode(), err, text)
		}
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Errorf("the link was replaced: %v, %v", info, err)
	}
	if _, stderr, code := b.run(t, "-d", os.DevNull); code != 0 {
		t.Errorf("%s: %s", os.DevNull, stderr)
	}
	if info, err := os.Stat(os.DevNull); err != nil || info.Mode().IsRegular() {
		t.Fatalf("%s was replaced: %v", os.DevNull, err)
	}
}

// TestDockerOptsRefuses: one line that says what, why and what to do, and nothing is written.
func TestDockerOptsRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		env, config, flags string
		want               []string
	}{
		"no env file":       {flannelEnv, "", "-f /nonexistent/subnet.env", []string{"/nonexistent/subnet.env is missing", "start tulle agent"}},
		"no subnet":         {"FLANNEL_MTU=1450\n", "", "", []string{"subnet.env", "neither FLANNEL_SUBNET nor"}},
		"bad subnet":        {"FLANNEL_SUBNET=10.5\n", "", "", []string{"FLANNEL_SUBNET=10.5 is not"}},
		"bip twice":         {flannelEnv, `{"bip": "10.5.65.1/24"}`, "", []string{"daemon.json sets bip,", "--format json"}},
		"mtu, masq twice":   {flannelEnv, `{"mtu": 1400, "ip-masq": true}`, "", []string{"sets ip-masq, mtu,"}},
		"bad daemon.json":   {flannelEnv, `{"bip"`, "", []string{"daemon.json is not a JSON object"}},
		"bad key":           {flannelEnv, "", "-k DOCKER-OPTS", []string{`"DOCKER-OPTS" can't be`}},
		"no such directory": {flannelEnv, "", "-d /nonexistent/docker_opts.env", []string{"write /nonexistent/docker_opts.env"}},
		"json and -i":       {flannelEnv, "", "--format json -i", []string{"-i and -c", "leave them out"}},
	} {
		b := newBench(t, test.env, "20.10.24", test.config)
		path := filepath.Join(b.dir, "docker_opts.env")
		_, stderr, code := b.run(t, append([]string{"-d", path}, strings.Fields(test.flags)...)...)
		for _, want := range test.want {
			if !strings.Contains(stderr, want) {
				t.Errorf("%s: %s, without %q", name, stderr, want)
			}
		}
		if _, err := os.Stat(path); code != 1 || strings.Count(stderr, "\n") != 1 || err == nil {
			t.Errorf("%s: exit code %d, file: %v, %s", name, code, err, stderr)
		}
	}
}

// TestDockerOptsClashes: what clashes with daemon.json may be left out, merged there, or not looked for.
func TestDockerOptsClashes(t *testing.T) {
	b := newBench(t, flannelEnv, "20.10.24", `{"ip-masq": false}`)
	for _, flags := range []string{"-m", "--format json", "--daemon-json="} {
		if _, stderr, code := b.run(t, append([]string{"-d", "-"}, strings.Fields(flags)...)...); code != 0 || stderr != "" {
			t.Errorf("%s: exit code %d, %s", flags, code, stderr)
		}
	}
}
