package docker

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	socket := serve(t, map[string]string{
		"GET /containers/web/json":     `{"Id":"0123abcd","State":{"Status":"running","Pid":4711}}`,
		"GET /containers/stopped/json": `{"Id":"4567abcd","State":{"Status":"exited","Pid":0}}`,
		"GET /containers/odd/json":     `<html>`,
	}, nil)
	for name, want := range map[string]Container{"web": {"0123abcd", 4711}, "stopped": {"4567abcd", 0}} {
		if got, err := Find(t.Context(), socket, name); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, want)
		}
	}
	for name, want := range map[string]string{"nosuch": "no container \"nosuch\"", "../info": "no container", "odd": "invalid character"} {
		if _, err := Find(t.Context(), socket, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", name, err, want)
		}
	}
	absent := filepath.Join(t.TempDir(), "docker.sock")
	if _, err := Find(t.Context(), absent, "web"); err == nil || !strings.Contains(err.Error(), "no such file") || !strings.Contains(err.Error(), "--docker-host") {
		t.Errorf("no socket: %v", err)
	}
}

func TestTaken(t *testing.T) {
	attach := netip.MustParsePrefix("10.5.1.128/25")
	for name, test := range map[string]struct{ network, taken, refused string }{
		"as told":        {network: `{"IPAM":{"Config":[{"Subnet":"10.5.1.0/24","IPRange":"10.5.1.0/25","Gateway":"10.5.1.1"}]},"Containers":{"a":{"IPv4Address":"10.5.1.2/24","IPv6Address":""}}}`},
		"live restore":   {network: `{"IPAM":{"Config":[{"Subnet":"10.5.1.0/24","IPRange":"10.5.1.0/25"}]},"Containers":{"a":{"IPv4Address":"10.5.1.130/24"}}}`, taken: "10.5.1.130"},
		"not told":       {network: `{"IPAM":{"Config":[{"Subnet":"10.5.1.0/24","Gateway":"10.5.1.1"}]}}`, refused: "restart it"},
		"told otherwise": {network: `{"IPAM":{"Config":[{"Subnet":"10.5.1.0/24","IPRange":"10.5.1.192/26"}]}}`, refused: "--fixed-cidr"},
		"another subnet": {network: `{"IPAM":{"Config":[{"Subnet":"172.17.0.0/16","Gateway":"172.17.0.1"}]}}`},
		"two families":   {network: `{"IPAM":{"Config":[{"Subnet":"fd00::/64"},{"Subnet":"10.5.1.0/24","IPRange":"10.5.1.0/25"}]}}`},
		"nothing in it":  {network: `{"IPAM":{"Config":null},"Containers":{}}`},
		"not a network":  {network: `[]`, refused: "cannot unmarshal"},
		"--bridge=none":  {},
	} {
		answers := map[string]string{"GET /networks/bridge": test.network}
		if test.network == "" {
			clear(answers)
		}
		got, err := Taken(t.Context(), serve(t, answers, nil), attach)
		var want []netip.Addr
		if test.taken != "" {
			want = append(want, netip.MustParseAddr(test.taken))
		}
		switch {
		case test.refused == "" && (err != nil || !slices.Equal(got, want)):
			t.Errorf("%s: %v, %v", name, got, err)
		case test.refused != "" && (err == nil || !strings.Contains(err.Error(), test.refused)):
			t.Errorf("%s: %v; want %q", name, err, test.refused)
		}
	}
}
