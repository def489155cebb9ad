package server

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	oldToken = "old-token-0123456789"
	newToken = "new-token-9876543210"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A token is what lets in, as it is in the file now; in neither the log nor an answer there is anything of one.
func TestToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	write(t, path, oldToken+"\n")
	var log bytes.Buffer
	s := &Server{tokens: &tokens{path: path, log: slog.New(slog.NewTextHandler(&log, nil))}}
	ask := func(path, authorization string) *httptest.ResponseRecorder {
		request := httptest.NewRequest(http.MethodGet, path, nil)
		if authorization != "" {
			request.Header.Set("Authorization", authorization)
		}
		answer := httptest.NewRecorder()
		s.enter(everything()).ServeHTTP(answer, request)
		return answer
	}
	basic := func(user, password string) string {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.SetBasicAuth(user, password)
		return r.Header.Get("Authorization")
	}
	want := func(authorization string, code int) {
		t.Helper()
		answer := ask("/metrics", authorization)
		if answer.Code != code {
			t.Errorf("%q: %d, want %d", authorization, answer.Code, code)
		}
		schemes := answer.Header().Values("WWW-Authenticate")
		if code == 401 && (len(schemes) != 2 || !strings.HasPrefix(schemes[0], "Bearer ") || !strings.HasPrefix(schemes[1], "Basic ")) {
			t.Errorf("it asks for %q", schemes)
		}
		if text := answer.Body.String(); strings.Contains(text, "all") != (code == 200) || strings.Contains(text, oldToken) {
			t.Errorf("%q: %s", authorization, text)
		}
	}
	for _, good := range []string{"Bearer " + oldToken, "bearer " + oldToken, basic("", oldToken), basic("somebody", oldToken)} {
		want(good, 200)
	}
	for _, bad := range []string{"", "Bearer", "Bearer ", oldToken, "Bearer " + oldToken + "x", "Bearer " + oldToken[1:], "Digest " + oldToken, basic(oldToken, ""), basic("a", "b"), "Bearer " + newToken} {
		want(bad, 401)
		if answer := ask("/healthz", bad); answer.Code != 200 || answer.Body.String() != "alive" {
			t.Errorf("/healthz: %d %s", answer.Code, answer.Body)
		}
	}
	write(t, path, "\n"+oldToken+"\r\n"+newToken) // both, while clients are told of the new one
	want("Bearer "+oldToken, 200)
	want("Bearer "+newToken, 200)
	write(t, path, newToken+"\n")
	want("Bearer "+oldToken, 401)
	want("Bearer "+newToken, 200)
	for _, bad := range []string{"", "short\n", "\n\n", newToken + "\nshort"} {
		write(t, path, bad)
		want("Bearer "+newToken, 401)
		want("Bearer short", 401)
	}
	write(t, path, newToken)
	want("Bearer "+newToken, 200)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want("Bearer "+newToken, 401)
	if text := log.String(); strings.Count(text, "level=WARN") != 2 || strings.Contains(text, oldToken) || strings.Contains(text, newToken) || strings.Contains(text, "short") {
		t.Errorf("logged:\n%s", text)
	}
}
