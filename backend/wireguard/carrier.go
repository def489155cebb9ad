// Package wireguard puts in force what of a backend.State is WireGuard's: the devices' private key, their ports and peers, in the
// kernel, or where the kernel has no WireGuard in devices of this process's own. It keeps this host's private key, in a file. Links,
// addresses and routes are package kernel's business, but for the TUN devices that this process stands behind.
package wireguard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// Carrier is an agent's. It works in the network namespace of the threads that call it, which must be one.
type Carrier struct {
	path  string // of the key file
	log   *slog.Logger
	links *netlink.Handle
	bell  chan struct{}
	watch *watch

	key      backend.Secret // as last read; zero before
	probed   bool           // whether the kernel has WireGuard
	inKernel bool
	deaths   sync.WaitGroup // those who wait for userspace devices to end

	mu      sync.Mutex                         // Run ends what others open
	devices map[string]device                  // those that are open, by name
	later   afterwards                         // what is to be done with their peers
	told    map[backend.PeerKey]netip.AddrPort // where they were told that those are, see heldPeer.roamed
	over    bool                               // Run has ended
}

// Option changes how a Carrier works.
type Option func(*Carrier)

// InUserspace makes the Carrier do without the kernel's WireGuard, as it does by itself where there is none.
func InUserspace(c *Carrier) { c.probed, c.inKernel = true, false }

// New returns a Carrier for the calling thread's network namespace, with the private key in a file, which is made when it is needed.
func New(keyFile string, log *slog.Logger, options ...Option) (*Carrier, error) {
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("rtnetlink: %w", err)
	}
	w, err := newWatch(keyFile)
	if err != nil {
		links.Close()
		return nil, err
	}
	c := &Carrier{path: keyFile, log: log, links: links, watch: w, bell: make(chan struct{}, 1),
		devices: map[string]device{}, later: newAfterwards(), told: map[backend.PeerKey]netip.AddrPort{}}
	for _, option := range options {
		option(c)
	}
	return c, nil
}

// Doorbell receives when the key file was changed, or when a device that this process stands behind is gone.
func (c *Carrier) Doorbell() <-chan struct{} { return c.bell }

func (c *Carrier) ring() {
	select {
	case c.bell <- struct{}{}:
	default:
	}
}

// Prepare finds out this host's private key, and whether the kernel has WireGuard: the latter once.
func (c *Carrier) Prepare(_ context.Context, needs backend.Needs, facts *backend.Facts) (err error) {
	if !needs.WireGuard {
		return nil
	}
	if !c.probed {
		if c.inKernel, err = hasWireGuard(c.links); err != nil {
			return err
		}
		c.probed = true
	}
	facts.Userspace = !c.inKernel
	facts.Key, err = c.currentKey()
	return err
}

// currentKey reads the key, or makes one where there is none. One that was there, and is gone, is put back: whoever wants another
// rotates it. Where none can be kept it is good for this life of the agent.
func (c *Carrier) currentKey() (backend.Secret, error) {
	watchErr := c.watch.look() // before the key is read, or a rotation in between would go unseen
	key, loose, err := readKey(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = c.keepKey()
		watchErr = c.watch.look()
	}
	if err != nil {
		return key, err
	}
	if loose != 0 {
		c.log.Warn("others than its owner could read the private key, which is mended: if anybody may have, rotate it (tulle wireguard rotate-key)", "path", c.path, "mode", loose)
	}
	if watchErr != nil {
		c.log.Debug("a rotated key is seen only half a minute later", "path", c.path, "error", watchErr)
	}
	c.key = key
	return key, nil
}

func (c *Carrier) keepKey() (key backend.Secret, err error) {
	if key = c.key; key == (backend.Secret{}) {
		if key, err = newKey(); err != nil {
			return key, err
		}
	}
	switch err := writeKey(c.path, key); {
	case err != nil && key != c.key:
		c.log.Warn("the private key can't be kept: after a restart of the agent this host has another", "error", err)
	case err == nil && key == c.key:
		c.log.Warn("the file of the private key was gone, and is written again: tulle wireguard rotate-key makes another key", "path", c.path)
	}
	return key, nil
}

// wanted are the links of the devices that want has of WireGuard, by name: one for each family of the underlay, or one for all.
func wanted(want backend.State) map[string]backend.Link {
	links := map[string]backend.Link{}
	for name, t := range want.Tunnels {
		if t.Key != (backend.Secret{}) {
			links[name] = want.Links[name]
		}
	}
	return links
}

