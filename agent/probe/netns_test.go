package probe

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// host is a network namespace of a test's own.
type host struct {
	testing.TB
	name string
	ns   netns.NsHandle
}

// newHost makes a namespace, whose name on the machine is tulle-probe-, the process's number and name.
func newHost(t testing.TB, name string) *host {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("TULLE_TEST_ROOT") == "1":
		t.Fatal("TULLE_TEST_ROOT=1, but this is not root")
	default:
		t.Skip("needs root, for a network namespace")
	}
	h := &host{TB: t, name: fmt.Sprintf("tulle-probe-%d-%s", os.Getpid(), name)}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", h.name).Run() })
	shell(t, "ip netns add "+h.name)
	ns, err := netns.GetFromName(h.name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	h.ns = ns
	h.run("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0") // an address is there at once
	h.run("ip link set lo up")
	return h
}

// run runs a command in the namespace; its words are split at spaces.
func (h *host) run(format string, args ...any) string {
	h.Helper()
	return shell(h.TB, "ip netns exec "+h.name+" "+fmt.Sprintf(format, args...))
}

func shell(t testing.TB, command string) string {
	t.Helper()
	words := strings.Fields(command)
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// in runs f on a thread in the namespace, which ends with it.
func (h *host) in(f func() error) error {
	var tasks errgroup.Group
	tasks.Go(func() error {
		runtime.LockOSThread()
		if err := netns.Set(h.ns); err != nil {
			return err
		}
		return f()
	})
	return tasks.Wait()
}

// join connects two namespaces by a veth pair, both of whose ends are up.
func join(a *host, devA string, b *host, devB string) {
	a.Helper()
	shell(a.TB, fmt.Sprintf("ip link add name %s netns %s type veth peer name %s netns %s", devA, a.name, devB, b.name))
	for h, dev := range map[*host]string{a: devA, b: devB} {
		h.run("ip link set %s up", dev)
	}
}

// checksumByDevice sets whether a device promises to fill in checksums (ETHTOOL_STXCSUM, linux/ethtool.h).
func (h *host) checksumByDevice(dev string, on uint32) {
	h.Helper()
	err := h.in(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		value := struct{ command, data uint32 }{0x17, on}
		var request struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}
		copy(request.name[:], dev)
		request.data = unsafe.Pointer(&value)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		h.Fatalf("ethtool %s: %v", dev, err)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
