// Package netnstest gives tests network namespaces of their own, so that what they do to a network is nobody else's business.
package netnstest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// NeedRoot skips the test without root, or fails it where TULLE_TEST_ROOT=1 says that there is to be root.
func NeedRoot(t testing.TB) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("TULLE_TEST_ROOT") == "1":
		t.Fatal("TULLE_TEST_ROOT=1, but this is not root")
	default:
		t.Skip("needs root, for a network namespace")
	}
}

// Enter moves the calling goroutine into a new namespace without a name. It never unlocks the thread: the runtime ends it with the
// goroutine, and the namespace with it.
func Enter(t testing.TB) {
	t.Helper()
	NeedRoot(t)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v", err)
	}
}

// Run runs a command in the namespace of the calling goroutine, and returns what it prints. Its words are split at spaces.
func Run(t testing.TB, format string, args ...any) string {
	t.Helper()
	words := strings.Fields(fmt.Sprintf(format, args...))
	var complaints strings.Builder // ip has some about other people's namespaces
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(words, " "), err, out, &complaints)
	}
	return string(out)
}

// Namespace is one with a name, into which others may be plugged.
type Namespace struct {
	testing.TB
	Netns  string // its name on the machine
	handle netns.NsHandle
}

// New makes a namespace that goes away with the test, and whose loopback is up.
func New(t testing.TB, name string) *Namespace {
	t.Helper()
	NeedRoot(t)
	n := &Namespace{TB: t, Netns: name}
	Run(t, "ip netns add %s", name)
	t.Cleanup(n.remove)
	var err error
	if n.handle, err = netns.GetFromName(name); err != nil {
		t.Fatal(err)
	}
	n.Run("ip link set lo up")
	return n
}

// remove tries again for a while: others on this machine may be looking at the namespace.
func (n *Namespace) remove() {
	_ = n.handle.Close()
	var out []byte
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
		var err error
		if out, err = exec.Command("ip", "netns", "del", n.Netns).CombinedOutput(); err == nil {
			return
		}
	}
	n.Errorf("namespace %s is not deleted: %s", n.Netns, out)
}

// Run runs a command in the namespace, and returns what it prints. Its words are split at spaces.
func (n *Namespace) Run(format string, args ...any) string {
	n.Helper()
	return Run(n.TB, "ip netns exec %s %s", n.Netns, fmt.Sprintf(format, args...))
}

// In runs f on a thread in the namespace, which ends with it.
func (n *Namespace) In(f func() error) error {
	var tasks errgroup.Group
	tasks.Go(func() error {
		runtime.LockOSThread()
		if err := netns.Set(n.handle); err != nil {
			return err
		}
		return f()
	})
	return tasks.Wait()
}