// Open opens and closes devices, so that what is wanted is there, or can be made by package kernel.
func (c *Carrier) Open(_ context.Context, want backend.State) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	links := wanted(want)
	for name, d := range c.devices {
		if l, keep := links[name]; c.over || !keep || !c.serves(d, l) {
			c.closeDevice(name)
		}
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(links)) {
		if _, is := c.devices[name]; !is && !c.over {
			errs = append(errs, c.openDevice(name, links[name]))
		}
	}
	return errors.Join(errs...)
}

func (c *Carrier) openDevice(name string, l backend.Link) (err error) {
	var d device
	if l.Kind == backend.KindWireGuard {
		d, err = asDevice(openKernel(c.links, name))
	} else {
		d, err = asDevice(c.openUserspace(name, l.MTU))
	}
	if errors.Is(err, errForeign) { // as package kernel is about to tell
		return nil
	}
	if err != nil {
		return fmt.Errorf("open WireGuard device %s: %w", name, err)
	}
	c.devices[name] = d
	return nil
}

// asDevice keeps a nil pointer from being taken for a device.
func asDevice[D device](d D, err error) (device, error) {
	if err != nil {
		return nil, err
	}
	return d, nil
}

// serves reports whether a device that is open is as l wants it, and brings its MTU up to date.
func (c *Carrier) serves(d device, l backend.Link) bool {
	u, isOurs := d.(*userspace)
	if !isOurs {
		return l.Kind == backend.KindWireGuard
	}
	link, err := ours(c.links, u.name)
	if u.dead() || l.Kind != backend.KindTUN || err != nil || link == nil || link.Attrs().Index != u.index {
		return false
	}
	u.plug.setMTU(l.MTU)
	return true
}

func (c *Carrier) openUserspace(name string, mtu int) (*userspace, error) {
	d, err := openUserspace(c.links, name, mtu, c.log)
	if err != nil {
		return nil, err
	}
	c.deaths.Go(func() {
		<-d.wg.Wait()
		c.ring()
	})
	return d, nil
}

func (c *Carrier) closeDevice(name string) {
	c.devices[name].close()
	delete(c.devices, name)
	c.later.forget(name)
	maps.DeleteFunc(c.told, func(k backend.PeerKey, _ netip.AddrPort) bool { return k.Dev == name })
}

// Apply compares the devices with want, and changes what differs. Peers of a device that had none are greeted: they may have sessions
// with one that is no more, and would go on sending into the void. Peers of a device with another key are, too, though nobody can answer
// who does not know it yet: as this was tried just now it is not tried again when they have heard of the key and greet us (see change).
// Two handshakes that cross each other both fail, until one side tries again, so that ours had better not even arrive.
func (c *Carrier) Apply(ctx context.Context, want backend.State) (backend.Changes, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	have, err := c.look(want)
	d := compare(have, want, c.told, time.Now())
	errs := []error{err}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		held := have[name]
		rotated := held.Key != want.Tunnels[name].Key
		if u, able := c.devices[name].(*userspace); able && rotated && held.Key != (backend.Secret{}) {
			u.bind.hushed.Store(true)
			defer u.bind.hushed.Store(false)
		}
		if _, differs := d.Tunnels.Set[name]; differs {
			errs = append(errs, c.tune(name, held.Tunnel, want.Tunnels[name]))
		}
		if len(held.peers) == 0 || rotated {
			d.at(name).moved = keysOf(want.Peers, name)
		}
	}
	err = errors.Join(append(errs, c.change(ctx, d))...)
	for k, p := range want.Peers { // also those that an earlier life has told them
		if _, looked := have[k.Dev]; looked {
			c.told[k] = p.Endpoint
		}
	}
	return d.Changes, err
}

// look returns what the devices have that want has, too. One that is not there is left out: Open says why, or package kernel, or its end
// rings.
func (c *Carrier) look(want backend.State) (map[string]held, error) {
	have := map[string]held{}
	var errs []error
	for name := range wanted(want) {
		d, is := c.devices[name]
		if !is {
			continue
		}
		h, err := d.look()
		switch {
		case errors.Is(err, errForeign), errors.Is(err, unix.ENODEV):
		case err != nil:
			errs = append(errs, &backend.Failure{Count: map[string]int{"tunnel": 1}, Err: err})
		default:
			h.peers = slices.DeleteFunc(h.peers, func(p heldPeer) bool { // on their way out
				key := backend.PeerKey{Dev: name, Key: p.key}
				_, stays := want.Peers[key]
				_, leaving := c.later.drop[key]
				return leaving && !stays
			})
			have[name] = h
		}
	}
	return have, errors.Join(errs...)
}

func (c *Carrier) tune(name string, have, want backend.Tunnel) error {
	if err := c.devices[name].setTunnel(have, want); err != nil {
		return &backend.Failure{Count: map[string]int{"tunnel": 1}, Err: fmt.Errorf("set tunnel %s: %w", name, err)}
	}
	return nil
}

