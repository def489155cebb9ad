package subnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
)

// Config is the network's config, as an operator stores it at <prefix>/config. It is comparable.
type Config struct {
	Range    Pair[Range] // the zero Range where a family is switched off
	NFTables bool        // rules are made by nftables, unless an agent was told otherwise
	Backend  Backend
}

// Backend is the config's Backend object: how packets are carried. Package backend knows the types and their keys.
type Backend struct {
	Type    string // lower case; "" if the config does not say
	Options string // the whole object as compact JSON; "" if the config has none
}

// A ConfigError says which key of a config is wrong, and why.
type ConfigError struct{ Key, Reason string }

func (e *ConfigError) Error() string { return e.Key + ": " + e.Reason }

// configErr returns a ConfigError, its reason formatted.
func configErr(key, format string, args ...any) error {
	return &ConfigError{key, fmt.Sprintf(format, args...)}
}

// wireConfig is the config's JSON form: flannel's keys, letter by letter.
type wireConfig struct {
	EnableIPv4     *bool // true if absent
	EnableIPv6     bool
	EnableNFTables bool
	Network        string
	SubnetLen      int
	SubnetMin      string
	SubnetMax      string
	IPv6Network    string
	IPv6SubnetLen  int
	IPv6SubnetMin  string
	IPv6SubnetMax  string
	Backend        json.RawMessage
}

var configKeys = []string{"EnableIPv4", "EnableIPv6", "EnableNFTables", "Network", "SubnetLen", "SubnetMin", "SubnetMax",
	"IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax", "Backend"}

// ParseConfig reads a network's config and returns it with its defaults filled in, and the top-level keys that it does
// not know, sorted. Every error is, or wraps, a *ConfigError. The Backend object is checked by package backend.
func ParseConfig(data []byte) (c Config, unknown []string, err error) {
	var w wireConfig
	if err := DecodeObject("", data, &w); err != nil {
		return Config{}, nil, err
	}
	unknown, c.NFTables = UnknownKeys(data, configKeys), w.EnableNFTables
	if w.EnableIPv4 == nil || *w.EnableIPv4 {
		c.Range.V4, err = parseRange(IPv4, "", w.Network, w.SubnetLen, w.SubnetMin, w.SubnetMax)
	}
	if w.EnableIPv6 && err == nil {
		c.Range.V6, err = parseRange(IPv6, "IPv6", w.IPv6Network, w.IPv6SubnetLen, w.IPv6SubnetMin, w.IPv6SubnetMax)
	}
	if err == nil && c.Range == (Pair[Range]{}) {
		err = configErr("EnableIPv4", "false, and EnableIPv6 is not true: the network has no address family: switch one on")
	}
	if err != nil {
		return Config{}, unknown, err
	}
	c.Backend, err = parseBackend(w.Backend)
	return c, unknown, err
}

func parseBackend(data json.RawMessage) (Backend, error) {
	if len(data) == 0 || string(data) == "null" {
		return Backend{}, nil
	}
	var w struct{ Type string }
	if err := DecodeObject("Backend", data, &w); err != nil {
		return Backend{}, err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return Backend{}, configErr("Backend", "not JSON: %v", err)
	}
	return Backend{Type: strings.ToLower(w.Type), Options: compact.String()}, nil
}

// limits are flannel's per family: the length a subnet has by default where the network has room for four of it, and the
// longest it may have. The example is for error messages.
var limits = [...]struct {
	usual, longest int
	example        string
}{IPv4: {24, 30, "10.5.0.0/16"}, IPv6: {64, 126, "fd12:3456::/48"}}

