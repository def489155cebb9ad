package flannel

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/tulle-net/tulle/agent/docker"
)

// prefix begins the names of flanneld's variables: each of its flags has one.
const prefix = "FLANNELD_"

// counterparts are the variables of ours that mean the same as flannel's.
var counterparts = map[string][]string{
	"ETCD_ENDPOINTS":         {"TULLE_ETCD_ENDPOINTS"},
	"ETCD_PREFIX":            {"TULLE_ETCD_PREFIX"},
	"ETCD_CAFILE":            {"TULLE_ETCD_CAFILE"},
	"ETCD_CERTFILE":          {"TULLE_ETCD_CERTFILE"},
	"ETCD_KEYFILE":           {"TULLE_ETCD_KEYFILE"},
	"ETCD_USERNAME":          {"TULLE_ETCD_USERNAME"},
	"IFACE":                  {"TULLE_IFACE"},
	"IFACE_REGEX":            {"TULLE_IFACE_REGEX"},
	"IFACE_CAN_REACH":        {"TULLE_IFACE_CAN_REACH"},
	"PUBLIC_IP":              {"TULLE_PUBLIC_IP"},
	"PUBLIC_IPV6":            {"TULLE_PUBLIC_IPV6"},
	"IP_MASQ":                {"TULLE_IP_MASQ", "TULLE_IPV6_MASQ"}, // flannel has one for both families
	"IPTABLES_FORWARD_RULES": {"TULLE_FORWARD_RULES"},
}

// Settings are what a flanneld of this host was told.
type Settings struct {
	Variables map[string]string // as ours
	EnvFile   string            // path of what it wrote
	Password  string            // for etcd; "" for none
	Taken     []string          // names of flannel's variables that all this is from
	Left      []string          // of those that have no counterpart
}

// Read takes flannel's settings from an environment, as from os.Environ, and from the env file that flannel wrote: whether it
// masqueraded is said there by whatever means it was told.
func Read(environ []string) Settings {
	s := Settings{Variables: map[string]string{}, EnvFile: "/run/flannel/subnet.env"}
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		option, flannels := strings.CutPrefix(name, prefix)
		if !flannels || value == "" {
			continue
		}
		if s.take(option, value) {
			s.Taken = append(s.Taken, name)
		} else {
			s.Left = append(s.Left, name)
		}
	}
	slices.Sort(s.Taken)
	slices.Sort(s.Left)
	if env, err := docker.ReadEnv(s.EnvFile); err == nil {
		for _, ours := range counterparts["IP_MASQ"] {
			s.Variables[ours] = cmp.Or(s.Variables[ours], strconv.FormatBool(env.Masquerade))
		}
	}
	return s
}

// take takes one of flannel's options, if it has a counterpart.
func (s *Settings) take(option, value string) bool {
	switch option {
	case "ETCD_PASSWORD":
		s.Password = value
		return true
	case "SUBNET_FILE":
		s.EnvFile = value
		return true
	}
	if truth, err := strconv.ParseBool(value); err == nil && (option == "IP_MASQ" || option == "IPTABLES_FORWARD_RULES") {
		value = strconv.FormatBool(truth)
	}
	for _, ours := range counterparts[option] {
		s.Variables[ours] = value
	}
	return counterparts[option] != nil
}
