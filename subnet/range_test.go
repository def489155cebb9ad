package subnet

import (
	"net/netip"
	"testing"
)

func TestContains(t *testing.T) {
	t.Parallel()
	in := parseConfig(t, `{"Network":"10.5.0.0/16","SubnetMin":"10.5.8.0","SubnetMax":"10.5.15.0"}`).Range.V4
	for text, want := range map[string]bool{
		"10.5.8.0/24": true, "10.5.15.0/24": true, "10.5.7.0/24": false, "10.5.16.0/24": false, "10.6.8.0/24": false,
		"10.5.8.1/24": false, "10.5.8.0/23": false, "10.5.8.0/25": false, "fd12::/24": false, "::ffff:10.5.8.0/120": false,
	} {
		if got := in.Contains(netip.MustParsePrefix(text)); got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
	if in.Contains(netip.Prefix{}) || (Range{}).Contains(netip.MustParsePrefix("10.5.8.0/24")) {
		t.Error("nothing contains nothing")
	}
}

func TestAdmits(t *testing.T) {
	t.Parallel()
	in := rangeOf(t, "10.5.0.0/16", 24)
	for text, want := range map[string]bool{
		"10.5.8.0/24": true, "10.5.0.0/24": true, "10.5.255.0/24": true, "10.5.8.128/25": true, "10.5.8.7/32": true,
		"10.5.8.0/23": false, "10.5.0.0/16": false, "10.0.0.0/8": false, "10.6.8.0/24": false, "fd12::/64": false, "::ffff:10.5.8.0/120": false,
	} {
		if got := in.Admits(netip.MustParsePrefix(text)); got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
	if in.Admits(netip.Prefix{}) || (Range{}).Admits(netip.MustParsePrefix("10.5.8.0/24")) {
		t.Error("nothing admits nothing")
	}
}
