package backend

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tulle-net/tulle/subnet"
)

// wireguard carries packets encrypted and authenticated. On the wire it is flannel's wireguard.
type wireguard struct {
	ports          subnet.Pair[uint16]
	mode           string
	mtu, keepalive int
	psk            Secret
}

// wireguardData is a wireguard lease's BackendData.
type wireguardData struct {
	PublicKey string // base64
	Port      uint16
}

const (
	wireguardDevice   = Prefix + "-wg"
	wireguardOverhead = 80 // bytes, as flannel reckons on any underlay: IPv6 40, UDP 8, WireGuard 32
)

// How families share devices. Flannel has these four.
const (
	separate = "separate" // a device for each family of the underlay
	auto     = "auto"     // one device, over IPv4 where both hosts have that
	onlyIPv4 = "ipv4"     // one device
	onlyIPv6 = "ipv6"
)

func newWireGuard(o options) (Backend, error) {
	w := struct {
		PSK, Mode                                                  string
		ListenPort, ListenPortV6, MTU, PersistentKeepaliveInterval int
	}{ListenPort: 51820, ListenPortV6: 51821, Mode: separate}
	if err := o.read(&w); err != nil {
		return nil, err
	}
	w.Mode = strings.ToLower(w.Mode)
	if modes := []string{separate, auto, onlyIPv4, onlyIPv6}; !slices.Contains(modes, w.Mode) {
		return nil, &subnet.ConfigError{Key: "Backend.Mode", Reason: "not one of " + strings.Join(modes, ", ")}
	}
	psk := Key{}
	if w.PSK != "" {
		var err error
		if psk, err = ParseKey(w.PSK); err != nil {
			return nil, &subnet.ConfigError{Key: "Backend.PSK", Reason: err.Error()}
		}
	}
	b := wireguard{subnet.Pair[uint16]{V4: uint16(w.ListenPort), V6: uint16(w.ListenPortV6)}, w.Mode, w.MTU, w.PersistentKeepaliveInterval, Secret(psk)}
	return b, within(
		limit{"ListenPort", w.ListenPort, 1, 65535, ""}, limit{"ListenPortV6", w.ListenPortV6, 1, 65535, ""}, outerMTU(w.MTU, wireguardOverhead),
		limit{"PersistentKeepaliveInterval", w.PersistentKeepaliveInterval, 0, 65535, " (seconds; 0 for none)"})
}

func (wireguard) Needs() Needs { return Needs{WireGuard: true} }

// on is h with the families of underlay that the mode allows.
func (b wireguard) on(h Host) Host {
	switch {
	case b.mode == onlyIPv4:
		h.Families = OnlyIPv4
	case b.mode == onlyIPv6:
		h.Families = OnlyIPv6
	case b.mode == auto && h.Families == Matching:
		h.Families = Both
	}
	return h
}

// device is the one over f, and its port.
func (b wireguard) device(f subnet.Family) (name string, port uint16) {
	if b.mode == separate && f == subnet.IPv6 {
		return wireguardDevice + "-v6", b.ports.V6
	}
	return wireguardDevice, b.ports.V4
}

// Announce tells of a device under each family that packets come by or, as flannel does where one has all, are of.
func (b wireguard) Announce(h Host) subnet.Lease {
	l := subnet.Lease{Backend: "wireguard", PublicIP: b.on(h).Public()}
	for _, f := range []subnet.Family{subnet.IPv4, subnet.IPv6} {
		if l.PublicIP.Of(f).IsValid() || b.mode != separate && h.Config.Range.Of(f) != (subnet.Range{}) {
			_, port := b.device(f)
			*l.Data.At(f) = dataOf(wireguardData{h.Facts.Key.Public().String(), port})
		}
	}
	return l
}

func (wireguard) Inside(l subnet.Lease) subnet.Pair[netip.Addr] { return first(l) }

