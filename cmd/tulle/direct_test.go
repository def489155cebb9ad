package main

import (
	"net/netip"
	"testing"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// Without an agent, its lease tells which of the underlay's families it was told to use.
func TestFamiliesOf(t *testing.T) {
	t.Parallel()
	both := subnet.Pair[netip.Addr]{V4: netip.MustParseAddr("192.0.2.1"), V6: netip.MustParseAddr("2001:db8::1")}
	four, six := subnet.PairOf(subnet.IPv4, both.V4), subnet.PairOf(subnet.IPv6, both.V6)
	for _, c := range []struct {
		config           string
		underlay, public subnet.Pair[netip.Addr]
		want             backend.Families
	}{
		{`{"Network":"10.5.0.0/16"}`, both, four, backend.Matching},
		{`{"Network":"10.5.0.0/16"}`, six, six, backend.Matching},
		{`{"Network":"10.5.0.0/16"}`, both, six, backend.OnlyIPv6},
		{`{"Network":"10.5.0.0/16"}`, both, both, backend.Both},
		{`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12::/48"}`, both, both, backend.Matching},
		{`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12::/48"}`, both, four, backend.OnlyIPv4},
		{`{"Network":"10.5.0.0/16"}`, both, subnet.Pair[netip.Addr]{}, backend.Matching},
		{`{"Network":"10.5.0.0/16"}`, four, subnet.Pair[netip.Addr]{}, backend.Matching}, // the lease is gone
	} {
		v := api.View{Config: c.config, Underlay: backend.Underlay{Device: "eth0", Local: c.underlay, Public: c.underlay}}
		if got := familiesOf(v, c.public); got != c.want {
			t.Errorf("%s on %v, a lease with %v: %s, want %s", c.config, c.underlay, c.public, got, c.want)
		}
	}
}
