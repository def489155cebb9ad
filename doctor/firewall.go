package doctor

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/netfilter"
	"github.com/tulle-net/tulle/subnet"
)

// Packet is a hypothetical packet, as far as rules ask about it. What is left empty is not known, unless said otherwise.
type Packet struct {
	In, Out    string     // devices; "" for none: made by this host, or for it
	Src, Dst   netip.Addr // both of one family
	Protocol   string     // icmp, tcp, udp or ipencap (IPIP); icmp is an echo request, or the reply if State is ESTABLISHED
	Port       uint16     // destination
	SourcePort uint16
	State      string // connection tracking's: NEW, ESTABLISHED…
	Mark       uint32
	Local      bool // Dst is this host's
	Bridged    bool // it is not routed but passes through a bridge, with br_netfilter
}

// Verdict is what becomes of a packet in a chain.
type Verdict struct {
	Accept   bool
	Target   string // of the rule that decided: ACCEPT, DROP, REJECT, MASQUERADE…; or the policy
	Rule     string // that decided, as iptables-save prints it, or as in "policy DROP of FORWARD"
	Chain    string // the rule's
	Position int    // in Chain, as iptables counts rules, from 1; 0 for a policy
	Mark     uint32 // the packet's, afterwards
	Sure     bool   // no rule is Doubtful
	Doubtful []string
}

// Filter is a host's packet filter, as iptables tells it. Doubtful are the rules that might have decided otherwise: what they
// ask for is not understood, and so taken as not being so.
type Filter struct {
	sets    []ruleset // legacy tables, nftables' and the agent's own there are three, and a packet must pass all
	foreign []foreign
}

// ruleset is one family's.
type ruleset struct {
	family subnet.Family
	tables map[string]map[string]*chain // the chains of each table, by name
	own    bool                         // the agent's table in nftables, which is asked first
}

// family is p's.
func (p Packet) family() subnet.Family {
	if p.Src.Is6() {
		return subnet.IPv6
	}
	return subnet.IPv4
}

type chain struct {
	policy string // "" for a chain that is not the kernel's own
	rules  []rule
}

type rule struct {
	text    string // as iptables-save prints it
	matches []match
	target  string // "" for none
	final   bool   // -g: what comes after it in the chain is not asked
	mark    func(uint32) uint32
}

// foreign is a chain of nftables that is not iptables' and drops something. Its rules are not read.
type foreign struct {
	hook, text string
	family     string // ip, ip6 or inet
}

// sees reports whether packets of a family come by.
func (c foreign) sees(f subnet.Family) bool {
	return c.family == "inet" || c.family == map[subnet.Family]string{subnet.IPv4: "ip", subnet.IPv6: "ip6"}[f]
}

// answer is a match's, in order.
type answer int

const (
	no answer = iota
	unsure
	yes
)

func is(b bool) answer {
	if b {
		return yes
	}
	return no
}

type match func(p Packet) answer

// ParseFilter reads what iptables-save prints, whichever backend it has. What is not understood makes a rule Doubtful.
func ParseFilter(save string) Filter { return Filter{sets: []ruleset{parseRules(subnet.IPv4, save)}} }

// parseRules reads what a family's iptables-save prints.
func parseRules(f subnet.Family, save string) ruleset {
	set := map[string]map[string]*chain{}
	var table map[string]*chain
	for line := range strings.Lines(save) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = map[string]*chain{}
			set[name] = table
		}
		if table == nil || line == "" {
			continue
		}
		if line[0] == '[' { // counters, of iptables-save -c
			_, line, _ = strings.Cut(line, "] ")
		}
		if declared, ok := strings.CutPrefix(line, ":"); ok {
			name, policy, _ := strings.Cut(declared, " ")
			policy, _, _ = strings.Cut(policy, " ")
			table[name] = &chain{policy: strings.Trim(policy, "-")}
		} else if words := split(line); len(words) > 1 && words[0] == "-A" {
			if table[words[1]] == nil {
				table[words[1]] = &chain{}
			}
			table[words[1]].rules = append(table[words[1]].rules, parseRule(line, words[2:]))
		}
	}
	return ruleset{family: f, tables: set}
}

