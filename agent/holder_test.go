package agent

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const nobody = 65534

// TestLockHost has another process take the host's lock. An agent's unit runs it as a user of its own, who is not root: that is
// refused, as root's is. Who can't be an agent, though he has taken its name, keeps none from starting.
func TestLockHost(t *testing.T) {
	if os.Getenv("TULLE_TEST_HOLDER") != "" {
		hold()
		return
	}
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("TULLE_TEST_ROOT") == "1":
		t.Fatal("TULLE_TEST_ROOT=1, but this is not root")
	default:
		t.Skip("needs root, for a network namespace")
	}
	user := &syscall.Credential{Uid: nobody, Gid: nobody}
	own := []syscall.SysProcIDMap{{HostID: nobody, Size: 1}}
	for name, test := range map[string]struct {
		as    *syscall.SysProcAttr
		agent bool
	}{
		"root":             {&syscall.SysProcAttr{}, true},
		"the unit's user":  {&syscall.SysProcAttr{Credential: user, AmbientCaps: []uintptr{unix.CAP_NET_ADMIN}}, true},
		"an ordinary user": {&syscall.SysProcAttr{Credential: user}, false},
		"in a namespace": {&syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, Credential: &syscall.Credential{NoSetGroups: true},
			UidMappings: own, GidMappings: own}, false}, // where he has all capabilities
		"with another right": {&syscall.SysProcAttr{Credential: user, AmbientCaps: []uintptr{unix.CAP_NET_RAW}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and the namespace with it
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				t.Fatal(err)
			}
			pid := holder(t, test.as)
			unlock, stranger, err := LockHost()
			if err == nil {
				unlock()
			}
			switch want := fmt.Sprintf("another agent runs on this host already: process %d", pid); {
			case test.agent && (err == nil || err.Error() != want):
				t.Errorf("error %v, want %s", err, want)
			case !test.agent && (err != nil || stranger == nil || !strings.Contains(stranger.Error(), fmt.Sprintf("process %d of user %d", pid, nobody))):
				t.Errorf("error %v, stranger %v", err, stranger)
			}
		})
	}
}

// holder starts this program again, as somebody else, who takes the lock. It ends with the test.
func holder(t *testing.T, as *syscall.SysProcAttr) (pid int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestLockHost$")
	cmd.Env, cmd.SysProcAttr, cmd.Stderr = append(os.Environ(), "TULLE_TEST_HOLDER=1", "GORACE=atexit_sleep_ms=0"), as, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait() // it has done what it was for
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("the holder says %q, %v", line, err)
	}
	return cmd.Process.Pid
}

// hold takes the lock until standard input ends.
func hold() {
	if _, _, err := LockHost(); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("held")
	_, _ = io.Copy(io.Discard, os.Stdin)
}
