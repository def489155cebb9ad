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

	"github.com/tulle-net/tulle/agent/docker"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/file"
	"github.com/tulle-net/tulle/subnet"
)

// env is what the env file says: the network, this host's subnets as the bridge's addresses, and what dockerd needs to be told.
func env(h backend.Host, mtu int) docker.Env {
	e := docker.Env{Bridge: h.BridgeAddrs(), MTU: mtu, Masquerade: h.Masquerade.V4}
	for f, bridge := range e.Bridge.All() {
		*e.Network.At(f) = h.Config.Range.Of(f).Network
		*e.Subnet.At(f) = netip.PrefixFrom(bridge.Addr(), h.Self.Subnet.Of(f).Bits())
	}
	_, e.Attach.V4, _ = split(h) // sayAttach tells of an error
	return e
}

// envText is the env file's text.
func envText(h backend.Host, mtu int) []byte {
	var more []docker.Option
	if h.Mark != 0 {
		more = docker.Needs(docker.Version{}, docker.NFTables).Options
	}
	return env(h, mtu).Text(more...)
}

// split divides what this host has of IPv4 between Docker and tulle attach, which knows nothing else.
func split(h backend.Host) (docker, attach netip.Prefix, err error) {
	if h.Attach > 0 && !h.BridgeAddrs().V4.IsValid() {
		return docker, attach, errors.New("it gives IPv4 addresses, of which this network has none: leave out --attach-addresses")
	}
	return h.Split(h.Self.Subnet.V4)
}

// sayAttach warns if the lease has no room for the addresses that tulle attach is to have.
func (a *Agent) sayAttach() {
	if _, _, err := split(a.state.plan.Host()); err != nil {
		a.say("attach", slog.LevelWarn, "no address is kept for tulle attach", "error", err)
	} else {
		delete(a.state.said, "attach")
	}
}

// writeEnv brings the env file and its copy up to date. A copy that can't be written is no reason to be without a network now.
func (a *Agent) writeEnv(mtu int) error {
	a.sayAttach()
	text := envText(a.state.plan.Host(), mtu)
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

// flannels is any revision, if the flannel that ran on this host until now held what an earlier life of ours would have: so says its env
// file. It must be where no reboot and no disk image keeps it, as the mark is.
func (a *Agent) flannels() int64 {
	held, err := previousSubnet(a.config.FlannelFile)
	if err != nil || held != a.state.previous || held == (subnet.Pair[netip.Prefix]{}) || !strings.HasPrefix(filepath.Clean(a.config.FlannelFile), "/run/") {
		return 0
	}
	return subnet.AnyRevision
}

// markHeld writes the mark. One that can't be written costs the next start three seconds.
func (a *Agent) markHeld(own subnet.Own) {
	if own.Lease != a.state.own.Lease || own.Revision != a.state.own.Revision {
		_, _ = replace(a.mark(), fmt.Appendf(nil, "%s %d\n", own.Lease.Key(), own.Revision))
	}
}

// marked reads the mark, if it is that of what the host held before.
func (a *Agent) marked() (revision int64) {
	text, _ := file.Read(a.mark(), mostText)
	key, number, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	if key != subnet.FormatKey(a.state.previous) {
		return a.flannels()
	}
	revision, _ = strconv.ParseInt(number, 10, 64)
	return revision
}

// replace makes text the content of a file: in one piece, readable by all. It reports whether it had to.
func replace(path string, text []byte) (bool, error) {
	if now, err := file.Read(path, mostText); err == nil && bytes.Equal(now, text) {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return true, err
	}
	return true, file.Replace(path, text, 0o644)
}

// mostText is how many bytes of such a file are read. They have some hundreds.
const mostText = 64 << 10

// previous is what subnets the host held in an earlier life: as the env file has them, or after a reboot its copy, or flannel's.
func (a *Agent) previous() (held subnet.Pair[netip.Prefix]) {
	for _, path := range []string{a.config.SubnetFile, a.config.StateFile, a.config.FlannelFile} {
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
	text, err := file.Read(path, mostText)
	if errors.Is(err, fs.ErrNotExist) {
		return held, nil
	}
	if err != nil {
		return held, err
	}
	if held, err = heldBefore(string(text)); err != nil {
		return held, fmt.Errorf("%s: %w", path, err)
	}
	return held, nil
}

// heldBefore reads an env file's text.
func heldBefore(text string) (held subnet.Pair[netip.Prefix], err error) {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		for f, variable := range docker.SubnetVariables {
			if name != variable {
				continue
			}
			p, err := netip.ParsePrefix(strings.Trim(value, `"'`))
			if err != nil || subnet.FamilyOf(p.Addr()) != subnet.Family(f) {
				return subnet.Pair[netip.Prefix]{}, fmt.Errorf("%s=%.80q is not an %s subnet", name, value, subnet.Family(f))
			}
			*held.At(subnet.Family(f)) = p.Masked()
		}
	}
	return held, nil
}
