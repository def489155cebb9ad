package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// passage is what a packet goes through in the packet filter at one place.
type passage struct {
	name   string
	chains [][2]string // tables and chains, in the kernel's order
	packet Packet
	accept string // a rule that lets it pass
}

// atBridge tells that containers' packets stay within their bridge, of which the overlay's device is a port.
func (f *PathFacts) atBridge() bool { return bridged(f.Plan) && f.arrives() == f.Plan.Host().Bridge }

// passages are those of a packet from a container, of its encapsulation, and of the answer.
func (f *PathFacts) passages(row row) (list []passage) {
	h := f.Plan.Host()
	family := subnet.FamilyOf(f.Address)
	network := h.Config.Range.Of(family).Network
	in, leaves, container := f.arrives(), f.leaves(row), f.source()
	if f.Container != nil && f.Container.Host || f.atBridge() && !f.Netfiltered {
		in = ""
	}
	both := fmt.Sprintf("-s %s -d %s -j ACCEPT", network, network)
	if in != "" {
		out := Packet{In: in, Out: leaves, Src: container, Dst: f.Address, Protocol: "icmp", State: "NEW", Bridged: f.atBridge()}
		leaving := out
		leaving.In = ""
		list = append(list, passage{hopForward, [][2]string{{"raw", "PREROUTING"}, {"mangle", "PREROUTING"}, {"mangle", "FORWARD"}, {"filter", "FORWARD"}}, out, both},
			passage{hopMasquerade, [][2]string{{"nat", "POSTROUTING"}}, leaving, both})
	}
	if row.tunnelled() {
		sent, got := outerPackets(h.Underlay, row.Outer, row.Public)
		accept := got.accept()
		list = append(list, passage{hopOutput, [][2]string{{"raw", "OUTPUT"}, {"mangle", "OUTPUT"}, {"filter", "OUTPUT"}}, sent, accept},
			passage{hopInput, [][2]string{{"raw", "PREROUTING"}, {"mangle", "PREROUTING"}, {"mangle", "INPUT"}, {"filter", "INPUT"}}, got, accept})
	}
	if in != "" && !f.elsewhere() { // or it comes to this host's own address
		answer := Packet{In: leaves, Out: in, Src: f.Address, Dst: container, Protocol: "icmp", State: "ESTABLISHED", Bridged: f.atBridge()}
		list = append(list, passage{hopReturn, [][2]string{{"raw", "PREROUTING"}, {"mangle", "PREROUTING"}, {"mangle", "FORWARD"}, {"filter", "FORWARD"}}, answer, both})
	}
	return list
}

// leaves is the device that a container's packet leaves by.
func (f *PathFacts) leaves(row row) string {
	switch {
	case row.routed():
		return row.Dev
	case bridged(f.Plan):
		return f.Plan.Host().Bridge
	}
	return f.Forwarded.Dev
}

// outerPackets are those that carry a container's, to a peer and from it.
func outerPackets(u backend.Underlay, o backend.Outer, peer netip.Addr) (sent, got Packet) {
	p := Packet{Protocol: "udp", Port: o.Port, State: "NEW"}
	if o.Kind == backend.KindIPIP {
		p.Protocol = "ipencap"
	}
	sent, got = p, p
	got.In, got.Src, got.Dst, got.Local = u.Device, peer, u.Local.Of(subnet.FamilyOf(peer)), true
	sent.Out, sent.Src, sent.Dst = u.Device, got.Dst, peer
	return sent, got
}

// accept is a rule that lets such packets pass.
func (p Packet) accept() string {
	if p.Port == 0 {
		return fmt.Sprintf("-p %s -j ACCEPT", numberOf(p.Protocol))
	}
	return fmt.Sprintf("-p %s --dport %d -j ACCEPT", p.Protocol, p.Port)
}

// String is the packet as a network engineer writes it.
func (p Packet) String() string {
	text := p.Protocol
	if p.Port != 0 {
		text += fmt.Sprintf(" port %d", p.Port)
	}
	text += fmt.Sprintf(" %s > %s", p.Src, p.Dst)
	if p.In != "" {
		text += " in " + p.In
	}
	if p.Out != "" {
		text += " out " + p.Out
	}
	return text
}

// pass walks a packet through its chains.
func (f *PathFacts) pass(p passage) Hop {
	packet, doubtful, what := p.packet, []string(nil), p.packet.String()
	for _, at := range p.chains {
		packet.Out = p.packet.Out
		if at[1] == "PREROUTING" {
			packet.Out = ""
		}
		v := f.Filter.Verdict(at[0], at[1], packet)
		packet.Mark = v.Mark
		doubtful = append(doubtful, v.Doubtful...)
		hidden := p.name == hopMasquerade && slices.Contains([]string{"MASQUERADE", "SNAT", "NETMAP"}, v.Target)
		switch {
		case v.Accept && !hidden:
			continue
		case hidden && f.elsewhere():
			return noted(what, "its source is replaced: "+v.Rule+" (table nat)")
		case !v.Sure:
			return unknown(what, fmt.Sprintf("%s (table %s), unless one of these decides first: %s", v.Rule, at[0], strings.Join(v.Doubtful, "; ")))
		case hidden:
			return wrong(what, fmt.Sprintf("its source is replaced, so the peer does not see the container: %s (table nat)", v.Rule), f.filterFix(p, at[0], at[1], v))
		}
		return wrong(what, fmt.Sprintf("dropped by %s (table %s)", v.Rule, at[0]), f.filterFix(p, at[0], at[1], v))
	}
	if len(doubtful) > 0 {
		return unknown(what, "passes, unless one of these decides otherwise: "+strings.Join(doubtful, "; "))
	}
	return right(what)
}

// filterFix says how a packet that came to a chain gets past a rule: past Docker's, and past a policy of FORWARD, the agent's
// own rules let it.
func (f *PathFacts) filterFix(p passage, table, chain string, v Verdict) string {
	family := p.packet.family()
	tool := iptablesOf(family)
	insert := fmt.Sprintf("%s -t %s -I %s %s", tool, table, chain, p.accept)
	docker := strings.HasPrefix(v.Chain, "DOCKER") || table == "raw" && strings.Contains(v.Rule, "! -i ") || v.Target == "MASQUERADE"
	forwarded := v.Chain == "FORWARD" && v.Position == 0
	switch h := f.Plan.Host(); {
	case (docker || forwarded) && (h.Forward || table == "nat" && h.Masquerade.Of(family)):
		return f.heal(insert)
	case v.Position == 0:
		return "accept it: " + insert
	}
	return fmt.Sprintf("delete that rule: %s -t %s -D %s", tool, table, strings.TrimPrefix(v.Rule, "-A "))
}
