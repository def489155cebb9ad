package subnet

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Lease is one host's place in the network: its subnets, where its packets are to be sent, and what its backend needs to
// know. It is comparable.
type Lease struct {
	Subnet   Pair[netip.Prefix]
	PublicIP Pair[netip.Addr] // on the underlay
	Backend  string           // type; "" for udp, alloc, and a reservation nobody uses yet
	Data     Pair[string]     // BackendData, BackendV6Data: compact JSON, "" if absent
}

// Key is the lease's name, see Path for where that is.
func (l Lease) Key() string { return FormatKey(l.Subnet) }

// SameHost reports whether leases with these public addresses are one host's: the IPv4 addresses say so where both have one, as
// flannel finds its own, else the IPv6 addresses. So a host is known again when it gains or loses a family.
func SameHost(a, b Pair[netip.Addr]) bool {
	for f, of := range a.All() {
		if other := b.Of(f); other.IsValid() {
			return of == other
		}
	}
	return false
}

// Idle reports whether l says only who the subnet is for: a reservation whose host has not come yet.
func (l Lease) Idle() bool { return l.Backend == "" && l.Data == (Pair[string]{}) }

// Where leases are, below the network's prefix. IPv6 alone has a place of its own: flannel drops every peer at a key whose path
// begins as its own do, and that has no IPv4 subnet.
const (
	subnetsPlace = "subnets/"
	ipv6Place    = "ipv6-subnets/"
)

// Path is where the lease that is called key is stored below the network's prefix.
func Path(key string) string { return place(key) + key }

// KeyAt returns what the lease stored at a path below the network's prefix is called: its path, if it is in the wrong place. It
// returns false for what is no lease.
func KeyAt(path string) (key string, ok bool) {
	for _, p := range []string{subnetsPlace, ipv6Place} {
		if key, ok := strings.CutPrefix(path, p); ok {
			if place(key) != p {
				key = path
			}
			return key, true
		}
	}
	return "", false
}

// place is where key belongs; "" for one that is a path itself.
func place(key string) string {
	switch {
	case strings.HasPrefix(key, subnetsPlace), strings.HasPrefix(key, ipv6Place):
		return ""
	case strings.Contains(key, ":") && !strings.Contains(key, "&"):
		return ipv6Place
	}
	return subnetsPlace
}

// FormatKey writes subnets the way flannel names its keys: 10.5.85.0-24, or 10.5.85.0-24&fd12:3456:0:34::-64.
func FormatKey(subnets Pair[netip.Prefix]) string {
	var key []byte
	for _, p := range subnets.All() {
		if len(key) > 0 {
			key = append(key, '&')
		}
		key = strconv.AppendInt(append(p.Addr().AppendTo(key), '-'), int64(p.Bits()), 10)
	}
	return string(key)
}

// ParseKey reads what FormatKey writes, and refuses every other spelling of it.
func ParseKey(key string) (Pair[netip.Prefix], error) {
	var subnets Pair[netip.Prefix]
	if place(key) == "" {
		return subnets, Rejectf(BadKey, "in the wrong place: an IPv6 subnet alone belongs below %s, every other below %s", ipv6Place, subnetsPlace)
	}
	for part := range strings.SplitSeq(key, "&") {
		addr, bits, _ := strings.Cut(part, "-")
		a, err := netip.ParseAddr(addr)
		n, atoiErr := strconv.Atoi(bits)
		if err != nil || atoiErr != nil || a.Is4In6() {
			return Pair[netip.Prefix]{}, Rejectf(BadKey, "not a subnet like 10.5.85.0-24")
		}
		*subnets.At(FamilyOf(a)) = netip.PrefixFrom(a, n)
	}
	if FormatKey(subnets) != key {
		return Pair[netip.Prefix]{}, Rejectf(BadKey, "not a subnet like 10.5.85.0-24")
	}
	for _, p := range subnets.All() {
		if p != p.Masked() || p.Bits() == 0 {
			return Pair[netip.Prefix]{}, Rejectf(BadKey, "address bits beyond the /%d", p.Bits())
		}
	}
	return subnets, nil
}

