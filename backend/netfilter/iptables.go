// Package netfilter puts a backend.Firewall into the kernel's packet filter: which packets are masqueraded, and which are
// forwarded. It owns chains of its own and the one jump to each, finds them by their names, and touches no other rule.
package netfilter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// lockWait is how long iptables may wait for another that holds its lock, in seconds.
const lockWait = 5

// exemptMark on a packet keeps it from being masqueraded. It is the mark that kube-proxy and flannel use.
const exemptMark = "0x4000/0x4000"

// chain is one of our chains: what it holds and where it hangs.
type chain struct {
	table, parent, name string
	place               place    // of the jump, in parent
	rules               []string // as iptables-save prints them, without "-A NAME "; none: the chain must not exist
}

// place is where a jump belongs among its parent's rules.
type place int

const (
	anywhere place = iota // made at the end
	head
	tail // the last that is reached: before a RETURN
)

// dockerUser is the chain that Docker leaves to the user and asks before its own. Docker keeps one that exists before it
// starts, so it is made if need be.
const dockerUser = "DOCKER-USER"

// chains renders f for one family. The chains are always the same, so that one that is no longer wanted is found.
func chains(f backend.Firewall, family subnet.Family, randomFully bool) []chain {
	all := []chain{
		// Before the others' rules: a dockerd without --ip-masq=false masquerades whatever leaves its bridge, and would hide
		// containers from their peers.
		{table: "nat", parent: "POSTROUTING", name: "TULLE-POSTROUTING", place: head},
		// After the others' rules: what an operator drops stays dropped, and a policy of DROP comes after all rules.
		{table: "filter", parent: "FORWARD", name: "TULLE-FORWARD"},
		// Docker 28 and later drop what comes to a container's address from elsewhere, after this chain. After the operator's
		// own rules in it: what these drop stays dropped.
		{table: "filter", parent: dockerUser, name: "TULLE-DOCKER", place: tail},
		// They drop it here, too, and before connection tracking, so that not even replies come in.
		{table: "raw", parent: "PREROUTING", name: "TULLE-PREROUTING", place: head},
		// Docker 29's nftables rules drop what any other table accepts, and let in only what has a mark that they were told of.
		{table: "mangle", parent: "PREROUTING", name: "TULLE-PREROUTING", place: head},
	}
	network := f.Network.Of(family)
	if !network.IsValid() {
		return all
	}
	if f.Masquerade.Of(family) {
		all[0].rules = masqueradeRules(network, f.Subnet.Of(family), randomFully)
	}
	if f.Forward {
		all[1].rules = []string{fmt.Sprintf("-s %s -j ACCEPT", network), fmt.Sprintf("-d %s -j ACCEPT", network)}
	}
	if f.Forward && f.Bridge != "" {
		any := fmt.Sprintf("-s %s -d %s", network, f.Subnet.Of(family))
		var entries []string
		for device := range f.From.All() {
			entries = append(entries, any+" -i "+device)
		}
		if entries == nil {
			entries = []string{any}
		}
		for _, from := range entries {
			all[2].rules = append(all[2].rules, from+" -o "+f.Bridge+" -j ACCEPT")
			all[3].rules = append(all[3].rules, from+" -j ACCEPT")
			if f.Mark != 0 {
				all[4].rules = append(all[4].rules, fmt.Sprintf("%s -j MARK --set-xmark %#x/%#x", from, f.Mark, f.Mark))
			}
		}
	}
	return all
}

func masqueradeRules(network, own netip.Prefix, randomFully bool) []string {
	masquerade := "-j MASQUERADE"
	if randomFully {
		masquerade += " --random-fully"
	}
	return []string{
		"-m mark --mark " + exemptMark + " -j RETURN",
		fmt.Sprintf("-s %s -d %s -j RETURN", own, own), // to Docker, which masquerades a container that calls itself by a published port
		fmt.Sprintf("-s %s -d %s -j ACCEPT", own, network),
		fmt.Sprintf("-s %s -d %s -j RETURN", network, network), // to the rest of it as well: where all hosts are one segment, a broadcast
		fmt.Sprintf("! -s %s -d %s -j RETURN", network, own),
		fmt.Sprintf("-s %s ! -d %s %s", network, many(subnet.FamilyOf(network.Addr())), masquerade),
		fmt.Sprintf("! -s %s -d %s %s", network, network, masquerade),
	}
}

