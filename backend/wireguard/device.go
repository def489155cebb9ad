package wireguard

import (
	"fmt"
	"maps"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// device is a WireGuard device, whoever stands behind it.
type device interface {
	// look returns what the device has.
	look() (held, error)
	// setTunnel changes that of the device itself in which want differs from have. A private key is changed in place: what peers
	// send with the sessions of before is still received.
	setTunnel(have, want backend.Tunnel) error
	// setPeers adds peers, or changes them to be so. Inner addresses move to a peer from the one that had them.
	setPeers(peers []peer) error
	deletePeers(keys []backend.Key) error
	// greet makes the device begin a handshake with each of these peers, which have no keepalive of their own.
	greet(keys []backend.Key) error
	close()
}

// chunk is how many peers a device is told of at a time.
const chunk = 32

// held is what a device has.
type held struct {
	backend.Tunnel
	peers []heldPeer
}

// heldPeer is a peer as a device has it.
type heldPeer struct {
	peer
	handshake time.Time // the last; zero if there was none
}

type peer struct {
	key backend.Key
	backend.Peer
}

// fresh is how old a peer's last handshake can be while its sessions are in use (REJECT_AFTER_TIME, WireGuard's paper, 6.1).
const fresh = 180 * time.Second

// roamed reports whether a peer is at another endpoint than its lease says because its packets come from there: WireGuard follows
// them, and of a host behind a NAT it is the only one that knows. told is the endpoint that the device was told last, if that is known:
// what the lease has said since counts for more.
func (p heldPeer) roamed(want backend.Peer, told netip.AddrPort, now time.Time) bool {
	return p.Endpoint.IsValid() && now.Sub(p.handshake) < fresh && (!told.IsValid() || told == want.Endpoint)
}

// allow adds a prefix to what is sent to a peer. None of ours has two of a family: one that has is as no peer is to be.
func (p *peer) allow(prefix netip.Prefix) {
	at := p.Allowed.At(subnet.FamilyOf(prefix.Addr()))
	if at.IsValid() {
		prefix = netip.PrefixFrom(prefix.Addr(), 0)
	}
	*at = prefix
}

// difference is what leads from what devices have to what is wanted.
type difference struct {
	backend.Changes
	devices map[string]*todo
}

// todo is what is to be done to the peers of one device.
type todo struct {
	set      []peer        // those of the Changes, and those whose endpoint is out of date
	moved    []backend.Key // those of set that take over another's inner addresses
	replaced []backend.Key // the others, which are to be deleted
	del      []backend.Key // the rest of them
}

// at is what is to be done to a device.
func (d *difference) at(device string) *todo {
	if d.devices == nil {
		d.devices = map[string]*todo{}
	}
	if d.devices[device] == nil {
		d.devices[device] = &todo{}
	}
	return d.devices[device]
}

// replaces reports whether inner addresses move to another peer.
func (d *difference) replaces() bool {
	for _, t := range d.devices {
		if len(t.replaced) > 0 {
			return true
		}
	}
	return false
}

// compare compares what devices have with want. An endpoint that is out of date, as that of a peer that roamed and went silent, is
// put back where the lease says, but nobody has changed it.
func compare(have map[string]held, want backend.State, told map[backend.PeerKey]netip.AddrPort, now time.Time) (d difference) {
	tunnels, peers := backend.Compare(want.Tunnels), backend.Compare(want.Peers)
	for name, h := range have {
		tunnels.See(name, h.Tunnel)
		for _, p := range h.peers {
			key := backend.PeerKey{Dev: name, Key: p.key}
			wanted, exists := want.Peers[key]
			if exists && p.Endpoint != wanted.Endpoint {
				if !p.roamed(wanted, told[key], now) {
					d.at(name).set = append(d.at(name).set, peer{p.key, wanted})
				}
				p.Endpoint = wanted.Endpoint
			}
			peers.See(key, p.Peer)
		}
	}
	unseen := func(device string) bool { _, seen := have[device]; return !seen }
	maps.DeleteFunc(tunnels.Set, func(name string, _ backend.Tunnel) bool { return unseen(name) })
	maps.DeleteFunc(peers.Set, func(k backend.PeerKey, _ backend.Peer) bool { return unseen(k.Dev) })
	d.Tunnels, d.Peers = tunnels.Delta, peers.Delta
	d.sort()
	return d
}

// sort finds out what the changes of peers mean for devices. Inner addresses may move to a peer of another device.
func (d *difference) sort() {
	heirs := map[netip.Prefix]backend.PeerKey{}
	for k, p := range d.Peers.Set {
		d.at(k.Dev).set = append(d.at(k.Dev).set, peer{k.Key, p})
		for _, prefix := range p.Allowed.All() {
			heirs[prefix] = k
		}
	}
	for k, p := range d.Peers.Del {
		last := backend.PeerKey{}
		for _, prefix := range p.Allowed.All() {
			if heir, moved := heirs[prefix]; moved && heir != last {
				last, d.at(heir.Dev).moved = heir, append(d.at(heir.Dev).moved, heir.Key)
			}
		}
		if t := d.at(k.Dev); last != (backend.PeerKey{}) {
			t.replaced = append(t.replaced, k.Key)
		} else {
			t.del = append(t.del, k.Key)
		}
	}
}

// missing is a device that is not there.
type missing string

func (m missing) gone() error                         { return fmt.Errorf("device %s: %w", string(m), unix.ENODEV) }
func (m missing) look() (held, error)                 { return held{}, m.gone() }
func (m missing) setTunnel(_, _ backend.Tunnel) error { return m.gone() }
func (m missing) setPeers([]peer) error               { return m.gone() }
func (m missing) deletePeers([]backend.Key) error     { return m.gone() }
func (m missing) greet([]backend.Key) error           { return m.gone() }
func (missing) close()                                {}
