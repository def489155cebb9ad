package netfilter

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/subnet"
)

// tableName is our table's, of family inet. All that is in it is ours.
const tableName = "tulle"

// errNoNFT says what to do on a kernel without nf_tables, or without what our table needs of it.
var errNoNFT = errors.New("the kernel has no nf_tables, or one older than Linux 5.2: use iptables instead (apt install iptables, --firewall=iptables), or switch our rules off with --ip-masq=false --forward-rules=false")

// base is a chain of our table: where it hangs, and its rules.
type base struct {
	kind     nftables.ChainType
	hook     nftables.ChainHook
	priority nftables.ChainPriority
	rules    [][]expr.Any
}

// table is what our table holds, by the chains' names.
type table map[string]base

// base says where c hangs in nftables, and under which name. There is no place for what accepts forwarded packets: an accept in one
// table lifts no other's drop.
func (c chain) base() (name string, b base, ok bool) {
	switch c.table {
	case "nat": // before iptables' chains and Docker's: the first that decides about a connection's source is the last
		return "postrouting", base{kind: nftables.ChainTypeNAT, hook: *nftables.ChainHookPostrouting, priority: *nftables.ChainPriorityNATSource - 1}, true
	case "raw":
		return "prerouting-raw", base{kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookPrerouting, priority: *nftables.ChainPriorityRaw}, true
	case "mangle":
		return "prerouting", base{kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookPrerouting, priority: *nftables.ChainPriorityMangle}, true
	}
	return "", base{}, false
}

// tableOf renders chains, of either family.
func tableOf(chains []chain) table {
	t := table{}
	for _, c := range chains {
		name, b, ok := c.base()
		if !ok || len(c.rules) == 0 {
			continue
		}
		b.rules = t[name].rules // the other family's
		for _, r := range c.rules {
			b.rules = append(b.rules, r.exprs(c.family))
		}
		t[name] = b
	}
	return t
}

// header is where a family's packets have their addresses (RFC 791, RFC 8200): bytes from the beginning.
type header struct {
	proto                byte // as nftables names the family
	src, dst, addressLen uint32
}

func headerOf(f subnet.Family) header {
	if f == subnet.IPv4 {
		return header{unix.NFPROTO_IPV4, 12, 16, 4}
	}
	return header{unix.NFPROTO_IPV6, 8, 24, 16}
}

// address loads one into register 1.
func (h header) address(offset uint32) *expr.Payload {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: h.addressLen}
}

// exprs is r as nftables takes it.
func (r rule) exprs(f subnet.Family) []expr.Any {
	h := headerOf(f)
	return slices.Concat(
		[]expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{h.proto})},
		r.src.exprs(h.address(h.src)),
		r.dst.exprs(h.address(h.dst)),
		device(expr.MetaKeyIIFNAME, r.in),
		device(expr.MetaKeyOIFNAME, r.out),
		r.mark.exprs(),
		r.decision(h))
}

func (r rule) decision(h header) []expr.Any {
	switch r.verdict {
	case keep:
		// After an accept the next chain is asked, which may be a masquerading Docker's. After a translation none is, also after one
		// to the address that the packet has (nf_nat_inet_fn, net/netfilter/nf_nat_core.c).
		return []expr.Any{h.address(h.src), &expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(h.proto), RegAddrMin: 1, RegAddrMax: 1}}
	case masquerade:
		return []expr.Any{&expr.Masq{FullyRandom: true}}
	case ignore:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
	case drop:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	case setMark:
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, masked(native(^r.set.mask), native(r.set.value)),
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1}}
	}
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
}

// exprs compares an address of the packet with m's range.
func (m match) exprs(address *expr.Payload) []expr.Any {
	if !m.prefix.IsValid() {
		return nil
	}
	cmp := equal(m.prefix.Masked().Addr().AsSlice())
	if m.not {
		cmp.Op = expr.CmpOpNeq
	}
	if m.prefix.IsSingleIP() {
		return []expr.Any{address, cmp}
	}
	return []expr.Any{address, masked(netmask(m.prefix), make([]byte, address.Len)), cmp}
}

func netmask(p netip.Prefix) []byte {
	all, _ := netip.AddrFromSlice(slices.Repeat([]byte{0xff}, p.Addr().BitLen()/8))
	return netip.PrefixFrom(all, p.Bits()).Masked().Addr().AsSlice()
}

// exprs compares the packet's mark.
func (m mark) exprs() []expr.Any {
	if m.mask == 0 {
		return nil
	}
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, masked(native(m.mask), native(0)), equal(native(m.value))}
}

