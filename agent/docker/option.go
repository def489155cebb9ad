package docker

import (
	"strconv"
	"strings"
)

// Option is one thing that dockerd is told when it starts, as it stands on its command line: --mtu=1450. One that takes a
// value has it after an equals sign, never as a word of its own.
type Option string

// firstVersion is the version that brought each option. Those without one are older than 20.10: every dockerd knows them.
var firstVersion = map[string]Version{
	"bip": {}, "fixed-cidr": {}, "fixed-cidr-v6": {}, "ip-masq": {}, "ipv6": {}, "mtu": {},
	"bip6":                 {Major: 28},
	"allow-direct-routing": {Major: 28, Minor: 2},
	"bridge-accept-fwmark": {Major: 29},
	"firewall-backend":     {Major: 29},
}

// Knows says whether a dockerd of this version starts with the option. One that doesn't know it refuses to start, so for an
// unknown version it is true of the options alone that all versions know, and never of an option that isn't in the table.
func (v Version) Knows(o Option) bool {
	first, listed := firstVersion[o.Key()]
	return listed && v.Compare(first) >= 0
}

// Key is the option's name in daemon.json, which is its name on the command line without the dashes.
func (o Option) Key() string {
	name, _, _ := strings.Cut(string(o), "=")
	return strings.TrimLeft(name, "-")
}

// Variable is the name that mk-docker-opts.sh gives the option's variable: DOCKER_OPT_IPMASQ for --ip-masq.
func (o Option) Variable() string {
	return variablePrefix + strings.ToUpper(strings.ReplaceAll(o.Key(), "-", ""))
}

// value is the option's value with its type in daemon.json.
func (o Option) value() any {
	_, text, valued := strings.Cut(string(o), "=")
	if !valued || text == "true" || text == "false" {
		return text != "false"
	}
	if n, err := strconv.Atoi(text); err == nil {
		return n
	}
	return text
}