// many are the addresses that more than one host may have: multicast, and in IPv4 broadcast, with what is reserved between them. A
// bridge sends such packets through the packet filter, too, if Docker has it do so, and whom they reach must know who sent them.
func many(f subnet.Family) netip.Prefix {
	if f == subnet.IPv4 {
		return netip.MustParsePrefix("224.0.0.0/3")
	}
	return netip.MustParsePrefix("ff00::/8")
}

// IPTables is the packet filter by way of iptables, legacy or nft, whichever the host has chosen. Not for concurrent use.
type IPTables struct {
	tools [2]*tool // by family; nil until needed
	bell  *bell

	seen   fingerprint // of the packet filter when it was found to be as policy asks; not known if it wasn't
	policy backend.Firewall
}

// Open returns an IPTables for the calling thread's network namespace.
func Open() (*IPTables, error) {
	b, err := newBell()
	return &IPTables{bell: b}, err
}

// Doorbell receives when the packet filter changed: also when it was us.
func (t *IPTables) Doorbell() <-chan struct{} { return t.bell.c }

// Listen rings the doorbell until ctx ends.
func (t *IPTables) Listen(ctx context.Context) error { return t.bell.listen(ctx) }

// tool is iptables or ip6tables. go-iptables finds out what it can do; tables are read and changed as a whole, which takes
// the programs beside it.
type tool struct {
	ipt           *iptables.IPTables
	save, restore string // paths
}

func (t *IPTables) tool(f subnet.Family) (*tool, error) {
	if t.tools[f] != nil {
		return t.tools[f], nil
	}
	name, protocol := "iptables", iptables.ProtocolIPv4
	if f == subnet.IPv6 {
		name, protocol = "ip6tables", iptables.ProtocolIPv6
	}
	save, saveErr := exec.LookPath(name + "-save")
	restore, restoreErr := exec.LookPath(name + "-restore")
	if saveErr != nil || restoreErr != nil {
		return nil, fmt.Errorf("%s is not installed: install it (apt install iptables), or switch our rules off with --ip-masq=false --forward-rules=false", name)
	}
	ipt, err := iptables.New(iptables.IPFamily(protocol), iptables.Timeout(lockWait))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	t.tools[f] = &tool{ipt, save, restore}
	return t.tools[f], nil
}

// Apply compares our rules with what f asks for and changes what differs, a table at a time and each in one piece. It
// returns how many chains were not as they should be. A family without a network is left as it is.
func (t *IPTables) Apply(ctx context.Context, f backend.Firewall) (int, error) {
	now := t.bell.fingerprint() // before the look: whatever changes meanwhile makes it another
	if f.Network.V6.IsValid() {
		now = fingerprint{} // it knows nothing of ip6tables' legacy tables
	}
	if now.known && now == t.seen && f == t.policy {
		return 0, nil
	}
	t.seen, t.policy = fingerprint{}, f
	changed, err := t.apply(ctx, f)
	if changed == 0 && err == nil {
		t.seen = now
	}
	return changed, err
}

func (t *IPTables) apply(ctx context.Context, f backend.Firewall) (int, error) {
	var errs []error
	changed := 0
	for _, family := range []subnet.Family{subnet.IPv4, subnet.IPv6} {
		if family == subnet.IPv6 && !f.Network.V6.IsValid() { // it never had rules; IPv4 may have those of another policy
			continue
		}
		tool, err := t.tool(family)
		if err != nil {
			if f.Masquerade.Of(family) || f.Forward { // without either: what was never installed has made no rules to remove
				errs = append(errs, err)
			}
			continue
		}
		changes, err := tool.set(ctx, chains(f, family, tool.ipt.HasRandomFully()))
		changed += len(changes)
		errs = append(errs, err)
	}
	return changed, errors.Join(errs...)
}

