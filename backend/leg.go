package backend

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	"github.com/tulle-net/tulle/subnet"
)

// Families says by which families of the underlay a host is reached.
type Families uint8

// Inside are the network's families, on the underlay the host's: neither depends on the other.
const (
	Matching Families = iota // for each of the network's families the same, as with flannel; where this host lacks that, the other
	OnlyIPv4
	OnlyIPv6
	Both // whatever the network's are: hosts of one family reach this one, too
)

var familiesText = [...]string{Matching: "auto", OnlyIPv4: "ipv4", OnlyIPv6: "ipv6", Both: "both"}

func (f Families) String() string { return familiesText[f] }

// MarshalText writes it as String does.
func (f Families) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what String writes.
func (f *Families) UnmarshalText(text []byte) error {
	for i, name := range familiesText {
		if strings.EqualFold(name, string(text)) {
			*f = Families(i)
			return nil
		}
	}
	return fmt.Errorf("%q is not one of %s", text, strings.Join(familiesText[:], ", "))
}

// Public are the addresses that peers send to, as far as h tells of them.
func (h Host) Public() (public subnet.Pair[netip.Addr]) {
	have := h.Underlay.Public
	switch h.Families {
	case OnlyIPv4:
		return subnet.PairOf(subnet.IPv4, have.V4)
	case OnlyIPv6:
		return subnet.PairOf(subnet.IPv6, have.V6)
	case Both:
		return have
	}
	for f := range h.Config.Range.All() {
		if !have.Of(f).IsValid() {
			f = f.Other()
		}
		*public.At(f) = have.Of(f)
	}
	return public
}

// subnets are h's own, of the network's families. While the config changes there may be others.
func (h Host) subnets() (own subnet.Pair[netip.Prefix]) {
	for f, p := range h.Self.Subnet.All() {
		if h.Config.Range.Of(f) != (subnet.Range{}) {
			*own.At(f) = p
		}
	}
	return own
}

// leg is what a peer has of one family inside, and where that is sent.
type leg struct {
	subnet netip.Prefix
	outer  subnet.Family // of the underlay
	to     netip.Addr    // the peer's public address of that family
}

// vtep is the address of the peer's tunnel device inside the overlay, the subnet's first.
func (g leg) vtep() netip.Addr { return g.subnet.Addr() }

// inner is the family inside.
func (g leg) inner() subnet.Family { return subnet.FamilyOf(g.subnet.Addr()) }

// legs are those of l, whose host must carry packets by the backend called name: one for each family that both hosts have inside.
// On the underlay it is the same family where both have that, as with flannel, else the other: both hosts come to the same.
func (h Host) legs(name string, l subnet.Lease) ([]leg, error) {
	if err := h.accept(l); err != nil {
		return nil, err
	}
	if err := carriedBy(name, l); err != nil {
		return nil, err
	}
	public, legs := h.Public(), make([]leg, 0, 2)
	for f := range h.subnets().All() {
		if !l.Subnet.Of(f).IsValid() {
			continue
		}
		outer := f
		if !public.Of(f).IsValid() || !l.PublicIP.Of(f).IsValid() {
			outer = f.Other()
		}
		if !public.Of(outer).IsValid() || !l.PublicIP.Of(outer).IsValid() {
			return nil, subnet.Rejectf(subnet.OtherFamily, "its host is reached at %s, this host at %s: they need a family in common on the underlay (%s)",
				list(l.PublicIP), list(public), h.Families.remedy())
		}
		legs = append(legs, leg{l.Subnet.Of(f), outer, l.PublicIP.Of(outer)})
	}
	if len(legs) == 0 {
		return nil, subnet.Rejectf(subnet.OtherFamily, "its host has %s, this host %s: they have no family in common", list(l.Subnet), list(h.subnets()))
	}
	return legs, nil
}

// list names what a pair has.
func list[T comparable](p subnet.Pair[T]) string { return cmp.Or(p.Join(" and "), "no address") }

// inner returns what MTU, in bytes, is left inside a tunnel with an overhead on the underlay or, if that isn't 0, on what is
// configured of it: on the narrowest of h's ways.
func (h Host) inner(configured int, overhead subnet.Pair[int], tunnel string) (int, error) {
	u, most := h.Underlay, -1
	for f := range h.Public().All() {
		if !u.Local.Of(f).IsValid() {
			return 0, fmt.Errorf("device %s has no %s address, which its public address %s stands for: leave that out (--public-ip, --public-ipv6), or choose another device with --iface",
				u.Device, f, u.Public.Of(f))
		}
		most = max(most, overhead.Of(f))
	}
	if most < 0 {
		return 0, fmt.Errorf("device %s has no %saddress that peers could send to: give it one, or choose another with --iface", u.Device, h.Families.need())
	}
	mtu, least := cmp.Or(configured, u.MTU)-most, minMTU
	if h.subnets().V6.IsValid() {
		least = minMTU6
	}
	if mtu < least {
		return 0, fmt.Errorf("device %s has MTU %d, which leaves %d inside %s, less than %d: raise it, or choose another with --iface", u.Device, u.MTU, mtu, tunnel, least)
	}
	return mtu, nil
}

// need names the one family that f asks for.
func (f Families) need() string {
	switch f {
	case OnlyIPv4:
		return "IPv4 "
	case OnlyIPv6:
		return "IPv6 "
	}
	return ""
}

// remedy is what to do about hosts that f has not got in common. Some types have one family for all hosts.
func (f Families) remedy() string {
	if only := f.need(); only != "" {
		return "here it is " + only + "alone"
	}
	return "--underlay-family both"
}

// addresses puts into s the addresses that h has on a tunnel's device: the first of each of its subnets. No other device of a peer's
// has them, so they are reached without a neighbour.
func (h Host) addresses(s State, device string) {
	for f, p := range h.subnets().All() {
		s.Addrs[Addr{device, netip.PrefixFrom(p.Addr(), f.Bits())}] = struct{}{}
	}
}
