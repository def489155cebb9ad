package server

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// everything answers who is known with "all", and anyone at /healthz with "alive".
func everything() Handlers {
	anyone := http.NewServeMux()
	anyone.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "alive") })
	return Handlers{Known: Turn(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "all") }), Anyone: anyone}
}

// Nothing is changed, and nothing is taken.
func TestMethods(t *testing.T) {
	for _, c := range []struct {
		method, body string
		code         int
	}{
		{"GET", "", 200}, {"HEAD", "", 200}, {"POST", "", 405}, {"PUT", "x", 405}, {"DELETE", "", 405}, {"OPTIONS", "", 405},
		{"TRACE", "", 405}, {"PATCH", "", 405}, {"PROPFIND", "", 405}, {"GET", "x", 413}, {"HEAD", "x", 413},
	} {
		answer := httptest.NewRecorder()
		(&Server{}).enter(everything()).ServeHTTP(answer, httptest.NewRequest(c.method, "/nothing", strings.NewReader(c.body)))
		if answer.Code != c.code || c.code == 405 && answer.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("%s with %q: %d %v", c.method, c.body, answer.Code, answer.Header())
		}
	}
}

// Who asks an address of this host's own must be of this host, and mean it.
func TestGuard(t *testing.T) {
	for _, c := range []struct {
		host       bool
		from, name string
		want       int
	}{
		{true, "127.0.0.1:4000", "127.0.0.1:9494", 200},
		{true, "127.0.0.1:4000", "localhost:9494", 200},
		{true, "127.0.0.1:4000", "localhost", 200},
		{true, "[::1]:4000", "[::1]:9494", 200},
		{true, "192.0.2.1:4000", "127.0.0.1:9494", 403},
		{true, "127.0.0.1:4000", "evil.example:9494", 403},
		{true, "127.0.0.1:4000", "127.0.0.1.evil.example", 403},
		{false, "192.0.2.1:4000", "host1:9494", 200},
	} {
		request := httptest.NewRequest(http.MethodGet, "/", nil)
		request.RemoteAddr, request.Host = c.from, c.name
		answer := httptest.NewRecorder()
		(&Server{host: c.host}).enter(everything()).ServeHTTP(answer, request)
		if answer.Code != c.want {
			t.Errorf("%+v: %d", c, answer.Code)
		}
	}
}

// served is a Server at work, until the test ends.
func served(t *testing.T, s *Server, h Handlers) (address string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, h) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s.gate.Addr().String()
}

// What a request may have is limited, on the wire, too.
func TestLimits(t *testing.T) {
	s, err := Listen(Options{Address: "127.0.0.1:0"}, discard())
	if err != nil {
		t.Fatal(err)
	}
	address := served(t, s, everything())
	for name, c := range map[string]struct{ request, answer string }{
		"plain":       {"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP/1.1 200 "},
		"long header": {"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + strings.Repeat("a", 32<<10) + "\r\n\r\n", "HTTP/1.1 431 "},
		"long path":   {"GET /" + strings.Repeat("a", 32<<10) + " HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP/1.1 431 "},
		"body":        {"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n", "HTTP/1.1 413 "},
		"chunks":      {"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 413 "},
		"HTTP/2":      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1 405 "},
	} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, c.request)
		answer := make([]byte, len(c.answer))
		if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != c.answer {
			t.Errorf("%s: %q, %v", name, answer, err)
		}
		conn.Close()
	}
}
