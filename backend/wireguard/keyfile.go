package wireguard

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/file"
)

// KeyFile is the name of the file with this host's private key: a line of base64, as wg genkey prints it.
const KeyFile = "wireguard.key"

// readKey reads a private key. loose is the file's mode if others than its owner could read it, which they can no longer then: a
// host is not cut off for what can be mended, but it has to be said. No error shows what the file holds.
func readKey(path string) (key backend.Secret, loose fs.FileMode, err error) {
	f, err := file.Open(path, os.O_RDONLY, 0)
	if err != nil {
		return key, 0, fmt.Errorf("private key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return key, 0, fmt.Errorf("private key: %w", err)
	}
	if info.Mode()&0o077 != 0 {
		if loose, err = info.Mode().Perm(), f.Chmod(0o600); err != nil {
			return key, 0, fmt.Errorf("private key: others can read %s (mode %#o), and that can't be mended: %w", path, loose, err)
		}
	}
	const longest = 128 // bytes; a key is 45
	text, err := io.ReadAll(io.LimitReader(f, longest))
	if err != nil {
		return key, 0, fmt.Errorf("private key: %w", err)
	}
	parsed, err := backend.ParseKey(string(bytes.TrimSpace(text)))
	if err == nil && parsed == (backend.Key{}) {
		err = errors.New("all zero: that is no key")
	}
	if err != nil {
		return key, 0, fmt.Errorf("private key: %s: %w; restore it, or remove it, and a new one is made", path, err)
	}
	return clamp(parsed), loose, nil
}

// clamp is the form that a Curve25519 private key is used in (RFC 7748, 5), and that a device tells it in.
func clamp(k [32]byte) backend.Secret {
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

func newKey() (backend.Secret, error) {
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return backend.Secret{}, fmt.Errorf("make a private key: %w", err)
	}
	return clamp([32]byte(private.Bytes())), nil
}

// writeKey makes key the content of a file that only its owner can read, in one piece: whoever reads it meanwhile reads the one before.
// A file that is there keeps its owner: root, who changes the key, need not be who the agent runs as.
func writeKey(path string, key backend.Secret) error {
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = file.Update(path, []byte(backend.Key(key).String()+"\n"), 0o600)
	}
	if err != nil {
		return fmt.Errorf("private key: write %s: %w", path, err)
	}
	return nil
}

// Rotate puts a new key in the place of the one in a file, and returns their public keys. An agent that uses the file sees it at once.
func Rotate(path string) (before, now backend.Key, err error) {
	old, _, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		return before, now, fmt.Errorf("there is no key at %s: an agent of a network of the type wireguard makes one when it starts. Does it have another --state-dir or --run-dir?", path)
	}
	if err != nil {
		return before, now, err
	}
	key, err := newKey()
	if err != nil {
		return before, now, err
	}
	return old.Public(), key.Public(), writeKey(path, key)
}
