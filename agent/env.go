package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/agent/docker"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// envPrefix begins the names of one family's variables. They are flannel's: other people's scripts read them.
var envPrefix = [...]string{subnet.IPv4: "FLANNEL_", subnet.IPv6: "FLANNEL_IPV6_"}

// env writes the env file's text: the network, this host's subnet as the bridge's address, and what dockerd needs to be
// told.
func env(h backend.Host, mtu int) []byte {
	var b bytes.Buffer
	var options []string
	for f, r := range h.Config.Range.All() {
		bridge := h.BridgeAddrs().Of(f)
		own := netip.PrefixFrom(bridge.Addr(), h.Self.Subnet.Of(f).Bits())
		fmt.Fprintf(&b, "%sNETWORK=%s\n%sSUBNET=%s\n", envPrefix[f], r.Network, envPrefix[f], own)
		if f == subnet.IPv4 {
			options = append(options, "--bip="+bridge.String())
			options = append(options, envSlice(&b, h, own, bridge)...)
		}
	}
	fmt.Fprintf(&b, "FLANNEL_MTU=%d\nFLANNEL_IPMASQ=%t\n", mtu, h.Masquerade.V4)
	options = append(options, fmt.Sprintf("--ip-masq=%t", !h.Masquerade.V4), fmt.Sprintf("--mtu=%d", mtu))
	if h.Mark != 0 {
		for _, o := range docker.Needs(docker.Version{}, docker.NFTables).Options {
			options = append(options, string(o))
		}
	}
	fmt.Fprintf(&b, "DOCKER_OPTS=\"%s\"\n", strings.Join(options, " "))
	return b.Bytes()
}

// envSlice adds the variables that say which addresses of the bridge's subnet are other hosts' or tulle attach's, and returns
// what keeps Docker from handing them out.
func envSlice(b *bytes.Buffer, h backend.Host, own, bridge netip.Prefix) (options []string) {
	slice := own.Masked()
	if bridge != own {
		fmt.Fprintf(b, "TULLE_BRIDGE=%s\n", bridge)
	}
	if docker, attach, err := h.Split(slice); err == nil && attach.IsValid() { // else sayAttach says why
		fmt.Fprintf(b, "TULLE_ATTACH=%s\n", attach)
		slice = docker
	}
	if slice == bridge.Masked() {
		return nil
	}
	return []string{"--fixed-cidr=" + slice.String()}
}

// sayAttach warns if the lease has no room for the addresses that tulle attach is to have.
func (a *Agent) sayAttach() {
	h := a.state.plan.Host()
	if _, _, err := h.Split(h.Self.Subnet.V4); err != nil {
		a.say("attach", slog.LevelWarn, "no address is kept for tulle attach", "error", err)
	} else {
		delete(a.state.said, "attach")
	}
}

// writeEnv brings the env file and its copy up to date. A copy that can't be written is no reason to be without a network now.
func (a *Agent) writeEnv(mtu int) error {
	a.sayAttach()
	text := env(a.state.plan.Host(), mtu)
	if path := a.config.StateFile; path != "" {
		if _, err := replace(path, text); err != nil {
			a.say("state file", slog.LevelWarn, "the env file's copy can't be written: after a reboot this host may get another subnet", "path", path, "error", err)
		} else {
			delete(a.state.said, "state file")
		}
	}
	written, err := replace(a.config.SubnetFile, text)
	if err != nil {
		return fmt.Errorf("env file %s: %w", a.config.SubnetFile, err)
	}
	if written {
		a.log.Info("env file written", "path", a.config.SubnetFile)
	}
	return nil
}

// mark is the file that says which key this host holds, and at which of etcd's revisions it left it. As long as it stands
// there, the next life takes the key over without asking whether another host holds it. It does not survive a reboot: a
// machine that was cloned must not have it.
func (a *Agent) mark() string { return filepath.Join(a.config.RunDir, "lease") }

// markHeld writes the mark. One that can't be written costs the next start three seconds.
func (a *Agent) markHeld(own subnet.Own) {
	if own.Lease != a.state.own.Lease || own.Revision != a.state.own.Revision {
		_, _ = replace(a.mark(), fmt.Appendf(nil, "%s %d\n", own.Lease.Key(), own.Revision))
	}
}

// marked reads the mark, if it is that of what the host held before.
func (a *Agent) marked() (revision int64) {
	text, _ := os.ReadFile(a.mark())
	key, number, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	if key != subnet.FormatKey(a.state.previous) {
		return 0
	}
	revision, _ = strconv.ParseInt(number, 10, 64)
	return revision
}

// replace makes text the content of a file: in one piece, readable by all. It reports whether it had to.
func replace(path string, text []byte) (bool, error) {
	if now, err := os.ReadFile(path); err == nil && bytes.Equal(now, text) {
		return false, nil
	}
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = renameio.WriteFile(path, text, 0o644, renameio.WithStaticPermissions(0o644))
	}
	if errno := unix.Errno(0); errors.As(err, &errno) {
		return true, errno // without the name of a temporary file, which is another each time, and so no news
	}
	return true, err
}

// previous is what subnets the host held in an earlier life: as the env file has them, or after a reboot its copy.
func (a *Agent) previous() (held subnet.Pair[netip.Prefix]) {
	for _, path := range []string{a.config.SubnetFile, a.config.StateFile} {
		held, err := previousSubnet(path)
		if err != nil {
			a.log.Warn("the env file of an earlier life can't be used", "error", err)
		}
		if held != (subnet.Pair[netip.Prefix]{}) {
			return held
		}
	}
	return held
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
			if err != nil || subnet.FamilyOf(p.Addr()) != subnet.Family(f) {
				return subnet.Pair[netip.Prefix]{}, fmt.Errorf("%s: %s=%s is not an %s subnet", path, name, value, subnet.Family(f))
			}
			*held.At(subnet.Family(f)) = p.Masked()
		}
	}
	return held, nil
}
