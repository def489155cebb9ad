package netfilter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"

	"github.com/tulle-net/tulle/subnet"
)

// lockWait is how long iptables may wait for another that holds its lock, in seconds.
const lockWait = 5

// tool is iptables or ip6tables. go-iptables finds out what it can do; tables are read and changed as a whole, which takes
// the programs beside it.
type tool struct {
	ipt           *iptables.IPTables
	save, restore string // paths
}

// toolName is what a family's iptables is called, and go-iptables' word for the family.
func toolName(f subnet.Family) (string, iptables.Protocol) {
	if f == subnet.IPv4 {
		return "iptables", iptables.ProtocolIPv4
	}
	return "ip6tables", iptables.ProtocolIPv6
}

func newTool(f subnet.Family) (*tool, error) {
	name, protocol := toolName(f)
	save, saveErr := exec.LookPath(name + "-save")
	restore, restoreErr := exec.LookPath(name + "-restore")
	if saveErr != nil || restoreErr != nil {
		return nil, fmt.Errorf("%s is not installed: install it (apt install iptables), use nftables instead (--firewall=nftables), or switch our rules off with --ip-masq=false --forward-rules=false", name)
	}
	ipt, err := iptables.New(iptables.IPFamily(protocol), iptables.Timeout(lockWait))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &tool{ipt, save, restore}, nil
}

// installed says which iptables this host has: iptables-nft, iptables-legacy, or iptables if its name doesn't tell; "" for none.
func installed() string {
	path, err := exec.LookPath("iptables-restore")
	if err != nil {
		return ""
	}
	program, _ := filepath.EvalSymlinks(path)
	for _, variant := range []string{"nft", "legacy"} {
		if strings.Contains(filepath.Base(program), variant) {
			return "iptables-" + variant
		}
	}
	return "iptables"
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
		if script := c.script(look(tables[c.table], c), c.lines(t.ipt.HasRandomFully())); script != "" {
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

// script is what to feed to iptables-restore, so that c is as it should be with these rules; nothing if it is.
func (c chain) script(f found, rules []string) string {
	wanted := len(rules) > 0
	position := c.position(f)
	inPlace := len(f.jumps) == 1 && f.jumps[0] == position
	if wanted && inPlace && f.exists && slices.Equal(f.rules, rules) || !wanted && !f.exists && len(f.jumps) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, ":%s - [0:0]\n", c.name) // made, or emptied
	if wanted && !f.parent && c.parent == dockerUser {
		fmt.Fprintf(&b, ":%s - [0:0]\n", c.parent)
	}
	for _, rule := range rules {
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
		return "", fmt.Errorf("%s: %w: %s%s", path, err, bytes.TrimSpace(errOut.Bytes()), advice(errOut.String()))
	}
	return out.String(), nil
}

// advice is what to do about what the legacy iptables says. It locks a file that the first to run it makes, usually root, who alone may
// read it then.
func advice(said string) string {
	const lock = "xtables.lock"
	if strings.Contains(said, lock) && (strings.Contains(said, "Permission denied") || strings.Contains(said, "Read-only file system")) {
		return ": let the agent's user read it (deploy/systemd/tmpfiles.d/tulle.conf in /etc/tmpfiles.d, and systemd-tmpfiles --create)"
	}
	return ""
}