// wireLease is a lease's value: flannel's fields.
type wireLease struct {
	PublicIP      *netip.Addr
	PublicIPv6    *netip.Addr
	BackendType   string
	BackendData   json.RawMessage
	BackendV6Data json.RawMessage
}

// maxValue is the longest value that is read, in bytes. Flannel's longest, an extension's free text aside, is under 400.
const maxValue = 16 << 10

// MarshalValue writes what is stored under the lease's key: flannel's fields, in flannel's order.
func (l Lease) MarshalValue() []byte {
	value := make([]byte, 0, 128+len(l.Data.V4)+len(l.Data.V6))
	value = appendAddr(append(value, `{"PublicIP":`...), l.PublicIP.V4)
	value = appendAddr(append(value, `,"PublicIPv6":`...), l.PublicIP.V6)
	if l.Backend != "" {
		value = appendString(append(value, `,"BackendType":`...), l.Backend)
	}
	if l.Data.V4 != "" {
		value = append(append(value, `,"BackendData":`...), l.Data.V4...)
	}
	if l.Data.V6 != "" {
		value = append(append(value, `,"BackendV6Data":`...), l.Data.V6...)
	}
	return append(value, '}')
}

func appendAddr(b []byte, a netip.Addr) []byte {
	if !a.IsValid() {
		return append(b, "null"...)
	}
	return append(a.AppendTo(append(b, '"')), '"')
}

func appendString(b []byte, s string) []byte {
	if plain(s) {
		return append(append(append(b, '"'), s...), '"')
	}
	quoted, _ := json.Marshal(s) // of a string, it does not fail
	return append(b, quoted...)
}

// plain reports whether s is like the name of a backend type.
func plain[T string | []byte](s T) bool {
	for i := range len(s) {
		if (s[i] < 'a' || s[i] > 'z') && s[i] != '-' {
			return false
		}
	}
	return true
}

// ParseLease reads the lease that is stored under the name key. Every error is a *Reject.
func ParseLease(key string, value []byte) (Lease, error) {
	subnets, err := ParseKey(key)
	if err != nil {
		return Lease{}, err
	}
	if len(value) > maxValue {
		return Lease{}, Rejectf(BadValue, "%d bytes, more than %d", len(value), maxValue)
	}
	if l, ok := parseUsual(subnets, value); ok {
		return l, nil
	}
	var w wireLease
	if err := json.Unmarshal(value, &w); err != nil {
		return Lease{}, Rejectf(BadValue, "not a lease: %v", err)
	}
	l := Lease{Subnet: subnets, Backend: strings.ToLower(w.BackendType), Data: Pair[string]{compact(w.BackendData), compact(w.BackendV6Data)}}
	for f, a := range []*netip.Addr{IPv4: w.PublicIP, IPv6: w.PublicIPv6} {
		f := Family(f)
		if a == nil || !a.IsValid() || a.IsUnspecified() {
			continue
		}
		if !public(*a, f) {
			return Lease{}, Rejectf(BadAddress, "%s can't be a host's public %s address", a, f)
		}
		*l.PublicIP.At(f) = *a
	}
	if l.PublicIP == (Pair[netip.Addr]{}) {
		return Lease{}, Rejectf(BadAddress, "no public address")
	}
	return l, nil
}

