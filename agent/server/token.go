package server

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
)

const (
	minToken     = 16       // characters: so many at random nobody guesses
	maxTokenFile = 64 << 10 // bytes
)

// tokens are those in a file, as it is now. While that can't be read, or has none, nobody has one.
type tokens struct {
	path   string
	log    *slog.Logger
	failed atomic.Bool // and that is logged
}

// shown reports whether a request has one of them: as a bearer token (RFC 6750), or for browsers as the password of any user (RFC 7617).
func (t *tokens) shown(r *http.Request) bool {
	_, token, basic := r.BasicAuth()
	if scheme, credentials, _ := strings.Cut(r.Header.Get("Authorization"), " "); !basic && strings.EqualFold(scheme, "Bearer") {
		token = strings.TrimSpace(credentials)
	}
	if token == "" {
		return false
	}
	valid, err := readTokens(t.path)
	if failed := err != nil; t.failed.Swap(failed) != failed && failed {
		t.log.Warn("nobody can ask this agent by --listen", "error", fmt.Errorf("--listen-token-file: %w", err))
	}
	sum, found := sha256.Sum256([]byte(token)), 0
	for _, v := range valid {
		found |= subtle.ConstantTimeCompare(v[:], sum[:])
	}
	return found == 1
}

// readTokens returns the sums of a file's tokens: one in each line that has any, so that an old and a new one can be valid at once.
// Its errors have nothing of the content.
func readTokens(path string) (sums [][sha256.Size]byte, err error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > maxTokenFile:
		return nil, fmt.Errorf("%s is no file with tokens in its lines", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		token := strings.TrimSpace(line)
		switch {
		case token == "":
			continue
		case len(token) < minToken:
			return nil, fmt.Errorf("%s: the token in line %d is shorter than %d characters: make one by head -c 32 /dev/urandom | base64", path, n, minToken)
		}
		sums = append(sums, sha256.Sum256([]byte(token)))
	}
	if len(sums) == 0 {
		err = errors.New(path + " has no token: make one by head -c 32 /dev/urandom | base64")
	}
	return sums, err
}
