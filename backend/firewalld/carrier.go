// Package firewalld tells a host's firewalld what is the overlay's: it rejects what is forwarded between its zones, and nobody else's
// rule lifts that. What peers' packets come in by is put into the zone trusted: our own devices, and the network's range where packets
// come in on the underlay. That is done at run time, so a reload of firewalld, or a restart, forgets it; then it is put back.
// It owns those members of that zone, and nothing else of firewalld's.
package firewalld

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/tulle-net/tulle/backend"
)

// reconnect is how long to wait after the bus has gone away, which it does when it is restarted.
const reconnect = 5 * time.Second

// Carrier is an agent's. On a host without firewalld, or without D-Bus, it does nothing.
type Carrier struct {
	dial func() (*dbus.Conn, error)
	log  *slog.Logger
	bell chan struct{}

	mu     sync.Mutex
	daemon *daemon             // nil: none runs
	stale  bool                // somebody else may have changed what is bound
	bound  map[member]struct{} // as last put in force
}

// New returns a Carrier for the firewalld on the system bus.
func New(log *slog.Logger) *Carrier {
	return &Carrier{dial: func() (*dbus.Conn, error) { return dbus.ConnectSystemBus() }, log: log, bell: make(chan struct{}, 1)}
}

// Prepare does nothing: no fact is this package's to know.
func (c *Carrier) Prepare(context.Context, backend.Needs, *backend.Facts) error { return nil }

// Open does nothing: firewalld takes names of devices that don't exist.
func (c *Carrier) Open(context.Context, backend.State) error { return nil }

// Change does nothing: no peer has a part in it.
func (c *Carrier) Change(context.Context, backend.Changes) error { return nil }

// Doorbell receives when firewalld has started or was reloaded, or when somebody took something out of a zone.
func (c *Carrier) Doorbell() <-chan struct{} { return c.bell }

// Apply puts what is want's into the zone, and takes out what was and is no more. What an operator has put into another zone stays
// there. Unless there was a ring or want is another, firewalld isn't asked. None of it is in a State's tables, so there are no changes.
func (c *Carrier) Apply(ctx context.Context, want backend.State) (none backend.Changes, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	members := membersOf(want)
	if c.daemon == nil || !c.stale && maps.Equal(members, c.bound) {
		return none, nil
	}
	zones, err := c.daemon.zones(ctx)
	if isGone(err) { // the bus is about to say so, and whether it has come back
		return none, nil
	}
	if err != nil {
		return none, err
	}
	former := func(m member) bool {
		_, put := c.bound[m]
		return put || ours(m, want.Firewall.Network)
	}
	added, removed, err := c.daemon.set(ctx, zones, members, former)
	if len(added)+len(removed) > 0 {
		c.log.Info("told firewalld what is the overlay's", "zone", zone, "added", added, "removed", removed)
	}
	c.bound, c.stale = members, err != nil
	return none, err
}

// Run listens to the bus until ctx ends. A host that has none at first gets none while the agent runs; one that is lost is looked for.
func (c *Carrier) Run(ctx context.Context) error {
	for had := false; ctx.Err() == nil; {
		conn, err := c.dial()
		if err != nil && !had {
			c.log.Debug("no D-Bus, so no firewalld is looked for", "error", err)
			<-ctx.Done()
			return nil
		}
		if err == nil {
			had = true
			err = c.listen(ctx, conn)
			c.note(nil)
			_ = conn.Close() // whatever it says, it is closed
			if ctx.Err() == nil {
				c.log.Warn("D-Bus is lost: firewalld is not listened to until it is back", "error", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(reconnect):
		}
	}
	return nil
}

var errGone = errors.New("the bus closed the connection")

// listen notes what becomes of firewalld, until ctx ends or the bus goes away.
func (c *Carrier) listen(ctx context.Context, conn *dbus.Conn) error {
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	for _, match := range matches() {
		if err := conn.AddMatchSignalContext(ctx, match...); err != nil {
			return fmt.Errorf("listen to firewalld: %w", err)
		}
	}
	var runs bool
	if err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, name).Store(&runs); err != nil {
		return fmt.Errorf("ask for firewalld: %w", err)
	}
	if runs {
		c.note(&daemon{conn})
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case s, open := <-signals:
			switch {
			case !open:
				return errGone
			case s.Name == ownerChanged && len(s.Body) == 3 && s.Body[2] == "":
				c.note(nil)
			case s.Name == ownerChanged || slices.Contains(losses, s.Name):
				c.note(&daemon{conn})
			}
		}
	}
}

// note rings if a firewalld runs that has lost, or may have lost, what it was told; it is nil if none runs.
func (c *Carrier) note(d *daemon) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.daemon, c.stale = d, true
	if d == nil {
		return
	}
	select {
	case c.bell <- struct{}{}:
	default:
	}
}
