package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// envPrefix begins the names of one family's variables. They are flannel's: other people's scripts read them.
var envPrefix = [...]string{subnet.IPv4: "FLANNEL_", subnet.IPv6: "FLANNEL_IPV6_"}

// env writes the env file's text: the network, this host's subnet as the bridge's address, and what dockerd needs to be
// told.
func env(h backend.Host, mtu int) []byte {
	var b bytes.Buffer
	var docker []string
	for f, r := range h.Config.Range.All() {
		address := backend.BridgeAddrs(h.Self).Of(f)
		fmt.Fprintf(&b, "%sNETWORK=%s\n%sSUBNET=%s\n", envPrefix[f], r.Network, envPrefix[f], address)
		if f == subnet.IPv4 {
			docker = append(docker, "--bip="+address.String())
		}
	}
	fmt.Fprintf(&b, "FLANNEL_MTU=%d\nFLANNEL_IPMASQ=%t\n", mtu, h.Masquerade)
	docker = append(docker, fmt.Sprintf("--ip-masq=%t", !h.Masquerade), fmt.Sprintf("--mtu=%d", mtu))
	fmt.Fprintf(&b, "DOCKER_OPTS=\"%s\"\n", strings.Join(docker, " "))
	return b.Bytes()
}

// writeEnv brings the env file up to date: replaced in one piece, readable by all.
func (a *Agent) writeEnv(mtu int) error {
	path := a.config.SubnetFile
	text := env(a.state.plan.Host(), mtu)
	if now, err := os.ReadFile(path); err == nil && bytes.Equal(now, text) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("env file: %w", err)
	}
	if err := renameio.WriteFile(path, text, 0o644, renameio.WithStaticPermissions(0o644)); err != nil {
		return fmt.Errorf("env file: %w", err)
	}
	a.log.Info("env file written", "path", path)
	return nil
}

// previousSubnet reads from the env file what subnets the host held in an earlier life. No file is no error.
func previousSubnet(path string) (held subnet.Pair[netip.Prefix], err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return held, nil
	}
	if err != nil {
		return held, err
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		for f, prefix := range envPrefix {
			if name != prefix+"SUBNET" {
				continue
			}
			p, err := netip.ParsePrefix(strings.Trim(value, `"'`))
			if err != nil {
				return held, fmt.Errorf("%s: %w", path, err)
			}
			*held.At(subnet.Family(f)) = p.Masked()
		}
	}
	return held, nil
}
