// Package attach gives a network namespace, a running container's for one, an interface on the overlay: a veth whose host's end
// is a port of the containers' bridge. It owns these interfaces and nothing else. Who has which address stands in the ifalias
// of the host's end and nowhere else, so there is no state that could be wrong.
package attach

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Request says what interface a Target is to have.
type Request struct {
	Bridge  string       // the host's bridge
	Gateway netip.Prefix // the bridge's address, and the subnet
	Network netip.Prefix // the overlay's range
	MTU     int          // bytes

	Range netip.Prefix // where addresses come from
	Taken []netip.Addr // those of Range that others have
	Wish  netip.Addr   // the one to take; not valid for the lowest free one

	Name         string // of the interface
	DefaultRoute bool   // even if there is one
	RunDir       string // attaches of the same directory wait for one another
}

// Attach gives t an interface and returns its address. It leaves nothing behind if it fails.
func Attach(t Target, r Request) (netip.Prefix, error) {
	if err := checkName(r.Name); err != nil {
		return netip.Prefix{}, err
	}
	unlock, err := lock(r.RunDir)
	if err != nil {
		return netip.Prefix{}, err
	}
	defer unlock()
	c, err := dial(t)
	if err != nil {
		return netip.Prefix{}, err
	}
	defer c.close()
	bridge, err := c.bridge(r)
	if err != nil {
		return netip.Prefix{}, err
	}
	all, err := list(c.host)
	if err != nil {
		return netip.Prefix{}, err
	}
	if err := c.free(t, r, all); err != nil {
		return netip.Prefix{}, err
	}
	for _, a := range all {
		r.Taken = append(slices.Clip(r.Taken), a.Address)
	}
	address, err := choose(r.Range, r.Taken, r.Wish)
	if err != nil {
		return netip.Prefix{}, err
	}
	return c.lay(t, r, bridge, netip.PrefixFrom(address, r.Gateway.Bits()))
}

// Detach takes the interface from t, and returns what it was.
func Detach(t Target) (Attached, error) {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return Attached{}, fmt.Errorf("rtnetlink: %w", err)
	}
	defer host.Close()
	all, err := list(host)
	if err != nil {
		return Attached{}, err
	}
	a, attached := t.of(all)
	switch {
	case !attached && t.IsGone():
		return a, fmt.Errorf("%s does not run, and its interface went away with its network: there is nothing to detach", t.Name)
	case !attached:
		return a, fmt.Errorf("%s is not attached: there is nothing to detach", t.Name)
	}
	return a, remove(host, a.Device)
}

// remove deletes an interface by its host's end. One that isn't there is no error.
func remove(host *netlink.Handle, device string) error {
	link, err := host.LinkByName(device)
	if err == nil {
		err = host.LinkDel(link)
	}
	if err == nil || errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("delete %s: %w", device, err)
}

func checkName(name string) error {
	if name == "" || len(name) > 15 || strings.ContainsAny(name, "/:%") || strings.ContainsFunc(name, unicode.IsSpace) || name == "." || name == ".." {
		return fmt.Errorf("--ifname %q can't be an interface's name: at most 15 characters, no '/', ':', '%%' or space", name)
	}
	return nil
}

// cable has a netlink handle at each end.
type cable struct{ host, guest *netlink.Handle }

func dial(t Target) (cable, error) {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return cable{}, fmt.Errorf("rtnetlink: %w", err)
	}
	guest, err := netlink.NewHandleAt(t.ns, unix.NETLINK_ROUTE)
	if err != nil {
		host.Close()
		return cable{}, fmt.Errorf("enter the network namespace of %s: %w: this needs root", t.Name, err)
	}
	return cable{host, guest}, nil
}

func (c cable) close() {
	c.host.Close()
	c.guest.Close()
}

// bridge returns the host's bridge, which must have the lease's address.
func (c cable) bridge(r Request) (netlink.Link, error) {
	link, err := c.host.LinkByName(r.Bridge)
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w: say with --bridge which one the agent has, and whether it runs with systemctl status tulle", r.Bridge, err)
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("%s is a %s, not a bridge: say with --bridge which one the agent has", r.Bridge, link.Type())
	}
	has, err := addresses(c.host, link)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(has, r.Gateway) {
		return nil, fmt.Errorf("bridge %s does not have this host's overlay address %s: restart Docker with the DOCKER_OPTS of the agent's env file", r.Bridge, r.Gateway)
	}
	return link, nil
}

