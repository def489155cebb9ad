package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serving returns a client of what answers with text, whatever it is asked.
func serving(t *testing.T, code int, text string) *Client {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", Socket(dir))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(code)
		_, _ = w.Write([]byte(text))
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return NewClient(dir)
}

func TestClient(t *testing.T) {
	t.Parallel()
	c := serving(t, 200, `{"api":1,"version":"1.2.3","peers":{"total":3},"underlay":{"addresses":["192.0.2.1"]},"a field of a later version":true}`)
	s, err := c.Status(t.Context())
	if err != nil || s.Version != "1.2.3" || s.Peers.Total != 3 || s.Underlay.Addresses[0] != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("%+v, %v", s, err)
	}
}

// Whatever is wrong is one line that says what to do, and that there is no agent if there is none.
func TestClientErrors(t *testing.T) {
	t.Parallel()
	ended := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: Socket(ended), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	hangs := t.TempDir()
	silent, err := net.Listen("unix", Socket(hangs)) // it accepts nobody
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	for _, c := range []struct {
		name   string
		client *Client
		absent bool
		want   string
	}{
		{"no socket", NewClient(t.TempDir()), true, "with another --run-dir?"},
		{"no directory", NewClient(filepath.Join(t.TempDir(), "run")), true, "Is it running"},
		{"it has ended", NewClient(ended), true, "systemctl start tulle"},
		{"it hangs", NewClient(hangs), true, "it hangs, or is stopped"},
		{"an earlier version", serving(t, 404, "404 page not found\n"), false, "of another version"},
		{"a later version", serving(t, 200, `{"api":2}`), false, "of another version"},
		{"something else", serving(t, 200, "<html>"), false, "is no tulle agent"},
		{"something that looks like it", serving(t, 200, `{"api":1,"revision":"nine"}`), false, "is no tulle agent"},
		{"it is in trouble", serving(t, 500, `{"api":1}`), false, "500 Internal Server Error"},
		{"it refuses", serving(t, 400, `{"error":"address: \"web\" is not an IP address"}`), false, `address: "web" is not an IP address`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := c.client.View(ctx, "10.5.1.1")
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") || errors.Is(err, ErrAbsent) != c.absent {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
