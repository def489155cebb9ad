package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// compareSysctls reads those that are wanted. One that can't be read is to be set, which says why.
func compareSysctls(want map[string]string) backend.Delta[string, string] {
	c := backend.Compare(want)
	for name := range want {
		if value, err := os.ReadFile(sysctlPath(name)); err == nil {
			c.See(name, strings.TrimSpace(string(value)))
		}
	}
	return c.Delta
}

// setSysctls sets those of a device before those of the host: once the host forwards, a device has forgotten what routers
// advertised, unless it was told to go on listening (addrconf_fixup_forwarding, net/ipv6/addrconf.c).
func setSysctls(w *work, set map[string]string) {
	hosts := func(name, _ string) bool { return !strings.Contains(name, "/") }
	devices := func(name, value string) bool { return !hosts(name, value) }
	each(w, step{"set", "sysctl"}, except(set, hosts), setSysctl)
	each(w, step{"set", "sysctl"}, except(set, devices), setSysctl)
}

// setSysctl fails with fs.ErrNotExist if the kernel has no such thing. (To create it would be forbidden instead.)
func setSysctl(name, value string) error {
	f, err := os.OpenFile(sysctlPath(name), os.O_WRONLY, 0)
	switch {
	case errors.Is(err, unix.EROFS), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: set it on the host (sysctl -w %s=%s, and for good in /etc/sysctl.d), or let the agent (ReadWritePaths=/proc/sys/net in its unit)", err, name, value)
	case err != nil:
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

// sysctlPath takes both of sysctl(8)'s separators, whichever comes first: a device's name may have dots in it.
func sysctlPath(name string) string {
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		name = strings.ReplaceAll(name, ".", "/")
	}
	return "/proc/sys/" + name
}

// writable reports whether a file isn't on a file system that is read-only, as /proc/sys is in a container that is not privileged. (Of a
// directory there, access(2) says that it is forbidden, and not why.)
func writable(path string) bool { return unix.Access(path, unix.W_OK) != unix.EROFS }
