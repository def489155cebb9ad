package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "tulle")
	unlock, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "lock")
	text := fmt.Sprintf("another agent runs on this host already: process %d holds %s", os.Getpid(), path)
	if _, err := Lock(dir); err == nil || err.Error() != text {
		t.Errorf("error %v, want %s", err, text)
	}
	if holder, err := os.ReadFile(path); err != nil || string(holder) != fmt.Sprintln(os.Getpid()) {
		t.Errorf("the file says %q, %v", holder, err)
	}
	unlock()
	unlock, err = Lock(dir)
	if err != nil {
		t.Fatalf("after unlock: %v", err)
	}
	unlock()
}

func TestLockFollowsNoSymlink(t *testing.T) {
	dir, target := t.TempDir(), filepath.Join(t.TempDir(), "target")
	write(t, target, "keep me")
	if err := os.Symlink(target, filepath.Join(dir, "lock")); err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir); err == nil || !strings.HasPrefix(err.Error(), "run directory: ") {
		t.Errorf("error %v", err)
	}
	if kept, err := os.ReadFile(target); string(kept) != "keep me" || err != nil {
		t.Errorf("%q, %v", kept, err)
	}
}

func TestLockWithoutDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	if _, err := Lock(file); err == nil || !strings.HasPrefix(err.Error(), "run directory: ") {
		t.Errorf("error %v", err)
	}
}
