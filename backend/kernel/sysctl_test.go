package kernel

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// In a container that is not privileged /proc/sys is read-only: that is known before anything is to be set.
func TestReadOnlySysctls(t *testing.T) {
	s := newSandbox(t)
	const path = "/proc/sys/net/ipv4/ip_forward"
	if !writable(path) {
		s.Fatal("it is taken for read-only")
	}
	for _, err := range []error{unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""), unix.Mount("", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")} {
		if err != nil {
			s.Fatal(err)
		}
	}
	if writable(path) {
		s.Error("it is taken for writable")
	}
	err := setSysctl("net.ipv4.ip_forward", "1")
	if want := "read-only file system: set it on the host (sysctl -w net.ipv4.ip_forward=1"; err == nil || !strings.Contains(err.Error(), want) {
		s.Errorf("error %v, want %s", err, want)
	}
}
