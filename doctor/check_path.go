package doctor

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/probe"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
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
	need := f.Plan.State().MTU
	for _, name := range f.tunnels() {
		tunnel, _ := f.device(name)
		need = max(need, tunnel.MTU)
	}
	need += f.overhead()
	if !ok || d.MTU >= need {
		return nil
	}
	return one(fmt.Sprintf("%s takes packets of %d bytes, and the overlay's are up to %d long", u, d.MTU, need), fmt.Sprintf("ip link show %s: mtu %d", u, d.MTU),
		fmt.Sprintf("ip link set %s mtu %d, if the network behind it takes that; or %s", quote(u), need, lowerMTU(f.Plan, d.MTU)))
}

func mtuPath(f Facts) []Finding {
	mtu := f.Plan.State().MTU
	least, rows, narrow := mtu, []string(nil), []Path(nil)
	for _, p := range f.Paths {
		if p.Longest > 0 && p.Longest < mtu {
			narrow = append(narrow, p)
			least, rows = min(least, p.Longest), append(rows, fmt.Sprintf("ping -M do to %s: answered up to %d bytes", p.Inside, p.Longest))
		}
	}
	if len(rows) == 0 || len(mtuUnderlay(f)) > 0 {
		return nil
	}
	return one(fmt.Sprintf("packets longer than %d bytes are lost on the way to %s, and the overlay's MTU is %d", least, count(peers(narrow), "peer"), mtu), some(rows),
		fmt.Sprintf("see which device between the hosts takes less than %d bytes; or %s", mtu+f.overhead(), lowerMTU(f.Plan, least+f.overhead())))
}

func checksumOffload(f Facts) []Finding {
	var rows []string
	var broken []Path
	for _, p := range f.Paths {
		if p.Checksum == probe.ChecksumBroken {
			broken = append(broken, p)
			rows = append(rows, fmt.Sprintf("UDP to %s arrives without a checksum, and not with one that the device fills in", p.Inside))
		}
	}
	if len(rows) == 0 {
		return nil
	}
	underlay := f.Plan.Host().Underlay.Device
	tunnel := cmp.Or(f.outer().Device, underlay)
	return one(fmt.Sprintf("transmit checksum offload is broken: %s get packets with wrong checksums, and drop them", count(peers(broken), "peer")), some(rows),
		fmt.Sprintf("ethtool -K %s tx-checksum-ip-generic off; if that does not help: ethtool -K %s tx off", tunnel, underlay))
}

