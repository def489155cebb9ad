package kernel

import (
	"encoding/binary"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// ndmsg is a struct ndmsg (linux/neighbour.h).
func ndmsg(family uint8, index int, state uint16, flags uint8) message {
	m := make(message, 12)
	m[0] = family
	binary.NativeEndian.PutUint32(m[4:], uint32(index))
	binary.NativeEndian.PutUint16(m[8:], state)
	m[10] = flags
	return m
}

// entries dumps a device's permanent neighbour or, for AF_BRIDGE, FDB entries.
func (k *Kernel) entries(family uint8, index int, f func(dst netip.Addr, mac backend.MAC)) error {
	// The filter is a header field for FDB dumps (rtnl_fdb_dump, net/core/rtnetlink.c), an attribute for the others.
	header, attrs := ndmsg(family, index, 0, 0), []*nl.RtAttr(nil)
	if family != unix.AF_BRIDGE {
		header, attrs = ndmsg(family, 0, 0, 0), []*nl.RtAttr{uint32Attr(unix.NDA_IFINDEX, uint32(index))}
	}
	return k.conn.dump(unix.RTM_GETNEIGH, header, func(entry []byte) {
		state := binary.NativeEndian.Uint16(entry[8:])
		if entry[0] != family || int(number(entry[4:])) != index || state&unix.NUD_PERMANENT == 0 {
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
			f(dst, mac)
		}
	}, attrs...)
}

// observeFDB lists a VXLAN device's FDB. Ours: all its permanent unicast entries with a destination.
func (k *Kernel) observeFDB(dev string, index int, have map[backend.FDBKey]netip.Addr) error {
	return k.entries(unix.AF_BRIDGE, index, func(dst netip.Addr, mac backend.MAC) {
		if mac.Unicast() {
			have[backend.FDBKey{Dev: dev, MAC: mac}] = dst
		}
	})
}

// observeNeighbours lists a device's neighbours. Ours: all permanent ones on a device of ours.
func (k *Kernel) observeNeighbours(dev string, index int, have map[backend.NeighbourKey]backend.MAC) error {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := k.entries(family, index, func(dst netip.Addr, mac backend.MAC) {
			have[backend.NeighbourKey{Dev: dev, IP: dst}] = mac
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (k *Kernel) setFDB(key backend.FDBKey, dst netip.Addr) error {
	return k.changeNeighbour(unix.RTM_NEWNEIGH, unix.AF_BRIDGE, key.Dev, dst, key.MAC)
}

func (k *Kernel) deleteFDB(key backend.FDBKey, dst netip.Addr) error {
	return gone(k.changeNeighbour(unix.RTM_DELNEIGH, unix.AF_BRIDGE, key.Dev, dst, key.MAC))
}

func (k *Kernel) setNeighbour(key backend.NeighbourKey, mac backend.MAC) error {
	return k.changeNeighbour(unix.RTM_NEWNEIGH, family(key.IP), key.Dev, key.IP, mac)
}

func (k *Kernel) deleteNeighbour(key backend.NeighbourKey, mac backend.MAC) error {
	return gone(k.changeNeighbour(unix.RTM_DELNEIGH, family(key.IP), key.Dev, key.IP, mac))
}

func (k *Kernel) changeNeighbour(kind int, family uint8, dev string, dst netip.Addr, mac backend.MAC) error {
	index, err := k.device(dev)
	if err != nil {
		return err
	}
	flags, self := 0, uint8(0)
	if kind == unix.RTM_NEWNEIGH {
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	if family == unix.AF_BRIDGE {
		self = unix.NTF_SELF
	}
	k.bell.expect(deed{uint16(kind), family, index, dst, mac})
	return k.conn.do(kind, flags, ndmsg(family, index, unix.NUD_PERMANENT, self),
		addrAttr(unix.NDA_DST, dst), nl.NewRtAttr(unix.NDA_LLADDR, mac[:]))
}
