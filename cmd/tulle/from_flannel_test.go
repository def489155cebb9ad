package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// Each of flanneld's variables that has a counterpart has one that the agent knows. The list is that of flanneld's flags.
func TestFlannelCounterparts(t *testing.T) {
	for _, flag := range strings.Fields(`etcd-endpoints etcd-prefix etcd-keyfile etcd-certfile etcd-cafile etcd-username etcd-password iface iface-regex
		iface-can-reach subnet-file public-ip public-ipv6 subnet-lease-renew-margin ip-masq ip-masq-fully-random-disable kube-subnet-mgr kube-api-url
		kube-annotation-prefix kubeconfig-file healthz-ip healthz-port iptables-resync iptables-forward-rules ip-blackhole-route net-config-path
		set-node-network-unavailable`) {
		t.Setenv("FLANNELD_"+strings.ToUpper(strings.ReplaceAll(flag, "-", "_")), "1")
	}
	t.Setenv("TULLE_IFACE", "eth9")
	for _, name := range []string{"ETCD_ENDPOINTS", "ETCD_PREFIX", "ETCD_KEYFILE", "ETCD_CERTFILE", "ETCD_CAFILE", "ETCD_USERNAME", "ETCD_PASSWORD_FILE", "IFACE_REGEX",
		"IFACE_CAN_REACH", "PUBLIC_IP", "PUBLIC_IPV6", "IP_MASQ", "IPV6_MASQ", "FORWARD_RULES"} {
		t.Setenv("TULLE_"+name, "") // so that it comes back
		os.Unsetenv("TULLE_" + name)
	}
	s, err := fromFlannel()
	if err != nil {
		t.Fatal(err)
	}
	parser := kong.Must(&struct {
		Agent agentCmd `cmd:""`
	}{}, kong.DefaultEnvars("TULLE"))
	var known []string
	for _, f := range parser.Model.Children[0].Flags {
		known = append(known, f.Envs...)
	}
	for name := range s.Variables {
		if !slices.Contains(known, name) {
			t.Errorf("the agent has no %s", name)
		}
	}
	const left = "FLANNELD_HEALTHZ_IP FLANNELD_HEALTHZ_PORT FLANNELD_IPTABLES_RESYNC FLANNELD_IP_BLACKHOLE_ROUTE FLANNELD_IP_MASQ_FULLY_RANDOM_DISABLE FLANNELD_KUBECONFIG_FILE " +
		"FLANNELD_KUBE_ANNOTATION_PREFIX FLANNELD_KUBE_API_URL FLANNELD_KUBE_SUBNET_MGR FLANNELD_NET_CONFIG_PATH FLANNELD_SET_NODE_NETWORK_UNAVAILABLE FLANNELD_SUBNET_LEASE_RENEW_MARGIN"
	if got := strings.Join(s.Left, " "); got != left {
		t.Errorf("left are %s", got)
	}
	if iface := os.Getenv("TULLE_IFACE"); iface != "eth9" {
		t.Errorf("TULLE_IFACE is %s", iface)
	}
	path := os.Getenv("TULLE_ETCD_PASSWORD_FILE")
	text, err := os.ReadFile(path)
	if _, still := os.LookupEnv("FLANNELD_ETCD_PASSWORD"); err != nil || string(text) != "1\n" || still {
		t.Errorf("the password is %q in %s, %v, and still in the environment: %t", text, path, err, still)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v, %v", path, info.Mode(), err)
	}
}
