// Package kernel puts a backend.State into the kernel of the network namespace that it was opened in, over rtnetlink. It
// knows its own objects by their marks, compares with what is really there and never with what it remembers, and touches
// nothing else, but for the ports of a bridge that it has to make again. It also observes the underlay and rings a doorbell
// when something of interest changed. The packet filter is package netfilter's.
package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// protocol marks routes, nexthop objects and addresses as ours (rtm_protocol, nhm_protocol, IFA_PROTO). It is free in
// linux/rtnetlink.h and in iproute2's rt_protos.
const protocol = 84

// Kernel is not for concurrent use, its doorbell aside.
type Kernel struct {
	conn    conn
	links   *netlink.Handle
	bell    *bell
	objects bool // routes go through nexthop objects
	sysctls bool // can be set: in a container that is not privileged they can't

	// As of the last look, and what was changed since:
	devices map[string]int           // ifindex by name
	routes  map[netip.Prefix]uint32  // our routes, and the ID of each one's nexthop object, 0 if it has none
	strays  map[netip.Prefix][]route // those of our protocol that we would not have made so
	orphans []uint32                 // our nexthop objects that no route goes through

	forgotten int // deleted from routes since the map was made

	ports map[string]map[int]string // names of each wanted bridge's ports by ifindex, see rememberPorts
}

// Option changes how a Kernel works.
type Option func(*Kernel)

// WithoutNexthops makes the Kernel write plain routes, as it does by itself before Linux 5.3.
func WithoutNexthops(k *Kernel) { k.objects = false }

// Open returns a Kernel for the calling thread's network namespace.
func Open(options ...Option) (*Kernel, error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		c.close()
		return nil, fmt.Errorf("rtnetlink: %w", err)
	}
	bell, err := newBell()
	if err == nil {
		bell.self, err = c.socket.Socket.GetPid()
	}
	if err != nil {
		c.close()
		links.Close()
		return nil, err
	}
	k := &Kernel{conn: c, links: links, bell: bell, objects: c.hasNexthops(), sysctls: writable("/proc/sys/net/ipv4/ip_forward"),
		devices: map[string]int{}, routes: map[netip.Prefix]uint32{}, ports: map[string]map[int]string{}}
	for _, option := range options {
		option(k)
	}
	return k, errors.Join(links.SetSocketTimeout(timeout))
}

// Close gives the sockets back. The kernel's state stays as it is.
func (k *Kernel) Close() {
	k.conn.close()
	k.links.Close()
	k.bell.close()
}

// Apply compares all that is ours in the kernel with want, and changes what differs. It goes on past an entry that fails;
// the error joins all failures. The changes are those that it made or tried to make: none if the kernel was as wanted.
func (k *Kernel) Apply(ctx context.Context, want backend.State) (backend.Changes, error) {
	have, err := k.observeLinks()
	if err != nil {
		return backend.Changes{}, fmt.Errorf("list links: %w", err)
	}
	k.rememberPorts(want.Links, have)
	adopted := k.adopt(want, have)
	all := want
	want, foreign := have.withoutForeign(want)
	links := backend.Diff(backend.State{Links: have.own}, backend.State{Links: want.Links}).Links
	renamed := k.renameLinks(links, have)
	maps.DeleteFunc(links.Del, func(name string, l backend.Link) bool { return l.Kind == backend.KindBridge && name != unborn }) // containers may hang on it
	changed := backend.Changes{Links: links}
	// Deleted first: one of another name may hold the VNI that a new one needs.
	errs := []error{adopted, foreign, renamed, k.deleteLinks(links.Del, have), k.setLinks(links.Set, have)}
	if err := k.indexDevices(); err != nil {
		return changed, errors.Join(append(errs, err)...)
	}
	k.bell.watch(k.devices, all)

	// A link that was made again has lost what hung on it, so the rest is looked at only now.
	changed, err = k.compare(lacking(want, k.unmade(want.Links)))
	if err != nil {
		return backend.Changes{Links: links}, errors.Join(append(errs, err)...)
	}
	changed.Links = links
	errs = append(errs, k.sweepNexthops(), k.Change(ctx, changed))
	return changed, errors.Join(errs...)
}

