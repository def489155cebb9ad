package doctor

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/probe"
)

// overhead is what the tunnel adds to a packet, bytes; 0 without one.
func (f Facts) overhead() int {
	if name, _ := f.tunnel(); name == "" {
		return 0
	}
	return vxlanOverhead
}

// vxlanOverhead is what VXLAN adds on an IPv4 underlay, bytes: IPv4 20, UDP 8, VXLAN 8, Ethernet 14.
const vxlanOverhead = 50

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
	name, _ := f.tunnel()
	tunnel, _ := f.device(name)
	need := max(f.Plan.State().MTU, tunnel.MTU) + f.overhead()
	if !ok || d.MTU >= need {
		return nil
	}
	return one(fmt.Sprintf("%s takes packets of %d bytes, and the overlay's are up to %d long", u, d.MTU, need), fmt.Sprintf("ip link show %s: mtu %d", u, d.MTU),
		fmt.Sprintf("ip link set %s mtu %d, if the network behind it takes that; or %s", u, need, configMTU(d.MTU)))
}

// configMTU says how the whole network gets by with an underlay of a smaller MTU.
func configMTU(underlay int) string {
	return fmt.Sprintf("\"MTU\": %d in the config's Backend (tulle config set), and restart Docker on all hosts", underlay)
}

func mtuPath(f Facts) []Finding {
	mtu := f.Plan.State().MTU
	least, rows := mtu, []string(nil)
	for _, p := range f.Paths {
		if p.Longest > 0 && p.Longest < mtu {
			least, rows = min(least, p.Longest), append(rows, fmt.Sprintf("ping -M do to %s: answered up to %d bytes", p.VTEP, p.Longest))
		}
	}
	if len(rows) == 0 || len(mtuUnderlay(f)) > 0 {
		return nil
	}
	return one(fmt.Sprintf("packets longer than %d bytes are lost on the way to %s, and the overlay's MTU is %d", least, count(len(rows), "peer"), mtu), some(rows),
		fmt.Sprintf("see which device between the hosts takes less than %d bytes; or %s", mtu+f.overhead(), configMTU(least+f.overhead())))
}

func checksumOffload(f Facts) []Finding {
	var rows []string
	for _, p := range f.Paths {
		if p.Checksum == probe.ChecksumBroken {
			rows = append(rows, fmt.Sprintf("UDP to %s arrives without a checksum, and not with one that the device fills in", p.VTEP))
		}
	}
	if len(rows) == 0 {
		return nil
	}
	tunnel, _ := f.tunnel()
	underlay := f.Plan.Host().Underlay.Device
	if tunnel == "" {
		tunnel = underlay
	}
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
	return p.Underlay && !p.Overlay && namesakes < 2 && p.inside() && f.outside(p) && len(f.udpDrops(p)) == 0 && f.deviceWell()
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
	round := max(5*time.Second, time.Duration(len(f.Plan.State().Routes))*time.Second) // package probe
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

// text says which packets are lost, with a port and the peers that are concerned.
func (d direction) text(port uint16, peers string) string {
	switch d {
	case toPeer:
		return fmt.Sprintf("UDP port %d is blocked from here to %s", port, peers)
	case fromPeer:
		return fmt.Sprintf("UDP port %d is blocked from %s to here", port, peers)
	case bothWays:
		return fmt.Sprintf("UDP port %d is blocked between here and %s, both ways", port, peers)
	}
	return fmt.Sprintf("UDP port %d is blocked between here and %s, one way or both, or the overlay is broken there", port, peers)
}

func udpBlocked(f Facts) (findings []Finding) {
	_, link := f.tunnel()
	hosts, rows := map[direction][]string{}, map[direction][]string{}
	for _, p := range f.Paths {
		if !f.blocked(p) || p.Direct {
			continue
		}
		w := f.lostWay(p.Heard)
		hosts[w] = append(hosts[w], p.Public.String())
		rows[w] = append(rows[w], fmt.Sprintf("%s answers on the underlay, %s does not over the overlay%s", p.Public, p.VTEP, heard(p.Heard, f.Now)))
		for _, d := range f.udpVerdicts(p) {
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
		findings = append(findings, Finding{What: w.text(link.VXLAN.Port, peers), Evidence: some(rows[w]),
			Fix: fmt.Sprintf("let UDP port %d pass between %s and %s: in the packet filters of both (tulle doctor there), and between them (a cloud's security groups)",
				link.VXLAN.Port, f.Plan.Host().Underlay.Public.V4, peers)})
	}
	return findings
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
		} else if p.Direct && p.Underlay && !p.Overlay && p.inside() {
			rows = append(rows, fmt.Sprintf("ping %s: no answer, though its host %s answers", p.VTEP, p.Public))
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
