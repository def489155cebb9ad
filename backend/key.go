package backend

import (
	"crypto/ecdh"
	"encoding/base64"
	"fmt"
)

// Key is a WireGuard public key (Curve25519).
type Key [32]byte

func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// ParseKey reads a key as WireGuard's tools write it: 32 bytes in base64. Its error does not show the text, which may be a secret.
func ParseKey(text string) (k Key, err error) {
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return k, fmt.Errorf("not base64: a key is 32 bytes in base64, 44 characters, as wg genkey and wg genpsk print it")
	}
	if len(b) != len(k) {
		return k, fmt.Errorf("%d bytes long: a key is 32 bytes in base64, 44 characters, as wg genkey and wg genpsk print it", len(b))
	}
	return Key(b), nil
}

// Secret is a private or a preshared key. Whatever prints it prints that it is one, and no more.
type Secret [32]byte

const hidden = "(hidden)"

func (s Secret) String() string               { return hidden }
func (s Secret) GoString() string             { return hidden }
func (s Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// Public returns the public key of a private one.
func (s Secret) Public() Key {
	private, err := ecdh.X25519().NewPrivateKey(s[:])
	if err != nil {
		panic(err) // any 32 bytes are a private key (RFC 7748)
	}
	return Key(private.PublicKey().Bytes())
}
