package firewalld

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/e2e/lab"
)

// The users of this test: the one of the agent's unit, and another. The bus knows them as nobody and daemon, polkit by other names.
const (
	tulle   = 65534
	another = 1
)

// TestPolkit has an agent that isn't root tell firewalld what is the overlay's. Firewalld asks a real polkit, whose rule is the one
// that is shipped; without polkit it takes orders from root alone.
func TestPolkit(t *testing.T) {
	h := newHost(t)
	h.rung()
	h.as(tulle)
	h.refused(state("docker0", "tulle.1"), "ask firewalld for its zones: ")

	h.polkit()
	h.as(tulle)
	h.apply(state("docker0", "tulle.1", "eth0"))
	h.wantZone("trusted", "tulle.1", "10.5.0.0/16 fd00::/48")
	h.do("--permanent", "--zone=trusted", "--add-source=10.5.0.0/16") // an operator's own, which takes a look at firewalld's config
	h.apply(state("docker0", "tulle-wg"))
	h.wantZone("trusted", "tulle-wg", "10.5.0.0/16")
	h.as(another)
	h.refused(state("docker0", "tulle.2"), "put tulle.2 into firewalld's zone trusted: ")
}

// as begins a life of an agent that a user runs.
func (h *host) as(user uintptr) {
	h.Helper()
	h.startWith(func() (*dbus.Conn, error) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		const same = ^uintptr(0)
		become := func(user uintptr) error { // this thread alone, and root stays its real user
			_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, user, same)
			if errno != 0 {
				return errno
			}
			return nil
		}
		if err := become(user); err != nil {
			return nil, err
		}
		conn, err := dbus.Dial(h.daemon.Bus())
		if back := become(0); back != nil {
			panic(back) // nobody knows what else would run on this thread
		}
		if err != nil {
			return nil, err
		}
		if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(int(user)))}); err != nil {
			return nil, err
		}
		return conn, conn.Hello()
	})
	h.rung()
}

// refused checks that firewalld takes no order, and that the error says what to do.
func (h *host) refused(s backend.State, what string) {
	h.Helper()
	_, err := h.carrier.Apply(h.Context(), s)
	if err == nil || !strings.HasPrefix(err.Error(), what) || !strings.Contains(err.Error(), "tulle.rules in /etc/polkit-1/rules.d") {
		h.Errorf("error %v", err)
	}
}

// polkit starts one on the host's bus, which knows the user tulle, firewalld's actions and our rule.
func (h *host) polkit() {
	h.Helper()
	dir := h.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		h.Fatal(err)
	}
	users, err := os.ReadFile("/etc/passwd")
	if err != nil {
		h.Fatal(err)
	}
	files := map[string]string{"passwd": strings.ReplaceAll(string(users), "\nnobody:", "\ntulle:")}
	for to, from := range map[string]string{
		"actions/firewalld.policy": "../../bin/firewalld/usr/share/polkit-1/actions/org.fedoraproject.FirewallD1.server.policy.choice",
		"rules.d/tulle.rules":      "../../deploy/systemd/polkit/tulle.rules",
	} {
		text, err := os.ReadFile(from)
		if err != nil {
			h.Fatal(err)
		}
		files[to] = string(text)
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			h.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			h.Fatal(err)
		}
	}
	var log strings.Builder
	cmd := exec.Command("unshare", "--mount", "--propagation=private", "sh", "-c", `set -e
		mount --bind "$1/passwd" /etc/passwd
		mount --bind "$1/actions" /usr/share/polkit-1/actions
		mount --bind "$1/rules.d" /usr/share/polkit-1/rules.d
		exec /usr/lib/polkit-1/polkitd --no-debug`, "sh", dir)
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+h.daemon.Bus())
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // it may have ended by itself
		_ = cmd.Wait()
		if h.Failed() {
			h.Logf("polkitd says:\n%s", log.String())
		}
	})
	conn, err := dbus.Connect(h.daemon.Bus())
	if err != nil {
		h.Fatal(err)
	}
	defer conn.Close()
	err = lab.Wait(h.Context(), 20*time.Second, "polkit is there", func() error {
		var there bool
		err := conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, "org.freedesktop.PolicyKit1").Store(&there)
		if err == nil && !there {
			err = fmt.Errorf("nobody has its name")
		}
		return err
	})
	if err != nil {
		h.Fatal(err)
	}
}