// blocked reports whether a peer is up and does not answer over the overlay, for no reason that another check names.
func (f Facts) blocked(p Path) bool {
	namesakes := 0
	for _, e := range f.Plan.Entries() {
		if e.Lease.PublicIP.Of(p.outerFamily()) == p.Public {
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
	targets := 0
	for range f.Plan.Host().BridgeAddrs().All() { // each peer has one for each family, at most
		targets += f.Plan.Peers()
	}
	round := max(5*time.Second, time.Duration(targets)*time.Second) // package probe
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

// loss is what is lost: packets of one carrier, one way or both.
type loss struct {
	way     direction
	carrier backend.Outer
}

func outerBlocked(f Facts) (findings []Finding) {
	lost, losses := map[loss][]Path{}, []loss(nil)
	for _, p := range f.Paths {
		if !f.blocked(p) || p.direct() || f.unshaken(p) || f.passedBy(p) {
			continue
		}
		l := loss{f.lostWay(p.Heard), p.Carrier}
		if lost[l] = append(lost[l], p); len(lost[l]) == 1 {
			losses = append(losses, l)
		}
	}
	slices.SortStableFunc(losses, func(a, b loss) int { return cmp.Compare(a.way.rank(), b.way.rank()) })
	for _, l := range losses {
		findings = append(findings, f.blockedFinding(l, lost[l]))
	}
	return append(append(findings, f.familyBlocked()...), f.directBlocked()...)
}

// rank puts what is known before what is not.
func (d direction) rank() int {
	return slices.Index([]direction{toPeer, fromPeer, bothWays, unknownWay}, d)
}

func (f Facts) blockedFinding(l loss, paths []Path) Finding {
	var hosts, rows []string
	for _, p := range paths {
		if hosts = append(hosts, p.Public.String()); slices.Contains(hosts[:len(hosts)-1], p.Public.String()) { // by both families
			hosts = hosts[:len(hosts)-1]
		}
		rows = append(rows, fmt.Sprintf("%s answers on the underlay, %s does not over the overlay%s", p.Public, p.Inside, heard(p.Heard, f.Now)))
		for _, d := range f.outerVerdicts(p) {
			for _, rule := range d.Doubtful {
				rows = append(rows, "this host has a rule that is not understood here, and may drop them: "+rule)
			}
		}
	}
	peers := strings.ReplaceAll(some(hosts), "\n", ", ")
	return Finding{What: l.way.text(l.carrier, peers), Evidence: some(rows),
		Fix: fmt.Sprintf("let %s pass between %s and %s: in the packet filters of both (tulle doctor there), and between them (a cloud's security groups)%s",
			l.carrier, f.here(paths[0]), peers, f.otherwise(l.way))}
}

// here is this host's address that a peer sees.
func (f Facts) here(p Path) netip.Addr { return f.Plan.Host().Underlay.Public.Of(p.outerFamily()) }

// passedBy reports whether packets of the other family get through to a peer by the very same carrier: that is not blocked, then.
func (f Facts) passedBy(p Path) bool {
	return slices.ContainsFunc(f.Paths, func(other Path) bool {
		return other.Key == p.Key && other.Public == p.Public && other.Carrier == p.Carrier && other.Overlay
	})
}

// familyBlocked is about peers that what carries both families gets to, and one of them does not get through.
func (f Facts) familyBlocked() (findings []Finding) {
	for _, family := range []subnet.Family{subnet.IPv4, subnet.IPv6} {
		var hosts, rows []string
		for _, p := range f.Paths {
			if p.family() == family && !p.direct() && f.blocked(p) && f.passedBy(p) {
				hosts, rows = append(hosts, p.Public.String()), append(rows, fmt.Sprintf("%s does not answer, %s gets through by the same %s", p.Inside, family.Other(), p.Carrier.Device))
			}
		}
		if len(rows) > 0 {
			findings = append(findings, Finding{What: fmt.Sprintf("%s does not get through to %s inside the overlay, and %s does", family, strings.ReplaceAll(some(hosts), "\n", ", "), family.Other()),
				Evidence: some(rows), Fix: fmt.Sprintf("look there, and here: sysctl %s, the packet filter for %s (ip6tables-save is not iptables-save), and whether %s has an address inside there (tulle doctor)",
					forwards.Of(family), family, family)})
		}
	}
	return findings
}

// directBlocked is about peers whose packets are not encapsulated.
func (f Facts) directBlocked() []Finding {
	var hosts, rows []string
	for _, p := range f.Paths {
		if p.direct() && f.blocked(p) {
			hosts, rows = append(hosts, p.Public.String()), append(rows, fmt.Sprintf("ping %s: no answer, though its host %s answers%s", p.Inside, p.Public, heard(p.Heard, f.Now)))
		}
	}
	fix := fmt.Sprintf("look there: tulle status, tulle doctor; let packets from and to %s pass between the hosts: clouds check what addresses a host sends from; or take a backend that encapsulates",
		networks(f.Plan))
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
func noHandshake(f Facts) (findings []Finding) {
	for _, o := range f.Plan.State().Outers() {
		findings = append(findings, f.unshakenBy(o)...)
	}
	return findings
}

func (f Facts) unshakenBy(carrier backend.Outer) []Finding {
	var hosts, rows []string
	var here netip.Addr
	for _, p := range f.Paths {
		if p.Carrier != carrier || !f.blocked(p) || !f.unshaken(p) || slices.Contains(hosts, p.Public.String()) {
			continue
		}
		last := "never"
		if !p.Shaken.IsZero() {
			last = f.Now.Sub(*p.Shaken).Round(time.Second).String() + " ago"
		}
		here, hosts, rows = f.here(p), append(hosts, p.Public.String()), append(rows, fmt.Sprintf("%s answers on the underlay; the last handshake with it was: %s", p.Public, last))
	}
	if len(rows) == 0 {
		return nil
	}
	peers := strings.ReplaceAll(some(hosts), "\n", ", ")
	return one(fmt.Sprintf("no WireGuard handshake with %s: %s is blocked, its agent is stopped, or it has another PSK or public key than is known here", peers, carrier), some(rows),
		fmt.Sprintf("let %s pass between %s and %s, in both directions; look there: tulle status, tulle doctor; where flanneld runs, restart it: it reads the PSK once",
			carrier, here, peers))
}

// otherwise is what else may keep peers' answers away, if it is not known which way is blocked.
func (f Facts) otherwise(w direction) string {
	switch {
	case w == toPeer || w == fromPeer:
		return ""
	case carriage(f.Plan) == "wireguard":
		return "; or start their agents, if a process carries their packets; or give them the network's PSK (tulle config get --secrets)"
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
	var down, half []Path
	for _, p := range f.Paths {
		row := fmt.Sprintf("ping %s, of %s: no answer", p.Public, p.Key)
		switch {
		case p.Underlay || p.Overlay || !f.outside(p):
		case f.answersElse(p):
			half = append(half, p)
		default:
			if down = append(down, p); !slices.Contains(rows, row) { // both families may be carried there
				rows = append(rows, row)
			}
		}
	}
	findings := halfDown(half)
	switch n := f.Status.Peers.Unreachable; {
	case len(down) == 0:
	case len(down) == len(f.Paths) && peers(down) > 1 && f.Status.Peers.Reachable == 0:
		findings = append(findings, one(fmt.Sprintf("none of %d peers answers: this host is cut off from the underlay", peers(down)), some(rows),
			fmt.Sprintf("see to the network behind %s", f.Plan.Host().Underlay.Device))...)
	default:
		evidence := some(rows)
		if n > peers(down) { // it knows also of those that were not probed now
			evidence += fmt.Sprintf("\ntulle status: %d of %d peers are unreachable", n, f.Status.Peers.Total)
		}
		findings = append(findings, one(fmt.Sprintf("%s down, or cut off from the underlay", count(peers(down), "peer")), evidence,
			"start the host, or see to its network; if it won't return: tulle lease release SUBNET")...)
	}
	return findings
}

// answersElse reports whether a peer answers at another address on the underlay.
func (f Facts) answersElse(p Path) bool {
	return slices.ContainsFunc(f.Paths, func(other Path) bool { return other.Key == p.Key && other.Public != p.Public && other.Underlay })
}

// halfDown is about peers that answer by one family of the underlay and not by the other.
func halfDown(paths []Path) []Finding {
	if len(paths) == 0 {
		return nil
	}
	var rows []string
	for _, p := range paths {
		rows = append(rows, fmt.Sprintf("ping %s: no answer, and its other address answers", p.Public))
	}
	family := paths[0].outerFamily()
	return one(fmt.Sprintf("the underlay does not carry %s to %s, and does carry %s", family, count(peers(paths), "peer"), family.Other()), some(rows),
		fmt.Sprintf("see to %s between the hosts: ip route get %s, here, and the same there; or do without: tulle agent --underlay-family %s", family, paths[0].Public, strings.ToLower(family.Other().String())))
}
