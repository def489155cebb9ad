package backend

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/subnet"
)

func TestOuter(t *testing.T) {
	t.Parallel()
	for backend, want := range map[string]struct {
		Outer
		text string
	}{
		`{"Type":"vxlan","VNI":7,"Port":4789}`:        {Outer{"tulle.7", KindVXLAN, 4789}, "UDP port 4789"},
		`{"Type":"vxlan","DirectRouting":true}`:       {Outer{}, "packets with containers' addresses"},
		`{"Type":"host-gw"}`:                          {Outer{}, "packets with containers' addresses"},
		`{"Type":"ipip"}`:                             {Outer{"tulle-ipip", KindIPIP, 0}, "IP protocol 4 (IPIP)"},
		`{"Type":"ipip","DirectRouting":true}`:        {Outer{}, "packets with containers' addresses"},
		`{"Type":"udp","Port":9}`:                     {Outer{"tulle-udp", KindTUN, 9}, "UDP port 9"},
		`{"Type":"wireguard"}`:                        {Outer{"tulle-wg", KindWireGuard, 51820}, "UDP port 51820"},
		`{"Type":"l2"}`:                               {Outer{"tulle.1", KindVXLAN, 8472}, "UDP port 8472"},
		`{"Type":"alloc"}`:                            {Outer{}, "packets with containers' addresses"},
		`{"Type":"extension","SubnetAddCommand":":"}`: {Outer{}, "packets with containers' addresses"},
	} {
		config, _, err := subnet.ParseConfig([]byte(`{"Network":"10.5.0.0/16","Backend":` + backend + `}`))
		if err != nil {
			t.Fatal(err)
		}
		b, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		here := subnet.PairOf(subnet.IPv4, netip.MustParseAddr("192.0.2.1"))
		h := Host{Config: config, Self: subnet.Lease{Subnet: subnet.PairOf(subnet.IPv4, netip.MustParsePrefix("10.5.1.0/24")), PublicIP: here}, Options: Options{Bridge: "docker0"},
			Underlay: Underlay{Device: "eth0", MTU: 1500, Local: here, Public: here, OnLink: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}}
		peer, _ := Host{Config: config, Underlay: Underlay{Public: subnet.PairOf(subnet.IPv4, netip.MustParseAddr("192.0.2.2"))}, Facts: Facts{Key: Secret{2}}}.Announce(b)
		peer.Subnet = subnet.PairOf(subnet.IPv4, netip.MustParsePrefix("10.5.2.0/24"))
		p, err := NewPlan(b, h, map[string]subnet.Entry{peer.Key(): {Lease: peer, Created: 1}})
		if err != nil {
			t.Fatal(err)
		}
		if p.Peers() != 1 {
			t.Errorf("%s: left out is %v", backend, p.Rejected())
		}
		leg := p.Legs(peer).V4
		if got := leg.Outer; got != want.Outer || got.String() != want.text || leg.To != peer.PublicIP.V4 || leg.Subnet != peer.Subnet.V4 {
			t.Errorf("%s: %+v, %s; want %+v", backend, leg, got, want)
		}
	}
}

