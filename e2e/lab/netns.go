package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// In runs f on a thread in the named network namespace. Sockets that f opens and processes that it starts are in that
// namespace; goroutines that it starts are not.
func In(namespace string, f func() error) error {
	ns, err := netns.GetFromName(namespace)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", namespace, err)
	}
	defer ns.Close()
	return onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", namespace, err)
		}
		return f()
	})
}

// onThread runs f on a thread that is thrown away afterwards, with whatever namespace it is in then.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

// shareNamespaces does what the first `ip netns add` on a machine does: it mounts the directory of named network namespaces
// over itself. Done later, that would cover the namespaces that are there, and none of them could be removed any more.
var shareNamespaces = sync.OnceValue(func() error {
	if err := os.MkdirAll(namespaceDir, 0o755); err != nil {
		return err
	}
	share := func() error { return unix.Mount("", namespaceDir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	err := share()
	if errors.Is(err, unix.EINVAL) { // it is no mount yet
		err = errors.Join(unix.Mount(namespaceDir, namespaceDir, "none", unix.MS_BIND|unix.MS_REC, ""), share())
	}
	if err != nil {
		err = fmt.Errorf("share %s: %w", namespaceDir, err)
	}
	return err
})

// namespaceDir is where `ip netns` keeps the names of network namespaces, and so does the lab.
const namespaceDir = "/run/netns"

// newNamespace makes a named network namespace with its loopback device up.
func newNamespace(name string) error {
	if err := shareNamespaces(); err != nil {
		return err
	}
	return onThread(func() error {
		ns, err := netns.NewNamed(name)
		if err != nil {
			return fmt.Errorf("make network namespace %s: %w", name, err)
		}
		defer ns.Close()
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
}

// namespaces lists the named network namespaces that begin with prefix.
func namespaces(prefix string) ([]string, error) {
	entries, err := os.ReadDir(namespaceDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// deleteNamespace deletes a named network namespace. What still runs in it keeps it alive until it ends.
func deleteNamespace(name string) error {
	path := filepath.Join(namespaceDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Output runs a command in a namespace and returns what it prints, errors included.
func Output(ctx context.Context, namespace string, command ...string) (string, error) {
	var out []byte
	err := In(namespace, func() error {
		var err error
		out, err = exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput()
		return err
	})
	text := strings.TrimSpace(string(out))
	if err != nil {
		err = fmt.Errorf("%s in %s: %w: %s", strings.Join(command, " "), namespace, err, text)
	}
	return text, err
}
