package doctor

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/probe"
	"github.com/tulle-net/tulle/backend"
)

// overhead is what the tunnel adds to a packet, bytes; 0 without one.
func (f Facts) overhead() (most int) {
	for family := range f.Plan.Host().Public().All() {
		most = max(most, overheads[carriage(f.Plan)].Of(family))
	}
	return most
}

// mtuContainers looks at the bridge and the host's ends of the containers' cables. An empty bridge of Docker's shows 1500
// whatever it was told.
func mtuContainers(f Facts) []Finding {
	bridge, mtu := f.Plan.Host().Bridge, f.Plan.State().MTU
	var rows []string
	empty := true
	for _, d := range f.Devices {
		if d.Master == bridge && bridge != "" {
			empty = false
			if d.MTU > mtu {
				rows = append(rows, fmt.Sprintf("ip link show %s: mtu %d", d.Name, d.MTU))
			}
		}
	}
	told, _ := strconv.Atoi(f.setting("--mtu"))
	if d, ok := f.device(bridge); ok && d.MTU > mtu && !(empty && told > 0 && told <= mtu) {
		rows = append([]string{fmt.Sprintf("ip link show %s: mtu %d", d.Name, d.MTU)}, rows...)
	}
	if len(rows) == 0 {
		return nil
	}
	return one(fmt.Sprintf("containers may send packets that are longer than the overlay takes, which is %d bytes", mtu), some(rows),
		fmt.Sprintf("start dockerd with --mtu=%d (DOCKER_OPTS in %s has it), and make the containers anew", mtu, f.EnvPath))
}

// mtuUnderlay asks also what the overlay's device has: without an agent, what is planned now is not what is there.
func mtuUnderlay(f Facts) []Finding {
	u := f.Plan.Host().Underlay.Device
	d, ok := f.device(u)
	tunnel, _ := f.device(f.outer().Device)
	need := max(f.Plan.State().MTU, tunnel.MTU) + f.overhead()
	if !ok || d.MTU >= need {
		return nil
	}
	return one(fmt.Sprintf("%s takes packets of %d bytes, and the overlay's are up to %d long", u, d.MTU, need), fmt.Sprintf("ip link show %s: mtu %d", u, d.MTU),
		fmt.Sprintf("ip link set %s mtu %d, if the network behind it takes that; or %s", u, need, lowerMTU(f.Plan, d.MTU)))
}

func mtuPath(f Facts) []Finding {
	mtu := f.Plan.State().MTU
	least, rows := mtu, []string(nil)
	for _, p := range f.Paths {
		if p.Longest > 0 && p.Longest < mtu {
			least, rows = min(least, p.Longest), append(rows, fmt.Sprintf("ping -M do to %s: answered up to %d bytes", p.Inside, p.Longest))
		}
	}
	if len(rows) == 0 || len(mtuUnderlay(f)) > 0 {
		return nil
	}
	return one(fmt.Sprintf("packets longer than %d bytes are lost on the way to %s, and the overlay's MTU is %d", least, count(len(rows), "peer"), mtu), some(rows),
		fmt.Sprintf("see which device between the hosts takes less than %d bytes; or %s", mtu+f.overhead(), lowerMTU(f.Plan, least+f.overhead())))
}

func checksumOffload(f Facts) []Finding {
	var rows []string
	for _, p := range f.Paths {
		if p.Checksum == probe.ChecksumBroken {
			rows = append(rows, fmt.Sprintf("UDP to %s arrives without a checksum, and not with one that the device fills in", p.Inside))
		}
	}
	if len(rows) == 0 {
		return nil
	}
	underlay := f.Plan.Host().Underlay.Device
	tunnel := cmp.Or(f.outer().Device, underlay)
	return one(fmt.Sprintf("transmit checksum offload is broken: %s get packets with wrong checksums, and drop them", count(len(rows), "peer")), some(rows),
		fmt.Sprintf("ethtool -K %s tx-checksum-ip-generic off; if that does not help: ethtool -K %s tx off", tunnel, underlay))
}

