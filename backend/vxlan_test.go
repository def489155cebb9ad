package backend

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/subnet"
)

func TestNew(t *testing.T) {
	t.Parallel()
	defaults := vxlan{VNI: 1, Port: 8472}
	for _, test := range []struct {
		name, backend string // the Backend object
		want          vxlan
	}{
		{"no backend", ``, defaults},
		{"no type", `{}`, defaults},
		{"no options", `{"Type":"VXLAN"}`, defaults},
		{"all options", `{"Type":"vxlan","VNI":42,"Port":4789,"MTU":9000,"GBP":true,"Learning":true,"DirectRouting":true}`, vxlan{42, 4789, 9000, true, true, true}},
		{"keys in any case", `{"type":"vxlan","vni":42,"directrouting":true}`, vxlan{VNI: 42, Port: 8472, DirectRouting: true}},
		{"least", `{"VNI":1,"Port":1,"MTU":626}`, vxlan{VNI: 1, Port: 1, MTU: 626}},
		{"most", `{"VNI":16777215,"Port":65535,"MTU":65535}`, vxlan{VNI: 16777215, Port: 65535, MTU: 65535}},
		{"0 stands for the default", `{"Port":0,"MTU":0}`, defaults},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := `{"Network":"10.5.0.0/16"}`
			if test.backend != "" {
				text = `{"Network":"10.5.0.0/16","Backend":` + test.backend + `}`
			}
			b, err := New(mustConfig(t, text))
			if err != nil || b != test.want {
				t.Errorf("got  %+v, %v\nwant %+v", b, err, test.want)
			}
		})
	}
}

func TestNewErrors(t *testing.T) {
	t.Parallel()
	const mtuHint = " (it is the underlay's MTU; leave it out to take the device's)"
	v6 := `"EnableIPv6":true,"IPv6Network":"fd12:3456::/48",`
	for _, test := range []struct{ name, v6, backend, want string }{
		{"VNI 0", "", `{"VNI":0}`, "Backend.VNI: 0 is not within 1 and 16777215"},
		{"VNI too large", "", `{"VNI":16777216}`, "Backend.VNI: 16777216 is not within 1 and 16777215"},
		{"VNI negative", "", `{"VNI":-1}`, "Backend.VNI: -1 is not within 1 and 16777215"},
		{"VNI a string", "", `{"VNI":"1"}`, "Backend.VNI: a string does not belong here, a whole number in range does"},
		{"VNI huge", "", `{"VNI":1e99}`, "Backend.VNI: a number 1e99 does not belong here, a whole number in range does"},
		{"Port too large", "", `{"Port":65536}`, "Backend.Port: 65536 is not within 1 and 65535"},
		{"Port negative", "", `{"Port":-1}`, "Backend.Port: -1 is not within 1 and 65535"},
		{"MTU too small", "", `{"MTU":625}`, "Backend.MTU: 625 is not within 626 and 65535" + mtuHint},
		{"MTU too large", "", `{"MTU":65536}`, "Backend.MTU: 65536 is not within 626 and 65535" + mtuHint},
		{"MTU negative", "", `{"MTU":-1}`, "Backend.MTU: -1 is not within 626 and 65535" + mtuHint},
		{"GBP a number", "", `{"GBP":1}`, "Backend.GBP: a number does not belong here, true or false does"},
		{"another type", "", `{"Type":"Carrier-Pigeon"}`, `Backend.Type: "carrier-pigeon" is not a type that this version of tulle knows: it knows vxlan, host-gw, wireguard, udp, ipip, l2, alloc, extension`},
		{"another type's key", "", `{"Type":"host-gw","VNI":1}`, "Backend.VNI: not a key of this type, which knows Type: leave it out, or write it as it is written there"},
		{"misspelt", "", `{"Type":"vxlan","DirectRoute":true}`, "Backend.DirectRoute: not a key of this type, which knows Type, VNI, Port, MTU, GBP, Learning, DirectRouting: leave it out, or write it as it is written there"},
		{"udp's port", "", `{"Type":"udp","Port":65536}`, "Backend.Port: 65536 is not within 1 and 65535"},
		{"a short PSK", "", `{"Type":"wireguard","PSK":"c2VjcmV0"}`, "Backend.PSK: 6 bytes long: a key is 32 bytes in base64, 44 characters, as wg genkey and wg genpsk print it"},
		{"a PSK in hex", "", `{"Type":"wireguard","PSK":"zz-zz"}`, "Backend.PSK: not base64: a key is 32 bytes in base64, 44 characters, as wg genkey and wg genpsk print it"},
		{"no such mode", "", `{"Type":"wireguard","Mode":"both"}`, "Backend.Mode: not one of separate, auto, ipv4, ipv6"},
		{"ListenPort 0", "", `{"Type":"wireguard","ListenPort":0}`, "Backend.ListenPort: 0 is not within 1 and 65535"},
		{"keepalive", "", `{"Type":"wireguard","PersistentKeepaliveInterval":-1}`, "Backend.PersistentKeepaliveInterval: -1 is not within 0 and 65535 (seconds; 0 for none)"},
		{"a command that is none", "", `{"Type":"extension","SubnetAddCommand":["ip"]}`, "Backend.SubnetAddCommand: a array does not belong here, a string does"},
		{"IPv6", v6, `{"Type":"ipip"}`, "EnableIPv6: ipip carries IPv4 only: leave it out, or choose another Backend.Type"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b, err := New(mustConfig(t, `{`+test.v6+`"Network":"10.5.0.0/16","Backend":`+test.backend+`}`))
			var wrong *subnet.ConfigError
			if !errors.As(err, &wrong) || b != nil {
				t.Fatalf("got %v, %v, want a ConfigError", b, err)
			}
			if err.Error() != test.want {
				t.Errorf("got  %s\nwant %s", err, test.want)
			}
		})
	}
}

