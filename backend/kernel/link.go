package kernel

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// unborn is the name of a link that is being made: it gets its alias, our mark, before it gets its name, so that an agent
// killed in between leaves nothing behind that it wouldn't know again.
const unborn = backend.Prefix + "-new"

// linkTable is what links the kernel has, by name.
type linkTable struct {
	all map[string]netlink.Link
	own map[string]backend.Link
}

// observeLinks lists the links. Ours: ifalias "tulle", or being made.
func (k *Kernel) observeLinks() (linkTable, error) {
	t := linkTable{map[string]netlink.Link{}, map[string]backend.Link{}}
	list, err := k.listLinks()
	if err != nil {
		return t, err
	}
	names := map[int]string{}
	for _, l := range list {
		t.all[l.Attrs().Name] = l
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for name, l := range t.all {
		if l.Attrs().Alias != backend.Alias && name != unborn {
			continue
		}
		if t.own[name], err = k.observeLink(l, names); err != nil {
			return t, err
		}
	}
	return t, nil
}

// observeLink reads a link as far as a State says what it is to be. What a bridge does with its port isn't in the library's
// listing, nor what IPv6 does with a link.
func (k *Kernel) observeLink(l netlink.Link, names map[int]string) (backend.Link, error) {
	link := toLink(l, names)
	err := k.conn.link(l.Attrs().Index, func(entry []byte) {
		suppress := nested(entry, unix.SizeofIfInfomsg, unix.IFLA_LINKINFO, nl.IFLA_INFO_SLAVE_DATA, unix.IFLA_BRPORT_NEIGH_SUPPRESS)
		link.Suppress = link.Master != "" && len(suppress) > 0 && suppress[0] != 0
		link.Autoconf = k.sysctls && parseInet6(entry).autoconf()
	})
	return link, err
}

// link hands a link to f, unless it went away just now.
func (c conn) link(index int, f func(entry []byte)) error {
	err := again(func() error { return c.ask(request{kind: unix.RTM_GETLINK, message: ifinfomsg(index)}, f) })
	if gone(err) == nil {
		return nil
	}
	return fmt.Errorf("look at link %d: %w", index, err)
}

// attached returns the interfaces that tulle attach made: ifalias "tulle attach …", or none yet and a name of theirs.
func (t linkTable) attached() map[string]netlink.Link {
	return except(t.all, func(name string, l netlink.Link) bool {
		alias := l.Attrs().Alias
		unborn := alias == "" && l.Type() == "veth" && strings.HasPrefix(name, backend.AttachPrefix) && len(name) == len(backend.AttachPrefix)+8
		return !unborn && !strings.HasPrefix(alias, backend.AttachAlias)
	})
}

func (k *Kernel) listLinks() ([]netlink.Link, error) {
	var list []netlink.Link
	err := again(func() (err error) {
		list, err = k.links.LinkList()
		return cmp.Or(err, k.conn.failing(unix.RTM_GETLINK))
	})
	if err != nil { // LinkList returns what it has of an interrupted dump
		return nil, err
	}
	return list, nil
}

// toLink reads a link; names are device names by ifindex.
func toLink(l netlink.Link, names map[int]string) backend.Link {
	attrs := l.Attrs()
	link := backend.Link{Kind: kindOf(l), MTU: attrs.MTU, Down: attrs.Flags&net.FlagUp == 0}
	if attrs.EncapType == "ether" {
		copy(link.MAC[:], attrs.HardwareAddr)
	}
	if v, ok := l.(*netlink.Vxlan); ok {
		local, _ := netip.AddrFromSlice(v.SrcAddr)
		link.VXLAN = backend.VXLAN{VNI: uint32(v.VxlanId), Port: uint16(v.Port), Local: local,
			Parent: names[v.VtepDevIndex], Learning: v.Learning, GBP: v.GBP}
		link.Master = names[attrs.MasterIndex]
	}
	if v, ok := l.(*netlink.Iptun); ok {
		local, _ := netip.AddrFromSlice(v.Local.To4())
		link.IPIP = backend.IPIP{Local: local, Parent: names[attrs.ParentIndex]} // v.Link is only for what is to be made
	}
	return link
}

// kindOf is what kind of link l is.
func kindOf(l netlink.Link) backend.Kind {
	if l.Type() == "tuntap" { // the library's word
		return backend.KindTUN
	}
	return backend.Kind(l.Type())
}

// withoutForeign returns want without the links that somebody else made and without what hangs on them: all that is left
// alone. The bridge may well be somebody else's; the error names the others.
func (t linkTable) withoutForeign(want backend.State) (backend.State, error) {
	foreign := map[string]bool{}
	var errs errorList
	for name, l := range want.Links {
		link, exists := t.all[name]
		if _, ours := t.own[name]; !exists || ours {
			continue
		}
		foreign[name] = true
		if l.Kind != backend.KindBridge {
			errs.add("link", fmt.Errorf("set link %s: a %s of this name exists and is not ours: remove it (ip link del %s)", name, link.Type(), name))
		}
	}
	return lacking(want, foreign), errs.join()
}

// lacking returns want without links, and without what hangs on them.
func lacking(want backend.State, links map[string]bool) backend.State {
	if len(links) == 0 {
		return want
	}
	peers := false // hang on one of them: none does on the bridge
	for name := range links {
		peers = peers || want.Links[name].Kind != backend.KindBridge
	}
	want.Links = except(want.Links, func(name string, _ backend.Link) bool { return links[name] })
	want.Addrs = except(want.Addrs, func(a backend.Addr, _ struct{}) bool { return links[a.Dev] })
	if peers {
		want.FDB = except(want.FDB, func(k backend.FDBKey, _ netip.Addr) bool { return links[k.Dev] })
		want.Floods = except(want.Floods, func(f backend.Flood, _ struct{}) bool { return links[f.Dev] })
		want.Neighbours = except(want.Neighbours, func(k backend.NeighbourKey, _ backend.MAC) bool { return links[k.Dev] })
		want.Routes = except(want.Routes, func(_ netip.Prefix, r backend.Route) bool { return links[r.Dev] })
	}
	return want
}

// unmade are the links among want that don't exist, as of the last look: why they could not be made has been said.
func (k *Kernel) unmade(want map[string]backend.Link) map[string]bool {
	missing := map[string]bool{}
	for name := range want {
		if _, exists := k.devices[name]; !exists {
			missing[name] = true
		}
	}
	return missing
}

// renameLinks gives back their names to links of ours that somebody renamed: a link that has no wanted name, and is what
// one is to be that doesn't exist. From then on it counts as changed, not as unwanted.
func (k *Kernel) renameLinks(links backend.Delta[string, backend.Link], have linkTable) error {
	var errs errorList
	for _, name := range slices.Sorted(maps.Keys(links.Set)) {
		if _, exists := have.all[name]; exists {
			continue
		}
		old, found := have.alike(links.Set[name], links.Del)
		if !found {
			continue
		}
		if err := k.rename(have.all[old], name); err != nil {
			errs.add("link", fmt.Errorf("rename link %s back to %s: %w", old, name, err))
			continue
		}
		have.all[name], have.own[name] = have.all[old], have.own[old]
		delete(have.all, old)
		delete(have.own, old)
		delete(links.Del, old)
	}
	return errs.join()
}

// alike returns which of the unwanted links could be want under another name; of several, the oldest.
func (t linkTable) alike(want backend.Link, unwanted map[string]backend.Link) (name string, found bool) {
	for n, l := range unwanted {
		if n == unborn || l.Kind != want.Kind || l.VXLAN != want.VXLAN && !movable(l, want) || l.IPIP != want.IPIP {
			continue
		}
		if !found || t.all[n].Attrs().Index < t.all[name].Attrs().Index {
			name, found = n, true
		}
	}
	return name, found
}

func (k *Kernel) rename(link netlink.Link, name string) error {
	set := func() error {
		return k.conn.do(unix.RTM_SETLINK, 0, ifinfomsg(link.Attrs().Index).attr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	}
	err := set()
	if errors.Is(err, unix.EBUSY) { // before Linux 6.2 only a link that is down can be renamed
		return errors.Join(k.links.LinkSetDown(link), set(), k.links.LinkSetUp(link))
	}
	return err
}

// ifinfomsg is a struct ifinfomsg.
func ifinfomsg(index int) message {
	m := newMessage(unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(m[4:], uint32(index))
	return m
}

// except returns a copy of m that lacks the entries that drop is true of.
func except[K comparable, V any](m map[K]V, drop func(K, V) bool) map[K]V {
	m = maps.Clone(m)
	maps.DeleteFunc(m, drop)
	return m
}

// setLinks makes or mends links, a bridge before its ports.
func (k *Kernel) setLinks(set map[string]backend.Link, have linkTable) error {
	var errs errorList
	for _, name := range slices.SortedFunc(maps.Keys(set), func(a, b string) int {
		return cmp.Or(cmp.Compare(set[a].Master, set[b].Master), cmp.Compare(a, b))
	}) {
		if err := k.setLink(name, set[name], have); err != nil {
			errs.add("link", fmt.Errorf("set link %s: %w", name, err))
		}
	}
	return errs.join()
}

func (k *Kernel) setLink(name string, want backend.Link, have linkTable) error {
	link, exists := have.all[name]
	now := have.own[name]
	switch {
	case !exists:
		return k.makeLink(name, want, have)
	case now.Kind == want.Kind && now.VXLAN == want.VXLAN && now.IPIP == want.IPIP:
		return k.mendLink(name, link, now, want)
	case movable(now, want) && k.moveLink(link, want, have) == nil:
		return k.mendLink(name, link, now, want)
	}
	if err := gone(k.links.LinkDel(link)); err != nil {
		return fmt.Errorf("delete it to make it anew: %w", err)
	}
	return k.makeLink(name, want, have)
}

// makeLink makes a link under a name for the unborn, marks it, and only then names it and sets it up.
func (k *Kernel) makeLink(name string, want backend.Link, have linkTable) error {
	link, err := newLink(want, have)
	if err != nil {
		return err
	}
	if err := k.links.LinkAdd(link); err != nil {
		return explain(err, want, have)
	}
	made, err := k.links.LinkByName(unborn)
	if err != nil {
		return err
	}
	if err := k.links.LinkSetAlias(made, backend.Alias); err != nil {
		return fmt.Errorf("set alias: %w", err)
	}
	if err := k.links.LinkSetMTU(made, want.MTU); err != nil {
		return fmt.Errorf("set MTU: %w", err)
	}
	if err := k.links.LinkSetName(made, name); err != nil {
		return fmt.Errorf("name it: %w", err)
	}
	return errors.Join(k.putBack(k.ports[name], made), k.plugIn(made, backend.Link{}, want), k.stopAutoconf(made, name), k.links.LinkSetUp(made))
}

// newLink is what to ask the kernel for.
func newLink(want backend.Link, have linkTable) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = unborn, want.MTU
	if want.MAC != (backend.MAC{}) {
		attrs.HardwareAddr = want.MAC[:]
	}
	switch want.Kind {
	case backend.KindBridge:
		// A bridge takes over its ports' MTU until its own is changed (br_mtu_auto_adjust, net/bridge/br_if.c): makeLink must
		// find something to change.
		attrs.MTU--
		return &netlink.Bridge{LinkAttrs: attrs}, nil
	case backend.KindWireGuard:
		return &netlink.Wireguard{LinkAttrs: attrs}, nil
	case backend.KindTUN:
		return nil, errors.New("no process stands behind it yet")
	}
	parent, ok := have.all[want.Parent()]
	if !ok {
		return nil, fmt.Errorf("its underlay device %s: %w", want.Parent(), unix.ENODEV)
	}
	if want.Kind == backend.KindIPIP {
		return &netlink.Iptun{LinkAttrs: attrs, Local: want.IPIP.Local.AsSlice(), Link: uint32(parent.Attrs().Index), PMtuDisc: 1}, nil
	}
	return &netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: int(want.VXLAN.VNI), Port: int(want.VXLAN.Port), SrcAddr: want.VXLAN.Local.AsSlice(),
		VtepDevIndex: parent.Attrs().Index, Learning: want.VXLAN.Learning, GBP: want.VXLAN.GBP,
	}, nil
}

// explain says what is missing when the kernel refuses to make a link.
func explain(err error, want backend.Link, have linkTable) error {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("this kernel has no %s: load or build the module (modprobe %s; %s)", want.Kind, want.Kind, symbol(want.Kind))
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("not permitted: run as root, or with CAP_NET_ADMIN")
	case errors.Is(err, unix.EEXIST) && want.Kind == backend.KindVXLAN:
		for name, l := range have.all {
			if v, ok := l.(*netlink.Vxlan); ok && v.VxlanId == int(want.VXLAN.VNI) && v.Port == int(want.VXLAN.Port) && (v.SrcAddr.To4() == nil) == want.VXLAN.Local.Is6() {
				return fmt.Errorf("device %s already has VNI %d on port %d: remove it (ip link del %s)", name, v.VxlanId, v.Port, name)
			}
		}
	}
	return err
}