func (b wireguard) Fixed(h Host) (State, error) {
	h = b.on(h)
	mtu, err := h.inner(b.mtu, subnet.Pair[int]{V4: wireguardOverhead, V6: wireguardOverhead}, "WireGuard")
	if err != nil {
		return State{}, err
	}
	kind := KindWireGuard
	if h.Facts.Userspace {
		kind = KindTUN
	}
	if public := h.Public(); b.mode == separate && b.ports.V4 == b.ports.V6 && public.V4.IsValid() && public.V6.IsValid() {
		return State{}, fmt.Errorf("ListenPort and ListenPortV6 are both %d, and this host needs a device for each of %s: give them different ports, or choose Mode auto", b.ports.V4, list(public))
	}
	s := h.common(mtu)
	for f := range h.Public().All() {
		name, port := b.device(f)
		if _, shared := s.Links[name]; shared {
			continue
		}
		s.Links[name] = Link{Kind: kind, MTU: mtu}
		s.Tunnels[name] = Tunnel{Port: port, Key: h.Facts.Key}
		s.Firewall.From.add(name)
		h.addresses(s, name)
	}
	for _, r := range h.Config.Range.All() {
		if h.closed(r.Network) {
			s.Routes[r.Network] = Route{Unreachable: true}
		}
	}
	return s, nil
}

// closed reports whether what goes to a range of the overlay may go nowhere else, whatever becomes of the device and of peers'
// routes: by the default route it would leave unencrypted. Where the underlay has a part of that range it must stay open.
func (h Host) closed(network netip.Prefix) bool {
	return !slices.ContainsFunc(h.Underlay.OnLink, network.Overlaps) && !network.Contains(h.Underlay.Local.Of(subnet.FamilyOf(network.Addr())))
}

func (b wireguard) Peer(h Host, l subnet.Lease) (p Part, err error) {
	h = b.on(h)
	legs, err := h.legs("wireguard", l)
	if err != nil {
		return Part{}, err
	}
	for _, g := range legs {
		if b.mode == auto && h.Public().V4.IsValid() && l.PublicIP.V4.IsValid() {
			g.outer, g.to = subnet.IPv4, l.PublicIP.V4
		}
		if network := h.Config.Range.Of(g.outer).Network; network.Contains(g.to) && h.closed(network) {
			return Part{}, subnet.Rejectf(subnet.BadAddress, "public address %s lies inside the overlay's %s, which nothing unencrypted leaves for: take it out of the network's range", g.to, network)
		}
		key, port, err := b.peerKey(h, l, g.outer)
		if err != nil {
			return Part{}, err
		}
		device, _ := b.device(g.outer)
		p.Routes = append(p.Routes, row(g.subnet, Route{Dev: device})...)
		peer := Row[PeerKey, Peer]{PeerKey{device, key}, Peer{Endpoint: netip.AddrPortFrom(g.to, port), PSK: b.psk, Keepalive: b.keepalive}}
		at := slices.IndexFunc(p.Peers, func(r Row[PeerKey, Peer]) bool { return r.Key == peer.Key })
		if at < 0 {
			at, p.Peers = len(p.Peers), append(p.Peers, peer)
		}
		*p.Peers[at].Value.Allowed.At(g.inner()) = g.subnet
	}
	return p, nil
}

// peerKey reads what l says of its device over f.
func (b wireguard) peerKey(h Host, l subnet.Lease, f subnet.Family) (Key, uint16, error) {
	text := l.Data.Of(f)
	if b.mode != separate && text == "" {
		text = l.Data.Of(f.Other()) // the same device
	}
	var data wireguardData
	if err := json.Unmarshal([]byte(text), &data); err != nil || data.Port == 0 {
		return Key{}, 0, subnet.Rejectf(subnet.BadValue, "%s is not {\"PublicKey\":…,\"Port\":…}: %s", dataKey(f), text)
	}
	key, err := ParseKey(data.PublicKey)
	if err != nil || key == (Key{}) {
		return Key{}, 0, subnet.Rejectf(subnet.BadValue, "PublicKey %q is not a WireGuard public key", data.PublicKey)
	}
	if h.Facts.Key != (Secret{}) && key == h.Facts.Key.Public() {
		return Key{}, 0, subnet.Rejectf(subnet.Conflict, "PublicKey %s is this host's own: was its key file copied?", key)
	}
	return key, data.Port, nil
}