// Peers know a host by the MAC that it announced in an earlier life, so another derivation would cut upgraded hosts off.
func TestAnnounce(t *testing.T) {
	t.Parallel()
	b, h := testHost(t, "")
	l := b.Announce(h)
	if want := `{"VNI":1,"VtepMAC":"f6:e6:73:bb:db:a3"}`; l.Backend != "vxlan" || l.Data != subnet.PairOf(subnet.IPv4, want) {
		t.Errorf("announces %+v, want %s", l, want)
	}
	var announced vxlanData
	if err := json.Unmarshal([]byte(l.Data.V4), &announced); err != nil {
		t.Fatal(err)
	}
	moved := h // another device, another address on it, another place in the overlay
	moved.Underlay.Device, moved.Underlay.MTU, moved.Underlay.Local = "eth1", 9000, v4Addr("172.31.0.1")
	moved.Self.Subnet.V4 = netip.MustParsePrefix("10.5.8.0/22")
	for _, h := range []Host{h, moved} {
		s, err := b.Fixed(h)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Links["tulle.1"].MAC.String(); got != announced.VtepMAC {
			t.Errorf("device has %s, announced is %s", got, announced.VtepMAC)
		}
	}
}

func TestDeriveMAC(t *testing.T) {
	t.Parallel()
	seen := map[MAC]string{}
	for vni := range 4 {
		for host := range 1000 {
			h := Host{Underlay: Underlay{Public: v4Addr(fmt.Sprintf("192.0.%d.%d", host>>8, host&255))}}
			v := vxlan{VNI: uint32(vni)}
			mac, facts := v.mac(h, subnet.IPv4), fmt.Sprint(vni, h.Underlay.Public.V4)
			if !mac.Unicast() || mac[0]&2 == 0 {
				t.Errorf("%s: %s is not unicast and locally administered", facts, mac)
			}
			if again := v.mac(h, subnet.IPv4); again != mac {
				t.Errorf("%s: %s, then %s", facts, mac, again)
			}
			if other, ok := seen[mac]; ok {
				t.Errorf("%s: %s, as for %s", facts, mac, other)
			}
			seen[mac] = facts
		}
	}
}

