package backend

import (
	"net/netip"
	"strings"
	"testing"
)

func TestSplit(t *testing.T) {
	for _, test := range []struct {
		subnet         string
		n              int
		docker, attach string // "" for neither
		refused        bool
	}{
		{subnet: "10.5.1.0/24", n: 0},
		{subnet: "10.5.1.0/24", n: 1, docker: "10.5.1.0/25", attach: "10.5.1.128/25"},
		{subnet: "10.5.1.0/24", n: 127, docker: "10.5.1.0/25", attach: "10.5.1.128/25"},
		{subnet: "10.5.1.0/24", n: 128, refused: true},
		{subnet: "10.5.1.16/28", n: 7, docker: "10.5.1.16/29", attach: "10.5.1.24/29"},
		{subnet: "10.5.0.0/23", n: 200, docker: "10.5.0.0/24", attach: "10.5.1.0/24"},
		{subnet: "10.4.0.0/15", n: 65535, docker: "10.4.0.0/16", attach: "10.5.0.0/16"},
		{subnet: "10.5.1.8/29", n: 3, docker: "10.5.1.8/30", attach: "10.5.1.12/30"},
		{subnet: "10.5.1.8/29", n: 4, refused: true},
		{subnet: "10.5.1.4/30", n: 1, refused: true},
		{subnet: "fd00:1::/64", n: 1 << 30, docker: "fd00:1::/65", attach: "fd00:1:0:0:8000::/65"},
	} {
		docker, attach, err := Options{Attach: test.n}.Split(netip.MustParsePrefix(test.subnet))
		if err != nil != test.refused || text(docker) != test.docker || text(attach) != test.attach {
			t.Errorf("%d of %s: Docker %q, attach %q, %v; want %+v", test.n, test.subnet, text(docker), text(attach), err, test)
		}
		if err != nil && !strings.Contains(err.Error(), "--attach-addresses") {
			t.Errorf("%v: does not say which flag to change", err)
		}
	}
}

func text(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}
