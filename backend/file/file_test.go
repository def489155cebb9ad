package file

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// planted are what somebody may put in the place of a file, and what is said of each. The victim is a file of somebody else's.
var planted = map[string]struct {
	plant func(path, victim string) error
	want  string // of Read's error
}{
	"a symbolic link":            {func(path, victim string) error { return os.Symlink(victim, path) }, "is a symbolic link"},
	"a link to nothing":          {func(path, victim string) error { return os.Symlink(victim+".not", path) }, "is a symbolic link"},
	"a link to endless zeros":    {func(path, _ string) error { return os.Symlink("/dev/zero", path) }, "is a symbolic link"},
	"another name of the victim": {func(path, victim string) error { return os.Link(victim, path) }, "has another name"},
	"a pipe":                     {func(path, _ string) error { return unix.Mkfifo(path, 0o666) }, "is not a file"},
	"a directory":                {func(path, _ string) error { return os.Mkdir(path, 0o777) }, "is not a file"},
	"a directory with something in it": {func(path, _ string) error {
		return errors.Join(os.Mkdir(path, 0o777), os.WriteFile(filepath.Join(path, "something"), nil, 0o600))
	}, "is not a file"},
	"too much": {func(path, _ string) error { return os.WriteFile(path, []byte("12345"), 0o666) }, "more than 4 bytes"},
}

func TestPlanted(t *testing.T) {
	for name, test := range planted {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path, victim := filepath.Join(dir, "file"), filepath.Join(dir, "victim")
			if err := os.WriteFile(victim, []byte("his"), 0o640); err != nil {
				t.Fatal(err)
			}
			if err := test.plant(path, victim); err != nil {
				t.Fatal(err)
			}
			if text, err := Read(path, 4); err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) || text != nil {
				t.Errorf("read %q, %v; want %s", text, err, test.want)
			}
			err := Replace(path, []byte("ours"), 0o600)
			text, readErr := Read(path, 4)
			info, _ := os.Lstat(path)
			if strings.Contains(name, "directory") {
				if err == nil || strings.ContainsAny(err.Error(), "/\n") {
					t.Errorf("a directory was replaced, or it is said badly: %v", err)
				}
			} else if err != nil || readErr != nil || string(text) != "ours" || info.Mode() != 0o600 {
				t.Errorf("it has %q, mode %v, %v, %v", text, info.Mode(), err, readErr)
			}
			text, err = os.ReadFile(victim)
			info, _ = os.Stat(victim)
			if err != nil || string(text) != "his" || info.Mode() != 0o640 {
				t.Errorf("the victim has %q, mode %v, %v", text, info.Mode(), err)
			}
			if names, _ := os.ReadDir(dir); len(names) != 2 {
				t.Errorf("what is left behind: %v", names)
			}
		})
	}
}

func TestReplace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if _, err := Read(path, 4); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	for _, text := range []string{"one", "two"} {
		if err := Replace(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if read, err := Read(path, 4); err != nil || string(read) != text {
			t.Errorf("read %q, %v", read, err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}
