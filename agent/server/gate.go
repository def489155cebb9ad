package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What strangers can take at most. An operator's Prometheus, browser and scripts are far below.
const (
	maxConns = 256      // connections, or a quarter of the files that this process may open
	maxFrom  = 64       // of these from one guest
	maxOwed  = 64 << 20 // bytes of answers that wait to be taken
	atOnce   = 2        // answers are made: the loop waits for no more, as they look at what it works on
)

// gate is a listener that refuses nobody, but has few connections at a time: whoever comes when it is full takes the place of one
// of those who have most. So one who has a request gets through, however many others hold connections that they hardly use.
type gate struct {
	net.Listener
	limit int
	turns chan struct{} // as many as answers may be made at once
	log   *slog.Logger

	mu     sync.Mutex
	guests map[string]*guest
	conns  []*conn // the oldest first
	owed   int     // sum of theirs
	told   time.Time
}

// guest is whom connections come from: an address, an IPv6 network, this host, or a user of it.
type guest struct {
	name  string
	conns int
	turn  chan struct{} // one answer at a time is made for each
}

// conn is a connection. gate.mu guards what is of it.
type conn struct {
	net.Conn
	gate  *gate
	guest *guest
	busy  bool // with a request of somebody who may ask
	owes  int  // bytes of an answer that waits to be taken
	out   bool
}

func newGate(l net.Listener, log *slog.Logger) *gate {
	g := &gate{Listener: l, limit: maxConns, turns: make(chan struct{}, atOnce), log: log, guests: map[string]*guest{}}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil {
		g.limit = int(max(4, min(maxConns, files.Cur/4)))
	}
	return g
}

// Accept returns the next connection, and may close others for it.
func (g *gate) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return g.admit(c, nameGuest(c)), nil
}

func (g *gate) admit(inner net.Conn, name string) *conn {
	g.mu.Lock()
	from := g.guests[name]
	if from == nil {
		from = &guest{name: name, turn: make(chan struct{}, 1)}
		g.guests[name] = from
	}
	from.conns++
	c := &conn{Conn: inner, gate: g, guest: from}
	g.conns = append(g.conns, c)
	var out *conn
	switch {
	case from.conns > maxFrom:
		out = g.leastWanted(c, from)
	case len(g.conns) > g.limit:
		out = g.leastWanted(c, nil)
	}
	g.mu.Unlock()
	if out != nil {
		out.Close()
		g.tell(out.guest.name)
	}
	return c
}

// leastWanted is the connection whose place another takes: of the guest that has most, one that is not busy if there is any, and
// of these the oldest. With of it is one of that guest's.
func (g *gate) leastWanted(newest *conn, of *guest) (least *conn) {
	for _, c := range g.conns {
		if c == newest || of != nil && c.guest != of {
			continue
		}
		if least == nil || c.guest.conns > least.guest.conns || c.guest.conns == least.guest.conns && least.busy && !c.busy {
			least = c
		}
	}
	return least
}

// tell logs, at most once an hour, that there are more connections than there is room for.
func (g *gate) tell(name string) {
	g.mu.Lock()
	due := g.told.IsZero() || time.Since(g.told) > time.Hour
	if due {
		g.told = time.Now()
	}
	g.mu.Unlock()
	if due {
		g.log.Warn("more connections to the status server than it has room for: the oldest idle ones are closed", "most_from", name, "listen", g.Addr().String())
	}
}

// Close ends a connection, and makes room.
func (c *conn) Close() error {
	g := c.gate
	g.mu.Lock()
	if !c.out {
		c.out = true
		g.conns = slices.DeleteFunc(g.conns, func(o *conn) bool { return o == c })
		g.owed -= c.owes
		if c.guest.conns--; c.guest.conns == 0 {
			delete(g.guests, c.guest.name)
		}
	}
	g.mu.Unlock()
	return c.Conn.Close()
}

// setBusy notes whether somebody is answered who may ask.
func (c *conn) setBusy(busy bool) {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	c.busy = busy
}

// owe notes that n bytes wait to be taken. Where these are too many in all, those who have waited longest wait in vain.
func (c *conn) owe(n int) {
	g := c.gate
	g.mu.Lock()
	if c.out {
		g.mu.Unlock()
		return
	}
	g.owed += n - c.owes
	c.owes = n
	var outs []*conn
	left := g.owed
	for _, o := range g.conns {
		if left > maxOwed && o != c && o.owes > 0 {
			outs, left = append(outs, o), left-o.owes
		}
	}
	g.mu.Unlock()
	for _, o := range outs {
		o.Close()
	}
}

// myTurn waits until an answer may be made, first among the guest's own and then among all, and returns what ends the turn.
func (c *conn) myTurn(ctx context.Context) (end func(), err error) {
	for _, turn := range []chan struct{}{c.guest.turn, c.gate.turns} {
		select {
		case turn <- struct{}{}:
		case <-ctx.Done():
			if turn == c.gate.turns {
				<-c.guest.turn
			}
			return nil, ctx.Err()
		}
	}
	return func() { <-c.gate.turns; <-c.guest.turn }, nil
}

// nameGuest says whom a connection comes from.
func nameGuest(c net.Conn) string {
	if local, ok := c.(*net.UnixConn); ok {
		return userOf(local)
	}
	from, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return c.RemoteAddr().String()
	}
	switch a := from.Addr().Unmap().WithZone(""); {
	case a.IsLoopback():
		return "this host"
	case a.Is6(): // whoever has one address has as many as he likes
		p, _ := a.Prefix(64)
		return p.String()
	default:
		return a.String()
	}
}

func userOf(c *net.UnixConn) string {
	raw, err := c.SyscallConn()
	if err != nil {
		return "nobody"
	}
	var user *unix.Ucred
	controlErr := raw.Control(func(fd uintptr) { user, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if errors.Join(controlErr, err) != nil {
		return "nobody"
	}
	return "user " + strconv.Itoa(int(user.Uid))
}

type connKey struct{}

// remember lets a request's context know its connection: it is an http.Server's ConnContext.
func remember(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return context.WithValue(ctx, connKey{}, c)
}
