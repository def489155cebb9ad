package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/tulle-net/tulle/subnet"
)

// variablePrefix begins the names of mk-docker-opts.sh's variables.
const variablePrefix = "DOCKER_OPT_"

// SubnetVariables are the env file's variables for this host's subnet, by family. They are flannel's: other people's scripts read them.
var SubnetVariables = [...]string{subnet.IPv4: "FLANNEL_SUBNET", subnet.IPv6: "FLANNEL_IPV6_SUBNET"}

// The other variables of each family.
var (
	networkVariables = [...]string{subnet.IPv4: "FLANNEL_NETWORK", subnet.IPv6: "FLANNEL_IPV6_NETWORK"}
	bridgeVariables  = [...]string{subnet.IPv4: "TULLE_BRIDGE", subnet.IPv6: "TULLE_IPV6_BRIDGE"}
	attachVariables  = [...]string{subnet.IPv4: "TULLE_ATTACH", subnet.IPv6: "TULLE_IPV6_ATTACH"}
)

// Env is what an env file, the agent's or flannel's, says about this host's containers.
type Env struct {
	Network    subnet.Pair[netip.Prefix] // the overlay's range; absent if it doesn't say
	Subnet     subnet.Pair[netip.Prefix] // this host's own, with the bridge's address in it
	Bridge     subnet.Pair[netip.Prefix] // the bridge's address, and what it is one segment with: Subnet, but for an l2 network's range
	Attach     subnet.Pair[netip.Prefix] // the part of the subnet that Docker must not hand out; absent for none
	MTU        int                       // 0: it doesn't say
	Masquerade bool                      // the agent masquerades, so Docker must not
}

// ReadEnv reads an env file. A file that isn't there, or has no subnet, is an error that says what to do.
func ReadEnv(path string) (Env, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Env{}, fmt.Errorf("env file %s is missing: the agent writes it once it has a subnet, so start tulle agent first, or name the file that it writes", path)
	}
	if err != nil {
		return Env{}, fmt.Errorf("env file: %w", err)
	}
	e, err := parseEnv(string(text))
	if err != nil {
		return Env{}, fmt.Errorf("env file %s: %w", path, err)
	}
	return e, nil
}

func parseEnv(text string) (e Env, err error) {
	variables := assignments(text)
	for f, variable := range SubnetVariables {
		if variables[variable] == "" {
			continue
		}
		if err := e.parse(subnet.Family(f), variables); err != nil {
			return Env{}, fmt.Errorf("%w: let the agent write the file again", err)
		}
	}
	if e.Subnet == (subnet.Pair[netip.Prefix]{}) {
		return Env{}, errors.New("it has neither FLANNEL_SUBNET nor FLANNEL_IPV6_SUBNET, which docker0's addresses come from: is it the file that tulle agent or flanneld wrote?")
	}
	if mtu := variables["FLANNEL_MTU"]; mtu != "" {
		if e.MTU, err = strconv.Atoi(mtu); err != nil || e.MTU < 68 || e.MTU > 65535 { // RFC 791: every host takes 68
			return Env{}, fmt.Errorf("FLANNEL_MTU=%.80s is not an MTU, 68 to 65535 bytes: let the agent write the file again", mtu)
		}
	}
	e.Masquerade = variables["FLANNEL_IPMASQ"] == "true"
	return e, nil
}

// parse reads one family's variables.
func (e *Env) parse(f subnet.Family, variables map[string]string) error {
	name := SubnetVariables[f]
	own, err := netip.ParsePrefix(variables[name])
	if err != nil || subnet.FamilyOf(own.Addr()) != f {
		return fmt.Errorf("%s=%.80s is not an %s address with a prefix length, as in %s", name, variables[name], f, [...]string{"10.5.1.1/24", "fd00:0:0:1::1/64"}[f])
	}
	bridge := own
	name = bridgeVariables[f]
	if text := variables[name]; text != "" {
		if bridge, err = netip.ParsePrefix(text); err != nil || bridge.Addr() != own.Addr() || bridge.Bits() > own.Bits() {
			return fmt.Errorf("%s=%.80s is not %s with a shorter prefix", name, text, own.Addr())
		}
	}
	name = attachVariables[f]
	if text := variables[name]; text != "" {
		attach, err := netip.ParsePrefix(text)
		if err != nil || attach.Bits() <= own.Bits() || !own.Contains(attach.Addr()) || attach.Contains(own.Addr()) {
			return fmt.Errorf("%s=%.80s is not a part of %s without the bridge's address", name, text, own.Masked())
		}
		*e.Attach.At(f) = attach
	}
	*e.Subnet.At(f), *e.Bridge.At(f) = own, bridge
	*e.Network.At(f), _ = netip.ParsePrefix(variables[networkVariables[f]]) // dockerd has no use for it
	return nil
}

