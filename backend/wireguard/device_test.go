package wireguard

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// An endpoint is put back where the lease says only if nothing comes from elsewhere, or if the lease says so since.
func TestRoaming(t *testing.T) {
	now := time.Unix(1700000000, 0)
	leased, elsewhere, before := netip.MustParseAddrPort("192.0.2.2:51820"), netip.MustParseAddrPort("198.51.100.1:4711"), netip.MustParseAddrPort("192.0.2.3:51820")
	key := backend.Key{1}
	wanted := backend.Peer{Endpoint: leased, Allowed: subnet.PairOf(subnet.IPv4, netip.MustParsePrefix("10.5.2.0/24"))}
	for name, test := range map[string]struct {
		have, told netip.AddrPort
		age        time.Duration
		set        int
	}{
		"as leased":                 {leased, leased, time.Minute, 0},
		"roamed":                    {elsewhere, leased, 179 * time.Second, 0},
		"roamed in an earlier life": {elsewhere, netip.AddrPort{}, 179 * time.Second, 0},
		"roamed, and silent":        {elsewhere, leased, 181 * time.Second, 1},
		"moved":                     {before, before, time.Second, 1},
		"nowhere":                   {netip.AddrPort{}, leased, time.Second, 1},
	} {
		want := backend.NewState()
		want.Peers[backend.PeerKey{Dev: "tulle-wg", Key: key}] = wanted
		p := wanted
		p.Endpoint = test.have
		have := map[string]held{"tulle-wg": {peers: []heldPeer{{peer{key, p}, now.Add(-test.age)}}}}
		d := compare(have, want, map[backend.PeerKey]netip.AddrPort{{Dev: "tulle-wg", Key: key}: test.told}, now)
		if set := len(d.at("tulle-wg").set); set != test.set || d.Peers.Len() != 0 {
			t.Errorf("%s: sets %d, changes %v", name, set, d.Count())
		}
	}
}

// A peer that takes over another's addresses is told from one that joins, and the one that is replaced from one that leaves: on one device,
// and where a host is reached by another.
func TestMoved(t *testing.T) {
	prefix := func(n byte) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, n, 0}), 24) }
	prefix6 := func(n byte) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 5: n}), 64) }
	only := func(n byte) backend.Peer { return backend.Peer{Allowed: subnet.PairOf(subnet.IPv4, prefix(n))} }
	only6 := func(n byte) backend.Peer { return backend.Peer{Allowed: subnet.PairOf(subnet.IPv6, prefix6(n))} }
	both := func(n byte) backend.Peer {
		return backend.Peer{Allowed: subnet.Pair[netip.Prefix]{V4: prefix(n), V6: prefix6(n)}}
	}
	key := func(n byte) backend.PeerKey { return backend.PeerKey{Dev: "tulle-wg", Key: backend.Key{n}} }
	key6 := func(n byte) backend.PeerKey { return backend.PeerKey{Dev: "tulle-wg-v6", Key: backend.Key{n}} }
	d := difference{Changes: backend.Changes{Peers: backend.Delta[backend.PeerKey, backend.Peer]{
		Set: map[backend.PeerKey]backend.Peer{key(11): only(1), key(12): only(2), key(4): both(4)},
		Del: map[backend.PeerKey]backend.Peer{key(1): only(1), key(3): only(3), key6(4): only6(4), key6(5): only6(5)}}}}
	d.sort()
	for device, want := range map[string]todo{
		"tulle-wg":    {set: make([]peer, 3), moved: []backend.Key{{4}, {11}}, replaced: []backend.Key{{1}}, del: []backend.Key{{3}}},
		"tulle-wg-v6": {replaced: []backend.Key{{4}}, del: []backend.Key{{5}}},
	} {
		got := d.at(device)
		slices.SortFunc(got.moved, func(a, b backend.Key) int { return int(a[0]) - int(b[0]) })
		if len(got.set) != len(want.set) || !slices.Equal(got.moved, want.moved) || !slices.Equal(got.replaced, want.replaced) || !slices.Equal(got.del, want.del) {
			t.Errorf("%s: %+v", device, got)
		}
	}
}

// What a device tells is read, and what is garbled is refused without a word of the keys in it.
func TestParseHeld(t *testing.T) {
	key := strings.Repeat("ab", 32)
	text := "private_key=" + key + "\nlisten_port=51820\npublic_key=" + strings.Repeat("01", 32) + "\npreshared_key=" + strings.Repeat("02", 32) +
		"\nprotocol_version=1\nendpoint=192.0.2.2:51820\nlast_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\ntx_bytes=1\nrx_bytes=2\n" +
		"persistent_keepalive_interval=25\nallowed_ip=10.5.2.0/24\npublic_key=" + strings.Repeat("03", 32) + "\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\nallowed_ip=10.5.3.0/24\nallowed_ip=10.5.4.0/24\n"
	h, err := parseHeld(text)
	if err != nil {
		t.Fatal(err)
	}
	if h.Key[0] != 0xab || h.Port != 51820 || len(h.peers) != 2 {
		t.Errorf("%+v", h)
	}
	want := backend.Peer{Endpoint: netip.MustParseAddrPort("192.0.2.2:51820"), Keepalive: 25, Allowed: subnet.PairOf(subnet.IPv4, netip.MustParsePrefix("10.5.2.0/24"))}
	want.PSK = h.peers[0].PSK
	if p := h.peers[0]; p.key[31] != 1 || p.PSK[31] != 2 || p.Peer != want || !p.handshake.Equal(time.Unix(1700000000, 5)) {
		t.Errorf("%+v", p)
	}
	if p := h.peers[1]; !p.handshake.IsZero() || p.Allowed.V4.Bits() == 24 { // as no peer of ours is to be
		t.Errorf("%+v", p)
	}
	for _, bad := range []string{"private_key=" + key[1:], "private_key=" + key + "00", "private_key=" + strings.Repeat("xy", 32), "listen_port=70000"} {
		if _, err := parseHeld(bad); err == nil || strings.Contains(err.Error(), "abab") || strings.Contains(err.Error(), "xyxy") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
