package wireguard

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/tulle-net/tulle/backend"
)

// afterwards is what is done with peers after a change, by and by. Greeting ten thousand of them at once would cost a second of processor
// time (about 0.1 ms each), and all would answer at once. A peer that lost its inner addresses to another, as when its host got another
// key, may have packets in a queue that it takes with it, were it deleted at once.
type afterwards struct {
	greet []backend.PeerKey
	drop  map[backend.PeerKey]time.Time // since when
	wake  chan struct{}                 // capacity one: there is something
}

const (
	greetAtOnce = 100
	byAndBy     = 100 * time.Millisecond
)

func newAfterwards() afterwards {
	return afterwards{drop: map[backend.PeerKey]time.Time{}, wake: make(chan struct{}, 1)}
}

// forget forgets all about a device that is closed.
func (a *afterwards) forget(device string) {
	a.greet = slices.DeleteFunc(a.greet, func(k backend.PeerKey) bool { return k.Dev == device })
	maps.DeleteFunc(a.drop, func(k backend.PeerKey, _ time.Time) bool { return k.Dev == device })
}

func (a *afterwards) ring() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// greet greets peers of a device: some at once, the rest by and by.
func (c *Carrier) greet(device string, keys []backend.Key) {
	n := min(len(keys), greetAtOnce)
	c.greetNow(device, keys[:n])
	for _, key := range keys[n:] {
		c.later.greet = append(c.later.greet, backend.PeerKey{Dev: device, Key: key})
	}
	if n < len(keys) {
		c.later.ring()
	}
}

// greetNow greets peers. One that can't be greeted begins a handshake itself when it has something to send, or has sent for long in vain.
func (c *Carrier) greetNow(device string, keys []backend.Key) {
	if len(keys) == 0 {
		return
	}
	if err := c.device(device).greet(keys); err != nil {
		c.log.Debug("peers are not greeted", "device", device, "error", err)
	}
}

// dropLater deletes a peer by and by.
func (c *Carrier) dropLater(key backend.PeerKey) {
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
	greet, drop := map[string][]backend.Key{}, map[string][]backend.Key{} // by device
	n := min(len(c.later.greet), greetAtOnce)
	for _, k := range c.later.greet[:n] {
		greet[k.Dev] = append(greet[k.Dev], k.Key)
	}
	if c.later.greet = c.later.greet[n:]; len(c.later.greet) == 0 {
		c.later.greet = nil
	}
	for k, since := range c.later.drop {
		if now.Sub(since) >= byAndBy {
			drop[k.Dev] = append(drop[k.Dev], k.Key)
			delete(c.later.drop, k)
		}
	}
	for name, keys := range greet {
		c.greetNow(name, keys)
	}
	for name, keys := range drop {
		if err := c.device(name).deletePeers(keys); err != nil { // the next look finds them
			c.log.Debug("peers are not deleted", "device", name, "error", err)
		}
	}
	return len(c.later.greet)+len(c.later.drop) > 0
}
