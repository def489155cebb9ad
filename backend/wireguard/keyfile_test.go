package wireguard

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// A key that was written is read again, by its owner alone, and so is one of wg genkey's, whose form a device would tell.
func TestReadKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", KeyFile)
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := writeKey(path, key); err != nil {
		t.Fatal(err)
	}
	read, loose, err := readKey(path)
	if err != nil || read != key || loose != 0 {
		t.Errorf("read another key, mode %v, %v", loose, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	unclamped := [32]byte{0: 7, 31: 255}
	if err := os.WriteFile(path, []byte(base64.StdEncoding.EncodeToString(unclamped[:])), 0o600); err != nil {
		t.Fatal(err)
	}
	read, _, err = readKey(path)
	if err != nil || read[0] != 0 || read[31] != 127 || read.Public() != backend.Secret(unclamped).Public() {
		t.Errorf("%x…%x, %v", read[0], read[31], err)
	}
}

// Root makes a new key for an agent that isn't root: it must be able to read that, too.
func TestRotateKeepsOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to change a file's owner")
	}
	const user, group = 65534, 65533
	path := filepath.Join(t.TempDir(), KeyFile)
	key, err := newKey()
	if err == nil {
		err = writeKey(path, key)
	}
	if err == nil {
		err = os.Chown(path, user, group)
	}
	if err != nil {
		t.Fatal(err)
	}
	if before, now, err := Rotate(path); err != nil || before == now {
		t.Fatalf("%v, %v, %v", before, now, err)
	}
	var info unix.Stat_t
	if err := unix.Stat(path, &info); err != nil || info.Uid != user || info.Gid != group || info.Mode&0o777 != 0o600 {
		t.Errorf("user %d, group %d, mode %o, %v", info.Uid, info.Gid, info.Mode, err)
	}
}

// Whatever else is in the place of a key is refused: with its path, what to do, and not a word of its content.
func TestReadKeyRefuses(t *testing.T) {
	secret := strings.Repeat("B", 43) + "="
	for name, test := range map[string]struct {
		make func(path string) error
		want string
	}{
		"nothing":       {func(string) error { return nil }, "no such file"},
		"a directory":   {func(p string) error { return os.Mkdir(p, 0o700) }, "is not a file"},
		"a link":        {func(p string) error { return os.Symlink("/etc/hostname", p) }, "is a symbolic link"},
		"empty":         {func(p string) error { return os.WriteFile(p, nil, 0o600) }, "0 bytes long"},
		"too short":     {func(p string) error { return os.WriteFile(p, []byte(secret[:40]), 0o600) }, "30 bytes long"},
		"two keys":      {func(p string) error { return os.WriteFile(p, []byte(secret+"\n"+secret), 0o600) }, "not base64"},
		"no base64":     {func(p string) error { return os.WriteFile(p, []byte("?"+secret[1:]), 0o600) }, "not base64"},
		"all zero":      {func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("A", 43)+"="), 0o600) }, "all zero"},
		"another's key": {func(p string) error { return os.WriteFile(p, []byte("-----BEGIN PRIVATE KEY-----"), 0o600) }, "not base64"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), KeyFile)
			if err := test.make(path); err != nil {
				t.Fatal(err)
			}
			_, _, err := readKey(path)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Fatalf("error %v, want %s", err, test.want)
			}
			for _, told := range []string{secret[1:10], "BEGIN"} {
				if strings.Contains(err.Error(), told) {
					t.Errorf("it tells the content: %v", err)
				}
			}
		})
	}
}

// One that others can read is mended, and that is told.
func TestReadKeyMends(t *testing.T) {
	path := filepath.Join(t.TempDir(), KeyFile)
	if err := os.WriteFile(path, []byte(strings.Repeat("B", 42)+"A=\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, loose, err := readKey(path); err != nil || loose != 0o640 {
		t.Errorf("mode %v, %v", loose, err)
	}
	if _, loose, err := readKey(path); err != nil || loose != 0 {
		t.Errorf("mended: mode %v, %v", loose, err)
	}
}

// A rotation needs a key to rotate: else it would make one where no agent looks for it.
func TestRotateNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), KeyFile)
	if _, _, err := Rotate(path); err == nil || !strings.Contains(err.Error(), "there is no key at "+path) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("it made one")
	}
}
