package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// ndmsg is a struct ndmsg (linux/neighbour.h).
func ndmsg(family uint8, index int, state uint16, flags uint8) message {
	m := newMessage(12)
	m[0] = family
	binary.NativeEndian.PutUint32(m[4:], uint32(index))
	binary.NativeEndian.PutUint16(m[8:], state)
	m[10] = flags
	return m
}

// ndaProtocol is NDA_PROTOCOL (linux/neighbour.h): who set a neighbour. Linux ≥ 5.0.
const ndaProtocol = 12

// neighbour is a neighbour, or for AF_BRIDGE an FDB entry, as the kernel tells of it.
type neighbour struct {
	family   uint8
	index    int
	state    uint16 // NUD_…
	flags    uint8  // NTF_…
	dst      netip.Addr
	mac      backend.MAC
	protocol uint8
}

func parseNeighbour(entry []byte) neighbour {
	n := neighbour{family: entry[0], index: int(number(entry[4:])), state: binary.NativeEndian.Uint16(entry[8:]), flags: entry[10]}
	for kind, value := range attributes(entry, 12) {
		switch kind {
		case unix.NDA_DST:
			n.dst = address(value)
		case unix.NDA_LLADDR:
			copy(n.mac[:], value)
		case ndaProtocol:
			n.protocol = value[0]
		}
	}
	return n
}

// entries dumps a device's permanent neighbour or, for AF_BRIDGE, FDB entries.
func (k *Kernel) entries(family uint8, index int, f func(dst netip.Addr, mac backend.MAC)) error {
	return k.conn.listNeighbours(family, index, func(n neighbour) {
		if n.state&unix.NUD_PERMANENT != 0 {
			f(n.dst, n.mac)
		}
	})
}

// listNeighbours dumps a device's neighbours, or FDB entries, that have a destination. Without a device, 0, it dumps all.
func (c conn) listNeighbours(family uint8, index int, f func(neighbour)) error {
	// The filter is a header field for FDB dumps (rtnl_fdb_dump, net/core/rtnetlink.c), an attribute for the others.
	m := ndmsg(family, index, 0, 0)
	if family != unix.AF_BRIDGE {
		if m = ndmsg(family, 0, 0, 0); index != 0 {
			m = m.uint32(unix.NDA_IFINDEX, uint32(index))
		}
	}
	return c.dump(unix.RTM_GETNEIGH, m, func(entry []byte) {
		if n := parseNeighbour(entry); n.family == family && (index == 0 || n.index == index) && n.dst.IsValid() {
			f(n)
		}
	})
}

// fdbComparison compares both of what a VXLAN device's FDB holds, in one listing.
type fdbComparison struct {
	entries *backend.Comparison[backend.FDBKey, netip.Addr]
	floods  *backend.Comparison[backend.Flood, struct{}]
}

// compareFDB compares the VXLAN devices' FDBs with want. Ours: all their permanent entries with a destination, unicast ones and those
// of the zero MAC, which say where to flood. What the kernel learned is not permanent.
func (k *Kernel) compareFDB(devices []string, want backend.State) (c fdbComparison, err error) {
	err = again(func() error {
		c = fdbComparison{backend.Glance(want.FDB), backend.Glance(want.Floods)}
		return k.seeFDB(devices, c)
	})
	if err == nil && !(c.entries.Whole() && c.floods.Whole()) {
		err = again(func() error {
			c = fdbComparison{backend.Compare(want.FDB), backend.Compare(want.Floods)}
			return k.seeFDB(devices, c)
		})
	}
	return c, err
}

func (k *Kernel) seeFDB(devices []string, c fdbComparison) error {
	for _, dev := range devices {
		err := k.entries(unix.AF_BRIDGE, k.devices[dev], func(dst netip.Addr, mac backend.MAC) {
			switch {
			case mac == backend.MAC{}:
				c.floods.See(backend.Flood{Dev: dev, Dst: dst}, struct{}{})
			case mac.Unicast():
				c.entries.See(backend.FDBKey{Dev: dev, MAC: mac}, dst)
			}
		})
		if err != nil {
			return fmt.Errorf("list FDB of %s: %w", dev, err)
		}
	}
	return nil
}

// compareNeighbours compares the VXLAN devices' neighbours with want. Ours: all permanent ones on a device of ours.
func (k *Kernel) compareNeighbours(devices []string, want map[backend.NeighbourKey]backend.MAC) (backend.Delta[backend.NeighbourKey, backend.MAC], error) {
	return compareTable(want, func(c *backend.Comparison[backend.NeighbourKey, backend.MAC]) error {
		for _, dev := range devices {
			for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
				err := k.entries(family, k.devices[dev], func(dst netip.Addr, mac backend.MAC) {
					c.See(backend.NeighbourKey{Dev: dev, IP: dst}, mac)
				})
				if err != nil {
					return fmt.Errorf("list neighbours of %s: %w", dev, err)
				}
			}
		}
		return nil
	})
}

func (k *Kernel) changeFDB(kind int) func(backend.FDBKey, netip.Addr) (request, error) {
	return func(key backend.FDBKey, dst netip.Addr) (request, error) {
		return k.changeNeighbour(kind, unix.AF_BRIDGE, key.Dev, dst, key.MAC)
	}
}

func (k *Kernel) changeFloods(kind int) func(backend.Flood, struct{}) (request, error) {
	return func(f backend.Flood, _ struct{}) (request, error) {
		r, err := k.changeNeighbour(kind, unix.AF_BRIDGE, f.Dev, f.Dst, backend.MAC{})
		if kind == unix.RTM_NEWNEIGH {
			r.flags = unix.NLM_F_CREATE | unix.NLM_F_APPEND // beside the other destinations of the zero MAC
		}
		return r, err
	}
}

func (k *Kernel) changeNeighbours(kind int) func(backend.NeighbourKey, backend.MAC) (request, error) {
	return func(key backend.NeighbourKey, mac backend.MAC) (request, error) {
		return k.changeNeighbour(kind, family(key.IP), key.Dev, key.IP, mac)
	}
}

// changeNeighbour asks for an entry to be set or deleted; kind is RTM_NEWNEIGH or RTM_DELNEIGH.
func (k *Kernel) changeNeighbour(kind int, family uint8, dev string, dst netip.Addr, mac backend.MAC) (request, error) {
	index, err := k.device(dev)
	switch {
	case err != nil && kind == unix.RTM_DELNEIGH:
		return request{}, gone(err)
	case err != nil:
		return request{}, err
	}
	r, self := request{kind: kind, done: gone}, uint8(0)
	if kind == unix.RTM_NEWNEIGH {
		r.flags, r.done = unix.NLM_F_CREATE|unix.NLM_F_REPLACE, nil
	}
	if family == unix.AF_BRIDGE {
		self = unix.NTF_SELF
	}
	r.message = ndmsg(family, index, unix.NUD_PERMANENT, self).addr(unix.NDA_DST, dst).attr(unix.NDA_LLADDR, mac[:])
	k.bell.expect(deed{uint16(kind), family, index, dst, mac})
	return r, nil
}
