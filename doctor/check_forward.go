package doctor

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// forwardingOff looks at the sysctls that a plan sets, and at those of the devices on the way.
func forwardingOff(f Facts) []Finding {
	want := map[string]string{ipForward: "1"}
	if f.Plan != nil {
		want = map[string]string{}
		for family := range f.Plan.Host().BridgeAddrs().All() {
			want[forwards.Of(family)] = "1"
		}
		for _, device := range []string{f.leaves(subnet.IPv4), f.Plan.Host().Bridge} {
			want[conf(device, "forwarding")] = "1"
		}
	}
	var rows, fixes []string
	for name, value := range want {
		if have, ok := f.Sysctls[name]; ok && have != value {
			rows, fixes = append(rows, name+" = "+have), append(fixes, "sysctl -w "+quote(name+"="+value))
		}
	}
	if len(rows) == 0 {
		return nil
	}
	slices.Sort(rows)
	slices.Sort(fixes)
	if f.Sysctls[ipForward] != want[ipForward] { // it switches all devices
		fixes = []string{"sysctl -w " + ipForward + "=1"}
	}
	return one("the kernel does not forward packets between containers and the overlay", "sysctl: "+strings.Join(rows, ", "),
		strings.Join(fixes, "; ")+"; and see what switches it off (grep -r forward /etc/sysctl.conf /etc/sysctl.d)")
}

// crossing is a packet between a container of this host and one of a peer, and the chains that it has to pass.
type crossing struct {
	way    string
	packet Packet
}

// leaves is the device by which packets of a family come and go between this host's containers and peers': with l2 it is their bridge,
// and with an operator's own means the underlay's, most likely.
func (f Facts) leaves(family subnet.Family) string {
	h, s := f.Plan.Host(), f.Plan.State()
	if bridged(f.Plan) {
		return h.Bridge
	}
	for _, p := range f.Paths {
		if p.family() == family && !p.direct() {
			return p.Carrier.Device
		}
	}
	return cmp.Or(s.Firewall.From[0], h.Underlay.Device)
}

// passing reports whether the packet filter sees what passes between containers and peers, and is the agent's business.
func (f Facts) passing() bool {
	return f.Plan.Host().Bridge != "" && carriage(f.Plan) != "alloc" && (!bridged(f.Plan) || f.Sysctls[bridgeCall] == "1")
}

// crossings are one in each direction and family, with a container of a peer, or of one that may come.
func (f Facts) crossings() (all []crossing) {
	h := f.Plan.Host()
	for family, leased := range h.Self.Subnet.All() {
		own, peer, leaves := second(leased.Addr()), f.neighbour(family), f.leaves(family)
		all = append(all,
			crossing{"to containers", Packet{In: leaves, Out: h.Bridge, Src: peer, Dst: own, Protocol: "tcp", State: "NEW", Bridged: leaves == h.Bridge}},
			crossing{"from containers", Packet{In: h.Bridge, Out: leaves, Src: own, Dst: peer, Protocol: "tcp", State: "NEW", Bridged: leaves == h.Bridge}})
	}
	return all
}

// neighbour is an address of a container of a peer's, or of one that may come.
func (f Facts) neighbour(family subnet.Family) netip.Addr {
	for _, p := range f.Paths {
		if p.family() == family {
			return second(p.Subnet.Addr())
		}
	}
	h := f.Plan.Host()
	network := h.Config.Range.Of(family)
	if last := second(network.Max); !h.Self.Subnet.Of(family).Contains(last) {
		return last
	}
	return second(network.Min)
}

// dropped is a rule that drops packets.
type dropped struct {
	family subnet.Family
	table  string
	ways   []string
	Verdict
	carrier backend.Outer // of the overlay's own packets
}

// tool is the program that knows the rule.
func (d dropped) tool() string { return iptablesOf(d.family) }

// forwardDrops are what drops crossing packets in FORWARD, each once.
func (f Facts) forwardDrops() (drops []dropped) {
	if !f.passing() {
		return nil
	}
	for _, c := range f.crossings() {
		p := c.packet
		p.Mark = f.Filter.Verdict("mangle", "PREROUTING", p).Mark
		for _, table := range []string{"mangle", "filter"} {
			if v := f.Filter.Verdict(table, "FORWARD", p); !v.Accept {
				drops = merge(drops, dropped{family: p.family(), table: table, ways: []string{c.way}, Verdict: v})
				break
			}
		}
	}
	return drops
}

