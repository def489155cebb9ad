package docker

import (
	"reflect"
	"testing"
)

// TestNeeds is the table of which dockerd needs what, as measured.
func TestNeeds(t *testing.T) {
	old := Rules{DockerUser: true}
	raw := Rules{DockerUser: true, Raw: true}
	mark := Rules{Mark: true, Forwarding: true, Options: []Option{"--allow-direct-routing=true", "--bridge-accept-fwmark=0x1000000/0x1000000"}}
	for _, test := range []struct {
		version  Version
		firewall Firewall
		want     Rules
	}{
		{Version{20, 10, 24}, IPTables, old},
		{Version{24, 0, 9}, IPTables, old},
		{Version{26, 1, 5}, IPTables, old},
		{Version{27, 5, 1}, IPTables, old},
		{Version{28, 0, 0}, IPTables, raw},
		{Version{28, 2, 0}, IPTables, raw},
		{Version{28, 5, 2}, IPTables, raw},
		{Version{29, 0, 0}, IPTables, raw},
		{Version{29, 7, 0}, IPTables, raw},
		{Version{29, 0, 0}, NFTables, mark},
		{Version{29, 7, 0}, NFTables, mark},
		{Version{30, 0, 0}, IPTables, raw},
		{Version{30, 0, 0}, NFTables, mark},
		{Version{}, IPTables, raw}, // the raw accept is harmless where there is no drop
		{Version{}, NFTables, mark},
		{Version{19, 3, 15}, IPTables, old},
		{Version{28, 5, 2}, NFTables, raw}, // has no such backend
		{Version{20, 10, 24}, NFTables, old},
	} {
		got := Needs(test.version, test.firewall)
		if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s with %s needs %+v, want %+v", test.version, test.firewall, got, test.want)
		}
		for _, o := range got.Options {
			if test.version.Tested() && !test.version.Knows(o) {
				t.Errorf("%s with %s is given %s, which it doesn't know", test.version, test.firewall, o)
			}
		}
	}
}

func TestVersionKnows(t *testing.T) {
	always := []Option{"--bip=10.5.1.1/24", "--mtu=1450", "--ip-masq=false", "--fixed-cidr=10.5.1.0/25", "--fixed-cidr-v6=fd00::/64", "--ipv6=true"}
	for _, v := range []Version{{}, {19, 3, 0}, {20, 10, 24}, {27, 5, 1}, {29, 0, 0}} {
		for _, o := range always {
			if !v.Knows(o) {
				t.Errorf("%s doesn't know %s", v, o)
			}
		}
		if v.Knows("--no-such-option") {
			t.Errorf("%s knows --no-such-option", v)
		}
	}
	for o, versions := range map[Option]struct{ last, first Version }{ // that doesn't, and that does
		"--bip6=fd00::1/64":            {Version{27, 5, 1}, Version{28, 0, 0}},
		"--allow-direct-routing=true":  {Version{28, 1, 1}, Version{28, 2, 0}},
		"--allow-direct-routing":       {Version{28, 1, 1}, Version{28, 2, 0}},
		"--bridge-accept-fwmark=0x1/1": {Version{28, 5, 2}, Version{29, 0, 0}},
		"--firewall-backend=nftables":  {Version{28, 5, 2}, Version{29, 0, 0}},
	} {
		if versions.last.Knows(o) || !versions.first.Knows(o) || (Version{}).Knows(o) {
			t.Errorf("%s: not from %s on", o, versions.first)
		}
	}
}

func TestFirewallOf(t *testing.T) {
	for name, want := range map[string]Firewall{
		"": IPTables, "iptables": IPTables, "iptables+firewalld": IPTables, "nftables": NFTables, "nftables+firewalld": NFTables, "else": IPTables,
	} {
		if got := firewallOf(name); got != want {
			t.Errorf("%q is %s", name, got)
		}
	}
}
