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

// entries dumps a device's permanent neighbour or, for AF_BRIDGE, FDB entries.
func (k *Kernel) entries(family uint8, index int, f func(dst netip.Addr, mac backend.MAC)) error {
	return k.allEntries(family, index, func(dst netip.Addr, mac backend.MAC, state uint16) {
		if state&unix.NUD_PERMANENT != 0 {
			f(dst, mac)
		}
	})
}

// allEntries is entries whatever their state, NUD_….
func (k *Kernel) allEntries(family uint8, index int, f func(dst netip.Addr, mac backend.MAC, state uint16)) error {
	// The filter is a header field for FDB dumps (rtnl_fdb_dump, net/core/rtnetlink.c), an attribute for the others.
	m := ndmsg(family, index, 0, 0)
	if family != unix.AF_BRIDGE {
		m = ndmsg(family, 0, 0, 0).uint32(unix.NDA_IFINDEX, uint32(index))
	}
	return k.conn.dump(unix.RTM_GETNEIGH, m, func(entry []byte) {
		state := binary.NativeEndian.Uint16(entry[8:])
		if entry[0] != family || int(number(entry[4:])) != index {
			return
		}
		var dst netip.Addr
		var mac backend.MAC
		for kind, value := range attributes(entry, 12) {
			switch kind {
			case unix.NDA_DST:
				dst = address(value)
			case unix.NDA_LLADDR:
				copy(mac[:], value)
			}
		}
		if dst.IsValid() {
			f(dst, mac, state)
		}
	})
}

// compareFDB compares the VXLAN devices' FDBs with want. Ours: all their permanent unicast entries with a destination.
func (k *Kernel) compareFDB(devices []string, want map[backend.FDBKey]netip.Addr) (backend.Delta[backend.FDBKey, netip.Addr], error) {
	return compareTable(want, func(c *backend.Comparison[backend.FDBKey, netip.Addr]) error {
		for _, dev := range devices {
			err := k.entries(unix.AF_BRIDGE, k.devices[dev], func(dst netip.Addr, mac backend.MAC) {
				if mac.Unicast() {
					c.See(backend.FDBKey{Dev: dev, MAC: mac}, dst)
				}
			})
			if err != nil {
				return fmt.Errorf("list FDB of %s: %w", dev, err)
			}
		}
		return nil
	})
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
