// Package netfilter puts a backend.Firewall into the kernel's packet filter: which packets are masqueraded, which are forwarded, and
// which are dropped because they lie about where they come from. It does so by iptables or by nftables, from one policy. It owns
// chains of its own in iptables and the one jump to each, and a table of its own in nftables, finds them by their names, and touches
// no other rule.
package netfilter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// families are both, in their order.
func families() []subnet.Family { return []subnet.Family{subnet.IPv4, subnet.IPv6} }

// Filter is the packet filter of a network namespace. Not for concurrent use.
type Filter struct {
	choice Choice
	bell   *bell
	tools  [2]*tool // by family; nil until needed
	nft    nft      // during a look
	chosen chosen

	seen   fingerprint // of the packet filter when it was found to be as policy asks; not known if it wasn't
	policy backend.Firewall
}

// Open returns a Filter for the calling thread's network namespace.
func Open(c Choice) (*Filter, error) {
	b, err := newBell()
	if err != nil {
		return nil, err
	}
	return &Filter{choice: c, bell: b}, nil
}

// Close frees what f has open. The rules stay.
func (t *Filter) Close() { t.bell.close() }

// Doorbell receives when the packet filter changed: also when it was us.
func (t *Filter) Doorbell() <-chan struct{} { return t.bell.c }

// Listen rings the doorbell until ctx ends.
func (t *Filter) Listen(ctx context.Context) error { return t.bell.listen(ctx) }

// Apply compares our rules with what f asks for and changes what differs: in iptables a table at a time and each in one piece, in
// nftables all in one. It returns how many chains were not as they should be. What the way not chosen has of ours goes.
func (t *Filter) Apply(ctx context.Context, f backend.Firewall) (int, error) {
	now := t.bell.fingerprint() // before the look: whatever changes meanwhile makes it another
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

func (t *Filter) apply(ctx context.Context, f backend.Firewall) (_ int, err error) {
	if t.nft, err = openNFT(); err != nil {
		return 0, err
	}
	defer t.nft.close()
	docker, drops, err := t.others()
	if err != nil {
		return 0, err
	}
	t.chosen = t.choose(f, docker)
	inTables, inNFT := t.chosen.divide(f, drops)
	steps := []func() (int, error){
		func() (int, error) { return t.setIPTables(ctx, inTables) },
		func() (int, error) { return t.nft.set(tableOf(inNFT)) },
	}
	if t.chosen.nftables() { // what is new comes first: so nothing is missing meanwhile
		slices.Reverse(steps)
	}
	changed := 0
	var errs []error
	for _, set := range steps {
		n, err := set()
		changed += n
		errs = append(errs, err)
	}
	return changed, errors.Join(errs...)
}

// divide says which chains of f's are iptables' business and which are nftables'. All are in both lists, one that isn't is empty there.
// Where iptables' rules drop, they are lifted in iptables, by whatever the others are made.
func (c chosen) divide(f backend.Firewall, drops subnet.Pair[bool]) (inTables, inNFT []chain) {
	for _, family := range families() {
		for _, chain := range policy(f, family) {
			none := chain
			none.rules = nil
			if c.nftables() && !(chain.lifts() && drops.Of(family)) {
				inTables, inNFT = append(inTables, none), append(inNFT, chain)
			} else {
				inTables, inNFT = append(inTables, chain), append(inNFT, none)
			}
		}
	}
	return inTables, inNFT
}

// setIPTables makes the chains as they should be, and returns how many were not. A family that is to have none of our chains, and has
// none, takes no program.
func (t *Filter) setIPTables(ctx context.Context, chains []chain) (changed int, err error) {
	var errs []error
	for _, family := range families() {
		of := slices.DeleteFunc(slices.Clone(chains), func(c chain) bool { return c.family != family })
		changes, err := t.setFamily(ctx, family, of)
		changed += len(changes)
		errs = append(errs, err)
	}
	return changed, errors.Join(errs...)
}

func (t *Filter) setFamily(ctx context.Context, family subnet.Family, chains []chain) ([]chain, error) {
	if !slices.ContainsFunc(chains, func(c chain) bool { return len(c.rules) > 0 }) {
		if left, err := t.hasChain(family, "TULLE-"); !left || err != nil {
			return nil, err
		}
	}
	if t.tools[family] == nil {
		tool, err := newTool(family)
		if err != nil && t.chosen.nftables() {
			err = fmt.Errorf("iptables has rules that drop what is forwarded, or ours of before, and nftables can't change these: %w", err)
		}
		if err != nil {
			return nil, err
		}
		t.tools[family] = tool
	}
	return t.tools[family].set(ctx, chains)
}

// others tells whether a Docker has rules in iptables, and for which families there are such, or a policy, that drop forwarded packets.
func (t *Filter) others() (docker bool, drops subnet.Pair[bool], err error) {
	for _, family := range families() {
		here, err := t.hasChain(family, "DOCKER\x00")
		if err != nil {
			return false, drops, err
		}
		policy, err := t.policyDrops(family)
		if err != nil {
			return false, drops, err
		}
		docker, *drops.At(family) = docker || here, here || policy
	}
	return docker, drops, nil
}

// hasChain reports whether a family's iptables tables, of either kind, have a chain whose name begins so; an end of the name is a NUL.
// It takes no program.
func (t *Filter) hasChain(f subnet.Family, name string) (bool, error) {
	if t.bell.legacy.blind() { // it can't be told
		return installed() != "", nil
	}
	if found, err := t.bell.legacy.has(f, name); found || err != nil {
		return found, err
	}
	chains, err := t.nft.iptables(f)
	return slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return strings.HasPrefix(c.Name+"\x00", name) }), err
}