func merge(drops []dropped, d dropped) []dropped {
	for i, known := range drops {
		if known.family == d.family && known.table == d.table && known.Rule == d.Rule {
			drops[i].ways = append(known.ways, d.ways...)
			return drops
		}
	}
	return append(drops, d)
}

// doubting notes where a rule is not understood that may let in what another drops.
func (f Facts) doubting() Facts {
	if f.Plan == nil || f.Unseen[PartFilter] != "" {
		return f
	}
	drops := map[Part][]dropped{PartForward: f.forwardDrops(), PartRaw: f.rawDrops(), PartBridged: f.bridgedDrops()}
	for _, p := range f.Paths {
		drops[PartOuter] = append(drops[PartOuter], f.outerDrops(p)...)
	}
	f.Unseen = maps.Clone(f.Unseen)
	for part, list := range drops {
		for _, d := range list {
			if !d.Sure {
				f.Unseen[part] = fmt.Sprintf("%s drops packets %s, unless what is not understood here accepts them before: %s", d.Rule, d.ways[0], strings.Join(d.Doubtful, "; "))
			}
		}
	}
	return f
}

// dockers reports whether a rule is one that Docker makes, and makes again: it comes after what DOCKER-USER accepts.
func (d dropped) dockers() bool {
	return strings.HasPrefix(d.Chain, "DOCKER") && d.Chain != "DOCKER-USER"
}

// forwardDrop is about what drops what no rule accepts: the policy, or Docker.
func forwardDrop(f Facts) (findings []Finding) {
	for _, d := range f.forwardDrops() {
		if d.Position > 0 && !d.dockers() {
			continue
		}
		h := f.Plan.Host()
		fix := "systemctl start tulle: its agent accepts them (chain TULLE-FORWARD), and puts that back within seconds whoever takes it away"
		if !h.Forward {
			fix = fmt.Sprintf("start the agent without --forward-rules=false; or accept them: %[2]s -I FORWARD -s %[1]s -j ACCEPT; %[2]s -I FORWARD -d %[1]s -j ACCEPT",
				h.Config.Range.Of(d.family).Network, d.tool())
		}
		findings = append(findings, Finding{What: fmt.Sprintf("the packet filter drops packets %s: nothing accepts them", strings.Join(d.ways, " and ")),
			Evidence: fmt.Sprintf("%s-save -t %s: %s", d.tool(), d.table, d.Rule), Fix: fix})
	}
	return findings
}

// forwardShadowed is about rules of somebody else's that come before those that accept.
func forwardShadowed(f Facts) (findings []Finding) {
	for _, d := range f.forwardDrops() {
		if d.Position == 0 || d.dockers() {
			continue
		}
		h := f.Plan.Host()
		findings = append(findings, Finding{What: fmt.Sprintf("a rule drops packets %s before they are accepted", strings.Join(d.ways, " and ")),
			Evidence: fmt.Sprintf("%s-save -t %s: %s (rule %d of %s)", d.tool(), d.table, d.Rule, d.Position, d.Chain),
			Fix: fmt.Sprintf("%s; or accept before it: %s -t %s -I %s %d -s %[6]s -d %[6]s -j ACCEPT", d.without(), d.tool(), d.table, quote(d.Chain), d.Position,
				h.Config.Range.Of(d.family).Network)})
	}
	return findings
}

// without is the command that takes a rule away.
func (d dropped) without() string {
	return d.tool() + " -t " + d.table + " -D " + quoteAll(split(strings.TrimPrefix(d.Rule, "-A ")))
}

