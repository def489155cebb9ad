package wireguard

import (
	"context"
	"time"

	"github.com/tulle-net/tulle/backend"
)

// afterwards is what is done with peers after a change, by and by. Greeting ten thousand of them at once would cost a second of processor
// time (about 0.1 ms each), and all would answer at once. A peer that lost its inner addresses to another, as when its host got another
// key, may have packets in a queue that it takes with it, were it deleted at once.
type afterwards struct {
	greet []backend.Key
	drop  map[backend.Key]time.Time // since when
	wake  chan struct{}             // capacity one: there is something
}

const (
	greetAtOnce = 100
	byAndBy     = 100 * time.Millisecond
)

func newAfterwards() afterwards {
	return afterwards{drop: map[backend.Key]time.Time{}, wake: make(chan struct{}, 1)}
}

// forget forgets all, for a device that is closed.
func (a *afterwards) forget() {
	a.greet = nil
	clear(a.drop)
}

func (a *afterwards) ring() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// greet greets peers: some at once, the rest by and by.
func (c *Carrier) greet(keys []backend.Key) {
	n := min(len(keys), greetAtOnce)
	c.greetNow(keys[:n])
	if n < len(keys) {
		c.later.greet = append(c.later.greet, keys[n:]...)
		c.later.ring()
	}
}

// greetNow greets peers. One that can't be greeted begins a handshake itself when it has something to send, or has sent for long in vain.
func (c *Carrier) greetNow(keys []backend.Key) {
	if len(keys) == 0 {
		return
	}
	if err := c.device.greet(keys); err != nil {
		c.log.Debug("peers are not greeted", "error", err)
	}
}

// dropLater deletes a peer by and by.
func (c *Carrier) dropLater(key backend.Key) {
	c.later.drop[key] = time.Now()
	c.later.ring()
}

// byAndBy does what is to be done later, until ctx ends.
func (c *Carrier) byAndBy(ctx context.Context) error {
	tick := time.NewTicker(byAndBy)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.later.wake:
		}
		for more := true; more; {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			more = c.doSome(time.Now())
		}
	}
}

// doSome does what is due, and reports whether there is more.
func (c *Carrier) doSome(now time.Time) (more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.device == nil {
		return false
	}
	n := min(len(c.later.greet), greetAtOnce)
	next := c.later.greet[:n]
	if c.later.greet = c.later.greet[n:]; len(c.later.greet) == 0 {
		c.later.greet = nil
	}
	c.greetNow(next)
	var due []backend.Key
	for key, since := range c.later.drop {
		if now.Sub(since) >= byAndBy {
			due = append(due, key)
			delete(c.later.drop, key)
		}
	}
	if err := c.device.deletePeers(due); err != nil { // the next look finds them
		c.log.Debug("peers are not deleted", "error", err)
	}
	return len(c.later.greet)+len(c.later.drop) > 0
}
