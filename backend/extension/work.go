package extension

import (
	"cmp"
	"context"
	"slices"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// Run runs commands until ctx ends, and then ShutdownCommand. It holds mu, but not while it waits for a command or a file.
func (c *Carrier) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			c.stop(ctx)
			return nil
		case <-c.wake:
		}
		c.mu.Lock()
		if c.work(ctx) {
			ring(c.bell)
		}
		c.mu.Unlock()
	}
}

// stop runs the last command. No pass comes after it, so that the log is told what fails.
func (c *Carrier) stop(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.begun == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.StopTimeout)
	defer cancel()
	if _, err := c.run(ctx, c.own(shutdown, c.begun.Shutdown, c.begun)); err != nil {
		c.Log.Warn("the extension was not shut down", "error", err)
	}
}

// work does all that there is to do, and reports whether that was anything. What fails is left until it is due again.
func (c *Carrier) work(ctx context.Context) (worked bool) {
	if c.pre.command != "" && !c.pre.done {
		worked = c.attempt(preStartup, func() error { return c.prepare(ctx) })
	}
	for again := true; again && ctx.Err() == nil; {
		if c.want != nil && !c.up() {
			worked = c.attempt(postStartup, func() error { return c.start(ctx) }) || worked
		}
		again = c.tell(ctx) // others may be wanted by now
		if c.want == nil && c.begun != nil && len(c.told) == 0 {
			worked = c.attempt(shutdown, func() error { return c.end(ctx) }) || worked
		}
		worked = worked || again
	}
	if !c.settled && ctx.Err() == nil && len(c.batch()) == 0 {
		c.settled, worked = true, true
	}
	return worked
}

// attempt does something, unless it failed and is not due again, and reports whether it did.
func (c *Carrier) attempt(name string, do func() error) bool {
	if c.blocked(name) {
		return false
	}
	c.note(name, do())
	return true
}

func (c *Carrier) blocked(name string) bool {
	t := c.troubles[name]
	return t != nil && !t.due
}

func (c *Carrier) note(name string, err error) {
	delete(c.troubles, name)
	if err != nil {
		c.troubles[name] = &trouble{err: err}
	}
}

// prepare runs the pre-start command.
func (c *Carrier) prepare(ctx context.Context) error {
	command := c.pre.command
	ctx, c.pre.abandon = context.WithCancel(ctx)
	defer c.pre.abandon()
	printed, err := c.run(ctx, call{key: preStartup, command: command})
	if c.pre.command != command { // another is wanted by now
		return nil
	}
	c.pre.abandon = nil
	if err == nil {
		err = usable(command, printed)
	}
	if err == nil {
		c.pre.printed, c.pre.done = printed, true
	}
	return err
}

// start runs the post-start command.
func (c *Carrier) start(ctx context.Context) error {
	by := c.want
	c.begun = by
	c.remember()
	_, err := c.run(ctx, c.own(postStartup, by.PostStartup, by))
	if err == nil {
		c.started = by
	}
	return err
}

// up reports whether what is wanted was started.
func (c *Carrier) up() bool { return same(c.started, c.want, starting) }

// end runs the shutdown command, as there is no extension any more. If there will be one again, it starts from the beginning.
func (c *Carrier) end(ctx context.Context) error {
	_, err := c.run(ctx, c.own(shutdown, c.begun.Shutdown, c.begun))
	if err == nil {
		c.begun, c.started, c.pre = nil, nil, preStart{}
		c.remember()
	}
	return err
}

// tell tells the commands of those peers that come, go and change, and reports whether there was one.
func (c *Carrier) tell(ctx context.Context) bool {
	by, keys := c.want, c.batch()
	if c.expect(keys) {
		c.remember()
	}
	for _, key := range keys {
		if ctx.Err() != nil || c.want != by {
			break
		}
		c.note(key, c.tellOf(ctx, key))
	}
	if len(keys) > 0 {
		c.remember()
	}
	return len(keys) > 0
}

// batch are the keys of peers that a command is to be told of now: first of those that are gone, last of those that it failed for.
// Before the post-start command has succeeded, there are none.
func (c *Carrier) batch() (keys []string) {
	if c.want != nil && !c.up() {
		return nil
	}
	for key := range c.told {
		if !c.done(key) && !c.blocked(key) {
			keys = append(keys, key)
		}
	}
	for key := range c.peers {
		if _, told := c.told[key]; !told && !c.blocked(key) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b string) int { return cmp.Or(c.rank(a)-c.rank(b), cmp.Compare(a, b)) })
	return keys
}

// rank is when a peer's turn is.
func (c *Carrier) rank(key string) int {
	if c.troubles[key] != nil {
		return 2
	}
	if _, wanted := c.peers[key]; wanted {
		return 1
	}
	return 0
}

// done reports whether the commands know of a peer what they should.
func (c *Carrier) done(key string) bool {
	t, told := c.told[key]
	lease, wanted := c.peers[key]
	if !wanted || !told {
		return wanted == told
	}
	return t.fresh && t.lease == lease && same(t.by, c.want, adding)
}

// expect notes of peers that the commands may have been told of them, before they are: who looks after it in the next life must not
// miss one. It reports whether that is news.
func (c *Carrier) expect(keys []string) (news bool) {
	for _, key := range keys {
		if _, told := c.told[key]; !told {
			c.told[key], news = telling{by: c.want, lease: c.peers[key]}, true
		}
	}
	return news
}

// tellOf tells the commands of a peer. One that has changed is removed as it was before it is added as it is: what is left of how
// it was leads elsewhere.
func (c *Carrier) tellOf(ctx context.Context, key string) error {
	was, told := c.told[key]
	lease, wanted := c.peers[key]
	now := telling{by: c.want, lease: lease}
	if told && (!wanted || was.lease != lease || !same(was.by, now.by, commanding)) {
		if _, err := c.run(ctx, c.about("SubnetRemoveCommand", was.by.SubnetRemove, was)); err != nil {
			return err
		}
		delete(c.told, key)
	}
	if !wanted {
		return nil
	}
	c.told[key] = now
	_, err := c.run(ctx, c.about("SubnetAddCommand", now.by.SubnetAdd, now))
	if err == nil {
		now.fresh = true
		c.told[key] = now
	}
	return err
}

// same reports whether two extensions are alike in a respect.
func same(a, b *backend.Extension, as func(*backend.Extension) backend.Extension) bool {
	return a != nil && b != nil && as(a) == as(b)
}

// commanding is what must be as it was for a peer that was added to be removed.
func commanding(e *backend.Extension) backend.Extension {
	return backend.Extension{SubnetAdd: e.SubnetAdd, SubnetRemove: e.SubnetRemove}
}

// starting is what the post-start command depends on: not what this host announces, which it makes itself.
func starting(e *backend.Extension) backend.Extension {
	return backend.Extension{PostStartup: e.PostStartup, Network: e.Network, Self: subnet.Lease{Subnet: e.Self.Subnet, PublicIP: e.Self.PublicIP}}
}

// adding is what the commands for peers depend on, beside the peer.
func adding(e *backend.Extension) backend.Extension {
	as := starting(e)
	as.PostStartup, as.SubnetAdd, as.SubnetRemove = "", e.SubnetAdd, e.SubnetRemove
	return as
}