// parseRange reads one family's keys, whose names begin with prefix.
func parseRange(f Family, prefix, network string, length int, first, last string) (Range, error) {
	n, err := netip.ParsePrefix(network)
	usual, longest, example := limits[f].usual, limits[f].longest, limits[f].example
	switch {
	case network == "":
		return Range{}, configErr(prefix+"Network", "missing: the network needs a range, for example %q", example)
	case err != nil:
		return Range{}, configErr(prefix+"Network", "%q is not a range like %s", network, example)
	case FamilyOf(n.Addr()) != f || n.Addr().Is4In6():
		return Range{}, configErr(prefix+"Network", "%s is not %s, as %s is", n, f, example)
	case n.Addr().IsMulticast() || n.Addr().IsLoopback() || n.Addr().IsLinkLocalUnicast() && f == IPv6 || n.Bits() == 0:
		return Range{}, configErr(prefix+"Network", "%s is not a unicast range, as %s is", n, example)
	case n.Bits()+2 > longest:
		return Range{}, configErr(prefix+"Network", "%s has no room for four subnets of length %d: take a larger range, as %s is", n, longest, example)
	}
	n = n.Masked()
	r := Range{Network: n, SubnetLen: length}
	if length == 0 {
		r.SubnetLen = max(usual, n.Bits()+2)
	}
	if r.SubnetLen > longest || r.SubnetLen < n.Bits()+2 {
		return Range{}, configErr(prefix+"SubnetLen", "%d is not within %d (%s has no room for four subnets otherwise) and %d",
			r.SubnetLen, n.Bits()+2, n, longest)
	}
	if r.SubnetLen-n.Bits() > 62 {
		return Range{}, configErr(prefix+"SubnetLen", "%d makes more than 2^62 subnets of %s: %d is the longest for that", r.SubnetLen, n, n.Bits()+62)
	}
	r.Min = n.Addr()
	second, highest := r.subnet(1).Addr(), r.subnet(1<<(r.SubnetLen-n.Bits())-1).Addr()
	if r.Min, err = r.boundary(prefix+"SubnetMin", first, second); err != nil {
		return Range{}, err
	}
	if r.Max, err = r.boundary(prefix+"SubnetMax", last, highest); err != nil {
		return Range{}, err
	}
	if r.Max.Less(r.Min) {
		return Range{}, configErr(prefix+"SubnetMin", "%s is above %sSubnetMax %s", r.Min, prefix, r.Max)
	}
	return r, nil
}

// boundary reads a subnet's first address, which is fallback if text is empty.
func (r Range) boundary(key, text string, fallback netip.Addr) (netip.Addr, error) {
	if text == "" {
		return fallback, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return a, configErr(key, "%q is not an address", text)
	}
	if !r.Network.Contains(a) {
		return a, configErr(key, "%s is outside the network %s", a, r.Network)
	}
	if p := netip.PrefixFrom(a, r.SubnetLen).Masked(); p.Addr() != a {
		return a, configErr(key, "%s is not on a /%d boundary; %s is", a, r.SubnetLen, p.Addr())
	}
	return a, nil
}

// DecodeObject decodes a single JSON object into v. Its errors are *ConfigError; name is the key that the object is stored
// under, "" for the config itself.
func DecodeObject(name string, data []byte, v any) error {
	whole, within := "JSON", ""
	if name != "" {
		whole, within = name, name+"."
	}
	d := json.NewDecoder(bytes.NewReader(data))
	err := d.Decode(v)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			return configErr(whole, "something follows the object's closing brace")
		}
		if !bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
			return configErr(whole, "not an object")
		}
		return nil
	}
	var wrongType *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &wrongType) && wrongType.Field != "":
		return configErr(within+wrongType.Field, "a %s does not belong here, %s does", wrongType.Value, describe(wrongType.Type.Kind().String()))
	case errors.As(err, &wrongType):
		return configErr(whole, "not an object")
	case errors.As(err, &syntax):
		return configErr(whole, "%v, at byte %d", err, syntax.Offset)
	}
	return configErr(whole, "not an object: %v", err)
}

// describe names a Go kind in JSON's words.
func describe(kind string) string {
	switch {
	case strings.HasPrefix(kind, "int"), strings.HasPrefix(kind, "uint"):
		return "a whole number in range"
	case kind == "bool":
		return "true or false"
	}
	return "a " + kind
}

// UnknownKeys returns the keys of the JSON object data that are not among known, sorted. Case does not matter, as in
// encoding/json.
func UnknownKeys(data []byte, known []string) []string {
	var object map[string]json.RawMessage
	if json.Unmarshal(data, &object) != nil {
		return nil
	}
	var unknown []string
	for key := range object {
		if !slices.ContainsFunc(known, func(k string) bool { return strings.EqualFold(k, key) }) {
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	return unknown
}
