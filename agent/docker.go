package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tulle-net/tulle/agent/docker"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// options are the operator's, and what the Docker on this host makes necessary.
func (a *Agent) options() backend.Options {
	o := a.config.Options
	// A daemon.json that can't be read is checkDaemonJSON's business; dockerd has its usual firewall then, or doesn't start.
	if config, err := docker.ReadConfig(a.config.DaemonJSON); err == nil && config.Firewall() == docker.NFTables {
		o.Mark = docker.Mark
	}
	return o
}

// checkDocker notes what keeps Docker from using the lease. It looks, and never asks dockerd: where that is started by its
// socket, a question would start it, while it waits for us.
func (a *Agent) checkDocker(plan *backend.Plan) error {
	err := a.checkBridge(plan.Host())
	a.checkDaemonJSON(env(plan.Host(), plan.State().MTU))
	return err
}

// checkBridge warns of a bridge with other addresses than the lease's: a dockerd that was started without our options made
// it, or one that keeps its old --bip because of --live-restore.
func (a *Agent) checkBridge(h backend.Host) error {
	a.state.bridged = subnet.Pair[bool]{}
	if h.Bridge == "" {
		return nil
	}
	addrs, err := a.kernel.Addresses(h.Bridge)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", h.Bridge, err)
	}
	addrs = slices.DeleteFunc(addrs, func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() }) // every bridge has such
	warning := ""
	for f, want := range h.BridgeAddrs().All() {
		*a.state.bridged.At(f) = slices.Contains(addrs, want)
		old := slices.IndexFunc(addrs, func(p netip.Prefix) bool { return p != want && subnet.FamilyOf(p.Addr()) == f })
		switch {
		case !a.state.bridged.Of(f):
			warning = fmt.Sprintf("%s has %s, not this host's %s: containers are not reached. Stop Docker, delete the bridge (ip link del %s), and start Docker with DOCKER_OPTS from %s",
				h.Bridge, list(addrs), want, h.Bridge, a.config.SubnetFile)
		case old >= 0 && warning == "":
			warning = fmt.Sprintf("%s has %s beside this host's %s. If that is an earlier --bip, which Docker keeps with --live-restore while containers run: stop them, and restart Docker with DOCKER_OPTS from %s",
				h.Bridge, addrs[old], want, a.config.SubnetFile)
		}
	}
	a.warn("bridge", warning)
	return nil
}

// checkDaemonJSON warns of options that daemon.json has, too: dockerd refuses to start then.
func (a *Agent) checkDaemonJSON(e docker.Env) {
	config, err := docker.ReadConfig(a.config.DaemonJSON)
	if err != nil {
		a.warn("daemon.json", err.Error())
		return
	}
	if keys := config.Clashes(e.Common()); len(keys) > 0 {
		a.warn("daemon.json", fmt.Sprintf("%s sets %s, and so does DOCKER_OPTS: dockerd refuses to start with both; take it out of %s",
			a.config.DaemonJSON, strings.Join(keys, ", "), a.config.DaemonJSON))
		return
	}
	a.warn("daemon.json", "")
}

func list(addrs []netip.Prefix) string {
	if len(addrs) == 0 {
		return "no address"
	}
	return strings.Trim(fmt.Sprint(addrs), "[]")
}