// Holds reports whether want's links, addresses and sysctls are as wanted. It changes nothing, and what peers need it leaves to
// Apply: its cost does not depend on how many there are. What can't be seen is not held, and Apply says why.
func (k *Kernel) Holds(want backend.State) bool {
	have, err := k.observeLinks()
	if err != nil {
		return false
	}
	k.rememberPorts(want.Links, have)
	k.index(slices.Collect(maps.Values(have.all)))
	want, foreign := have.withoutForeign(want)
	links := backend.Diff(backend.State{Links: have.own}, backend.State{Links: want.Links}).Links
	addrs, err := k.compareAddrs(want.Addrs)
	return err == nil && foreign == nil && links.Len()+addrs.Len()+compareSysctls(want.Sysctls).Len() == 0
}

// compare compares all that is ours, except the links, with want.
func (k *Kernel) compare(want backend.State) (c backend.Changes, err error) {
	c.Sysctls = compareSysctls(want.Sysctls)
	if c.Addrs, err = k.compareAddrs(want.Addrs); err != nil {
		return c, fmt.Errorf("list addresses: %w", err)
	}
	var tunnels []string
	for name, l := range want.Links {
		if _, exists := k.devices[name]; exists && l.Kind == backend.KindVXLAN {
			tunnels = append(tunnels, name)
		}
	}
	fdb, err := k.compareFDB(tunnels, want)
	if err != nil {
		return c, err
	}
	c.FDB, c.Floods = fdb.entries.Delta, fdb.floods.Delta
	if c.Neighbours, err = k.compareNeighbours(tunnels, want.Neighbours); err != nil {
		return c, err
	}
	if c.Routes, err = k.compareRoutes(want.Routes); err != nil {
		return c, fmt.Errorf("list routes: %w", err)
	}
	return c, nil
}

// compareTable compares a table with want, by a listing that is repeated as far as need be: usually nothing is missing, and a
// glance tells. (An entry may be listed twice while another is missing, but only while somebody changes the table, which rings.)
func compareTable[K, V comparable](want map[K]V, list func(*backend.Comparison[K, V]) error) (backend.Delta[K, V], error) {
	var c *backend.Comparison[K, V]
	err := again(func() error {
		c = backend.Glance(want)
		return list(c)
	})
	if err == nil && !c.Whole() {
		err = again(func() error {
			c = backend.Compare(want)
			return list(c)
		})
	}
	return c.Delta, err
}

// Change makes changes without a look at what is there, links aside. What a route needs is set before it, or the kernel would ask
// the wire for a gateway that it has no neighbour for; and deleted only when no route leads there any more, so that one that moves
// to another gateway loses no packet. Addresses are set before they are deleted: a device that loses its last one loses its
// neighbours and routes with it.
func (k *Kernel) Change(ctx context.Context, c backend.Changes) error {
	w := &work{ctx: ctx, conn: k.conn}
	setSysctls(w, c.Sysctls.Set)
	k.deleteRoutes(w, c.Routes.Del)
	each(w, step{"set", "address"}, c.Addrs.Set, k.setAddr)
	each(w, step{"delete", "address"}, c.Addrs.Del, k.deleteAddr)
	bulk(w, step{"set", "fdb"}, c.FDB.Set, k.changeFDB(unix.RTM_NEWNEIGH))
	bulk(w, step{"set", "flood"}, c.Floods.Set, k.changeFloods(unix.RTM_NEWNEIGH))
	bulk(w, step{"set", "neighbour"}, c.Neighbours.Set, k.changeNeighbours(unix.RTM_NEWNEIGH))
	k.setRoutes(w, c.Routes.Set)
	bulk(w, step{"delete", "neighbour"}, c.Neighbours.Del, k.changeNeighbours(unix.RTM_DELNEIGH))
	bulk(w, step{"delete", "fdb"}, c.FDB.Del, k.changeFDB(unix.RTM_DELNEIGH))
	bulk(w, step{"delete", "flood"}, c.Floods.Del, k.changeFloods(unix.RTM_DELNEIGH))
	return w.errs.join()
}

// work is how far making changes has come.
type work struct {
	ctx  context.Context
	conn conn
	errs errorList

	others map[netip.Prefix]route // routes that aren't ours; nil as long as nobody asked
}

// over reports whether there is no more time.
func (w *work) over() bool {
	if err := w.ctx.Err(); err != nil {
		w.errs.add("", err)
		return true
	}
	return false
}

// step is what is done to the entries of a table. The tables' names are those of backend.Changes.Count.
type step struct{ verb, table string }

func (s step) String() string {
	switch s.table {
	case "fdb":
		return s.verb + " FDB entry"
	case "flood":
		return s.verb + " flooding entry"
	}
	return s.verb + " " + s.table
}

