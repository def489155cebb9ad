package netfilter

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// chain is one of our chains for one family: what it holds and where it hangs, in iptables' words.
type chain struct {
	family              subnet.Family
	table, parent, name string
	place               place  // of the jump, in parent
	rules               []rule // none: the chain must not exist
}

// place is where a jump belongs among its parent's rules.
type place int

const (
	anywhere place = iota // made at the end
	head
	tail // the last that is reached: before a RETURN
)

// rule is what becomes of some packets. What is left empty asks for nothing.
type rule struct {
	src, dst match
	in, out  string // devices
	mark     mark
	verdict  verdict
	set      mark // if verdict is setMark
}

// match is a range that an address is in, or not in.
type match struct {
	prefix netip.Prefix
	not    bool
}

// mark is a packet's, as far as the mask goes.
type mark struct{ value, mask uint32 }

type verdict int

const (
	accept     verdict = iota
	keep               // leave under its own source, whatever others' rules for masquerading say
	masquerade         // leave under the address of the device
	ignore             // leave it to others' rules
	drop
	setMark // and go on
)

// dockerUser is the chain that Docker leaves to the user and asks before its own. Docker keeps one that exists before it
// starts, so it is made if need be.
const dockerUser = "DOCKER-USER"

// lifts reports whether c accepts what others' iptables rules drop, Docker's above all, which can only be done among them.
func (c chain) lifts() bool { return c.table == "filter" || c.table == "raw" }

// policy is what f asks for, for one family. The chains are always the same, so that one that is no longer wanted is found.
func policy(f backend.Firewall, family subnet.Family) []chain {
	o := overlay{f, f.Network.Of(family), f.Subnet.Of(family)}
	all := []chain{
		// Before the others' rules: a dockerd without --ip-masq=false masquerades whatever leaves its bridge, and would hide
		// containers from their peers.
		{table: "nat", parent: "POSTROUTING", name: "TULLE-POSTROUTING", place: head, rules: o.masquerade(family)},
		// After the others' rules: what an operator drops stays dropped, and a policy of DROP comes after all rules.
		{table: "filter", parent: "FORWARD", name: "TULLE-FORWARD", rules: o.forward()},
		// Docker 28 and later drop what comes to a container's address from elsewhere, after this chain. After the operator's
		// own rules in it: what these drop stays dropped.
		{table: "filter", parent: dockerUser, name: "TULLE-DOCKER", place: tail, rules: o.toContainers(rule{out: f.Bridge})},
		// They drop it here, too, and before connection tracking, so that not even replies come in. What only claims to come from
		// a peer is dropped by us.
		{table: "raw", parent: "PREROUTING", name: "TULLE-PREROUTING", place: head, rules: append(o.toContainers(rule{}), o.spoofed()...)},
		// Docker 29's nftables rules drop what any other table accepts, and let in only what has a mark that they were told of.
		{table: "mangle", parent: "PREROUTING", name: "TULLE-PREROUTING", place: head},
	}
	if f.Mark != 0 {
		all[4].rules = o.toContainers(rule{verdict: setMark, set: mark{f.Mark, f.Mark}})
	}
	for i := range all {
		all[i].family = family
	}
	return all
}

// overlay is what one family's rules are about: the whole range, and this host's part of it.
type overlay struct {
	backend.Firewall
	network, own netip.Prefix
}

// known reports whether it is known by which devices the overlay's packets come in.
func (o overlay) known() bool { return o.From != backend.Devices{} && o.Bridge != "" }

// inBy are copies of r, one for each of the devices.
func (r rule) inBy(devices ...string) (rules []rule) {
	for _, r.in = range devices {
		rules = append(rules, r)
	}
	return rules
}

func (o overlay) masquerade(family subnet.Family) []rule {
	network, own := match{prefix: o.network}, match{prefix: o.own}
	elsewhere := match{o.network, true}
	inside := []rule{
		{src: own, dst: own, verdict: ignore}, // Docker masquerades a container that calls itself by a published port
		{src: own, dst: network, verdict: keep},
	}
	switch {
	case !o.network.IsValid():
		return nil
	case o.Masquerade.Of(family):
	case o.Forward && o.Bridge != "": // Docker masquerades, if it was not told not to
		return inside
	default:
		return nil
	}
	return slices.Concat([]rule{{mark: mark{exempt, exempt}, verdict: ignore}}, inside, []rule{
		{src: network, dst: network, verdict: ignore}, // the rest of it as well: where all hosts are one segment, a broadcast
		{src: elsewhere, dst: own, verdict: ignore},
		{src: network, dst: match{many(family), true}, verdict: masquerade},
		{src: elsewhere, dst: network, verdict: masquerade},
	})
}