// What is inside and what carries it are two families: a peer's legs say which address each is sent to, and by which device.
func TestLegs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		network, backend string
		there            string // families that the peer has on the underlay
		want             string
	}{
		{"both", `{"Type":"vxlan"}`, "both", "10.5.2.0/24 to 192.0.2.2 by tulle.1, fd12:0:0:2::/64 to 2001:db8::2 by tulle-v6.1"},
		{"both", `{"Type":"vxlan"}`, "IPv4", "10.5.2.0/24 to 192.0.2.2 by tulle.1, fd12:0:0:2::/64 to 192.0.2.2 by tulle.1"},
		{"both", `{"Type":"vxlan"}`, "IPv6", "10.5.2.0/24 to 2001:db8::2 by tulle-v6.1, fd12:0:0:2::/64 to 2001:db8::2 by tulle-v6.1"},
		{"IPv4", `{"Type":"vxlan"}`, "both", "10.5.2.0/24 to 192.0.2.2 by tulle.1"},
		{"IPv6", `{"Type":"vxlan","DirectRouting":true}`, "both", "fd12:0:0:2::/64 to 2001:db8::2 by "},
		{"both", `{"Type":"wireguard","Mode":"auto"}`, "both", "10.5.2.0/24 to 192.0.2.2 by tulle-wg, fd12:0:0:2::/64 to 192.0.2.2 by tulle-wg"},
		{"both", `{"Type":"wireguard"}`, "both", "10.5.2.0/24 to 192.0.2.2 by tulle-wg, fd12:0:0:2::/64 to 2001:db8::2 by tulle-wg-v6"},
		{"both", `{"Type":"udp"}`, "both", "10.5.2.0/24 to 192.0.2.2 by tulle-udp, fd12:0:0:2::/64 to 2001:db8::2 by tulle-udp"},
		{"both", `{"Type":"host-gw"}`, "both", "10.5.2.0/24 to 192.0.2.2 by , fd12:0:0:2::/64 to 2001:db8::2 by "},
		{"both", `{"Type":"host-gw"}`, "IPv4", "10.5.2.0/24 to 192.0.2.2 by "}, // IPv6 has no gateway there
		{"both", `{"Type":"l2"}`, "both", "10.5.2.0/24 to 192.0.2.2 by tulle.1, fd12:0:0:2::/64 to 192.0.2.2 by tulle.1"},
		{"both", `{"Type":"alloc"}`, "IPv4", "10.5.2.0/24 to 192.0.2.2 by , fd12:0:0:2::/64 to 192.0.2.2 by "},
	} {
		p, peer := planOf(t, c.network, c.backend, c.there)
		var legs []string
		for _, leg := range p.Legs(peer).All() {
			legs = append(legs, fmt.Sprintf("%s to %s by %s", leg.Subnet, leg.To, leg.Outer.Device))
		}
		if got := strings.Join(legs, ", "); got != c.want {
			t.Errorf("%s %s, peer with %s:\ngot  %s\nwant %s", c.network, c.backend, c.there, got, c.want)
		}
	}
}

// planOf is a host's with both families on the underlay and one peer, in a network of some families.
func planOf(t *testing.T, network, backend, there string) (*Plan, subnet.Lease) {
	t.Helper()
	config, _, err := subnet.ParseConfig(fmt.Appendf(nil, `{"EnableIPv4":%t,"Network":"10.5.0.0/16","EnableIPv6":%t,"IPv6Network":"fd12::/48","Backend":%s}`, network != "IPv6", network != "IPv4", backend))
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	host := func(n int, families string) Host {
		h := Host{Config: config, Options: Options{Bridge: "docker0", Families: Both}, Facts: Facts{Key: Secret{1: byte(n)}},
			Underlay: Underlay{Device: "eth0", MTU: 1500, OnLink: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")}}}
		for f, format := range []string{subnet.IPv4: "192.0.2.%d", subnet.IPv6: "2001:db8::%d"} {
			if f := subnet.Family(f); families == "both" || families == f.String() {
				*h.Underlay.Local.At(f) = netip.MustParseAddr(fmt.Sprintf(format, n))
			}
		}
		h.Underlay.Public = h.Underlay.Local
		for f, format := range []string{subnet.IPv4: "10.5.%d.0/24", subnet.IPv6: "fd12:0:0:%d::/64"} {
			if f := subnet.Family(f); network == "both" || network == f.String() {
				*h.Self.Subnet.At(f) = netip.MustParsePrefix(fmt.Sprintf(format, n))
			}
		}
		return h
	}
	peer, _ := host(2, there).Announce(b)
	p, err := NewPlan(b, host(1, "both"), map[string]subnet.Entry{peer.Key(): {Lease: peer, Created: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if p.Peers() != 1 {
		t.Fatalf("left out is %v", p.Rejected())
	}
	return p, peer
}
