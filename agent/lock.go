package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// LockHost makes sure that no other agent works on this host, whatever its run directory: by an abstract socket, of whose
// names each network namespace has its own (unix(7)). What a user listens on who can't run an agent is none: it is told by taken.
func LockHost() (unlock func(), taken error, err error) {
	address := &net.UnixAddr{Name: "@tulle-agent", Net: "unix"}
	l, err := net.ListenUnix(address.Net, address)
	if err == nil {
		return func() { l.Close() }, nil, nil
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		return nil, nil, fmt.Errorf("lock this host: %w", err)
	}
	conn, err := net.DialUnix(address.Net, nil, address)
	if err != nil {
		return nil, nil, fmt.Errorf("lock this host: %w", err) // it has just ended: the next try may do
	}
	defer conn.Close()
	holder, err := listener(conn)
	if err != nil {
		return nil, nil, fmt.Errorf("lock this host: %w", err)
	}
	if !mayBeAgent(holder) {
		return func() {}, fmt.Errorf("process %d of user %d, which can't be an agent, has the name %s of the agent's lock", holder.Pid, holder.Uid, address.Name), nil
	}
	return nil, nil, fmt.Errorf("another agent runs on this host already: process %d", holder.Pid)
}

// listener says who listens at the other end.
func listener(conn *net.UnixConn) (holder *unix.Ucred, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		holder, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return holder, errors.Join(err, controlErr)
}

// Lock makes sure that no other agent works in dir, which it makes if it has to. The kernel gives the lock back when the
// process ends, however it ends.
func Lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			holder, _ := os.ReadFile(path)
			return nil, fmt.Errorf("another agent runs on this host already: process %s holds %s", strings.TrimSpace(string(holder)), path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := f.Truncate(0); err == nil {
		fmt.Fprintln(f, os.Getpid()) // for whoever comes second; the lock itself is what counts
	}
	return func() { f.Close() }, nil
}