// keysOf are the keys of a device's peers.
func keysOf(peers map[backend.PeerKey]backend.Peer, device string) (keys []backend.Key) {
	for k := range peers {
		if k.Dev == device {
			keys = append(keys, k.Key)
		}
	}
	return keys
}

// Handshakes returns when the last handshake with each peer was, the zero time for one that there was none with.
func (c *Carrier) Handshakes() (map[backend.PeerKey]time.Time, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := map[backend.PeerKey]time.Time{}
	for name, d := range c.devices {
		have, err := d.look()
		if err != nil {
			return last, err
		}
		for _, p := range have.peers {
			last[backend.PeerKey{Dev: name, Key: p.key}] = p.handshake
		}
	}
	return last, nil
}

// Change makes changes of peers without a look at the devices.
func (c *Carrier) Change(ctx context.Context, changes backend.Changes) error {
	if changes.Peers.Len() == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d := difference{Changes: changes}
	d.sort()
	return c.change(ctx, d)
}

// onTheirWay is how long packets may take from one host to another, where it matters.
const onTheirWay = 50 * time.Millisecond

// change sets peers, and deletes those that are no more. Inner addresses move from one that got another key without a gap. A peer with
// another key is greeted, because its host's own handshakes have failed as long as we did not know the key, and it won't try again for 5
// seconds (REKEY_TIMEOUT); what we send meanwhile waits for that.
//
// Before that it waits until what the host sent with its old key is there: it would count as forged once the addresses have moved. So is by
// then the handshake that the host began in vain, which must not cross ours. The host takes what we send with the old key meanwhile.
func (c *Carrier) change(ctx context.Context, d difference) error {
	if d.replaces() {
		select {
		case <-ctx.Done():
		case <-time.After(onTheirWay):
		}
	}
	var errs failures
	names := slices.Sorted(maps.Keys(d.devices))
	for _, name := range names {
		c.set(ctx, name, *d.devices[name], &errs)
	}
	for _, name := range names {
		c.del(ctx, name, *d.devices[name], &errs)
	}
	for k := range d.Peers.Del {
		delete(c.told, k)
	}
	return errs.join()
}

// set sets peers of one device.
func (c *Carrier) set(ctx context.Context, name string, t todo, errs *failures) {
	for part := range slices.Chunk(t.set, chunk) {
		errs.add(ctx, len(part), "set peer "+part[0].key.String(), func() error { return c.device(name).setPeers(part) })
	}
	for _, p := range t.set {
		key := backend.PeerKey{Dev: name, Key: p.key}
		delete(c.later.drop, key)
		c.told[key] = p.Endpoint
	}
	c.greet(name, t.moved)
}

// del deletes peers of one device, at once or by and by.
func (c *Carrier) del(ctx context.Context, name string, t todo, errs *failures) {
	for _, key := range t.replaced {
		c.dropLater(backend.PeerKey{Dev: name, Key: key})
	}
	for part := range slices.Chunk(t.del, chunk) {
		errs.add(ctx, len(part), "delete peer "+part[0].String(), func() error { return c.device(name).deletePeers(part) })
	}
}

// device returns the device of this name; one that fails if there is none.
func (c *Carrier) device(name string) device {
	if d, is := c.devices[name]; is {
		return d
	}
	return missing(name)
}

// failures are what became of peers.
type failures struct {
	peers int
	first error
}

// add does what concerns so many peers, unless there is no more time.
func (f *failures) add(ctx context.Context, peers int, what string, do func() error) {
	err := ctx.Err()
	if err == nil {
		err = do()
	}
	if err == nil {
		return
	}
	if f.peers += peers; f.first == nil {
		f.first = fmt.Errorf("%s: %w", what, err)
	}
}

func (f *failures) join() error {
	if f.first == nil {
		return nil
	}
	return &backend.Failure{Count: map[string]int{"peer": f.peers}, Err: f.first}
}

// Run looks after the key file and greets peers until ctx ends. Then it ends the devices that this process stands behind, whose links
// stay, with their routes.
func (c *Carrier) Run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return c.watch.run(ctx, c.ring) })
	tasks.Go(func() error { return c.byAndBy(ctx) })
	err := tasks.Wait()
	c.mu.Lock()
	c.over = true
	for name := range c.devices {
		c.closeDevice(name)
	}
	c.mu.Unlock()
	c.deaths.Wait()
	return err
}

// Close gives back what New took. The Carrier must not run any more.
func (c *Carrier) Close() {
	c.links.Close()
	c.watch.events.Close()
}