// each calls f for every entry of table.
func each[K comparable, V any](w *work, what step, table map[K]V, f func(K, V) error) {
	for key, value := range table {
		if w.over() {
			return
		}
		if err := f(key, value); err != nil {
			w.errs.add(what.table, fmt.Errorf("%s %v: %w", what, key, err))
		}
	}
}

// batch is how many requests go in one packet: so many that what a packet costs doesn't count, and so few that there is room
// for the answers if all of them fail.
const batch = 64

// bulk makes the request that ask returns for every entry of table, many at a time. The zero request asks for nothing.
func bulk[K comparable, V any](w *work, what step, table map[K]V, ask func(K, V) (request, error)) {
	var keys []K
	var asked []request
	send := func() {
		for i, err := range w.conn.doAll(asked) {
			if err != nil {
				w.errs.add(what.table, fmt.Errorf("%s %v: %w", what, keys[i], err))
			}
		}
		keys, asked = keys[:0], asked[:0]
	}
	each(w, what, table, func(key K, value V) error {
		r, err := ask(key, value)
		if err != nil || r.kind == 0 {
			return err
		}
		if keys, asked = append(keys, key), append(asked, r); len(asked) == batch {
			send()
		}
		return nil
	})
	send()
}

// errorList joins errors, and counts those beyond the first few: ten thousand failures are one log line, not a megabyte.
type errorList struct {
	first []error
	more  int
	count map[string]int // by table
}

// add notes why an entry of a table could not be changed, or, without a table, what else went wrong.
func (l *errorList) add(table string, err error) {
	if err == nil {
		return
	}
	if len(l.first) < 5 {
		l.first = append(l.first, err)
	} else {
		l.more++
	}
	if table == "" {
		return
	}
	if l.count == nil {
		l.count = map[string]int{}
	}
	l.count[table]++
}

func (l *errorList) join() error {
	if l.more > 0 {
		l.first = append(l.first, fmt.Errorf("and %d more", l.more))
	}
	err := errors.Join(l.first...)
	if len(l.count) == 0 {
		return err
	}
	return &backend.Failure{Count: l.count, Err: err}
}

// device returns the ifindex of a device by name.
func (k *Kernel) device(name string) (int, error) {
	if index, ok := k.devices[name]; ok {
		return index, nil
	}
	return 0, fmt.Errorf("device %s: %w", name, unix.ENODEV)
}

// Doorbell receives when something that Apply or Underlay would see may have changed.
func (k *Kernel) Doorbell() <-chan struct{} { return k.bell.c }

// Listen rings the doorbell until ctx ends.
func (k *Kernel) Listen(ctx context.Context) error { return k.bell.listen(ctx) }

// Cleanup removes everything of ours: the links with what hangs on them, the bridge if we made it, routes and nexthop
// objects, and what tulle attach made. It returns a line for each object that it removed.
func (k *Kernel) Cleanup(ctx context.Context) ([]string, error) {
	have, err := k.observeLinks()
	if err != nil {
		return nil, err
	}
	if err := k.indexDevices(); err != nil {
		return nil, err
	}
	routes, err := k.compareRoutes(nil)
	if err != nil {
		return nil, err
	}
	var removed []string
	for _, id := range k.orphans {
		removed = append(removed, fmt.Sprintf("nexthop object %d", id))
	}
	for dst, r := range routes.Del {
		removed = append(removed, fmt.Sprintf("route %s %s", dst, r))
	}
	w := &work{ctx: ctx, conn: k.conn}
	learned, err := k.conn.sweepLearned()
	w.errs.add("", err)
	if learned > 0 {
		removed = append(removed, fmt.Sprintf("%d learned neighbours", learned))
	}
	k.deleteRoutes(w, routes.Del)
	w.errs.add("", k.sweepNexthops())
	each(w, step{"delete", "link"}, have.own, func(name string, l backend.Link) error {
		removed = append(removed, fmt.Sprintf("link %s %s", name, l))
		return gone(k.links.LinkDel(have.all[name]))
	})
	each(w, step{"delete", "link"}, have.attached(), func(name string, l netlink.Link) error {
		removed = append(removed, fmt.Sprintf("link %s, %s", name, cmp.Or(l.Attrs().Alias, "a half-made interface of tulle attach")))
		return gone(k.links.LinkDel(l))
	})
	slices.Sort(removed)
	return removed, w.errs.join()
}