// rawDrops are what drops packets to containers in table raw: also to those addresses that rules name. Docker ≥ 28 has one for each
// container.
func (f Facts) rawDrops() (drops []dropped) {
	if !f.passing() {
		return nil
	}
	for _, c := range f.crossings() {
		into := c.packet
		own := f.Plan.Host().Self.Subnet.Of(into.family())
		if !own.Contains(into.Dst) {
			continue
		}
		for _, a := range append(f.Filter.addresses("raw", own), into.Dst) {
			into.Dst = a
			if v := f.Filter.Verdict("raw", "PREROUTING", into); !v.Accept {
				drops = merge(drops, dropped{family: into.family(), table: "raw", ways: []string{"to " + a.String()}, Verdict: v})
			}
		}
	}
	return drops
}

func rawDrop(f Facts) []Finding {
	var rules, ways, fixes []string
	h := f.Plan.Host()
	for _, d := range f.rawDrops() {
		rules, ways = append(rules, d.tool()+"-save -t raw: "+d.Rule), append(ways, d.ways...)
		fix := fmt.Sprintf("%s -t raw -I PREROUTING -s %s -d %s -j ACCEPT", d.tool(), h.Config.Range.Of(d.family).Network, h.Self.Subnet.Of(d.family))
		if !slices.Contains(fixes, fix) {
			fixes = append(fixes, fix)
		}
	}
	if len(rules) == 0 {
		return nil
	}
	fix := "systemctl start tulle: its agent accepts them before (chain TULLE-PREROUTING of table raw)"
	if !h.Forward {
		fix = "start the agent without --forward-rules=false; or accept them: " + strings.Join(fixes, "; ")
	}
	return one(fmt.Sprintf("table raw drops packets %s before anything accepts them, as Docker does from version 28 on", strings.ReplaceAll(some(ways), "\n", ", ")),
		some(rules), fix)
}

// addresses are those within p that the rules of a table are about.
func (f Filter) addresses(table string, p netip.Prefix) (all []netip.Addr) {
	for _, set := range f.sets {
		for _, c := range set.tables[table] {
			for _, r := range c.rules {
				words := strings.Fields(r.text)
				i := slices.Index(words, "-d")
				if i < 0 || i+1 == len(words) {
					continue
				}
				if d, err := netip.ParsePrefix(words[i+1]); err == nil && p.Contains(d.Addr()) && d.IsSingleIP() {
					all = append(all, d.Addr())
				}
			}
		}
	}
	return all
}

// bridgedDrops is what drops packets between two containers of this host. What Docker drops for --icc=false is meant so, and what
// drops packets of others too has a name of its own.
func (f Facts) bridgedDrops() []dropped {
	h := f.Plan.Host()
	if h.Bridge == "" || f.Sysctls[bridgeCall] != "1" || !h.Self.Subnet.V4.IsValid() { // the sysctl is IPv4's
		return nil
	}
	own := second(h.Self.Subnet.V4.Addr())
	v := f.Filter.Verdict("filter", "FORWARD", Packet{In: h.Bridge, Out: h.Bridge, Src: own, Dst: own.Next(), Protocol: "tcp", State: "NEW", Bridged: true})
	named := slices.ContainsFunc(f.forwardDrops(), func(d dropped) bool { return d.Rule == v.Rule })
	if v.Accept || named || strings.Contains(v.Rule, fmt.Sprintf("-i %s -o %s -j DROP", h.Bridge, h.Bridge)) {
		return nil
	}
	return []dropped{{table: "filter", ways: []string{"between containers of this host"}, Verdict: v}}
}

func brNetfilter(f Facts) (findings []Finding) {
	bridge := f.Plan.Host().Bridge
	for _, d := range f.bridgedDrops() {
		findings = one("containers of this host don't reach each other: the packet filter drops what passes "+bridge,
			fmt.Sprintf("%s = 1, and iptables-save: %s", bridgeCall, d.Rule),
			fmt.Sprintf("iptables -I FORWARD -i %s -o %s -j ACCEPT; or sysctl -w %s=0", bridge, bridge, bridgeCall))
	}
	return findings
}

