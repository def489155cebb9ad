package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/tulle-net/tulle/agent/docker"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// marked is h with a Docker whose firewall backend is nftables.
func marked(h backend.Host) backend.Host {
	h.Mark = docker.Mark
	return h
}

func TestEnvText(t *testing.T) {
	v4 := subnet.Range{Network: netip.MustParsePrefix("10.5.0.0/16")}
	v6 := subnet.Range{Network: netip.MustParsePrefix("fd12:3456::/48")}
	host := func(ranges subnet.Pair[subnet.Range], masquerade bool) backend.Host {
		h := backend.Host{Config: subnet.Config{Range: ranges}, Options: backend.Options{Bridge: "docker0", Masquerade: subnet.PairOf(subnet.IPv4, masquerade)}}
		if ranges.V4 != (subnet.Range{}) {
			h.Self.Subnet.V4 = netip.MustParsePrefix("10.5.65.0/24")
		}
		if ranges.V6 != (subnet.Range{}) {
			h.Self.Subnet.V6 = netip.MustParsePrefix("fd12:3456:0:34::/64")
		}
		return h
	}
	for _, c := range []struct {
		name string
		host backend.Host
		mtu  int
		text string
	}{
		{"IPv4", host(subnet.Pair[subnet.Range]{V4: v4}, true), 1450, `FLANNEL_NETWORK=10.5.0.0/16
FLANNEL_SUBNET=10.5.65.1/24
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
DOCKER_OPTS="--bip=10.5.65.1/24 --ip-masq=false --mtu=1450"
`},
		{"Docker masquerades", host(subnet.Pair[subnet.Range]{V4: v4}, false), 8950, `FLANNEL_NETWORK=10.5.0.0/16
FLANNEL_SUBNET=10.5.65.1/24
FLANNEL_MTU=8950
FLANNEL_IPMASQ=false
DOCKER_OPTS="--bip=10.5.65.1/24 --mtu=8950"
`},
		{"Docker with nftables", marked(host(subnet.Pair[subnet.Range]{V4: v4}, true)), 1450, `FLANNEL_NETWORK=10.5.0.0/16
FLANNEL_SUBNET=10.5.65.1/24
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
DOCKER_OPTS="--bip=10.5.65.1/24 --ip-masq=false --mtu=1450 --allow-direct-routing=true --bridge-accept-fwmark=0x1000000/0x1000000"
`},
		{"dual stack", host(subnet.Pair[subnet.Range]{V4: v4, V6: v6}, true), 1430, `FLANNEL_NETWORK=10.5.0.0/16
FLANNEL_SUBNET=10.5.65.1/24
FLANNEL_IPV6_NETWORK=fd12:3456::/48
FLANNEL_IPV6_SUBNET=fd12:3456:0:34::1/64
FLANNEL_MTU=1430
FLANNEL_IPMASQ=true
DOCKER_OPTS="--bip=10.5.65.1/24 --ipv6 --fixed-cidr-v6=fd12:3456:0:34::/64 --ip-masq=false --mtu=1430"
`},
		{"IPv6", host(subnet.Pair[subnet.Range]{V6: v6}, true), 1430, `FLANNEL_IPV6_NETWORK=fd12:3456::/48
FLANNEL_IPV6_SUBNET=fd12:3456:0:34::1/64
FLANNEL_MTU=1430
FLANNEL_IPMASQ=true
DOCKER_OPTS="--ipv6 --fixed-cidr-v6=fd12:3456:0:34::/64 --mtu=1430"
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := envText(c.host, c.mtu)
			if string(text) != c.text {
				t.Errorf("got\n%swant\n%s", text, c.text)
			}
			path := filepath.Join(t.TempDir(), "subnet.env")
			write(t, path, string(text))
			if held, err := previousSubnet(path); err != nil || held != c.host.Self.Subnet {
				t.Errorf("read back as %v, %v, want %v", held, err, c.host.Self.Subnet)
			}
		})
	}
}

// The file is replaced, not written in place: a reader sees the one or the other, and its mode is what it should be.
func TestEnvFileReplaced(t *testing.T) {
	dir := t.TempDir()
	path, target := filepath.Join(dir, "subnet.env"), filepath.Join(dir, "elsewhere")
	write(t, target, "keep me")
	if err := os.Chmod(target, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one\n", "another\n"} {
		if written, err := replace(path, []byte(text)); err != nil || !written {
			t.Fatal(written, err)
		}
		first := stat(t, path)
		if first.Mode() != 0o644 {
			t.Errorf("mode %s", first.Mode())
		}
		if written, err := replace(path, []byte(text)); err != nil || written || !os.SameFile(first, stat(t, path)) {
			t.Errorf("written again: %t, %v", written, err)
		}
	}
	if kept, err := os.ReadFile(target); string(kept) != "keep me" || err != nil {
		t.Errorf("written through a symlink: %q, %v", kept, err)
	}
	if left, err := os.ReadDir(dir); len(left) != 2 || err != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestPreviousSubnet(t *testing.T) {
	both := subnet.Pair[netip.Prefix]{V4: netip.MustParsePrefix("10.5.65.0/24"), V6: netip.MustParsePrefix("fd12:3456:0:34::/64")}
	v4 := subnet.Pair[netip.Prefix]{V4: both.V4}
	for _, c := range []struct {
		name, text string
		held       subnet.Pair[netip.Prefix]
		bad        bool
	}{
		{"flannel's", "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.65.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n", v4, false},
		{"flannel's of two families", "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.65.1/24\nFLANNEL_IPV6_NETWORK=fd12:3456::/48\nFLANNEL_IPV6_SUBNET=fd12:3456:0:34::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n", both, false},
		{"quotes and spaces", " FLANNEL_SUBNET='10.5.65.1/24' \r\n FLANNEL_IPV6_SUBNET=\"fd12:3456:0:34::1/64\"", both, false},
		{"nothing", "", subnet.Pair[netip.Prefix]{}, false},
		{"others' variables", "# FLANNEL_SUBNET=10.5.1.1/24\nMY_FLANNEL_SUBNET=10.5.1.1/24\nDOCKER_OPTS=--bip=10.5.1.1/24\nFLANNEL_SUBNETS=x\n", subnet.Pair[netip.Prefix]{}, false},
		{"garbage", "\x00\xff=\n\nFLANNEL_SUBNET\n", subnet.Pair[netip.Prefix]{}, true},
		{"no prefix", "FLANNEL_SUBNET=10.5.65.1\n", subnet.Pair[netip.Prefix]{}, true},
		{"the other family", "FLANNEL_SUBNET=fd12:3456:0:34::1/64\n", subnet.Pair[netip.Prefix]{}, true},
		{"half of it good", "FLANNEL_SUBNET=10.5.65.1/24\nFLANNEL_IPV6_SUBNET=x\n", subnet.Pair[netip.Prefix]{}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "subnet.env")
			write(t, path, c.text)
			if held, err := previousSubnet(path); held != c.held || (err != nil) != c.bad {
				t.Errorf("got %v, %v, want %v", held, err, c.held)
			}
		})
	}
	if held, err := previousSubnet(filepath.Join(t.TempDir(), "none")); held != (subnet.Pair[netip.Prefix]{}) || err != nil {
		t.Errorf("no file: %v, %v", held, err)
	}
	if _, err := previousSubnet(t.TempDir()); err == nil {
		t.Error("a directory is no error")
	}
}
