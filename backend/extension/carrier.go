// Package extension runs an operator's own commands for a backend of type extension: before and after the start, for each peer that
// is added or removed, and at the end. It owns their processes, and a file that says whom they were told of, so that peers which
// left while no agent ran are taken back by the next one. What the commands do, only the operator knows: nothing of it is looked at.
package extension

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// Options are what a Carrier needs of its host.
type Options struct {
	File        string        // path of what is remembered of whom the commands were told of; should not survive a reboot
	Timeout     time.Duration // of a command; 0 for 30 s
	StopTimeout time.Duration // of ShutdownCommand when the agent stops; 0 for 10 s, which fits into the unit's TimeoutStopSec
	Log         *slog.Logger  // what commands print, at level debug
}

// Carrier is an agent.Carrier. Commands take their time, and a pass of the agent's loop can't wait for them: Prepare, Apply and
// Change only note what is wanted and say what became of it; Run runs the commands, one after another.
type Carrier struct {
	Options
	bell, wake chan struct{}
	recalled   sync.Once

	mu       sync.Mutex
	pre      preStart
	want     *backend.Extension      // nil: none
	peers    map[string]subnet.Lease // wanted, by key
	told     map[string]telling      // by key
	begun    *backend.Extension      // whose commands were run, and not shut down since
	started  *backend.Extension      // whose PostStartupCommand succeeded in this life
	settled  bool                    // all that was first asked of want was tried once
	troubles map[string]*trouble     // by Backend's key or a peer's

	forgetful bool // the file could not be written; only Run looks at it
}

// preStart is the pre-start command, and what became of it.
type preStart struct {
	command, printed string
	done             bool
	abandon          func() // it is running, and need not go on
}

// telling is that the commands were told of a peer, or may have been.
type telling struct {
	by    *backend.Extension
	lease subnet.Lease
	fresh bool // in this life, successfully
}

// trouble is that a command failed. It is due again once the loop, which was told, comes back: it does so ever more patiently.
type trouble struct {
	err       error
	told, due bool
}

// Backend's keys, for commands that aren't about a peer.
const (
	preStartup  = "PreStartupCommand"
	postStartup = "PostStartupCommand"
	shutdown    = "ShutdownCommand"
)

// New returns a Carrier. No command is running before Run.
func New(o Options) *Carrier {
	o.Timeout, o.StopTimeout = cmp.Or(o.Timeout, 30*time.Second), cmp.Or(o.StopTimeout, 10*time.Second)
	return &Carrier{Options: o, bell: make(chan struct{}, 1), wake: make(chan struct{}, 1), told: map[string]telling{}, troubles: map[string]*trouble{}}
}

// Doorbell receives when commands have ended.
func (c *Carrier) Doorbell() <-chan struct{} { return c.bell }

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// Prepare fills in what the pre-start command printed. Until it has ended, there is an error.
func (c *Carrier) Prepare(_ context.Context, needs backend.Needs, facts *backend.Facts) error {
	if needs.Command == "" {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pre.command != needs.Command {
		c.prestart(needs.Command)
		ring(c.wake)
	}
	if t := c.troubles[preStartup]; t != nil {
		c.again(t)
		return &backend.Failure{Count: map[string]int{"hook": 1}, Err: t.err}
	}
	if !c.pre.done {
		return fmt.Errorf("waiting for Backend.%s to end, at most %s", preStartup, c.Timeout)
	}
	facts.Printed = c.pre.printed
	return nil
}

// Open has no devices to open. It is the first to be called, so it finds out what an earlier life has left.
func (c *Carrier) Open(context.Context, backend.State) error {
	c.recalled.Do(c.recall)
	return nil
}

// Apply notes what is wanted, and says what failed of what was wanted before. It reports no Changes: a command that is run is no
// sign that something was amiss.
func (c *Carrier) Apply(_ context.Context, want backend.State) (none backend.Changes, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn(want.Extension)
	c.peers = nil
	if c.want != nil {
		c.peers = maps.Clone(want.Hooks) // want's own is updated by the loop, while commands run
	}
	for name, t := range c.troubles {
		switch {
		case name == preStartup: // Prepare's
		case c.over(name):
			delete(c.troubles, name)
		default:
			c.again(t)
		}
	}
	if c.idle() {
		return none, nil
	}
	ring(c.wake)
	return none, c.state()
}

// Change notes which peers come and go.
func (c *Carrier) Change(_ context.Context, changes backend.Changes) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.want == nil || changes.Hooks.Len() == 0 {
		return nil
	}
	maps.Copy(c.peers, changes.Hooks.Set)
	for key := range changes.Hooks.Del {
		delete(c.peers, key)
	}
	ring(c.wake)
	return nil
}

// turn turns to other commands, if want has others.
func (c *Carrier) turn(want backend.Extension) {
	if want == (backend.Extension{}) {
		c.settled = c.settled && c.want == nil
		c.want = nil
		return
	}
	if c.want == nil || *c.want != want {
		c.want, c.settled = &want, false
		if c.pre.abandon != nil { // a plan was made without it
			c.prestart("")
		}
		maps.DeleteFunc(c.troubles, func(name string, _ *trouble) bool { return name != preStartup })
	}
}

// prestart asks for another pre-start command than before, "" for none.
func (c *Carrier) prestart(command string) {
	if c.pre.abandon != nil {
		c.pre.abandon()
	}
	c.pre = preStart{command: command}
	delete(c.troubles, preStartup)
}

// again lets a command that failed be tried again, unless the loop learns of it only now.
func (c *Carrier) again(t *trouble) {
	if t.due, t.told = t.told, true; t.due {
		ring(c.wake)
	}
}

// over reports whether what failed is not asked for any more.
func (c *Carrier) over(name string) bool {
	switch name {
	case postStartup:
		return c.want == nil
	case shutdown:
		return c.want != nil
	}
	return c.done(name)
}

// idle reports whether there is nothing to do, nor to undo.
func (c *Carrier) idle() bool { return c.want == nil && c.begun == nil && len(c.told) == 0 }

// state is what is not as it should be.
func (c *Carrier) state() error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(c.troubles)) {
		if name != preStartup {
			errs = append(errs, c.troubles[name].err)
		}
	}
	n := len(errs)
	switch {
	case n == 0 && !c.settled:
		return fmt.Errorf("waiting for the extension's commands to end, each of them at most %s", c.Timeout)
	case n == 0:
		return nil
	case n > few:
		errs = append(errs[:few], fmt.Errorf("and %d more", n-few))
	}
	return &backend.Failure{Count: map[string]int{"hook": n}, Err: errors.Join(errs...)}
}

// few is how many failures an error tells of. There may be ten thousands.
const few = 3
