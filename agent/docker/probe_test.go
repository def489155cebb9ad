package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// fake makes a dockerd out of a shell script.
func fake(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dockerd")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// ofVersion is a fake that knows some options, and starts for real (exit code 99) unless --version is what it sees first.
func ofVersion(t *testing.T, version string, known ...string) string {
	return fake(t, fmt.Sprintf(`
[ "$1" = --version ] || exit 99
shift
for option; do
	case " %s " in *" ${option%%%%=*} "*) ;; *) echo "unknown flag: $option" >&2; exit 1 ;; esac
done
echo "Docker version %s, build 1234567"
`, strings.Join(known, " "), version))
}

func TestInstalled(t *testing.T) {
	for text, want := range map[string]Version{"20.10.24+dfsg1": {20, 10, 24}, "29.0.0-rc.1": {29, 0, 0}, "30.1.0": {30, 1, 0}, "19.03.15": {19, 3, 15}} {
		path := ofVersion(t, text)
		if d, err := Installed(t.Context(), path); err != nil || d != (Daemon{path, want}) {
			t.Errorf("%s: %+v, %v", text, d, err)
		}
	}
	for script, want := range map[string]string{
		"echo Docker version dev, build unknown": "not a Docker version",
		"exit 0":                                 "not a Docker version",
		"exit 127":                               "exit status 127",
	} {
		path := fake(t, script)
		if d, err := Installed(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) || d != (Daemon{Path: path}) {
			t.Errorf("%s: %+v, %v; want an error with %q", script, d, err, want)
		}
	}
	if d, err := Installed(t.Context(), filepath.Join(t.TempDir(), "dockerd")); err == nil || d != (Daemon{}) {
		t.Errorf("none: %+v, %v", d, err)
	}
}

// TestInstalledSearches: PATH comes first, so that a newer dockerd unpacked beside the system's is the one that counts.
func TestInstalledSearches(t *testing.T) {
	path := ofVersion(t, "28.5.2")
	t.Setenv("PATH", filepath.Dir(path)+":"+os.Getenv("PATH"))
	if d, err := Installed(t.Context(), ""); err != nil || d != (Daemon{path, Version{28, 5, 2}}) {
		t.Errorf("%+v, %v", d, err)
	}
}

// TestHang: a dockerd that says nothing is killed when time is up, and so are its children.
func TestHang(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	path := fake(t, "sleep 1000 & echo $! > "+pidFile+"; wait")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { // time is up as soon as the child runs
		for text, _ := os.ReadFile(pidFile); !strings.HasSuffix(string(text), "\n") && ctx.Err() == nil; text, _ = os.ReadFile(pidFile) {
			runtime.Gosched()
		}
		cancel()
	}()
	d, err := Installed(ctx, path)
	if !errors.Is(err, context.Canceled) || d != (Daemon{Path: path}) {
		t.Errorf("%+v, %v", d, err)
	}
	pid, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		status, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		if err != nil || strings.Contains(string(status), ") Z ") { // a zombie is its new parent's to bury
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the child lives on: %s", status)
		}
	}
}

func TestDaemonKnows(t *testing.T) {
	const direct, fwmark = Option("--allow-direct-routing=true"), Option("--bridge-accept-fwmark=0x1/0x1")
	asked := ofVersion(t, "dev", "--allow-direct-routing")
	for _, test := range []struct {
		daemon Daemon
		option Option
		want   bool
	}{
		{Daemon{asked, Version{}}, direct, true},
		{Daemon{asked, Version{}}, fwmark, false},
		{Daemon{asked, Version{30, 0, 0}}, direct, true}, // newer than the table: an option may have gone
		{Daemon{asked, Version{30, 0, 0}}, fwmark, false},
		{Daemon{asked, Version{19, 3, 15}}, fwmark, false},
		{Daemon{asked, Version{}}, "--bip=10.5.1.1/24", true}, // not asked: it would say no
		{Daemon{asked, Version{29, 0, 0}}, fwmark, true},
		{Daemon{asked, Version{28, 0, 0}}, direct, false},
		{Daemon{}, direct, false},
		{Daemon{}, "--mtu=1450", true},
	} {
		if got, err := test.daemon.Knows(t.Context(), test.option); err != nil || got != test.want {
			t.Errorf("%+v, %s: %t, %v", test.daemon, test.option, got, err)
		}
	}
	if got, err := (Daemon{Path: fake(t, "exit 2")}).Knows(t.Context(), direct); err == nil || got {
		t.Errorf("exit code 2: %t, %v; want an error", got, err)
	}
}

// TestRealDockerd asks the machine's own dockerd, which must not start one.
func TestRealDockerd(t *testing.T) {
	d, err := Installed(t.Context(), "")
	if d.Path == "" {
		t.Skipf("%v: Debian's docker.io package has one", err)
	}
	if err != nil || !d.Version.Tested() {
		t.Fatalf("%+v, %v", d, err)
	}
	unknown := Daemon{Path: d.Path} // so that it is asked
	for _, o := range []Option{"--no-such-option", "--bip6=fd00::1/64", "--allow-direct-routing=true", "--bridge-accept-fwmark=0x1000000/0x1000000", "--firewall-backend=nftables"} {
		if got, err := unknown.Knows(t.Context(), o); err != nil || got != d.Version.Knows(o) {
			t.Errorf("%s %s: %t (%v), and the table says %t", d.Path, d.Version, got, err, d.Version.Knows(o))
		}
	}
	for _, o := range []Option{"--bip=10.5.1.1/24", "--mtu=1450", "--ip-masq=false", "--fixed-cidr=10.5.1.0/25", "--fixed-cidr-v6=fd00::/64", "--ipv6=true"} {
		if _, err := d.run(t.Context(), "--version", string(o)); err != nil {
			t.Errorf("an option of every version: %v", err)
		}
	}
	if _, err := d.run(t.Context(), "--version", "--fixed-cidr-v6"); !errors.As(err, new(*exec.ExitError)) {
		t.Errorf("an option without its value: %v; want it refused", err)
	}
}

// serve answers like a dockerd behind a socket. When it is asked for what hangs, it calls timeUp.
func serve(t *testing.T, answers map[string]string, timeUp func()) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "docker.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.Method+" "+r.URL.Path]
		switch {
		case answer == "hang":
			timeUp()
			<-r.Context().Done()
		case !ok:
			http.NotFound(w, r)
		default:
			fmt.Fprint(w, answer)
		}
	})}
	go func() { _ = server.Serve(listener) }() // ends with Close
	t.Cleanup(func() { server.Close() })
	return socket
}
