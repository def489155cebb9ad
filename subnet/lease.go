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

// Key is the lease's name below <prefix>/subnets/.
func (l Lease) Key() string { return FormatKey(l.Subnet) }

// Idle reports whether l says only who the subnet is for: a reservation whose host has not come yet.
func (l Lease) Idle() bool { return l.Backend == "" && l.Data == (Pair[string]{}) }

// FormatKey writes subnets the way flannel names its keys: 10.5.85.0-24, or 10.5.85.0-24&fd12:3456:0:34::-64.
func FormatKey(subnets Pair[netip.Prefix]) string {
	var parts []string
	for _, p := range subnets.All() {
		parts = append(parts, fmt.Sprintf("%s-%d", p.Addr(), p.Bits()))
	}
	return strings.Join(parts, "&")
}

// ParseKey reads what FormatKey writes, and refuses every other spelling of it.
func ParseKey(key string) (Pair[netip.Prefix], error) {
	var subnets Pair[netip.Prefix]
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

// wireLease is a lease's value: flannel's fields, in flannel's order.
type wireLease struct {
	PublicIP      *netip.Addr
	PublicIPv6    *netip.Addr
	BackendType   string          `json:",omitempty"`
	BackendData   json.RawMessage `json:",omitempty"`
	BackendV6Data json.RawMessage `json:",omitempty"`
}

// maxValue is the longest value that is read, in bytes. Flannel's longest, an extension's free text aside, is under 400.
const maxValue = 16 << 10

// MarshalValue writes what is stored under the lease's key.
func (l Lease) MarshalValue() []byte {
	w := wireLease{BackendType: l.Backend, BackendData: json.RawMessage(l.Data.V4), BackendV6Data: json.RawMessage(l.Data.V6)}
	if l.PublicIP.V4.IsValid() {
		w.PublicIP = &l.PublicIP.V4
	}
	if l.PublicIP.V6.IsValid() {
		w.PublicIPv6 = &l.PublicIP.V6
	}
	var value bytes.Buffer
	encoder := json.NewEncoder(&value)
	encoder.SetEscapeHTML(false) // the data stays as it is
	if err := encoder.Encode(w); err != nil {
		panic("subnet: backend data is not JSON: " + err.Error()) // our own planner wrote it
	}
	return bytes.TrimSuffix(value.Bytes(), []byte("\n"))
}

// ParseLease reads the lease stored under key, its name below <prefix>/subnets/. Every error is a *Reject.
func ParseLease(key string, value []byte) (Lease, error) {
	subnets, err := ParseKey(key)
	if err != nil {
		return Lease{}, err
	}
	if len(value) > maxValue {
		return Lease{}, Rejectf(BadValue, "%d bytes, more than %d", len(value), maxValue)
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
		if FamilyOf(*a) != f || a.Is4In6() || a.Zone() != "" || a.IsMulticast() || a.IsLoopback() {
			return Lease{}, Rejectf(BadAddress, "%s can't be a host's public %s address", a, f)
		}
		*l.PublicIP.At(f) = *a
	}
	if l.PublicIP == (Pair[netip.Addr]{}) {
		return Lease{}, Rejectf(BadAddress, "no public address")
	}
	return l, nil
}

func compact(data json.RawMessage) string {
	var b bytes.Buffer
	if json.Compact(&b, data) != nil || b.String() == "null" {
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