// symbol is what to build a kernel with that knows a kind of links.
func symbol(k backend.Kind) string {
	if k == backend.KindIPIP {
		return "CONFIG_NET_IPIP"
	}
	return "CONFIG_" + strings.ToUpper(string(k))
}

// mendLink changes what can be changed of a link that is there.
func (k *Kernel) mendLink(name string, link netlink.Link, now, want backend.Link) error {
	attrs := link.Attrs()
	var errs []error
	if attrs.MTU != want.MTU {
		errs = append(errs, k.links.LinkSetMTU(link, want.MTU))
	}
	if want.MAC != (backend.MAC{}) && !bytes.Equal(attrs.HardwareAddr, want.MAC[:]) {
		errs = append(errs, k.links.LinkSetHardwareAddr(link, want.MAC[:]))
	}
	return errors.Join(append(errs, k.plugIn(link, now, want), k.stopAutoconf(link, name), k.links.LinkSetUp(link))...)
}

// movable reports whether all that keeps a device from being as wanted is what it runs over.
func movable(now, want backend.Link) bool {
	if want.Kind != backend.KindVXLAN {
		return false
	}
	if now.VXLAN.Local.Is6() != want.VXLAN.Local.Is6() {
		return false
	}
	now.VXLAN.Local, now.VXLAN.Parent = want.VXLAN.Local, want.VXLAN.Parent
	return now.Kind == want.Kind && now.VXLAN == want.VXLAN
}

