package udp

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// device is a TUN device, with a file for each of its queues.
type device struct {
	queues []*os.File
	udp    bool // it takes super-packets of UDP, too
}

// errForeign says that somebody else's device has the name of ours. Package kernel tells what to do about that.
var errForeign = errors.New("not ours")

// openDevice attaches to the TUN device of this name in the calling thread's network namespace, or makes it; to set it up is package
// kernel's business. Ours: ifalias "tulle". It outlives this process, with its addresses and routes: while an agent restarts,
// containers' packets wait for it, and don't follow the default route. It gets its mark before that: an agent that is killed in
// between takes the device along.
func openDevice(name string, queues int) (*device, error) {
	link, err := netlink.LinkByName(name)
	absent := errors.As(err, &netlink.LinkNotFoundError{})
	switch {
	case err != nil && !absent:
		return nil, err
	case !absent && link.Attrs().Alias != backend.Alias:
		return nil, errForeign
	}
	d := &device{}
	for range queues {
		if err := d.attach(name); err != nil {
			return nil, errors.Join(err, closeAll(d.queues))
		}
	}
	if !absent {
		return d, nil
	}
	if err := d.keep(name); err != nil {
		return nil, errors.Join(err, closeAll(d.queues))
	}
	return d, nil
}

// attach adds a queue to the device, and makes the device if there is none.
func (d *device) attach(name string) error {
	const path = "/dev/net/tun"
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("there is no %s: load or build the module (modprobe tun; CONFIG_TUN), or give the agent's container the device", path)
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	}
	if d.udp, err = enter(fd, name); err != nil {
		return errors.Join(refused(err, name), unix.Close(fd))
	}
	d.queues = append(d.queues, os.NewFile(uintptr(fd), path))
	return nil
}

// enter makes fd a queue of the device that takes and hands over super-packets: of TCP, and of UDP if the kernel can (Linux 6.2).
func enter(fd int, name string) (udp bool, err error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return false, err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return false, err
	}
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp|unix.TUN_F_USO4|unix.TUN_F_USO6) == nil {
		return true, nil
	}
	return false, unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp)
}

// refused says what is missing when the kernel refuses a queue.
func refused(err error, name string) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return errors.New("not permitted: run as root, or with CAP_NET_ADMIN")
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EBUSY), errors.Is(err, unix.E2BIG):
		return fmt.Errorf("%w: the device has other flags, or somebody else uses it: remove it (ip link del %s)", err, name)
	}
	return err
}

// keep makes a new device ours, and then persistent.
func (d *device) keep(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetAlias(link, backend.Alias); err != nil {
		return fmt.Errorf("set alias: %w", err)
	}
	return control(d.queues[0], func(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1) })
}