// split splits a line at spaces, but not within double quotes, where a backslash guards what follows.
func split(line string) (words []string) {
	var word []byte
	quoted, begun := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '"':
			quoted, begun = !quoted, true
		case c == ' ' && !quoted:
			if begun {
				words = append(words, string(word))
			}
			word, begun = word[:0], false
		default:
			if c == '\\' && quoted && i+1 < len(line) {
				i++
			}
			word, begun = append(word, line[i]), true
		}
	}
	if begun {
		words = append(words, string(word))
	}
	return words
}

func parseRule(text string, words []string) rule {
	r := rule{text: text}
	negated := false
	for len(words) > 0 {
		option := words[0]
		words = words[1:]
		if option == "!" {
			negated = true
			continue
		}
		if option == "-j" || option == "-g" {
			if len(words) > 0 {
				r.target, r.final, r.mark = words[0], option == "-g", setMark(words)
			}
			return r
		}
		value := []string{} // all up to the next option; a comment may look like one
		for len(words) > 0 && (option == "--comment" && len(value) == 0 || words[0] != "!" && !strings.HasPrefix(words[0], "-")) {
			value, words = append(value, words[0]), words[1:]
		}
		if m := parseMatch(option, strings.Join(value, " ")); m != nil {
			if negated {
				m = m.not()
			}
			r.matches = append(r.matches, m)
		}
		negated = false
	}
	return r
}

func (m match) not() match { return func(p Packet) answer { return yes - m(p) } }

// modules are the extensions that exclude no packet by themselves, but by their options.
var modules = []string{"tcp", "udp", "icmp", "icmp6", "comment", "conntrack", "state", "mark", "multiport", "physdev", "addrtype"}

// parseMatch returns nil for an option that excludes no packet.
func parseMatch(option, value string) match {
	unknown := func(Packet) answer { return unsure }
	switch option {
	case "-m":
		if !slices.Contains(modules, value) {
			return unknown
		}
		return nil
	case "--comment":
		return nil
	case "-s":
		return matchPrefix(value, func(p Packet) netip.Addr { return p.Src })
	case "-d":
		return matchPrefix(value, func(p Packet) netip.Addr { return p.Dst })
	case "-i":
		return func(p Packet) answer { return is(matchDevice(value, p.In)) }
	case "-o":
		return func(p Packet) answer { return is(matchDevice(value, p.Out)) }
	case "-p":
		return func(p Packet) answer {
			return is(value == "all" || value == p.Protocol || slices.Contains(protocols[p.Protocol], value))
		}
	case "--dport", "--dports":
		return matchPorts(value, func(p Packet) uint16 { return p.Port })
	case "--sport", "--sports":
		return matchPorts(value, func(p Packet) uint16 { return p.SourcePort })
	case "--ctstate", "--state":
		states := strings.Split(value, ",")
		return func(p Packet) answer {
			if p.State == "" {
				return unsure
			}
			return is(slices.Contains(states, p.State))
		}
	case "--mark":
		return matchMark(value)
	case "--icmp-type", "--icmpv6-type":
		return func(p Packet) answer {
			return is(value == "any" || (value == "8" || value == "128") && p.State != "ESTABLISHED" || (value == "0" || value == "129") && p.State == "ESTABLISHED")
		}
	case "--dst-type":
		return matchType(value, func(p Packet) (netip.Addr, bool) { return p.Dst, p.Local })
	case "--src-type":
		return matchType(value, func(p Packet) (netip.Addr, bool) { return p.Src, p.In == "" })
	case "--physdev-is-bridged":
		return func(p Packet) answer { return is(p.Bridged) }
	}
	return unknown
}

// protocols are other names that iptables-save gives a protocol, depending on /etc/protocols: its number first.
var protocols = map[string][]string{"icmp": {"1", "ipv6-icmp", "icmpv6", "58"}, "tcp": {"6"}, "udp": {"17"}, "ipencap": {"4", "ipv4"}}