// parseUsual reads a value that is, letter for letter, as hosts write it, and returns false for any other. It takes a third of the
// time of encoding/json, which reads them all.
func parseUsual(subnets Pair[netip.Prefix], value []byte) (Lease, bool) {
	head, rest, ok := bytes.Cut(value, []byte(`,"BackendType":"`))
	name, rest, isNamed := bytes.Cut(rest, []byte(`"`))
	data, isWhole := bytes.CutSuffix(rest, []byte(`}`))
	if !ok || !isNamed || !isWhole || len(name) == 0 || !plain(name) {
		return Lease{}, false
	}
	l := Lease{Subnet: subnets, Backend: string(name)}
	address4, address6, _ := bytes.Cut(head, []byte(`,"PublicIPv6":`))
	data4, data6, hasData6 := bytes.Cut(data, []byte(`,"BackendV6Data":`))
	address4, isFirst := bytes.CutPrefix(address4, []byte(`{"PublicIP":`))
	data4, hasData4 := bytes.CutPrefix(data4, []byte(`,"BackendData":`))
	ok = isFirst && hasData4 == (len(data4) > 0) && hasData6 == (len(data6) > 0)
	for f, address := range [][]byte{IPv4: address4, IPv6: address6} {
		f := Family(f)
		ok = ok && usualAddr(address, f, l.PublicIP.At(f))
	}
	for f, data := range [][]byte{IPv4: data4, IPv6: data6} {
		*l.Data.At(Family(f)) = compact(data)
		ok = ok && l.Data.Of(Family(f)) == string(data)
	}
	return l, ok && l.PublicIP != (Pair[netip.Addr]{})
}

// usualAddr reads null, or a public address of the family.
func usualAddr(text []byte, f Family, a *netip.Addr) bool {
	if string(text) == "null" {
		return true
	}
	if len(text) < 2 || text[0] != '"' || text[len(text)-1] != '"' {
		return false
	}
	var err error
	*a, err = netip.ParseAddr(string(text[1 : len(text)-1]))
	return err == nil && !a.IsUnspecified() && public(*a, f)
}

// public reports whether a can be a host's public address of the family. What is link-local of IPv6 says nothing without a device, and
// 0.0.0.0/8 and 255.255.255.255 are nobody's (RFC 6890).
func public(a netip.Addr, f Family) bool {
	nobody := f == IPv4 && (a.As16()[12] == 0 || a.As16() == netip.AddrFrom4([4]byte{255, 255, 255, 255}).As16())
	return FamilyOf(a) == f && !a.Is4In6() && a.Zone() == "" && !a.IsMulticast() && !a.IsLoopback() && !(f == IPv6 && a.IsLinkLocalUnicast()) && !nobody
}

func compact(data json.RawMessage) string {
	if len(data) == 0 || string(data) == "null" {
		return ""
	}
	var b bytes.Buffer
	b.Grow(len(data))
	if json.Compact(&b, data) != nil {
		return ""
	}
	return b.String()
}

// Reason is the kind of fault that keeps a lease out of the kernel; metrics count by it.
type Reason string

// The reasons.
const (
	BadKey       Reason = "bad-key"         // the key is not a subnet
	BadValue     Reason = "bad-value"       // the value is not a lease
	BadAddress   Reason = "bad-address"     // no usable public address
	OutOfNetwork Reason = "outside-network" // the subnet is not inside Network
	OnUnderlay   Reason = "covers-underlay" // the subnet covers this host's underlay
	Overlap      Reason = "overlap"         // an older lease, or our own, holds some of the subnet
	Conflict     Reason = "conflict"        // an older lease has the same VTEP MAC on another address
	OwnAddress   Reason = "own-address"     // the public address is ours
	BadMAC       Reason = "bad-mac"         // no VTEP MAC, not unicast, or ours
	WrongVNI     Reason = "wrong-vni"
	NotOnLink    Reason = "not-on-link"   // the host is on another segment, and the backend needs one
	OtherFamily  Reason = "other-family"  // no family of addresses in common with this host, inside or on the underlay
	WrongBackend Reason = "wrong-backend" // the host carries packets in another way than the network's config says
)

// Reject says why a lease is left out. It concerns that lease alone.
type Reject struct {
	Reason Reason
	Detail string
}

func (r *Reject) Error() string { return string(r.Reason) + ": " + r.Detail }

// Rejectf returns a Reject, its detail formatted, cut short, and without what a terminal would not print: some of it is text
// that anybody may have written.
func Rejectf(reason Reason, format string, args ...any) error {
	const longest = 200 // bytes
	detail := fmt.Sprintf(format, args...)
	if len(detail) > longest {
		detail = strings.ToValidUTF8(detail[:longest], "") + "…"
	}
	detail = strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, detail)
	return &Reject{reason, detail}
}
