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
)

// variablePrefix begins the names of mk-docker-opts.sh's variables.
const variablePrefix = "DOCKER_OPT_"

// Env is what an env file, the agent's or flannel's, says about this host's containers.
type Env struct {
	Network    netip.Prefix // the overlay's range; not valid if it doesn't say
	Subnet     netip.Prefix // this host's own, with the bridge's address in it
	Bridge     netip.Prefix // the bridge's address, and what it is one segment with: Subnet, but for an l2 network's range
	Attach     netip.Prefix // the part of the subnet that Docker must not hand out; not valid for none
	MTU        int          // 0: it doesn't say
	Masquerade bool         // the agent masquerades, so Docker must not
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
	address := variables["FLANNEL_SUBNET"]
	if address == "" {
		return Env{}, errors.New("it has no FLANNEL_SUBNET, which docker0's address comes from: is it the file that tulle agent or flanneld wrote, and has the network an IPv4 range?")
	}
	if e.Subnet, err = netip.ParsePrefix(address); err != nil || !e.Subnet.Addr().Is4() {
		return Env{}, fmt.Errorf("FLANNEL_SUBNET=%.80s is not an IPv4 address with a prefix length, as in 10.5.1.1/24: let the agent write the file again", address)
	}
	e.Bridge = e.Subnet
	if bridge := variables["TULLE_BRIDGE"]; bridge != "" {
		if e.Bridge, err = netip.ParsePrefix(bridge); err != nil || e.Bridge.Addr() != e.Subnet.Addr() || e.Bridge.Bits() > e.Subnet.Bits() {
			return Env{}, fmt.Errorf("TULLE_BRIDGE=%.80s is not %s with a shorter prefix: let the agent write the file again", bridge, e.Subnet.Addr())
		}
	}
	if mtu := variables["FLANNEL_MTU"]; mtu != "" {
		if e.MTU, err = strconv.Atoi(mtu); err != nil || e.MTU < 68 || e.MTU > 65535 { // RFC 791: every host takes 68
			return Env{}, fmt.Errorf("FLANNEL_MTU=%.80s is not an MTU, 68 to 65535 bytes: let the agent write the file again", mtu)
		}
	}
	if attach := variables["TULLE_ATTACH"]; attach != "" {
		if e.Attach, err = netip.ParsePrefix(attach); err != nil || e.Attach.Bits() <= e.Subnet.Bits() || !e.Subnet.Contains(e.Attach.Addr()) || e.Attach.Contains(e.Subnet.Addr()) {
			return Env{}, fmt.Errorf("TULLE_ATTACH=%.80s is not a part of %s without the bridge's address: let the agent write the file again", attach, e.Subnet.Masked())
		}
	}
	e.Network, _ = netip.ParsePrefix(variables["FLANNEL_NETWORK"]) // dockerd has no use for it
	e.Masquerade = variables["FLANNEL_IPMASQ"] == "true"
	return e, nil
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
func (e Env) slice() netip.Prefix {
	if e.Attach.IsValid() {
		return netip.PrefixFrom(e.Subnet.Addr(), e.Attach.Bits()).Masked()
	}
	return e.Subnet.Masked()
}

// Options are what dockerd must be told, in terms that every version knows.
func (e Env) Options() []Option {
	options := []Option{Option("--bip=" + e.Bridge.String())}
	if slice := e.slice(); slice != e.Bridge.Masked() {
		options = append(options, Option("--fixed-cidr="+slice.String()))
	}
	if e.Masquerade { // Docker inserts its own rule ahead of ours, and would hide each container behind its host
		options = append(options, "--ip-masq=false")
	}
	if e.MTU != 0 {
		options = append(options, Option(fmt.Sprintf("--mtu=%d", e.MTU)))
	}
	return options
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
