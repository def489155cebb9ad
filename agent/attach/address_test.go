package attach

import (
	"net/netip"
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	for _, test := range []struct{ pool, taken, wish, want, refused string }{
		{pool: "10.5.1.128/25", want: "10.5.1.128"},
		{pool: "10.5.1.128/25", taken: "10.5.1.128 10.5.1.130", want: "10.5.1.129"},
		{pool: "10.5.1.128/25", taken: "10.5.1.128 10.5.1.129 10.5.1.2", want: "10.5.1.130"},
		{pool: "10.5.1.12/30", taken: "10.5.1.12 10.5.1.13", want: "10.5.1.14"},
		{pool: "10.5.1.12/30", taken: "10.5.1.12 10.5.1.13 10.5.1.14", refused: "all addresses of 10.5.1.12/30 are taken"},
		{pool: "10.5.1.128/25", wish: "10.5.1.200", want: "10.5.1.200"},
		{pool: "10.5.1.128/25", wish: "10.5.1.200", taken: "10.5.1.200", refused: "is taken"},
		{pool: "10.5.1.128/25", wish: "10.5.1.5", refused: "is not among"},
		{pool: "10.5.1.128/25", wish: "10.5.1.255", refused: "is not among"},
		{pool: "255.255.255.128/25", wish: "255.255.255.255", refused: "is not among"},
		{pool: "10.5.1.128/25", wish: "fd00::1", refused: "is not among"},
		{pool: "fd00:0:0:1:8000::/65", want: "fd00:0:0:1:8000::"},
		{pool: "fd00::fffe/127", taken: "fd00::fffe", want: "fd00::ffff"},
	} {
		var taken []netip.Addr
		for _, a := range strings.Fields(test.taken) {
			taken = append(taken, netip.MustParseAddr(a))
		}
		var wish netip.Addr
		if test.wish != "" {
			wish = netip.MustParseAddr(test.wish)
		}
		got, err := choose(netip.MustParsePrefix(test.pool), taken, wish)
		switch {
		case test.refused == "" && (err != nil || got.String() != test.want):
			t.Errorf("%+v: %s, %v", test, got, err)
		case test.refused != "" && (err == nil || !strings.Contains(err.Error(), test.refused)):
			t.Errorf("%+v: %s, %v", test, got, err)
		}
	}
}