// blocked reports whether a peer is up and does not answer over the overlay, for no reason that another check names.
func (f Facts) blocked(p Path) bool {
	namesakes := 0
	for _, e := range f.Plan.Entries() {
		if e.Lease.PublicIP == f.Plan.Entries()[p.Key].Lease.PublicIP {
			namesakes++
		}
	}
	return p.Underlay && !p.Overlay && p.Inside.IsValid() && namesakes < 2 && f.programmed(p) && f.outside(p) && len(f.outerDrops(p)) == 0 && f.deviceWell()
}

// direction says which packets don't arrive, by what the agents tell each other over the underlay.
type direction int

const (
	unknownWay direction = iota
	toPeer
	fromPeer
	bothWays
)

// lostWay tells by who was heard last, and by whom: what goes on being heard gets through. Hosts hear each other twice in the time
// that it takes a prober to come round to all its peers, and say so once.
func (f Facts) lostWay(p *api.Probe) direction {
	const slack = 2 * time.Second
	round := max(5*time.Second, time.Duration(f.Plan.Peers())*time.Second) // package probe
	switch {
	case p == nil || p.HeardUs.IsZero() && p.Heard.Sub(p.Answer) <= round+slack: // a flannel host, maybe: those send no probes
		return unknownWay
	case p.Heard.Sub(p.HeardUs) > round+slack && f.Now.Sub(p.Heard) <= 2*round+slack:
		return toPeer
	case p.HeardUs.Sub(p.Heard) > round+slack && f.Now.Sub(p.HeardUs) <= 2*round+slack:
		return fromPeer
	case f.Now.Sub(p.Heard) > 2*round+slack && f.Now.Sub(p.HeardUs) > 2*round+slack:
		return bothWays
	}
	return unknownWay // it has not lasted long enough
}

// text says which packets are lost, by what carries them and the peers that are concerned.
func (d direction) text(outer backend.Outer, peers string) string {
	switch d {
	case toPeer:
		return fmt.Sprintf("%s is blocked from here to %s", outer, peers)
	case fromPeer:
		return fmt.Sprintf("%s is blocked from %s to here", outer, peers)
	case bothWays:
		return fmt.Sprintf("%s is blocked between here and %s, both ways", outer, peers)
	}
	return fmt.Sprintf("%s is blocked between here and %s, one way or both, or the overlay is broken there", outer, peers)
}

func outerBlocked(f Facts) (findings []Finding) {
	hosts, rows := map[direction][]string{}, map[direction][]string{}
	for _, p := range f.Paths {
		if !f.blocked(p) || p.Direct || f.unshaken(p) {
			continue
		}
		w := f.lostWay(p.Heard)
		hosts[w] = append(hosts[w], p.Public.String())
		rows[w] = append(rows[w], fmt.Sprintf("%s answers on the underlay, %s does not over the overlay%s", p.Public, p.Inside, heard(p.Heard, f.Now)))
		for _, d := range f.outerVerdicts(p) {
			for _, rule := range d.Doubtful {
				rows[w] = append(rows[w], "this host has a rule that is not understood here, and may drop them: "+rule)
			}
		}
	}
	for _, w := range []direction{toPeer, fromPeer, bothWays, unknownWay} {
		if len(rows[w]) == 0 {
			continue
		}
		peers := strings.ReplaceAll(some(hosts[w]), "\n", ", ")
		findings = append(findings, Finding{What: w.text(f.outer(), peers), Evidence: some(rows[w]),
			Fix: fmt.Sprintf("let %s pass between %s and %s: in the packet filters of both (tulle doctor there), and between them (a cloud's security groups)%s",
				f.outer(), f.Plan.Host().Underlay.Public.V4, peers, f.otherwise(w))})
	}
	return append(findings, f.directBlocked()...)
}

