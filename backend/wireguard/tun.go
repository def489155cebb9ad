package wireguard

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/tulle-net/tulle/backend"
)

// errForeign says that somebody else's device has the name of ours. Package kernel tells what to do about that.
var errForeign = errors.New("not ours")

// openTUN opens the TUN device called name in the calling thread's network namespace: one that an earlier life has left, or a new
// one. It is persistent: its routes survive this process, or else, while an agent restarts, containers' packets would follow the
// default route, unencrypted. Ours: ifalias "tulle", which it has before it is persistent: an agent killed in between leaves nothing.
func openTUN(links *netlink.Handle, name string) (fd, index int, err error) {
	link, err := ours(links, name)
	if err != nil {
		return -1, 0, err
	}
	if link != nil && link.Type() != "tuntap" { // the library's word; the kernel's WireGuard may be gone
		if err := links.LinkDel(link); err != nil {
			return -1, 0, fmt.Errorf("delete it to make it anew: %w", err)
		}
		link = nil
	}
	if fd, err = attach(name, link == nil); err != nil {
		return -1, 0, err
	}
	if link == nil {
		link, err = mark(links, fd, name)
	}
	if err != nil {
		unix.Close(fd)
		return -1, 0, err
	}
	return fd, link.Attrs().Index, nil
}

// ours returns the link of ours that has this name; nil if there is none.
func ours(links *netlink.Handle, name string) (netlink.Link, error) {
	link, err := links.LinkByName(name)
	if absent := (netlink.LinkNotFoundError{}); errors.As(err, &absent) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if link.Attrs().Alias != backend.Alias {
		return nil, errForeign
	}
	return link, nil
}

// attach puts this process behind a TUN device, which must be new if that is asked for. Offloads (IFF_VNET_HDR) let the kernel hand
// over, and take, many packets at a time.
func attach(name string, anew bool) (fd int, err error) {
	fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
		return -1, errors.New("there is no /dev/net/tun: load or build the module (modprobe tun; CONFIG_TUN), or give the agent's container the device")
	case err != nil:
		return -1, fmt.Errorf("/dev/net/tun: %w", err)
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if anew {
		flags |= unix.IFF_TUN_EXCL
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("attach to TUN device %s: %w", name, err)
	}
	return fd, nil
}

// mark makes a new TUN device ours, and then persistent.
func mark(links *netlink.Handle, fd int, name string) (netlink.Link, error) {
	link, err := links.LinkByName(name)
	if err != nil {
		return nil, err
	}
	_ = links.LinkSetIP6AddrGenMode(link, 1) // IN6_ADDR_GEN_MODE_NONE, as package kernel has it for its own
	if err := links.LinkSetAlias(link, backend.Alias); err != nil {
		return nil, fmt.Errorf("set alias: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return nil, fmt.Errorf("make it persistent: %w", err)
	}
	return link, nil
}

// plug is a TUN device as wireguard-go is to see it: whether the link is up and what MTU it has it learns from us. By itself it would
// ask from threads of its own, which need not be in the device's namespace, and open its sockets from there.
type plug struct {
	tun.Device
	mu     sync.Mutex
	mtu    int // bytes
	events chan tun.Event
	closed bool
}

func newPlug(fd, mtu int) (*plug, error) {
	device, _, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("TUN offloads: %w", err)
	}
	return &plug{Device: device, mtu: mtu, events: make(chan tun.Event, 1)}, nil
}

func (p *plug) MTU() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mtu, nil
}

func (p *plug) Events() <-chan tun.Event { return p.events }

// setMTU tells wireguard-go of the link's MTU, up to which it pads packets.
func (p *plug) setMTU(mtu int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.mtu == mtu {
		return
	}
	p.mtu = mtu
	select {
	case p.events <- tun.EventMTUUpdate:
	default: // it has not asked since the last
	}
}

func (p *plug) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	close(p.events)
	return p.Device.Close()
}
