// Package e2e tests whole hosts: real agents in network namespaces, real etcd, real packets. It needs root.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tulle-net/tulle/e2e/lab"
)

// binary is the tulle that the labs run; with the race detector if the tests have it.
var binary string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		if os.Getenv("TULLE_TEST_ROOT") != "" {
			fmt.Fprintln(os.Stderr, "e2e: these tests need root")
			return 1
		}
		fmt.Fprintln(os.Stderr, "e2e: skipped: these tests need root")
		return 0
	}
	// An agent with the race detector would wait a second before it ends, for other threads' reports: and nobody carries packets
	// meanwhile, where packets go through the agent.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=50"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	if binary = os.Getenv("TULLE_TEST_BINARY"); binary != "" { // where there is no Go to build one
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "tulle-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "tulle")
	args := []string{"build", "-o", binary}
	if raceEnabled {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "../cmd/tulle")...)
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: build tulle:", err)
		return 1
	}
	return m.Run()
}

// virtual is whether this is the virtual machine of e2e/vm, for whose emulated processor all is too much that keeps others busy.
var virtual = os.Getenv("TULLE_VM") == "1"

// unhurried is how long to wait between two of what is done all the time.
func unhurried(d time.Duration) time.Duration {
	if virtual {
		return 20 * d
	}
	return d
}

// labNumber tells labs of this process apart, and with its PID from those of others.
var labNumber atomic.Int32

// plain is the config that a test uses which does not care.
const plain = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`

// newLab makes a lab that goes away with the test.
func newLab(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	o.Name, o.Binary, o.Prefix, o.Forward = fmt.Sprintf("t%d-%d", os.Getpid(), labNumber.Add(1)), binary, "/coreos.com/network", "DROP"
	if o.Config == "" {
		o.Config = plain
	}
	l, err := lab.Up(t.Context(), o, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { takeDown(t, l) })
	return l
}

// takeDown takes a lab down after it has looked into its logs: an agent must neither race nor panic, whatever was done to it.
func takeDown(t *testing.T, l *lab.Lab) {
	logs, err := filepath.Glob(filepath.Join(l.Dir(), "*.log"))
	if err != nil {
		t.Error(err)
	}
	for _, path := range logs {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, bad := range []string{"DATA RACE", "panic:", "fatal error:"} {
			if strings.Contains(string(text), bad) {
				t.Errorf("%s has a %s:\n%s", filepath.Base(path), bad, text)
			}
		}
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(path), text)
		}
	}
	if err := l.Down(); err != nil {
		t.Errorf("take the lab down: %v", err)
	}
}

// eventually waits until condition holds.
func eventually(t *testing.T, limit time.Duration, what string, condition func() error) {
	t.Helper()
	if err := lab.Wait(t.Context(), limit, what, condition); err != nil {
		t.Fatal(err)
	}
}

// ping fails the test unless every packet of size bytes is answered, by each of the addresses.
func ping(t *testing.T, from, to *lab.Container, size int) {
	t.Helper()
	for _, address := range to.Addresses {
		r, err := lab.Ping(t.Context(), from.Namespace, address, 3, size)
		if err != nil {
			t.Fatal(err)
		}
		if r.Lost() > 0 || r.Refused != nil {
			t.Fatalf("%s to %s at %s: %d of %d pings of %d bytes lost (%v)", from.Name, to.Name, address, r.Lost(), r.Sent, size, r.Refused)
		}
	}
}

// in runs a command in a namespace and returns what it prints.
func in(t *testing.T, namespace string, command ...string) string {
	t.Helper()
	out, err := lab.Output(context.WithoutCancel(t.Context()), namespace, command...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// logOf is what a host's agent has logged.
func logOf(t *testing.T, l *lab.Lab, h *lab.Host) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(l.Dir(), h.Name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
