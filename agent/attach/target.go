package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// Target is a network namespace that gets an interface or has one.
type Target struct {
	ID    string // of the container, or what else the operator calls the namespace: recorded with the interface
	Name  string // in messages
	inode uint64 // of the namespace: no other has the same while this one is there
	ns    netns.NsHandle
}

// Open opens the network namespace that path leads to: /proc/PID/ns/net, or a named one in /run/netns.
func Open(id, path string) (Target, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Target{}, fmt.Errorf("%s has no network namespace at %s: it has ended, or never was", id, path)
	case err != nil:
		return Target{}, fmt.Errorf("network namespace %s: %w", path, err)
	}
	t := Target{ID: id, Name: id, ns: netns.NsHandle(fd)}
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		t.Close()
		return Target{}, fmt.Errorf("%s is not a network namespace: give a name as ip netns lists it, or a path like /proc/PID/ns/net", path)
	}
	if t.inode, err = inode(fd); err == nil {
		err = t.foreign()
	}
	if err != nil {
		t.Close()
	}
	return t, err
}

// Gone is a container that does not run: it has no namespace, but may have left an interface in one that something else keeps.
func Gone(id string) Target { return Target{ID: id, Name: id, ns: netns.None()} }

// IsGone says that the container does not run.
func (t Target) IsGone() bool { return !t.ns.IsOpen() }

// Close lets go of the namespace.
func (t Target) Close() { t.ns.Close() }

func inode(fd int) (uint64, error) {
	var stat unix.Stat_t
	err := unix.Fstat(fd, &stat)
	return stat.Ino, err
}

// foreign refuses the namespace that the process itself is in.
func (t Target) foreign() error {
	own, err := netns.Get()
	if err != nil {
		return err
	}
	defer own.Close()
	if n, err := inode(int(own)); err != nil || n == t.inode {
		return errors.Join(err, fmt.Errorf("%s is in the host's own network (--net=host), which the overlay reaches anyway: there is nothing to attach", t.Name))
	}
	return nil
}

// device is the name of the host's end: it has the namespace's number in it, which is one of 32 bits (proc_alloc_inum in
// fs/proc/generic.c).
func (t Target) device() string { return fmt.Sprintf("%s%08x", backend.AttachPrefix, uint32(t.inode)) }

// alias is the mark of the host's end, and the only record of who has which address.
func (t Target) alias(a netip.Addr) string {
	const most = 128 // bytes of an ID: an alias has at most 255 (IFALIASZ, linux/if.h)
	return backend.AttachAlias + a.String() + " " + t.ID[:min(len(t.ID), most)]
}

// Attached is an interface that Attach made, as its host's end tells.
type Attached struct {
	Device  string // the host's end
	Address netip.Addr
	ID      string // of the Target
}

// list returns all interfaces that Attach made and recorded.
func list(host *netlink.Handle) ([]Attached, error) {
	links, err := dump(host.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var all []Attached
	for _, l := range links {
		if text, ours := strings.CutPrefix(l.Attrs().Alias, backend.AttachAlias); ours {
			address, id, _ := strings.Cut(text, " ")
			a, _ := netip.ParseAddr(address) // somebody wrote into it: it takes no address, and can be detached
			all = append(all, Attached{l.Attrs().Name, a, id})
		}
	}
	return all, nil
}

// of returns the target's interface among all.
func (t Target) of(all []Attached) (Attached, bool) {
	for _, a := range all {
		if t.IsGone() && a.ID == t.ID || !t.IsGone() && a.Device == t.device() {
			return a, true
		}
	}
	return Attached{}, false
}

// dump begins a dump again that a change interrupted.
func dump[T any](f func() ([]T, error)) (entries []T, err error) {
	for range 5 {
		if entries, err = f(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return entries, err
}

// lock makes attaches wait for one another. It is a lock on the directory itself, so that no file is left behind; it ends with
// the process.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}