// rpFilter names a strict filter only where it drops what should come in: the kernel takes the larger of a device's and all's.
func rpFilter(f Facts) (findings []Finding) {
	h := f.Plan.Host()
	dev := h.Underlay.Device
	strict := conf(dev, "rp_filter")
	switch {
	case f.Sysctls[strict] == "2" || f.Sysctls[conf("all", "rp_filter")] == "2": // loose
		return nil
	case f.Sysctls[conf("all", "rp_filter")] == "1":
		strict = conf("all", "rp_filter")
	case f.Sysctls[strict] != "1":
		return nil
	}
	fix := "sysctl -w " + quote(conf(dev, "rp_filter")+"=2")
	for _, p := range f.Paths {
		if !p.Overlay && !f.outside(p) && p.Outer.Dev != "" && p.Public.Is4() {
			findings = one(fmt.Sprintf("the reverse path filter of %s drops what peers send: packets to them leave by %s", dev, p.Outer.Dev),
				fmt.Sprintf("sysctl: %s = 1; ip route get fibmatch %s: %s", strict, p.Public, p.Outer), fix)
			break
		}
	}
	if !h.Self.Subnet.V4.IsValid() { // IPv6 has no such filter
		return findings
	}
	own := second(h.Self.Subnet.V4.Addr())
	for _, p := range f.Paths {
		if p.direct() || !p.Public.Is4() { // the way back is by the same device
			continue
		}
		v := f.Filter.Verdict("nat", "POSTROUTING", Packet{In: h.Bridge, Out: dev, Src: own, Dst: p.Public, Protocol: "tcp", State: "NEW"})
		if v.Target == "MASQUERADE" || v.Target == "SNAT" || h.Bridge == "" {
			continue
		}
		return append(findings, Finding{
			What: fmt.Sprintf("the reverse path filter of %s drops what peers' containers send to %s: they are not masqueraded, and the way back is by the overlay",
				dev, h.Underlay.Public.V4),
			Evidence: fmt.Sprintf("sysctl: %s = 1; iptables-save -t nat, for a container's packet to %s: %s", strict, p.Public, v.Rule),
			Fix:      fix + "; or start all agents with --ip-masq"})
	}
	return findings
}

// outerFiltered asks for each peer what this host's own rules do to the overlay's packets.
func outerFiltered(f Facts) (findings []Finding) {
	var drops []dropped
	for _, p := range f.Paths {
		drops = append(drops, f.outerDrops(p)...)
	}
	seen := map[string]bool{}
	for _, d := range drops {
		if seen[d.tool()+d.table+d.Rule] {
			continue
		}
		seen[d.tool()+d.table+d.Rule] = true
		fix := d.without()
		if d.Position == 0 {
			_, got := outerPackets(f.Plan.Host().Underlay, d.carrier, f.Paths[0].Public)
			fix = fmt.Sprintf("%s -I %s %s, for good: in whatever makes your rules", d.tool(), quote(d.Chain), got.accept())
		}
		findings = append(findings, Finding{What: fmt.Sprintf("this host's packet filter drops the overlay's packets %s: %s", d.ways[0], d.carrier),
			Evidence: fmt.Sprintf("%s-save -t %s: %s", d.tool(), d.table, d.Rule), Fix: fix})
	}
	return findings
}

// outerDrops are those rules of this host that drop the overlay's packets to or from a peer; one that is not quite understood does not if
// the peer answers.
func (f Facts) outerDrops(p Path) []dropped {
	return slices.DeleteFunc(f.outerVerdicts(p), func(d dropped) bool { return d.Accept || !d.Sure && p.Overlay })
}

// outerVerdicts are those on each of the chains that the overlay's packets pass on this host.
func (f Facts) outerVerdicts(p Path) (all []dropped) {
	if p.direct() {
		return nil
	}
	out, in := outerPackets(f.Plan.Host().Underlay, p.Carrier, p.Public)
	for _, step := range []struct {
		table, chain, way string
		packet            Packet
	}{
		{"raw", "PREROUTING", "from peers", in}, {"mangle", "PREROUTING", "from peers", in}, {"mangle", "INPUT", "from peers", in}, {"filter", "INPUT", "from peers", in},
		{"raw", "OUTPUT", "to peers", out}, {"mangle", "OUTPUT", "to peers", out}, {"filter", "OUTPUT", "to peers", out}, {"mangle", "POSTROUTING", "to peers", out},
	} {
		all = append(all, dropped{step.packet.family(), step.table, []string{step.way}, f.Filter.Verdict(step.table, step.chain, step.packet), p.Carrier})
	}
	return all
}