// Cleanup removes our chains and the jumps to them, and returns a line for each.
func (t *IPTables) Cleanup(ctx context.Context) ([]string, error) {
	var removed []string
	var errs []error
	for _, family := range []subnet.Family{subnet.IPv4, subnet.IPv6} {
		tool, err := t.tool(family)
		if err != nil {
			continue // what was never installed has made no rules
		}
		changes, err := tool.set(ctx, chains(backend.Firewall{}, family, false))
		for _, c := range changes {
			removed = append(removed, fmt.Sprintf("%s chain %s in table %s", family, c.name, c.table))
		}
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

// set makes chains as they should be, and returns those that were not. Each table is changed in one transaction.
func (t *tool) set(ctx context.Context, chains []chain) (changed []chain, err error) {
	scripts := map[string]string{} // by table
	tables, unread := map[string][]string{}, map[string]bool{}
	var errs []error
	for _, c := range chains {
		if _, tried := unread[c.table]; !tried {
			text, err := run(ctx, "", t.save, "-t", c.table)
			if err != nil {
				errs = append(errs, fmt.Errorf("table %s: %w", c.table, err))
			} else {
				tables[c.table] = strings.Split(text, "\n")
			}
			unread[c.table] = err != nil
		}
		if unread[c.table] { // what is there is not known, so nothing can be missing
			continue
		}
		if script := c.script(look(tables[c.table], c)); script != "" {
			scripts[c.table] += script
			changed = append(changed, c)
		}
	}
	for table, script := range scripts {
		_, err := run(ctx, "*"+table+"\n"+script+"COMMIT\n", t.restore, "--noflush", "--wait", fmt.Sprint(lockWait))
		if err != nil {
			errs = append(errs, fmt.Errorf("table %s: %w", table, err))
		}
	}
	return changed, errors.Join(errs...)
}

// found is what there is of a chain and of its parent.
type found struct {
	exists, parent bool // whether each does
	asked          bool // some rule jumps to the parent
	rules          []string
	siblings       []string // the parent's rules that aren't a jump to the chain
	jumps          []int    // where in the parent those are: how many siblings come before each
}

// look finds c in its table, as iptables-save prints it.
func look(table []string, c chain) (f found) {
	for _, line := range table {
		f.exists = f.exists || strings.HasPrefix(line, ":"+c.name+" ")
		f.parent = f.parent || strings.HasPrefix(line, ":"+c.parent+" ")
		if rule, ok := strings.CutPrefix(line, "-A "+c.name+" "); ok {
			f.rules = append(f.rules, rule)
		}
		f.asked = f.asked || strings.HasSuffix(line, " -j "+c.parent)
		rule, ok := strings.CutPrefix(line, "-A "+c.parent+" ")
		switch {
		case ok && rule == "-j "+c.name:
			f.jumps = append(f.jumps, len(f.siblings))
		case ok:
			f.siblings = append(f.siblings, rule)
		}
	}
	return f
}

// position is where the jump belongs: after how many of its siblings. A jump that may be anywhere is where it is.
func (c chain) position(f found) int {
	n := len(f.siblings)
	switch {
	case c.place == head:
		return 0
	case c.place == anywhere && len(f.jumps) == 1:
		return f.jumps[0]
	case c.place == tail && slices.Contains(f.siblings, "-j RETURN"):
		return slices.Index(f.siblings, "-j RETURN")
	}
	return n
}

// script is what to feed to iptables-restore, so that c is as it should be; nothing if it is.
func (c chain) script(f found) string {
	wanted := len(c.rules) > 0
	position := c.position(f)
	inPlace := len(f.jumps) == 1 && f.jumps[0] == position
	if wanted && inPlace && f.exists && slices.Equal(f.rules, c.rules) || !wanted && !f.exists && len(f.jumps) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, ":%s - [0:0]\n", c.name) // made, or emptied
	if wanted && !f.parent && c.parent == dockerUser {
		fmt.Fprintf(&b, ":%s - [0:0]\n", c.parent)
	}
	for _, rule := range c.rules {
		fmt.Fprintf(&b, "-A %s %s\n", c.name, rule)
	}
	if !inPlace || !wanted {
		b.WriteString(strings.Repeat(fmt.Sprintf("-D %s -j %s\n", c.parent, c.name), len(f.jumps)))
	}
	switch {
	case !wanted:
		fmt.Fprintf(&b, "-X %s\n", c.name)
		if c.parent == dockerUser && len(f.siblings) == 0 && !f.asked { // we made it, for a Docker that never came
			fmt.Fprintf(&b, "-X %s\n", c.parent)
		}
	case !inPlace:
		fmt.Fprintf(&b, "-I %s %d -j %s\n", c.parent, position+1, c.name)
	}
	return b.String()
}

// run runs a program and returns what it prints.
func run(ctx context.Context, stdin, path string, args ...string) (string, error) {
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", path, err, bytes.TrimSpace(errOut.Bytes()))
	}
	return out.String(), nil
}