// numberOf is a protocol's number, which iptables takes whatever names it knows.
func numberOf(protocol string) string { return protocols[protocol][0] }

func matchPrefix(value string, of func(Packet) netip.Addr) match {
	prefix, err := netip.ParsePrefix(value)
	if a, addrErr := netip.ParseAddr(value); addrErr == nil {
		prefix, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	return func(p Packet) answer {
		if err != nil { // a mask with holes
			return unsure
		}
		return is(prefix.Contains(of(p)))
	}
}

// matchDevice reports whether a rule's pattern is a device's name, or what it begins with.
func matchDevice(pattern, name string) bool {
	if begin, wild := strings.CutSuffix(pattern, "+"); wild {
		return strings.HasPrefix(name, begin)
	}
	return name == pattern
}

// matchPorts takes a list like 80,8000:8080.
func matchPorts(value string, of func(Packet) uint16) match {
	return func(p Packet) answer {
		port := of(p)
		for part := range strings.SplitSeq(value, ",") {
			first, last, isRange := strings.Cut(part, ":")
			if !isRange {
				last = first
			}
			low, lowErr := strconv.ParseUint(cmp.Or(first, "0"), 10, 16)
			high, highErr := strconv.ParseUint(cmp.Or(last, "65535"), 10, 16)
			switch {
			case lowErr != nil || highErr != nil || port == 0:
				return unsure
			case uint64(port) >= low && uint64(port) <= high:
				return yes
			}
		}
		return no
	}
}

func matchMark(value string) match {
	want, mask, err := parseMark(value)
	return func(p Packet) answer {
		if err != nil {
			return unsure
		}
		return is(p.Mark&mask == want)
	}
}

// parseMark reads VALUE/MASK, or VALUE alone.
func parseMark(text string) (value, mask uint32, err error) {
	first, second, masked := strings.Cut(text, "/")
	if !masked {
		second = "0xffffffff"
	}
	v, err := strconv.ParseUint(first, 0, 32)
	m, maskErr := strconv.ParseUint(second, 0, 32)
	return uint32(v), uint32(m), errors.Join(err, maskErr)
}

// setMark is what -j MARK does to a packet's mark; nil if words, the target and its options, are something else.
func setMark(words []string) func(uint32) uint32 {
	if len(words) < 3 || words[0] != "MARK" {
		return nil
	}
	value, mask, err := parseMark(words[2])
	if err != nil || words[1] != "--set-xmark" { // iptables-save prints all others in its terms
		return nil
	}
	return func(mark uint32) uint32 { return mark&^mask ^ value }
}

// matchType matches an address' type, given whether the address is this host's.
func matchType(value string, of func(Packet) (netip.Addr, bool)) match {
	return func(p Packet) answer {
		switch a, local := of(p); value {
		case "LOCAL":
			return is(local)
		case "MULTICAST":
			return is(a.IsMulticast())
		case "UNICAST":
			return is(!local && !a.IsMulticast())
		case "BROADCAST":
			return no // nobody asks for one
		}
		return unsure
	}
}

// Verdict walks p through a chain of the kernel's own, as in filter and FORWARD.
func (f Filter) Verdict(table, name string, p Packet) Verdict {
	v := Verdict{Accept: true, Target: "ACCEPT", Rule: "policy ACCEPT of " + name, Chain: name, Mark: p.Mark}
	var doubtful []string
	for _, set := range f.sets {
		c := set.tables[table][name]
		if c == nil || set.family != p.family() {
			continue
		}
		w := walk{table: set.tables[table], packet: p, steps: maxSteps}
		if !w.chain(name) {
			w.policy(name, c.policy)
		}
		v = w.verdict
		p.Mark = w.packet.Mark
		v.Mark = p.Mark
		doubtful = append(doubtful, w.mattered()...)
		if decided := set.own && table == "nat" && v.Position > 0; decided || !v.Accept {
			break
		}
	}
	for _, c := range f.foreign {
		if here := table == "filter" || table == "raw" && name == "PREROUTING"; here && v.Accept && strings.EqualFold(c.hook, name) && c.sees(p.family()) {
			doubtful = append(doubtful, c.text)
		}
	}
	v.Doubtful, v.Sure = doubtful, len(doubtful) == 0
	return v
}

// maxSteps bounds a walk: more rules than that are asked in no packet filter that works.
const maxSteps = 1 << 16

// walk is a packet's, through one table.
type walk struct {
	table    map[string]*chain
	packet   Packet
	verdict  Verdict
	doubtful []rule
	within   []string // the chains that it is in
	steps    int      // left
}

// passive are the targets after which a packet goes on.
var passive = []string{"", "LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "CT", "NOTRACK", "TOS", "DSCP", "ECN", "TTL", "TCPMSS", "CHECKSUM",
	"CLASSIFY", "AUDIT", "TRACE", "SECMARK", "CONNSECMARK", "SET", "TEE", "RATEEST", "LED", "IDLETIMER", "ACCOUNT"}

// chain asks a chain's rules, and reports whether one decided.
func (w *walk) chain(name string) (decided bool) {
	w.within = append(w.within, name)
	defer func() { w.within = w.within[:len(w.within)-1] }()
	for i, r := range w.table[name].rules {
		if w.steps--; w.steps < 0 {
			return false
		}
		switch r.answer(w.packet) {
		case unsure:
			w.doubt(r)
			continue
		case no:
			continue
		}
		if r.mark != nil {
			w.packet.Mark = r.mark(w.packet.Mark)
		}
		switch {
		case slices.Contains(passive, r.target):
		case r.target == "RETURN":
			return false
		case w.table[r.target] != nil:
			if slices.Contains(w.within, r.target) { // no kernel takes such rules
				w.doubt(r)
			} else if w.chain(r.target) || r.final {
				return w.verdict.Rule != ""
			}
		case r.accepts() || r.drops():
			w.verdict = Verdict{Accept: r.accepts(), Target: r.target, Rule: r.text, Chain: name, Position: i + 1}
			return true
		default:
			w.doubt(r)
		}
	}
	return false
}

func (w *walk) policy(name, policy string) {
	policy = cmp.Or(policy, "ACCEPT")
	w.verdict = Verdict{Accept: policy == "ACCEPT", Target: policy, Rule: fmt.Sprintf("policy %s of %s", policy, name), Chain: name}
}

// doubt notes a rule that may have decided, or led to one that does.
func (w *walk) doubt(r rule) {
	decides := func(r rule) bool { return !slices.Contains(passive, r.target) }
	if c := w.table[r.target]; decides(r) && (c == nil || slices.ContainsFunc(c.rules, decides)) {
		w.doubtful = append(w.doubtful, r)
	}
}

// mattered are the doubtful rules that would have led to something else.
func (w *walk) mattered() (texts []string) {
	for _, r := range w.doubtful {
		if w.verdict.Accept && r.target == "ACCEPT" || !w.verdict.Accept && r.drops() {
			continue
		}
		texts = append(texts, r.text)
	}
	if w.steps < 0 {
		texts = append(texts, fmt.Sprintf("the rules after the first %d", maxSteps))
	}
	return texts
}

func (r rule) answer(p Packet) answer {
	all := yes
	for _, m := range r.matches {
		all = min(all, m(p))
	}
	return all
}

// accepts also holds for the targets of table nat, which are a packet's last there.
func (r rule) accepts() bool {
	return slices.Contains([]string{"ACCEPT", "MASQUERADE", "SNAT", "DNAT", "REDIRECT", "NETMAP"}, r.target)
}

func (r rule) drops() bool { return r.target == "DROP" || r.target == "REJECT" }

// ReadFilter reads the packet filter of the calling thread's network namespace. It needs root, and iptables or nft.
func ReadFilter(ctx context.Context) (f Filter, err error) {
	for _, family := range []subnet.Family{subnet.IPv4, subnet.IPv6} {
		sets, err := readRules(ctx, family)
		if err != nil {
			return Filter{}, err
		}
		f.sets = append(f.sets, sets...)
	}
	text, err := output(ctx, "nft", "-j", "list", "ruleset")
	if err != nil && len(f.sets) == 0 {
		return Filter{}, errors.New("iptables is not installed, and no nft, so what the packet filter does is not known: install one of them (apt install iptables)")
	}
	if err == nil {
		f.foreign = parseForeign([]byte(text))
	}
	return f, nil
}

// iptablesOf is the program that knows a family's rules.
func iptablesOf(f subnet.Family) string {
	if f == subnet.IPv4 {
		return "iptables"
	}
	return "ip6tables"
}

// readRules reads what iptables has of one family; nothing if it is not installed.
func readRules(ctx context.Context, family subnet.Family) (sets []ruleset, err error) {
	name := iptablesOf(family)
	path, err := exec.LookPath(name + "-save")
	if err != nil {
		return nil, nil
	}
	paths := []string{path}
	program, _ := filepath.EvalSymlinks(path)
	switch {
	case strings.Contains(filepath.Base(program), "nft"):
		paths = append(paths, name+"-legacy-save")
	case strings.Contains(filepath.Base(program), "legacy"):
		paths = append(paths, name+"-nft-save")
	}
	for i, path := range paths {
		text, err := output(ctx, path)
		switch {
		case i > 0 && err != nil: // not there, or for a kernel without its modules: then there are no such tables
			continue
		case err != nil:
			return nil, err
		}
		sets = append(sets, parseRules(family, text))
	}
	return sets, nil
}

// addOwn adds what the agent's own table in nftables has of what it wants.
func (f *Filter) addOwn(want backend.Firewall) error {
	saves, err := netfilter.Held(want)
	for family, save := range saves.All() {
		own := parseRules(family, save)
		own.own = true
		f.sets = slices.Insert(f.sets, 0, own)
	}
	return err
}

// lookAtFilter comes after lookAtNetwork, which knows what the agent wants.
func (f *Facts) lookAtFilter(ctx context.Context) (err error) {
	if f.Filter, err = ReadFilter(ctx); err != nil || f.Plan == nil {
		return err
	}
	return f.Filter.addOwn(f.Plan.State().Firewall)
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(errOut.Bytes()))
	}
	return out.String(), nil
}

