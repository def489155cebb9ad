package wireguard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/tulle-net/tulle/backend"
)

// kernelDevice is a device that the kernel stands behind. Package kernel makes it.
type kernelDevice struct {
	name   string
	client *wgctrl.Client
	links  *netlink.Handle
}

// openKernel returns the kernel's device of this name in the calling thread's network namespace. It need not be there yet.
func openKernel(links *netlink.Handle, name string) (*kernelDevice, error) {
	client, err := wgctrl.New()
	if err != nil {
		return nil, err
	}
	return &kernelDevice{name, client, links}, nil
}

func (k *kernelDevice) close() { k.client.Close() }

// hasWireGuard finds out whether the kernel has WireGuard, by making a device: it loads the module then.
func hasWireGuard(links *netlink.Handle) (bool, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = backend.Prefix + "-new" // package kernel takes what is left of this name for its own
	link := &netlink.Wireguard{LinkAttrs: attrs}
	err := links.LinkAdd(link)
	if errors.Is(err, unix.EEXIST) {
		err = errors.Join(links.LinkDel(link), links.LinkAdd(link))
	}
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("find out whether this kernel has WireGuard: %w", err)
	}
	return true, links.LinkDel(link)
}

// look fails with errForeign if the device is somebody else's.
func (k *kernelDevice) look() (h held, err error) {
	link, err := ours(k.links, k.name)
	if err != nil {
		return h, err
	}
	if link == nil {
		return h, fmt.Errorf("device %s: %w", k.name, unix.ENODEV)
	}
	d, err := k.client.Device(k.name)
	if err != nil {
		return h, fmt.Errorf("device %s: %w", k.name, err)
	}
	h.Key, h.Port = backend.Secret(d.PrivateKey), uint16(d.ListenPort)
	h.peers = make([]heldPeer, 0, len(d.Peers))
	for _, p := range d.Peers {
		h.peers = append(h.peers, readPeer(p))
	}
	return h, nil
}

func readPeer(p wgtypes.Peer) (r heldPeer) {
	r.key, r.handshake = backend.Key(p.PublicKey), p.LastHandshakeTime
	r.PSK, r.Keepalive = backend.Secret(p.PresharedKey), int(p.PersistentKeepaliveInterval.Seconds())
	if p.Endpoint != nil {
		e := p.Endpoint.AddrPort()
		r.Endpoint = netip.AddrPortFrom(e.Addr().Unmap(), e.Port())
	}
	for _, n := range p.AllowedIPs {
		a, _ := netip.AddrFromSlice(n.IP)
		bits, _ := n.Mask.Size()
		r.allow(netip.PrefixFrom(a.Unmap(), bits))
	}
	return r
}

func (k *kernelDevice) setTunnel(have, want backend.Tunnel) error {
	var c wgtypes.Config
	if have.Key != want.Key {
		key := wgtypes.Key(want.Key)
		c.PrivateKey = &key
	}
	if have.Port != want.Port {
		port := int(want.Port)
		c.ListenPort = &port
	}
	return explainPort(k.client.ConfigureDevice(k.name, c), want.Port)
}

func (k *kernelDevice) setPeers(peers []peer) error {
	list := make([]wgtypes.PeerConfig, 0, len(peers))
	for _, p := range peers {
		psk, keepalive := wgtypes.Key(p.PSK), time.Duration(p.Keepalive)*time.Second
		c := wgtypes.PeerConfig{PublicKey: wgtypes.Key(p.key), PresharedKey: &psk, Endpoint: net.UDPAddrFromAddrPort(p.Endpoint),
			PersistentKeepaliveInterval: &keepalive, ReplaceAllowedIPs: true}
		for _, prefix := range p.Allowed.All() {
			c.AllowedIPs = append(c.AllowedIPs, net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())})
		}
		list = append(list, c)
	}
	return k.client.ConfigureDevice(k.name, wgtypes.Config{Peers: list})
}

func (k *kernelDevice) deletePeers(keys []backend.Key) error {
	return k.each(keys, wgtypes.PeerConfig{Remove: true})
}

// greet switches keepalive on, upon which the kernel sends a packet at once, and off again (set_peer, drivers/net/wireguard/netlink.c).
func (k *kernelDevice) greet(keys []backend.Key) error {
	on, off := time.Second, time.Duration(0)
	return errors.Join(k.each(keys, wgtypes.PeerConfig{UpdateOnly: true, PersistentKeepaliveInterval: &on}),
		k.each(keys, wgtypes.PeerConfig{UpdateOnly: true, PersistentKeepaliveInterval: &off}))
}

// each configures several peers alike, many at a time.
func (k *kernelDevice) each(keys []backend.Key, c wgtypes.PeerConfig) error {
	for part := range slices.Chunk(keys, chunk) {
		list := make([]wgtypes.PeerConfig, len(part))
		for i, key := range part {
			list[i] = c
			list[i].PublicKey = wgtypes.Key(key)
		}
		if err := k.client.ConfigureDevice(k.name, wgtypes.Config{Peers: list}); err != nil {
			return err
		}
	}
	return nil
}
