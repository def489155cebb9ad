package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// Learned is access to what is learned of hosts, rather than planned: it is in no State. It has a socket of its own, in the network
// namespace that it was opened in, because others than the loop use it; one at a time.
type Learned struct{ conn conn }

// OpenLearned returns a Learned for the calling thread's network namespace.
func OpenLearned() (*Learned, error) {
	c, err := dial()
	return &Learned{c}, err
}

// Close gives the socket back. What was learned stays.
func (l *Learned) Close() { l.conn.close() }

// Neighbours calls f with a device's neighbours of both families that can be used now, but those that an operator made permanent.
func (l *Learned) Neighbours(device int, f func(netip.Addr, backend.MAC)) error {
	const valid = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE
	err := again(func() error {
		return l.conn.listBoth(device, func(n neighbour) {
			if n.state&valid != 0 {
				f(n.dst, n.mac)
			}
		})
	})
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	return nil
}

// listBoth dumps a device's neighbours of both families; without a device, 0, all.
func (c conn) listBoth(device int, f func(neighbour)) error {
	return errors.Join(c.listNeighbours(unix.AF_INET, device, f), c.listNeighbours(unix.AF_INET6, device, f))
}

// SetNeighbour makes a neighbour known to a device. The kernel uses it, and finds out itself whether it is still right when the
// host sends there, but never forgets it by itself (NTF_EXT_LEARNED). Ours: protocol 84.
func (l *Learned) SetNeighbour(device int, ip netip.Addr, mac backend.MAC) error {
	m := ndmsg(family(ip), device, unix.NUD_STALE, unix.NTF_EXT_LEARNED).addr(unix.NDA_DST, ip).attr(unix.NDA_LLADDR, mac[:])
	return l.conn.do(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m.attr(ndaProtocol, []byte{protocol}))
}

// DeleteNeighbour makes a device forget a neighbour, whoever made it known.
func (l *Learned) DeleteNeighbour(device int, ip netip.Addr) error {
	return gone(l.conn.do(unix.RTM_DELNEIGH, 0, ndmsg(family(ip), device, 0, 0).addr(unix.NDA_DST, ip)))
}

// Sweep deletes all neighbours that SetNeighbour made, in this life or another.
func (l *Learned) Sweep() error {
	_, err := l.conn.sweepLearned()
	return err
}

func (c conn) sweepLearned() (n int, err error) {
	var ours []request
	err = again(func() error {
		ours = nil
		return c.listBoth(0, func(n neighbour) {
			if n.protocol == protocol && n.flags&unix.NTF_EXT_LEARNED != 0 {
				ours = append(ours, request{kind: unix.RTM_DELNEIGH, message: ndmsg(n.family, n.index, 0, 0).addr(unix.NDA_DST, n.dst), done: gone})
			}
		})
	})
	if err != nil {
		return 0, fmt.Errorf("list neighbours: %w", err)
	}
	return len(ours), c.change(ours)
}

// change makes requests, many at a time, and goes on past one that fails.
func (c conn) change(requests []request) error {
	var errs errorList
	for some := range slices.Chunk(requests, batch) {
		for _, err := range c.doAll(some) {
			errs.add("", err)
		}
	}
	return errs.join()
}

// VTEP returns where a VXLAN device sends frames to a MAC; not valid if it does not know. Linux ≥ 5.0.
func (l *Learned) VTEP(device int, mac backend.MAC) netip.Addr {
	return l.lookUp(ndmsg(unix.AF_BRIDGE, device, 0, unix.NTF_SELF), mac).dst
}

// Port returns the ifindex of the port that a bridge knows a MAC behind, or its own; 0 if it does not know. Linux ≥ 5.0.
func (l *Learned) Port(bridge int, mac backend.MAC) int {
	return l.lookUp(ndmsg(unix.AF_BRIDGE, 0, 0, 0).uint32(unix.NDA_MASTER, uint32(bridge)), mac).index
}

// lookUp asks for one FDB entry. None is the zero one.
func (l *Learned) lookUp(m message, mac backend.MAC) (found neighbour) {
	err := l.conn.ask(request{kind: unix.RTM_GETNEIGH, message: m.attr(unix.NDA_LLADDR, mac[:])}, func(entry []byte) { found = parseNeighbour(entry) })
	if err != nil {
		return neighbour{}
	}
	return found
}

// ForgetVTEPs makes a VXLAN device forget what MACs it learned behind hosts that are gone, and returns them.
func (l *Learned) ForgetVTEPs(device int, left func(netip.Addr) bool) (macs map[backend.MAC]bool, err error) {
	var requests []request
	err = again(func() error {
		macs, requests = map[backend.MAC]bool{}, nil
		return l.conn.listNeighbours(unix.AF_BRIDGE, device, func(n neighbour) {
			if n.state&unix.NUD_PERMANENT == 0 && left(n.dst) {
				macs[n.mac] = true
				m := ndmsg(unix.AF_BRIDGE, device, 0, unix.NTF_SELF).addr(unix.NDA_DST, n.dst).attr(unix.NDA_LLADDR, n.mac[:])
				requests = append(requests, request{kind: unix.RTM_DELNEIGH, message: m, done: gone})
			}
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list FDB: %w", err)
	}
	return macs, l.conn.change(requests)
}
