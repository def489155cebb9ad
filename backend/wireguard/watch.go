package wireguard

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// watch tells when a file in a directory is replaced, written or removed (inotify(7)).
type watch struct {
	path   string
	events *os.File
}

func newWatch(path string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	return &watch{path, os.NewFile(uintptr(fd), "inotify")}, nil
}

// look begins to watch the directory that is there now. It may be called again: a directory is watched once.
func (w *watch) look() error {
	raw, err := w.events.SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(fd uintptr) {
		_, err = unix.InotifyAddWatch(int(fd), filepath.Dir(w.path), unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE|unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_ONLYDIR)
	})
	return errors.Join(controlErr, err)
}

// run calls ring when something became of the file, until ctx ends.
func (w *watch) run(ctx context.Context, ring func()) error {
	defer context.AfterFunc(ctx, func() { _ = w.events.SetReadDeadline(time.Now()) })()
	for buffer := make([]byte, 16<<10); ; {
		n, err := w.events.Read(buffer)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("inotify: %w", err)
		}
		if w.concerns(buffer[:n]) {
			ring()
		}
	}
}

// concerns reports whether one of these events is of the file, or whether some were lost.
func (w *watch) concerns(events []byte) bool {
	for len(events) >= unix.SizeofInotifyEvent {
		e := (*unix.InotifyEvent)(unsafe.Pointer(&events[0]))
		end := min(unix.SizeofInotifyEvent+int(e.Len), len(events))
		name := strings.TrimRight(string(events[unix.SizeofInotifyEvent:end]), "\x00")
		if name == filepath.Base(w.path) || e.Mask&unix.IN_Q_OVERFLOW != 0 {
			return true
		}
		events = events[end:]
	}
	return false
}
