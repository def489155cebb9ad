package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/e2e/lab"
)

// What an agent is told and nobody else is to know: by a file, and by variables that may be left of another agent.
const (
	password = "planted-password-7f3a91"
	variable = "planted-variable-c02e55"
)

// TestPrivate gives an agent secrets, and looks for them wherever something is told, kept or handed on.
func TestPrivate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, told := filepath.Join(dir, "password"), filepath.Join(dir, "told")
	script := fmt.Sprintf("#!/bin/sh\nTULLE_PLANTED=%[1]s FLANNELD_ETCD_PASSWORD=%[1]s exec %[2]s \"$@\"\n", variable, binary)
	for path, text := range map[string]string{file: password + "\n", filepath.Join(dir, "tulle"): script} {
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l := newLab(t, lab.Options{Hosts: 1, Config: fmt.Sprintf(`{"Network":"10.5.0.0/16","Backend":{"Type":"extension","PostStartupCommand":"env >%s"}}`, told),
		Agent: []string{"--log-level", "debug", "--etcd-username", "somebody", "--etcd-password-file", file, "--peer-metrics"}})
	h := l.Nodes[0]
	stop(t, h)
	l.Binary = filepath.Join(dir, "tulle")
	if err := l.StartAgent(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	t.Run("outputs", func(t *testing.T) { testSecretOutputs(t, l, h, file) })
	t.Run("process", func(t *testing.T) { testSecretProcess(t, h, told) })
	t.Run("links", func(t *testing.T) { testPlantedLinks(t, l, h) })
	t.Run("lock", func(t *testing.T) { testPlantedLock(t, l, h) })
}

// keeps fails if a text has one of the secrets in it, or is empty.
func keeps(t *testing.T, where, text string) {
	t.Helper()
	if text == "" {
		t.Errorf("%s is empty", where)
	}
	for _, secret := range []string{password, variable} {
		if strings.Contains(text, secret) {
			t.Errorf("%s tells %s", where, secret)
		}
	}
}

func testSecretOutputs(t *testing.T, l *lab.Lab, h *lab.Host, file string) {
	for _, path := range []string{"/", "/metrics", "/readyz", "/healthz", api.PathStatus, api.PathPeers, api.PathEvents, api.PathView, api.PathMesh, api.PathEtcd} {
		keeps(t, path, get(t, h, path))
	}
	run, etcd := " --run-dir "+h.RunDir, fmt.Sprintf(" --etcd-endpoints %s --etcd-username somebody --etcd-password-file %s", l.Endpoints(), file)
	for _, command := range []string{"status" + run, "status --json" + run, "events" + run, "events --json" + run, "doctor" + run + etcd, "doctor --json" + run + etcd,
		"trace 10.5.200.1" + run + etcd, "trace 10.5.200.1 --json" + run + etcd, "lease ls" + etcd, "lease ls --json" + etcd, "config get" + etcd} {
		out, _ := lab.Output(t.Context(), h.Namespace, append([]string{binary}, strings.Fields(command)...)...) // its exit code is none of our business
		keeps(t, command, out)
	}
	keeps(t, "the log", logOf(t, l, h))
	err := filepath.WalkDir(h.RunDir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() && entry.Name() != "lock" {
			text, err := os.ReadFile(path)
			keeps(t, path, string(text))
			return err
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// testSecretProcess looks at what others see of the process, at what its children get from it, and at what would be left of a crash.
func testSecretProcess(t *testing.T, h *lab.Host, told string) {
	proc := func(name string) string {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", h.Agent.PID, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	keeps(t, "the command line", proc("cmdline"))
	if !strings.Contains(proc("environ"), variable) {
		t.Error("the agent has not got the variable, so that its children can't have it from it")
	}
	eventually(t, 20*time.Second, "the extension's command has run", func() error {
		_, err := os.Stat(told)
		return err
	})
	text, err := os.ReadFile(told)
	if err != nil {
		t.Fatal(err)
	}
	keeps(t, "a command's environment", string(text))
	for line := range strings.Lines(proc("limits")) {
		if rest, ok := strings.CutPrefix(line, "Max core file size"); ok {
			if fields := strings.Fields(rest); fields[0] != "1" && fields[0] != "0" || fields[1] != fields[0] {
				t.Errorf("a core dump may be written: %s", line)
			}
		}
	}
}

// testPlantedLinks puts links to somebody else's file in the place of all of the agent's: it goes on, and he keeps what he has.
func testPlantedLinks(t *testing.T, l *lab.Lab, h *lab.Host) {
	stop(t, h)
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("FLANNEL_SUBNET=his\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	modes := map[string]fs.FileMode{"subnet.env": 0o644, "lease": 0o644, "extension.json": 0o600, "agent.sock": fs.ModeSocket | 0o666}
	for name := range modes {
		path := filepath.Join(h.RunDir, name)
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(victim, path); err != nil {
			t.Fatal(err)
		}
	}
	before := len(logOf(t, l, h))
	if err := l.StartAgent(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	for name, mode := range modes {
		eventually(t, 20*time.Second, name+" is the agent's", func() error {
			info, err := os.Lstat(filepath.Join(h.RunDir, name))
			if err == nil && info.Mode() != mode {
				err = fmt.Errorf("its mode is %v, want %v", info.Mode(), mode)
			}
			return err
		})
	}
	info, err := os.Stat(victim)
	text, readErr := os.ReadFile(victim)
	if err != nil || readErr != nil || string(text) != "FLANNEL_SUBNET=his\n" || info.Mode() != 0o640 {
		t.Errorf("the victim has %q, mode %v, %v", text, info.Mode(), err)
	}
	log := logOf(t, l, h)[before:]
	if n := strings.Count(log, "is a symbolic link, which is not followed"); n != 2 { // the env file, and what the extension remembers
		t.Errorf("links are told of %d times:\n%s", n, log)
	}
}

// testPlantedLock has the lock led to another file, and taken for a name of it. The agent says so in a line, and does not start.
func testPlantedLock(t *testing.T, l *lab.Lab, h *lab.Host) {
	stop(t, h)
	victim, lock := filepath.Join(h.RunDir, "victim"), filepath.Join(h.RunDir, "lock")
	if err := os.WriteFile(victim, []byte("his"), 0o640); err != nil {
		t.Fatal(err)
	}
	for what, plant := range map[string]func() error{
		"is a symbolic link":                        func() error { return os.Symlink(victim, lock) },
		"is not a file, or has another name":        func() error { return os.Link(victim, lock) },
		"is not a file, or has another name, too: ": func() error { return unix.Mkfifo(lock, 0o666) },
	} {
		if err := os.RemoveAll(lock); err != nil {
			t.Fatal(err)
		}
		if err := plant(); err != nil {
			t.Fatal(err)
		}
		_, err := lab.Output(t.Context(), h.Namespace, binary, "agent", "--run-dir", h.RunDir, "--etcd-endpoints", l.Endpoints())
		if err == nil || !strings.Contains(err.Error(), lock+" "+what) {
			t.Errorf("the agent ends with %v, without %q", err, what)
		}
		if text, err := os.ReadFile(victim); err != nil || string(text) != "his" {
			t.Errorf("the victim has %q, %v", text, err)
		}
	}
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(t.Context(), h); err != nil {
		t.Error(err)
	}
}