// directBlocked is about peers whose packets are not encapsulated.
func (f Facts) directBlocked() []Finding {
	var hosts, rows []string
	for _, p := range f.Paths {
		if p.Direct && f.blocked(p) {
			hosts, rows = append(hosts, p.Public.String()), append(rows, fmt.Sprintf("ping %s: no answer, though its host %s answers%s", p.Inside, p.Public, heard(p.Heard, f.Now)))
		}
	}
	fix := fmt.Sprintf("look there: tulle status, tulle doctor; let packets from and to %s pass between the hosts: clouds check what addresses a host sends from; or take a backend that encapsulates",
		f.Plan.Host().Config.Range.V4.Network)
	switch {
	case len(rows) == 0:
		return nil
	case byOperator(f.Plan):
		fix = "see to the extension's commands (tulle config get), here and there: tulle events says if they failed"
	}
	return one(fmt.Sprintf("packets with containers' addresses don't get to %s, or their answers not back", strings.ReplaceAll(some(hosts), "\n", ", ")), some(rows), fix)
}

// unshaken reports whether WireGuard has no session with a peer, though it was just sent a packet.
func (f Facts) unshaken(p Path) bool {
	return p.Shaken != nil && f.Now.Sub(*p.Shaken) > api.SessionEnds
}

// noHandshake is about WireGuard's peers that are up and don't shake hands.
func noHandshake(f Facts) []Finding {
	var hosts, rows []string
	for _, p := range f.Paths {
		if !f.blocked(p) || !f.unshaken(p) {
			continue
		}
		last := "never"
		if !p.Shaken.IsZero() {
			last = f.Now.Sub(*p.Shaken).Round(time.Second).String() + " ago"
		}
		hosts, rows = append(hosts, p.Public.String()), append(rows, fmt.Sprintf("%s answers on the underlay; the last handshake with it was: %s", p.Public, last))
	}
	if len(rows) == 0 {
		return nil
	}
	peers := strings.ReplaceAll(some(hosts), "\n", ", ")
	return one(fmt.Sprintf("no WireGuard handshake with %s: %s is blocked, its agent is stopped, or it has another PSK or public key than is known here", peers, f.outer()), some(rows),
		fmt.Sprintf("let %s pass between %s and %s, in both directions; look there: tulle status, tulle doctor; where flanneld runs, restart it: it reads the PSK once",
			f.outer(), f.Plan.Host().Underlay.Public.V4, peers))
}

// otherwise is what else may keep peers' answers away, if it is not known which way is blocked.
func (f Facts) otherwise(w direction) string {
	switch {
	case w == toPeer || w == fromPeer:
		return ""
	case carriage(f.Plan) == "wireguard":
		return "; or start their agents, if a process carries their packets; or give them the network's PSK (tulle config get)"
	case f.outer().Kind == backend.KindTUN:
		return "; or start their agents (systemctl start tulle): they carry the packets themselves"
	}
	return ""
}

// heard says what the agents' own probes tell.
func heard(p *api.Probe, now time.Time) string {
	if p == nil {
		return ""
	}
	text := ""
	for _, event := range []struct {
		what string
		at   time.Time
	}{{"last answer", p.Answer}, {"it last heard us", p.HeardUs}, {"we last heard it", p.Heard}} {
		if event.at.IsZero() {
			text += "; " + event.what + " never"
		} else {
			text += fmt.Sprintf("; %s %s ago", event.what, now.Sub(event.at).Round(time.Second))
		}
	}
	return text
}

func peerDown(f Facts) []Finding {
	var rows []string
	for _, p := range f.Paths {
		if !p.Underlay && !p.Overlay && f.outside(p) {
			rows = append(rows, fmt.Sprintf("ping %s, of %s: no answer", p.Public, p.Key))
		}
	}
	switch {
	case len(rows) == 0:
		return nil
	case len(rows) == len(f.Paths) && len(rows) > 1 && f.Status.Peers.Reachable == 0:
		return one(fmt.Sprintf("none of %d peers answers: this host is cut off from the underlay", len(rows)), some(rows),
			fmt.Sprintf("see to the network behind %s", f.Plan.Host().Underlay.Device))
	}
	evidence := some(rows)
	if n := f.Status.Peers.Unreachable; n > len(rows) { // it knows also of those that were not probed now
		evidence += fmt.Sprintf("\ntulle status: %d of %d peers are unreachable", n, f.Status.Peers.Total)
	}
	return one(fmt.Sprintf("%s down, or cut off from the underlay", count(len(rows), "peer")), evidence,
		"start the host, or see to its network; if it won't return: tulle lease release SUBNET")
}
