package probe

import (
	"fmt"
	"os"
	"testing"
	"time"
	"unsafe"

	"github.com/tulle-net/tulle/e2e/netnstest"
	"golang.org/x/sys/unix"
)

// host is a network namespace of a test's own.
type host struct {
	*netnstest.Namespace
}

// newHost makes a namespace, whose name on the machine is tulle-probe-, the process's number and name.
func newHost(t testing.TB, name string) *host {
	t.Helper()
	h := &host{netnstest.New(t, fmt.Sprintf("tulle-probe-%d-%s", os.Getpid(), name))}
	h.run("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0") // an address is there at once
	return h
}

func (h *host) run(format string, args ...any) string { h.Helper(); return h.Run(format, args...) }

func (h *host) in(f func() error) error { return h.In(f) }

// join connects two namespaces by a veth pair, both of whose ends are up.
func join(a *host, devA string, b *host, devB string) {
	a.Helper()
	netnstest.Run(a, "ip link add name %s netns %s type veth peer name %s netns %s", devA, a.Netns, devB, b.Netns)
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