// A host that flannel ran on keeps flannel's MAC, which its lease tells peers, for as long as it is at that address.
func TestLeasedMAC(t *testing.T) {
	t.Parallel()
	v, here := vxlan{VNI: 1}, v4Addr("192.0.2.1")
	derived := v.mac(Host{Underlay: Underlay{Public: here}}, subnet.IPv4).String()
	const flannels = "a6:59:a7:17:56:cd"
	for _, test := range []struct {
		why, backend, data, want string
		public                   subnet.Pair[netip.Addr]
	}{
		{"as flannel wrote it", "vxlan", `{"VNI":1,"VtepMAC":"a6:59:a7:17:56:cd"}`, flannels, here},
		{"of another address", "vxlan", `{"VNI":1,"VtepMAC":"a6:59:a7:17:56:cd"}`, derived, v4Addr("192.0.2.2")},
		{"of another network", "vxlan", `{"VNI":2,"VtepMAC":"a6:59:a7:17:56:cd"}`, derived, here},
		{"of another type", "wireguard", `{"VNI":1,"VtepMAC":"a6:59:a7:17:56:cd"}`, derived, here},
		{"a card's", "vxlan", `{"VNI":1,"VtepMAC":"00:1b:21:17:56:cd"}`, derived, here},
		{"a group's", "vxlan", `{"VNI":1,"VtepMAC":"a7:59:a7:17:56:cd"}`, derived, here},
		{"none", "vxlan", `{"VNI":1}`, derived, here},
		{"nothing", "", "", derived, here},
	} {
		h := Host{Underlay: Underlay{Public: here}, Self: subnet.Lease{PublicIP: test.public, Backend: test.backend, Data: subnet.PairOf(subnet.IPv4, test.data)}}
		if got := v.mac(h, subnet.IPv4).String(); got != test.want {
			t.Errorf("a lease with a MAC %s: the device has %s, want %s", test.why, got, test.want)
		}
	}
}

