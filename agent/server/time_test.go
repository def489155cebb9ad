package server

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener in memory, for a clock that isn't the real one.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{} }

func (p pipes) dial() net.Conn {
	near, far := net.Pipe()
	p <- far
	return near
}

// Who asks slowly, or takes slowly, has so much time and no more; who waits for an event may wait.
func TestTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := make(pipes)
		h := Handlers{Known: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/wait":
				Wait(w, time.Minute)
				select {
				case <-time.After(time.Minute): // of the bubble's clock
				case <-r.Context().Done():
					t.Error("who waits is cut off")
				}
				_, _ = io.WriteString(w, "an event")
			case "/much":
				_, _ = w.Write(make([]byte, 1<<20))
			}
		})}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- Local(l, discard()).Serve(ctx, h) }()
		defer func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}()
		for name, c := range map[string]struct {
			request, answer string
			took            time.Duration
		}{
			"nothing":  {"", "", 5 * time.Second},
			"a header": {"GET / HTTP/1.1\r\nHost: a\r\nSlow: ", "", 5 * time.Second},
			"idle":     {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK", time.Minute},
			"wait":     {"GET /wait HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "an event", time.Minute},
			"a body":   {"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 413 ", 10 * time.Second},
		} {
			started, conn := time.Now(), l.dial()
			if _, err := io.WriteString(conn, c.request); err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(conn)
			if took := time.Since(started).Round(time.Second); took > c.took || name != "a body" && took != c.took {
				t.Errorf("%s: it took %s, want %s", name, took, c.took)
			}
			if err != nil || !strings.Contains(string(text), c.answer) || c.answer == "" && len(text) > 0 {
				t.Errorf("%s: %q, %v", name, text, err)
			}
			conn.Close()
		}
		started, conn := time.Now(), l.dial()
		if _, err := io.WriteString(conn, "GET /much HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(writeWait + time.Second) // of the bubble's clock
		if n, err := io.Copy(io.Discard, conn); err != nil || n > 1<<19 {
			t.Errorf("who took nothing for %s got %d bytes then, %v", time.Since(started), n, err)
		}
		conn.Close()
	})
}
