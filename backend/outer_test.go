package backend

import (
	"net/netip"
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
		if got := p.Outer(peer); got != want.Outer || got.String() != want.text {
			t.Errorf("%s: %+v, %s; want %+v", backend, got, got, want)
		}
	}
}
