package backend

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"

	"github.com/tulle-net/tulle/subnet"
)

// wireguard carries packets encrypted and authenticated. On the wire it is flannel's wireguard.
type wireguard struct {
	port, mtu, keepalive int
	psk                  Secret
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

func newWireGuard(o options) (Backend, error) {
	w := struct {
		PSK, Mode                                                  string
		ListenPort, ListenPortV6, MTU, PersistentKeepaliveInterval int
	}{ListenPort: 51820, ListenPortV6: 51821, Mode: "separate"}
	if err := o.read(&w); err != nil {
		return nil, err
	}
	if modes := []string{"separate", "auto", "ipv4", "ipv6"}; !slices.Contains(modes, strings.ToLower(w.Mode)) {
		return nil, &subnet.ConfigError{Key: "Backend.Mode", Reason: "not one of " + strings.Join(modes, ", ")}
	}
	psk := Key{}
	if w.PSK != "" {
		var err error
		if psk, err = ParseKey(w.PSK); err != nil {
			return nil, &subnet.ConfigError{Key: "Backend.PSK", Reason: err.Error()}
		}
	}
	return wireguard{w.ListenPort, w.MTU, w.PersistentKeepaliveInterval, Secret(psk)}, within(
		limit{"ListenPort", w.ListenPort, 1, 65535, ""}, limit{"ListenPortV6", w.ListenPortV6, 1, 65535, ""}, outerMTU(w.MTU, wireguardOverhead),
		limit{"PersistentKeepaliveInterval", w.PersistentKeepaliveInterval, 0, 65535, " (seconds; 0 for none)"})
}

func (wireguard) Needs() Needs { return Needs{WireGuard: true} }

func (b wireguard) Announce(_ Underlay, f Facts) (string, subnet.Pair[string]) {
	return "wireguard", dataOf(wireguardData{f.Key.Public().String(), uint16(b.port)})
}

func (wireguard) Inside(l subnet.Lease) subnet.Pair[netip.Addr] { return first(l) }

func (b wireguard) Fixed(h Host) (State, error) {
	mtu, err := h.inner(b.mtu, wireguardOverhead, "WireGuard")
	if err != nil {
		return State{}, err
	}
	kind := KindWireGuard
	if h.Facts.Userspace {
		kind = KindTUN
	}
	s := h.common(mtu)
	s.Links[wireguardDevice] = Link{Kind: kind, MTU: mtu}
	s.Tunnels[wireguardDevice] = Tunnel{Port: uint16(b.port), Key: h.Facts.Key}
	s.Addrs[Addr{wireguardDevice, netip.PrefixFrom(first(h.Self).V4, 32)}] = struct{}{}
	s.Firewall.Tunnel = wireguardDevice
	return s, nil
}

func (b wireguard) Peer(h Host, l subnet.Lease) (Part, error) {
	if err := h.accept(l); err != nil {
		return Part{}, err
	}
	if err := carriedBy("wireguard", l); err != nil {
		return Part{}, err
	}
	var data wireguardData
	if err := json.Unmarshal([]byte(l.Data.V4), &data); err != nil || data.Port == 0 {
		return Part{}, subnet.Rejectf(subnet.BadValue, "BackendData is not {\"PublicKey\":…,\"Port\":…}: %s", l.Data.V4)
	}
	key, err := ParseKey(data.PublicKey)
	if err != nil || key == (Key{}) {
		return Part{}, subnet.Rejectf(subnet.BadValue, "PublicKey %q is not a WireGuard public key", data.PublicKey)
	}
	if h.Facts.Key != (Secret{}) && key == h.Facts.Key.Public() {
		return Part{}, subnet.Rejectf(subnet.Conflict, "PublicKey %s is this host's own: was its key file copied?", key)
	}
	return Part{
		Peers: row(PeerKey{wireguardDevice, key}, Peer{Endpoint: netip.AddrPortFrom(l.PublicIP.V4, data.Port),
			Allowed: subnet.PairOf(subnet.IPv4, l.Subnet.V4), PSK: b.psk, Keepalive: b.keepalive}),
		Routes: row(l.Subnet.V4, Route{Dev: wireguardDevice}),
	}, nil
}
