package server

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// arrive has a connection of a guest arrive; the other end of it says whether it is still there.
func arrive(g *gate, name string) *conn {
	inner, _ := net.Pipe()
	return g.admit(inner, name)
}

func (c *conn) isOut() bool {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	return c.out
}

func testGate(t *testing.T) *gate {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	g := newGate(l, discard())
	g.limit = maxConns // however few files this process may open
	return g
}

// However many connections strangers make, there is always room for one more, and it is they who make room.
func TestGate(t *testing.T) {
	g := testGate(t)
	prometheus := arrive(g, "prometheus")
	var crowd []*conn
	for range 10_000 {
		crowd = append(crowd, arrive(g, "one stranger"))
	}
	if n := len(g.conns); n != maxFrom+1 || prometheus.isOut() {
		t.Errorf("%d connections; Prometheus's is closed: %t", n, prometheus.isOut())
	}
	for i, c := range crowd {
		if left := i >= len(crowd)-maxFrom; c.isOut() == left {
			t.Fatalf("the %d. of 10000 is closed: %t", i+1, c.isOut())
		}
	}
	for i := range 10_000 {
		arrive(g, string(rune('a'+i%20)))
	}
	if n := len(g.conns); n != maxConns || prometheus.isOut() {
		t.Errorf("%d connections; Prometheus's is closed: %t", n, prometheus.isOut())
	}
	prometheus.Close()
	prometheus.Close() // once more is nothing
	if n := len(g.conns); n != maxConns-1 || g.guests["prometheus"] != nil {
		t.Errorf("%d connections after one was closed", n)
	}
}

// Who is being answered stays, as long as there are others.
func TestBusy(t *testing.T) {
	g := testGate(t)
	var busy []*conn
	for range maxFrom {
		c := arrive(g, "a")
		c.setBusy(true)
		busy = append(busy, c)
	}
	busy[7].setBusy(false)
	arrive(g, "a")
	for i, c := range busy {
		if c.isOut() != (i == 7) {
			t.Errorf("number %d is closed: %t", i, c.isOut())
		}
	}
	for range maxFrom { // each takes the place of the one before, which is not busy
		arrive(g, "a")
	}
	if busy[0].isOut() {
		t.Error("one who is answered had to go for who only came")
	}
}

// The answers that nobody takes are not more than so many bytes.
func TestOwed(t *testing.T) {
	g := testGate(t)
	var conns []*conn
	for range 20 {
		c := arrive(g, "a")
		c.owe(maxOwed / 10)
		conns = append(conns, c)
	}
	for i, c := range conns {
		if c.isOut() != (i < 10) {
			t.Errorf("number %d is closed: %t", i, c.isOut())
		}
	}
	conns[19].owe(2 * maxOwed) // too much alone, it is alone
	if conns[19].isOut() || !conns[18].isOut() || g.owed != 2*maxOwed {
		t.Errorf("%d bytes are owed", g.owed)
	}
	conns[19].owe(0)
	if conns[0].owe(5); g.owed != 0 {
		t.Errorf("%d bytes are owed to nobody", g.owed)
	}
}

// Answers are made one at a time for each guest, and few at a time for all.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{limit: maxConns, turns: make(chan struct{}, atOnce), log: discard(), guests: map[string]*guest{}}
		made := make(chan string, 100)
		for range 10 {
			for _, name := range []string{"a", "b", "c"} {
				c := arrive(g, name)
				go func() {
					end, err := c.myTurn(context.Background())
					if err != nil {
						t.Error(err)
						return
					}
					made <- name
					time.Sleep(time.Second) // of the bubble's clock
					end()
				}()
			}
		}
		total := 0
		for second := 0; total < 30; second++ {
			synctest.Wait()
			now := map[string]bool{}
			for ; len(made) > 0; total++ {
				if name := <-made; now[name] || len(now) == atOnce {
					t.Errorf("second %d: %s beside %v", second, name, now)
				} else {
					now[name] = true
				}
			}
			if second > 30 {
				t.Fatalf("%d of 30 had their turn", total)
			}
			time.Sleep(time.Second)
		}
		late, gone := arrive(g, "d"), context.Canceled
		ctx, cancel := context.WithCancel(context.Background())
		for range atOnce {
			g.turns <- struct{}{}
		}
		go cancel()
		if _, err := late.myTurn(ctx); !errors.Is(err, gone) || len(late.guest.turn) != 0 {
			t.Errorf("who is gone: %v, and %d turns are taken", err, len(late.guest.turn))
		}
	})
}

func TestNameGuest(t *testing.T) {
	for from, want := range map[string]string{
		"192.0.2.1:1": "192.0.2.1", "[::ffff:192.0.2.1]:1": "192.0.2.1", "127.3.2.1:1": "this host", "[::1]:1": "this host",
		"[2001:db8:1:2:3:4:5:6]:1": "2001:db8:1:2::/64", "[fe80::1%eth0]:1": "fe80::/64",
	} {
		address, err := net.ResolveTCPAddr("tcp", strings.Replace(from, "%eth0", "%lo", 1))
		if err != nil {
			t.Fatal(err)
		}
		if got := nameGuest(addressed{remote: address}); got != want {
			t.Errorf("%s is %s, want %s", from, got, want)
		}
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asking, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer asking.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := nameGuest(c); !strings.HasPrefix(got, "user ") {
		t.Errorf("it is %s", got)
	}
}

type addressed struct {
	net.Conn
	remote net.Addr
}

func (a addressed) RemoteAddr() net.Addr { return a.remote }

// Who is slow to take an answer keeps nobody waiting.
func TestSlowReader(t *testing.T) {
	s, err := Listen(Options{Address: "127.0.0.1:0"}, discard())
	if err != nil {
		t.Fatal(err)
	}
	h := everything()
	h.Known = Turn(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/much" {
			_, _ = w.Write(make([]byte, 8<<20))
		}
	})
	address := served(t, s, h)
	for range 2 * atOnce {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "GET /much HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if _, err := conn.Read(make([]byte, 1)); err != nil { // the answer is made, and most of it waits
			t.Fatal(err)
		}
	}
	client := http.Client{Timeout: writeWait / 3}
	answer, err := client.Get("http://" + address + "/")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	client.CloseIdleConnections()
}
