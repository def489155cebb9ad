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
	first               bool     // the jump goes to the head of parent, not to its end
	rules               []string // as iptables-save prints them, without "-A NAME "; none: the chain must not exist
}

// chains renders f for one family. The chains are always the same, so that one that is no longer wanted is found.
func chains(f backend.Firewall, family subnet.Family, randomFully bool) []chain {
	network, own := f.Network.Of(family), f.Subnet.Of(family)
	// Before the others' rules: a dockerd without --ip-masq=false masquerades whatever leaves its bridge, and would hide
	// containers from their peers.
	nat := chain{table: "nat", parent: "POSTROUTING", name: "TULLE-POSTROUTING", first: true}
	// After the others' rules: what an operator drops stays dropped, and a policy of DROP comes after all rules.
	forward := chain{table: "filter", parent: "FORWARD", name: "TULLE-FORWARD"}
	if f.Masquerade && network.IsValid() {
		masquerade := "-j MASQUERADE"
		if randomFully {
			masquerade += " --random-fully"
		}
		nat.rules = []string{
			"-m mark --mark " + exemptMark + " -j RETURN",
			fmt.Sprintf("-s %s -d %s -j RETURN", own, own), // to Docker, which masquerades a container that calls itself by a published port
			fmt.Sprintf("-s %s -d %s -j ACCEPT", own, network),
			fmt.Sprintf("-s %s -d %s -j RETURN", network, own),
			fmt.Sprintf("! -s %s -d %s -j RETURN", network, own),
			fmt.Sprintf("-s %s ! -d %s %s", network, multicast(family), masquerade),
			fmt.Sprintf("! -s %s -d %s %s", network, network, masquerade),
		}
	}
	if f.Forward && network.IsValid() {
		forward.rules = []string{
			fmt.Sprintf("-s %s -j ACCEPT", network),
			fmt.Sprintf("-d %s -j ACCEPT", network),
		}
	}
	return []chain{nat, forward}
}

func multicast(f subnet.Family) netip.Prefix {
	if f == subnet.IPv4 {
		return netip.MustParsePrefix("224.0.0.0/4")
	}
	return netip.MustParsePrefix("ff00::/8")
}

// IPTables is the packet filter by way of iptables, legacy or nft, whichever the host has chosen. Not for concurrent use.
type IPTables struct {
	tools [2]*tool // by family; nil until needed
}

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
// returns in how many tables something was wrong. A family without a network is left as it is.
func (t *IPTables) Apply(ctx context.Context, f backend.Firewall) (int, error) {
	var errs []error
	changed := 0
	for family := range f.Network.All() {
		tool, err := t.tool(family)
		if err != nil {
			if f.Masquerade || f.Forward { // without either: what was never installed has made no rules to remove
				errs = append(errs, err)
			}
			continue
		}
		for _, c := range chains(f, family, tool.ipt.HasRandomFully()) {
			n, err := tool.set(ctx, c)
			changed += n
			if err != nil {
				errs = append(errs, fmt.Errorf("iptables table %s: %w", c.table, err))
			}
		}
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
		for _, c := range chains(backend.Firewall{}, family, false) {
			n, err := tool.set(ctx, c)
			if n > 0 && err == nil {
				removed = append(removed, fmt.Sprintf("%s chain %s in table %s", family, c.name, c.table))
			}
			errs = append(errs, err)
		}
	}
	return removed, errors.Join(errs...)
}

// set makes c as it should be, and reports with 1 that it was not.
func (t *tool) set(ctx context.Context, c chain) (int, error) {
	now, err := t.look(ctx, c)
	if err != nil {
		return 0, err
	}
	wanted := len(c.rules) > 0
	inPlace := now.jumps == 1 && (now.first || !c.first)
	if wanted && inPlace && now.exists && slices.Equal(now.rules, c.rules) || !wanted && !now.exists && now.jumps == 0 {
		return 0, nil
	}
	return 1, t.write(ctx, c, now.jumps, inPlace)
}

// found is what there is of a chain.
type found struct {
	exists bool
	rules  []string
	jumps  int  // to it, from its parent
	first  bool // its parent's first rule is such a jump
}

// look reads the table that c belongs into.
func (t *tool) look(ctx context.Context, c chain) (found, error) {
	table, err := run(ctx, "", t.save, "-t", c.table)
	if err != nil {
		return found{}, err
	}
	var f found
	position := 0
	for line := range strings.Lines(table) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, ":"+c.name+" ") {
			f.exists = true
		}
		if rule, ok := strings.CutPrefix(line, "-A "+c.name+" "); ok {
			f.rules = append(f.rules, rule)
		}
		if rule, ok := strings.CutPrefix(line, "-A "+c.parent+" "); ok {
			if rule == "-j "+c.name {
				f.jumps++
				f.first = f.first || position == 0
			}
			position++
		}
	}
	return f, nil
}

// write replaces c and the jumps to it in one transaction.
func (t *tool) write(ctx context.Context, c chain, jumps int, inPlace bool) error {
	var in bytes.Buffer
	fmt.Fprintf(&in, "*%s\n:%s - [0:0]\n", c.table, c.name) // made, or emptied
	for _, rule := range c.rules {
		fmt.Fprintf(&in, "-A %s %s\n", c.name, rule)
	}
	if !inPlace || len(c.rules) == 0 {
		for range jumps {
			fmt.Fprintf(&in, "-D %s -j %s\n", c.parent, c.name)
		}
	}
	switch {
	case len(c.rules) == 0:
		fmt.Fprintf(&in, "-X %s\n", c.name)
	case !inPlace && c.first:
		fmt.Fprintf(&in, "-I %s 1 -j %s\n", c.parent, c.name)
	case !inPlace:
		fmt.Fprintf(&in, "-A %s -j %s\n", c.parent, c.name)
	}
	in.WriteString("COMMIT\n")
	_, err := run(ctx, in.String(), t.restore, "--noflush", "--wait", fmt.Sprint(lockWait))
	return err
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