// parseForeign finds, in what nft -j prints, the chains at hooks that belong to tables which drop something, iptables' own and the
// agent's left out. Which packets they drop is not read.
func parseForeign(text []byte) (chains []foreign) {
	var listed struct {
		Nftables []struct {
			Chain, Rule struct {
				Family, Table, Name, Hook, Policy string
				Expr                              json.RawMessage
			}
		}
	}
	if json.Unmarshal(text, &listed) != nil {
		return nil
	}
	drops := map[string]bool{} // by family and table
	for _, object := range listed.Nftables {
		drop := object.Chain.Policy == "drop"
		for _, verdict := range []string{`"drop"`, `"reject"`} {
			drop = drop || bytes.Contains(object.Rule.Expr, []byte(verdict))
		}
		if table := cmp.Or(object.Chain.Family, object.Rule.Family) + " " + cmp.Or(object.Chain.Table, object.Rule.Table); drop {
			drops[table] = true
		}
	}
	for _, object := range listed.Nftables {
		c := object.Chain
		table := c.Family + " " + c.Table
		known := strings.HasPrefix(c.Family, "ip") && slices.Contains([]string{"filter", "nat", "raw", "mangle", "security"}, c.Table) || table == "inet tulle"
		if c.Hook == "" || !drops[table] || known || !slices.Contains([]string{"ip", "ip6", "inet"}, c.Family) {
			continue
		}
		text := fmt.Sprintf("nftables' table %s, chain %s at hook %s: look at it with nft list table %s", table, c.Name, c.Hook, quoteAll(strings.Fields(table)))
		chains = append(chains, foreign{c.Hook, text, c.Family})
	}
	return chains
}
