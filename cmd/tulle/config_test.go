package main

import (
	"slices"
	"testing"

	"github.com/tulle-net/tulle/subnet"
)

func TestConfigWarnings(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		`{"Network":"10.5.0.0/16"}`: nil,
		`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12:3456::/48"}`: nil,
		`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd12:3456::/62"}`:      nil,
		`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12:3456::/62"}`: {
			"there are 255 IPv4 subnets, but 3 IPv6 subnets only, and a host needs one of each: take a larger IPv6Network, or a longer IPv6SubnetLen"},
		`{"Network":"10.5.0.0/16","IPv6Network":"fd12:3456::/48"}`: {
			"IPv6Network is given, but its family is switched off: see EnableIPv4 and EnableIPv6"},
		`{"EnableIPv4":false,"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12:3456::/48"}`: {
			"Network is given, but its family is switched off: see EnableIPv4 and EnableIPv6"},
	} {
		c, _, err := subnet.ParseConfig([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := warnings(text, c); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}