// free refuses a namespace that is on the overlay already, or has an interface of the name.
func (c cable) free(t Target, r Request, all []Attached) error {
	if a, attached := t.of(all); attached {
		return fmt.Errorf("%s is attached already, with %s: detach it first", t.Name, a.Address)
	}
	has, err := addresses(c.guest, nil)
	if err != nil {
		return err
	}
	for _, p := range has {
		if r.Network.Contains(p.Addr()) {
			return fmt.Errorf("%s is on the overlay already: it has %s", t.Name, p)
		}
	}
	if _, err := c.guest.LinkByName(r.Name); !errors.As(err, &netlink.LinkNotFoundError{}) {
		return errors.Join(err, fmt.Errorf("%s has an interface named %s already: choose another name with --ifname", t.Name, r.Name))
	}
	return nil
}

// addresses lists those of a link; nil for all links.
func addresses(h *netlink.Handle, link netlink.Link) (has []netip.Prefix, err error) {
	entries, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(link, netlink.FAMILY_ALL) })
	for _, e := range entries {
		ip, _ := netip.AddrFromSlice(e.IP)
		bits, _ := e.Mask.Size()
		has = append(has, netip.PrefixFrom(ip.Unmap(), bits))
	}
	return has, err
}

// lay makes the veth and sets up both ends. The host's end is up last: then everything is there.
func (c cable) lay(t Target, r Request, bridge netlink.Link, address netip.Prefix) (_ netip.Prefix, err error) {
	device := t.device()
	if err := remove(c.host, device); err != nil { // left by an attach that was killed before it could mark it
		return address, err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: device, MTU: r.MTU, MasterIndex: bridge.Attrs().Index, TxQLen: -1},
		PeerName: r.Name, PeerNamespace: netlink.NsFd(t.ns), PeerMTU: uint32(r.MTU), PeerHardwareAddr: mac(address.Addr())}
	if err := c.host.LinkAdd(veth); err != nil {
		return address, fmt.Errorf("make the interface: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, remove(c.host, device))
		}
	}()
	if err := c.host.LinkSetAlias(veth, t.alias(address.Addr())); err != nil {
		return address, fmt.Errorf("mark %s: %w", device, err)
	}
	if err := c.setUp(r, address); err != nil {
		return address, fmt.Errorf("set up %s in %s: %w", r.Name, t.Name, err)
	}
	return address, c.host.LinkSetUp(veth)
}

// mac makes an address's MAC the way Docker does. The next container that has the address has the MAC too, so no neighbour's
// ARP entry is ever wrong.
func mac(a netip.Addr) net.HardwareAddr {
	ip := a.AsSlice()
	return append(net.HardwareAddr{0x02, 0x42}, ip[len(ip)-4:]...)
}

// setUp sets up the namespace's end: address and routes.
func (c cable) setUp(r Request, address netip.Prefix) error {
	link, err := c.guest.LinkByName(r.Name)
	if err != nil {
		return err
	}
	if err := c.guest.AddrAdd(link, &netlink.Addr{IPNet: ipNet(address), Flags: unix.IFA_F_NODAD}); err != nil {
		return fmt.Errorf("address %s: %w", address, err)
	}
	if err := c.guest.LinkSetUp(link); err != nil {
		return err
	}
	routes, err := c.routes(r)
	if err != nil {
		return err
	}
	for _, dst := range routes {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(dst), Gw: r.Gateway.Addr().AsSlice(), Src: address.Addr().AsSlice()}
		if err := c.guest.RouteAdd(route); err != nil {
			return fmt.Errorf("route %s: %w", dst, err)
		}
	}
	return nil
}

// routes returns what is to be reached through the interface. A default route that is there is not replaced but covered, by two
// halves: when the interface goes, it is as it was.
func (c cable) routes(r Request) ([]netip.Prefix, error) {
	var list []netip.Prefix
	if r.Network != r.Gateway.Masked() { // else the address says it
		list = append(list, r.Network)
	}
	all := netip.PrefixFrom(r.Gateway.Addr(), 0).Masked()
	exists, err := c.hasDefault(all)
	switch {
	case err != nil:
		return nil, err
	case !exists:
		return append(list, all), nil
	case !r.DefaultRoute:
		return list, nil
	}
	upper := all.Addr().AsSlice()
	upper[0] = 0x80
	half, _ := netip.AddrFromSlice(upper)
	return append(list, netip.PrefixFrom(all.Addr(), 1), netip.PrefixFrom(half, 1)), nil
}

func (c cable) hasDefault(all netip.Prefix) (bool, error) {
	family := netlink.FAMILY_V4
	if all.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := dump(func() ([]netlink.Route, error) { return c.guest.RouteList(nil, family) })
	return slices.ContainsFunc(routes, func(r netlink.Route) bool {
		return r.Dst == nil || r.Dst.String() == all.String()
	}), err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
