// Package wireguard puts in force what of a backend.State is WireGuard's: the device's private key, its port and its peers, in the
// kernel, or where the kernel has no WireGuard in a device of this process's own. It keeps this host's private key, in a file. Links,
// addresses and routes are package kernel's business, but for the TUN device that this process stands behind.
package wireguard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
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

	mu     sync.Mutex                     // Run ends what others open
	device device                         // nil if none is wanted
	later  afterwards                     // what is to be done with its peers
	told   map[backend.Key]netip.AddrPort // where it was told that they are, see heldPeer.roamed
	over   bool                           // Run has ended
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
	c := &Carrier{path: keyFile, log: log, links: links, watch: w, bell: make(chan struct{}, 1), later: newAfterwards(), told: map[backend.Key]netip.AddrPort{}}
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

// tunnel returns the name and link of the device that want has of WireGuard; "" if it has none.
func tunnel(want backend.State) (name string, l backend.Link) {
	for name, t := range want.Tunnels {
		if t.Key != (backend.Secret{}) {
			return name, want.Links[name]
		}
	}
	return "", l
}

// Open opens and closes devices, so that what is wanted is there, or can be made by package kernel.
func (c *Carrier) Open(_ context.Context, want backend.State) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name, l := tunnel(want)
	if c.over || c.device != nil && !c.serves(name, l) {
		c.closeDevice()
	}
	switch {
	case c.over || name == "" || c.device != nil:
		return nil
	case l.Kind == backend.KindWireGuard:
		c.device, err = asDevice(openKernel(c.links, name))
	default:
		c.device, err = asDevice(c.openUserspace(name, l.MTU))
	}
	if errors.Is(err, errForeign) { // as package kernel is about to tell
		return nil
	}
	if err != nil {
		return fmt.Errorf("open WireGuard device %s: %w", name, err)
	}
	return nil
}

// asDevice keeps a nil pointer from being taken for a device.
func asDevice[D device](d D, err error) (device, error) {
	if err != nil {
		return nil, err
	}
	return d, nil
}

// serves reports whether the device that is open is the one called name, as l wants it, and brings its MTU up to date.
func (c *Carrier) serves(name string, l backend.Link) bool {
	switch d := c.device.(type) {
	case *kernelDevice:
		return d.name == name && l.Kind == backend.KindWireGuard
	case *userspace:
		link, err := ours(c.links, name)
		if d.dead() || d.name != name || l.Kind != backend.KindTUN || err != nil || link == nil || link.Attrs().Index != d.index {
			return false
		}
		d.plug.setMTU(l.MTU)
	}
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

func (c *Carrier) closeDevice() {
	if c.device != nil {
		c.device.close()
	}
	c.device = nil
	c.later.forget()
	clear(c.told)
}

// Apply compares the device with want, and changes what differs. Peers of a device that had none are greeted: they may have sessions
// with one that is no more, and would go on sending into the void. Peers of a device with another key are, too, though nobody can answer
// who does not know it yet: as this was tried just now it is not tried again when they have heard of the key and greet us (see change).
// Two handshakes that cross each other both fail, until one side tries again, so that ours had better not even arrive.
func (c *Carrier) Apply(ctx context.Context, want backend.State) (changes backend.Changes, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name, _ := tunnel(want)
	if name == "" || c.device == nil { // Open says why, or package kernel
		return changes, nil
	}
	have, err := c.device.look()
	if errors.Is(err, errForeign) || errors.Is(err, unix.ENODEV) { // package kernel says why, or the device's end rings
		return changes, nil
	}
	if err != nil {
		return changes, &backend.Failure{Count: map[string]int{"tunnel": 1}, Err: err}
	}
	have.peers = slices.DeleteFunc(have.peers, func(p heldPeer) bool { // on their way out
		_, wanted := want.Peers[backend.PeerKey{Dev: name, Key: p.key}]
		_, leaving := c.later.drop[p.key]
		return leaving && !wanted
	})
	d := compare(name, have, want, c.told, time.Now())
	if u, able := c.device.(*userspace); able && have.Key != want.Tunnels[name].Key && have.Key != (backend.Secret{}) {
		u.bind.hushed.Store(true)
		defer u.bind.hushed.Store(false)
	}
	if d.Tunnels.Len() > 0 {
		if err = c.device.setTunnel(have.Tunnel, want.Tunnels[name]); err != nil {
			err = &backend.Failure{Count: map[string]int{"tunnel": 1}, Err: fmt.Errorf("set tunnel %s: %w", name, err)}
		}
	}
	if len(have.peers) == 0 || have.Key != want.Tunnels[name].Key {
		d.moved = d.moved[:0]
		for k := range want.Peers {
			d.moved = append(d.moved, k.Key)
		}
	}
	err = errors.Join(err, c.change(ctx, d))
	for k, p := range want.Peers { // also those that an earlier life has told it
		c.told[k.Key] = p.Endpoint
	}
	return d.Changes, err
}

// Handshakes returns when the last handshake with each peer was, the zero time for one that there was none with.
func (c *Carrier) Handshakes() (map[backend.Key]time.Time, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := map[backend.Key]time.Time{}
	if c.device == nil {
		return last, nil
	}
	have, err := c.device.look()
	for _, p := range have.peers {
		last[p.key] = p.handshake
	}
	return last, err
}

// Change makes changes of peers without a look at the device.
func (c *Carrier) Change(ctx context.Context, changes backend.Changes) error {
	if changes.Peers.Len() == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d := difference{Changes: changes}
	d.sort()
	if c.device == nil {
		return &backend.Failure{Count: map[string]int{"peer": changes.Peers.Len()}, Err: fmt.Errorf("set peers: %w", unix.ENODEV)}
	}
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
	if len(d.replaced) > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(onTheirWay):
		}
	}
	var errs failures
	for part := range slices.Chunk(d.set, chunk) {
		errs.add(ctx, len(part), "set peer "+part[0].key.String(), func() error { return c.device.setPeers(part) })
	}
	for _, p := range d.set {
		delete(c.later.drop, p.key)
		c.told[p.key] = p.Endpoint
	}
	for _, key := range d.replaced {
		c.dropLater(key)
	}
	c.greet(d.moved)
	for part := range slices.Chunk(d.del, chunk) {
		errs.add(ctx, len(part), "delete peer "+part[0].String(), func() error { return c.device.deletePeers(part) })
	}
	for k := range d.Peers.Del {
		delete(c.told, k.Key)
	}
	return errs.join()
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

// Run looks after the key file and greets peers until ctx ends. Then it ends the device that this process stands behind, whose link
// stays, with its routes.
func (c *Carrier) Run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return c.watch.run(ctx, c.ring) })
	tasks.Go(func() error { return c.byAndBy(ctx) })
	err := tasks.Wait()
	c.mu.Lock()
	c.over = true
	c.closeDevice()
	c.mu.Unlock()
	c.deaths.Wait()
	return err
}

// Close gives back what New took. The Carrier must not run any more.
func (c *Carrier) Close() {
	c.links.Close()
	c.watch.events.Close()
}