// exempt as a mark keeps a packet from being masqueraded. It is the mark that kube-proxy and flannel use.
const exempt = 0x4000

// many are the addresses that more than one host may have: multicast, and in IPv4 broadcast, with what is reserved between them. A
// bridge sends such packets through the packet filter, too, if Docker has it do so, and whom they reach must know who sent them.
func many(f subnet.Family) netip.Prefix {
	if f == subnet.IPv4 {
		return netip.MustParsePrefix("224.0.0.0/3")
	}
	return netip.MustParsePrefix("ff00::/8")
}

func (o overlay) forward() []rule {
	if !o.network.IsValid() || !o.Forward {
		return nil
	}
	from := rule{src: match{prefix: o.network}}
	rules := []rule{from}
	if o.known() {
		rules = from.inBy(o.devices()...)
	}
	rules = append(rules, rule{dst: match{prefix: o.network}})
	if o.known() && slices.Contains(o.From[:], o.Bridge) && o.network.Addr().Is6() {
		rules = append(rules, rule{src: match{prefix: linkLocal}, in: o.Bridge, out: o.Bridge})
	}
	return rules
}

// linkLocal is what hosts ask from who has a container's address, for packets that they forward, if all hosts are one segment.
var linkLocal = netip.MustParsePrefix("fe80::/10")

// devices are those by which packets from the overlay may come in: from peers, and from this host's containers.
func (o overlay) devices() []string {
	devices := slices.Collect(o.From.All())
	if !slices.Contains(devices, o.Bridge) {
		devices = append(devices, o.Bridge)
	}
	return devices
}

// toContainers is r for what comes from peers to this host's containers.
func (o overlay) toContainers(r rule) []rule {
	if !o.network.IsValid() || !o.Forward || o.Bridge == "" {
		return nil
	}
	r.src, r.dst = match{prefix: o.network}, match{prefix: o.own}
	if o.From == (backend.Devices{}) {
		return []rule{r}
	}
	return r.inBy(slices.Collect(o.From.All())...)
}

// spoofed are the rules for what claims to come from the overlay to this host's containers, and does not come by any of its devices.
// They follow those that accept what does.
func (o overlay) spoofed() []rule {
	if !o.network.IsValid() || !o.Forward || !o.known() {
		return nil
	}
	r := rule{src: match{prefix: o.network}, dst: match{prefix: o.own}, verdict: ignore}
	rules := r.inBy(append(slices.DeleteFunc(o.devices(), func(d string) bool { return slices.Contains(o.From[:], d) }), "lo")...)
	r.verdict = drop
	return append(rules, r)
}

// line is r as iptables-save prints it, without "-A NAME ". Whether masquerading chooses ports at random depends on iptables.
func (r rule) line(randomFully bool) string {
	var b strings.Builder
	part := func(given bool, format string, args ...any) {
		if given {
			fmt.Fprintf(&b, format+" ", args...)
		}
	}
	for _, m := range []struct {
		option string
		match
	}{{"-s", r.src}, {"-d", r.dst}} {
		part(m.not, "!")
		part(m.prefix.IsValid(), "%s %s", m.option, m.prefix)
	}
	part(r.in != "", "-i %s", r.in)
	part(r.out != "", "-o %s", r.out)
	part(r.mark.mask != 0, "-m mark --mark %#x/%#x", r.mark.value, r.mark.mask)
	switch r.verdict {
	case accept, keep: // in table nat nobody is asked after an ACCEPT
		b.WriteString("-j ACCEPT")
	case ignore:
		b.WriteString("-j RETURN")
	case drop:
		b.WriteString("-j DROP")
	case setMark:
		fmt.Fprintf(&b, "-j MARK --set-xmark %#x/%#x", r.set.value, r.set.mask)
	case masquerade:
		b.WriteString("-j MASQUERADE")
		if randomFully {
			b.WriteString(" --random-fully")
		}
	}
	return b.String()
}

// lines are c's rules as iptables-save prints them.
func (c chain) lines(randomFully bool) (lines []string) {
	for _, r := range c.rules {
		lines = append(lines, r.line(randomFully))
	}
	return lines
}