// moveLink puts a VXLAN device on another underlay device or address. What hangs on it stays, and packets leave from the new
// address at once: for IPv4 the kernel takes this for a change that outdates its cached routes (NETDEV_CHANGE in fib_netdev_event,
// net/ipv4/fib_frontend.c), for IPv6 it must be made to. netlink.LinkModify won't do: it also sends what can't change, which the kernel refuses although
// it is the same (vxlan_nl2conf, drivers/net/vxlan/vxlan_core.c).
func (k *Kernel) moveLink(link netlink.Link, want backend.Link, have linkTable) error {
	parent, ok := have.all[want.VXLAN.Parent]
	if !ok {
		return unix.ENODEV
	}
	local := nl.IFLA_VXLAN_LOCAL
	if want.VXLAN.Local.Is6() {
		local = nl.IFLA_VXLAN_LOCAL6
	}
	data := newMessage(0).addr(local, want.VXLAN.Local).uint32(nl.IFLA_VXLAN_LINK, uint32(parent.Attrs().Index))
	info := newMessage(0).attr(nl.IFLA_INFO_KIND, []byte(want.Kind)).attr(nl.IFLA_INFO_DATA, data)
	err := k.conn.do(unix.RTM_NEWLINK, 0, ifinfomsg(link.Attrs().Index).attr(unix.IFLA_LINKINFO, info))
	if err != nil || want.VXLAN.Local.Is4() {
		return err
	}
	return k.conn.refreshIPv6(link.Attrs().Index)
}

// deleteLinks deletes links of ours that aren't wanted.
func (k *Kernel) deleteLinks(del map[string]backend.Link, have linkTable) error {
	var errs errorList
	for name := range del {
		if err := gone(k.links.LinkDel(have.all[name])); err != nil {
			errs.add("link", fmt.Errorf("delete link %s: %w", name, err))
		}
	}
	return errs.join()
}

// indexDevices looks up the ifindexes anew.
func (k *Kernel) indexDevices() error {
	list, err := k.listLinks()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	k.index(list)
	return nil
}

// index notes the ifindexes of all links.
func (k *Kernel) index(list []netlink.Link) {
	clear(k.devices)
	for _, l := range list {
		k.devices[l.Attrs().Name] = l.Attrs().Index
	}
}