func TestFixedErrors(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, options string
		change        func(u *Underlay)
		want          string // the start of it
	}{
		{"no IPv4 address", "", func(u *Underlay) { u.Local.V4 = netip.Addr{} }, "device eth0 has no IPv4 address"},
		{"small MTU", "", func(u *Underlay) { u.MTU = 625 }, "device eth0 has MTU 625, which leaves 575 inside VXLAN, less than 576"},
		{"smallest MTU", "", func(u *Underlay) { u.MTU = 626 }, ""},
		{"small MTU, another configured", `,"MTU":1500`, func(u *Underlay) { u.MTU = 600 }, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			b, h := testHost(t, test.options)
			test.change(&h.Underlay)
			_, err := b.Fixed(h)
			if (err != nil) != (test.want != "") || err != nil && !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}

func TestExcluded(t *testing.T) {
	t.Parallel()
	u := Underlay{}
	for _, p := range []string{"10.5.200.0/24", "192.0.2.0/24", "10.5.7.1/32", "10.0.0.0/8", "10.5.7.1/32", "fd12::/64"} {
		u.OnLink = append(u.OnLink, netip.MustParsePrefix(p))
	}
	for _, test := range []struct{ config, want string }{
		{`{"Network":"10.5.0.0/16"}`, "[10.5.200.0/24 10.5.7.1/32 10.0.0.0/8]"},
		{`{"Network":"172.16.0.0/12"}`, "[]"},
		{`{"Network":"172.16.0.0/12","EnableIPv6":true,"IPv6Network":"fd12::/48"}`, "[fd12::/64]"},
	} {
		if got := fmt.Sprint(u.Excluded(mustConfig(t, test.config))); got != test.want {
			t.Errorf("%s: got %s, want %s", test.config, got, test.want)
		}
	}
}

func TestBridgeAddrs(t *testing.T) {
	t.Parallel()
	l, err := subnet.ParseLease("10.5.85.0-24&fd12:3456:0:34::-64", []byte(`{"PublicIP":"192.0.2.1"}`))
	if err != nil {
		t.Fatal(err)
	}
	want := subnet.Pair[netip.Prefix]{V4: netip.MustParsePrefix("10.5.85.1/24"), V6: netip.MustParsePrefix("fd12:3456:0:34::1/64")}
	if got := (Host{Config: mustConfig(t, `{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd12:3456::/48"}`), Self: l}).BridgeAddrs(); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestCheckBridge(t *testing.T) {
	t.Parallel()
	for name, good := range map[string]bool{
		"docker0": true, "br-1234567890ab": true, "": true, "tulle0": true,
		"br-1234567890abc": false, "a/b": false, "a b": false, "eth0:1": false, "br%d": false, ".": false, "..": false, "tulle.1": false, "tulle-wg": false, "a\n": false,
	} {
		if err := CheckBridge(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestMACUnicast(t *testing.T) {
	t.Parallel()
	for mac, want := range map[MAC]bool{
		{}: false, {0, 0, 0, 0, 0, 1}: true, {2}: true, {1}: false, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}: false, {0x33, 0x33}: false,
	} {
		if got := mac.Unicast(); got != want {
			t.Errorf("%s: %t", mac, got)
		}
	}
}

// Whatever somebody writes into etcd, no route may leave the network, or take over what this host or its underlay has.
func FuzzPeer(f *testing.F) {
	const key = "10.5.32.0-22"
	for _, key := range []string{key, "10.5.4.0-22", "10.5.4.8-30", "10.5.16.0-22", "10.5.0.0-16", "0.0.0.0-1", "192.0.2.0-24", "fd12::-64", "10.5.32.0-22&fd12::-64", "10.5.33.7-32"} {
		f.Add(key, []byte(`{"PublicIP":"192.0.2.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}`))
	}
	for _, value := range []string{
		`{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}`,
		`{"PublicIP":"192.0.2.2","BackendType":"VXLAN","BackendData":{"VNI":1,"VtepMAC":"0200.0000.0009"}}`,
		`{"PublicIP":"10.5.32.7","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"f6:e6:73:bb:db:a3"}}`,
		`{"PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendV6Data":{"VNI":1}}`, `{"PublicIP":"192.0.2.9","BackendData":"x"}`, `[]`, ``,
	} {
		f.Add(key, []byte(value))
	}
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		l, err := subnet.ParseLease(key, value)
		if err != nil {
			return
		}
		for _, options := range []string{"", `,"DirectRouting":true`} {
			b, h := testHost(t, options)
			s, err := b.Peer(h, l)
			if reject := (*subnet.Reject)(nil); err != nil && !errors.As(err, &reject) {
				t.Errorf("%#v is not a Reject", err)
			}
			if err == nil && len(s.Routes) != 1 {
				t.Errorf("accepted, but no route")
			}
			checkPart(t, h, s)
		}
	})
}

func checkPart(t *testing.T, h Host, part Part) {
	t.Helper()
	own, network := h.Self.Subnet.V4, h.Config.Range.V4.Network
	for _, r := range part.Routes {
		if dst := r.Key; !network.Contains(dst.Addr()) || dst.Bits() <= network.Bits() || dst != dst.Masked() {
			t.Errorf("route to %s, outside %s", dst, network)
		}
		if r.Key.Overlaps(own) || slices.ContainsFunc(h.Underlay.OnLink, r.Key.Overlaps) {
			t.Errorf("route to %s, over our own %s or %v", r.Key, own, h.Underlay.OnLink)
		}
	}
	for _, r := range part.FDB {
		if !r.Key.MAC.Unicast() || !r.Value.Is4() || r.Value == h.Underlay.Public.V4 {
			t.Errorf("fdb %s to %s", r.Key.MAC, r.Value)
		}
	}
	for _, r := range part.Neighbours {
		if !network.Contains(r.Key.IP) || own.Contains(r.Key.IP) || !r.Value.Unicast() {
			t.Errorf("neighbour %s at %s", r.Key.IP, r.Value)
		}
	}
}
