package wireguard

import (
	"net/netip"
	"time"

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

// difference is what leads from what a device has to what is wanted.
type difference struct {
	backend.Changes
	set      []peer        // those of the Changes, and those whose endpoint is out of date
	moved    []backend.Key // those of set that take over another's inner addresses
	replaced []backend.Key // the others, which are to be deleted
	del      []backend.Key // the rest of them
}

// compare compares what device name has with want. An endpoint that is out of date, as that of a peer that roamed and went silent, is
// put back where the lease says, but nobody has changed it.
func compare(name string, have held, want backend.State, told map[backend.Key]netip.AddrPort, now time.Time) (d difference) {
	tunnels := backend.Compare(map[string]backend.Tunnel{name: want.Tunnels[name]})
	tunnels.See(name, have.Tunnel)
	d.Tunnels = tunnels.Delta
	peers := backend.Compare(want.Peers)
	for _, p := range have.peers {
		key := backend.PeerKey{Dev: name, Key: p.key}
		wanted, exists := want.Peers[key]
		if exists && p.Endpoint != wanted.Endpoint {
			if !p.roamed(wanted, told[p.key], now) {
				d.set = append(d.set, peer{p.key, wanted})
			}
			p.Endpoint = wanted.Endpoint
		}
		peers.See(key, p.Peer)
	}
	d.Peers = peers.Delta
	d.sort()
	return d
}

// sort finds out what the changes of peers mean for a device.
func (d *difference) sort() {
	heirs := map[subnet.Pair[netip.Prefix]]backend.Key{}
	for k, p := range d.Peers.Set {
		d.set = append(d.set, peer{k.Key, p})
		heirs[p.Allowed] = k.Key
	}
	for k, p := range d.Peers.Del {
		if heir, moved := heirs[p.Allowed]; moved {
			d.moved, d.replaced = append(d.moved, heir), append(d.replaced, k.Key)
		} else {
			d.del = append(d.del, k.Key)
		}
	}
}