// device compares a device's name, which the kernel pads with zeros.
func device(key expr.MetaKey, name string) []expr.Any {
	if name == "" {
		return nil
	}
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, equal(padded)}
}

// equal compares register 1.
func equal(data []byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

// masked leaves of register 1 what the mask has, and flips what xor has.
func masked(mask, xor []byte) *expr.Bitwise {
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: xor}
}

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// text is b, to be compared.
func (b base) text() string {
	var text strings.Builder
	fmt.Fprintln(&text, b.kind, b.hook, b.priority)
	for _, exprs := range b.rules {
		for _, e := range exprs {
			fmt.Fprintf(&text, "%T%+v ", e, e)
		}
		fmt.Fprintln(&text)
	}
	return text.String()
}

// differing counts the chains that t has and want has not, or not the same.
func (t table) differing(want table) (n int) {
	for name, b := range t {
		if other, ok := want[name]; !ok || other.text() != b.text() {
			n++
		}
	}
	for name := range want {
		if _, ok := t[name]; !ok {
			n++
		}
	}
	return n
}

// nft is nftables, spoken to by netlink: no program is needed.
type nft struct{ *nftables.Conn }

// openNFT opens one socket for what follows: to close one costs the kernel milliseconds.
func openNFT() (nft, error) {
	conn, err := nftables.New(nftables.AsLasting())
	return nft{conn}, err
}

func (n nft) close() { _ = n.CloseLasting() } // nothing was left to be sent

// iptables lists the chains of the iptables that speaks nftables.
func (n nft) iptables(f subnet.Family) ([]*nftables.Chain, error) {
	chains, err := n.ListChainsOfTableFamily(nftables.TableFamily(headerOf(f).proto))
	if noNFT(err) {
		return nil, nil
	}
	return slices.DeleteFunc(chains, func(c *nftables.Chain) bool {
		return !slices.Contains([]string{"filter", "nat", "raw", "mangle"}, c.Table.Name)
	}), err
}

// ours finds our table; nil if there is none. One that is switched off as a whole is one without chains.
func (n nft) ours() (table, error) {
	tables, err := n.ListTablesOfFamily(nftables.TableFamilyINet)
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName })
	if err != nil || i < 0 {
		return nil, err
	}
	if tables[i].Flags != 0 { // dormant
		return table{}, nil
	}
	chains, err := n.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	t := table{}
	for _, c := range chains {
		if c.Table.Name == tableName {
			if t[c.Name], err = n.base(c); err != nil {
				return nil, fmt.Errorf("chain %s: %w", c.Name, err)
			}
		}
	}
	return t, nil
}

func (n nft) base(c *nftables.Chain) (b base, err error) {
	if c.Hooknum != nil && c.Policy != nil && *c.Policy == nftables.ChainPolicyAccept { // else it is like none of ours
		b = base{kind: c.Type, hook: *c.Hooknum, priority: *c.Priority}
	}
	rules, err := n.GetRules(c.Table, c)
	for _, r := range rules {
		b.rules = append(b.rules, r.Exprs)
	}
	return b, err
}

// set makes our table as wanted, in one transaction, and returns how many chains were not. A table without chains must not exist.
func (n nft) set(want table) (changed int, err error) {
	have, err := n.ours()
	if err != nil {
		if noNFT(err) && len(want) == 0 { // nobody can have made it
			return 0, nil
		}
		return 0, explain(err)
	}
	changed = have.differing(want)
	if have != nil && len(want) == 0 {
		changed = max(changed, 1)
	}
	if changed == 0 {
		return 0, nil
	}
	return changed, explain(n.replace(want))
}

func (n nft) replace(want table) error {
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	n.AddTable(table) // so that there is one to delete
	n.DelTable(table)
	if len(want) > 0 {
		n.AddTable(table)
	}
	policy := nftables.ChainPolicyAccept
	for _, name := range slices.Sorted(maps.Keys(want)) {
		b := want[name]
		c := n.AddChain(&nftables.Chain{Name: name, Table: table, Type: b.kind, Hooknum: &b.hook, Priority: &b.priority, Policy: &policy})
		for _, exprs := range b.rules {
			n.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: exprs})
		}
	}
	return n.Flush()
}

// noNFT reports whether err is of a kernel that knows nothing of nf_tables, or not enough.
func noNFT(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT)
}

func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case noNFT(err):
		return fmt.Errorf("nftables: %w (%w)", errNoNFT, err)
	}
	return fmt.Errorf("nftables: table inet %s: %w", tableName, err)
}