// Text is the env file: what parseEnv reads, and DOCKER_OPTS for a dockerd of any version, with what else it needs.
func (e Env) Text(more ...Option) []byte {
	var text []byte
	for f, own := range e.Subnet.All() {
		text = fmt.Appendf(text, "%s=%s\n%s=%s\n", networkVariables[f], e.Network.Of(f), SubnetVariables[f], own)
		if bridge := e.Bridge.Of(f); bridge != own {
			text = fmt.Appendf(text, "%s=%s\n", bridgeVariables[f], bridge)
		}
		if attach := e.Attach.Of(f); attach.IsValid() {
			text = fmt.Appendf(text, "%s=%s\n", attachVariables[f], attach)
		}
	}
	text = fmt.Appendf(text, "FLANNEL_MTU=%d\nFLANNEL_IPMASQ=%t\n", e.MTU, e.Masquerade)
	words := make([]string, 0, 8)
	for _, o := range append(e.Common(), more...) {
		words = append(words, string(o))
	}
	return fmt.Appendf(text, "DOCKER_OPTS=\"%s\"\n", strings.Join(words, " "))
}

// assignments reads NAME=VALUE lines as a shell would, as far as env files go; the last of a name counts.
func assignments(text string) map[string]string {
	values := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && !strings.HasPrefix(name, "#") {
			values[strings.TrimPrefix(name, "export ")] = unquote(value)
		}
	}
	return values
}

func unquote(value string) string {
	for _, quote := range []string{`"`, `'`} {
		if len(value) >= 2 && strings.HasPrefix(value, quote) && strings.HasSuffix(value, quote) {
			return value[1 : len(value)-1]
		}
	}
	return value
}

// slice is what Docker may hand out: one block, with the bridge's address in it. Attach is the other half of Subnet.
func (e Env) slice(f subnet.Family) netip.Prefix {
	own := e.Subnet.Of(f)
	if attach := e.Attach.Of(f); attach.IsValid() {
		return netip.PrefixFrom(own.Addr(), attach.Bits()).Masked()
	}
	return own.Masked()
}

// addressing names, by family, the options for the bridge's address and for what Docker may hand out.
var addressing = [...]struct{ bridge, slice string }{subnet.IPv4: {"--bip", "--fixed-cidr"}, subnet.IPv6: {"--bip6", "--fixed-cidr-v6"}}

// Options are what dockerd must be told. A version that does not know --bip6 takes the bridge's IPv6 address from --fixed-cidr-v6: the
// first, and the same prefix.
func (e Env) Options() []Option {
	var options []Option
	for f, bridge := range e.Bridge.All() {
		if f == subnet.IPv6 { // off, if nothing is said
			options = append(options, "--ipv6")
		}
		options = append(options, Option(addressing[f].bridge+"="+bridge.String()))
		if slice := e.slice(f); f == subnet.IPv6 || slice != bridge.Masked() {
			options = append(options, Option(addressing[f].slice+"="+slice.String()))
		}
	}
	// Docker inserts its own rule ahead of ours, and would hide each container behind its host. It has one switch for both families:
	// on a network without IPv4, containers have Docker's own IPv4 addresses, which lead nowhere without masquerading.
	if e.Masquerade && e.Bridge.V4.IsValid() {
		options = append(options, "--ip-masq=false")
	}
	if e.MTU != 0 {
		options = append(options, Option(fmt.Sprintf("--mtu=%d", e.MTU)))
	}
	return options
}

// Common are those of Options that every version knows.
func (e Env) Common() []Option {
	return slices.DeleteFunc(e.Options(), func(o Option) bool { return !Version{}.Knows(o) })
}

// Check refuses a dockerd that can't give its bridge the address that it must have.
func (e Env) Check(v Version) error {
	if bridge := e.Bridge.V6; v.Tested() && bridge.IsValid() && bridge.Masked() != e.slice(subnet.IPv6) && !v.Knows("--bip6") {
		return fmt.Errorf("the bridge's address is %s, of which containers here have %s: Docker %s can't be told that for IPv6; Docker 28 can",
			bridge, e.slice(subnet.IPv6), v)
	}
	return nil
}

// Style says which variables Variables writes.
type Style struct {
	Each     bool   // one for each option
	Combined string // name of the one with all options; empty for none
}

// Variables renders options as flannel's mk-docker-opts.sh does, byte for byte: the combined variable has a space at either
// end. Like the script it takes up what environ (as from os.Environ) has in the combined variable, and any DOCKER_OPT_ ones.
func Variables(options []Option, style Style, environ []string) []byte {
	values := map[string]string{}
	combined := ""
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, variablePrefix) {
			values[name] = value
		}
		if name == style.Combined {
			combined = value
		}
	}
	for _, o := range options {
		values[o.Variable()] = string(o)
	}
	return render(values, style, combined+" ")
}

func render(values map[string]string, style Style, combined string) []byte {
	var text []byte
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if style.Each {
			text = fmt.Appendf(text, "%s=\"%s\"\n", name, values[name])
		}
		combined += values[name] + " "
	}
	if style.Combined != "" {
		text = fmt.Appendf(text, "%s=\"%s\"\n", style.Combined, combined)
	}
	return text
}

// JSON renders options as they belong in daemon.json.
func JSON(options []Option) ([]byte, error) {
	values := map[string]any{}
	for _, o := range options {
		values[o.Key()] = o.value()
	}
	text, err := json.MarshalIndent(values, "", "  ")
	return append(text, '\n'), err
}