// policyDrops reports whether iptables' FORWARD, of either kind, has a policy of DROP.
func (t *Filter) policyDrops(f subnet.Family) (bool, error) {
	if !t.bell.legacy.blind() {
		if drops, err := t.bell.legacy.policyDrops(f); drops || err != nil {
			return drops, err
		}
	}
	chains, err := t.nft.iptables(f)
	return slices.ContainsFunc(chains, func(c *nftables.Chain) bool {
		return c.Table.Name == "filter" && c.Name == "FORWARD" && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
	}), err
}

// Cleanup removes all that is ours, and returns a line for each.
func (t *Filter) Cleanup(ctx context.Context) (removed []string, err error) {
	if t.nft, err = openNFT(); err != nil {
		return nil, err
	}
	defer t.nft.close()
	var errs []error
	for _, family := range families() {
		changes, err := t.setFamily(ctx, family, policy(backend.Firewall{}, family))
		for _, c := range changes {
			removed = append(removed, fmt.Sprintf("%s chain %s in table %s", family, c.name, c.table))
		}
		errs = append(errs, err)
	}
	changed, err := t.nft.set(nil)
	if changed > 0 {
		removed = append(removed, "nftables table inet "+tableName)
	}
	return removed, errors.Join(append(errs, err)...)
}

// Held is what our table in nftables has of f, by family, as iptables-save would print it: of chains that are as f asks for, and at
// the hooks themselves. It is empty if our rules are made by iptables.
func Held(f backend.Firewall) (saves subnet.Pair[string], err error) {
	n, err := openNFT()
	if err != nil {
		return saves, err
	}
	defer n.close()
	have, err := n.ours()
	if noNFT(err) || have == nil {
		return saves, nil
	}
	_, chains := chosen{name: string(NFTables)}.divide(f, subnet.Pair[bool]{})
	want := tableOf(chains)
	for _, c := range chains {
		if name, _, ok := c.base(); ok && len(c.rules) > 0 && have[name].text() == want[name].text() {
			*saves.At(c.family) += fmt.Sprintf("*%s\n:%s ACCEPT [0:0]\n-A %[2]s %s\nCOMMIT\n", c.table, c.parent, strings.Join(c.lines(true), "\n-A "+c.parent+" "))
		}
	}
	return saves, err
}
