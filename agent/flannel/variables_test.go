package flannel

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestRead(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "subnet.env")
	if err := os.WriteFile(file, []byte("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.65.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	masq := func(value string, more map[string]string) map[string]string {
		maps.Copy(more, map[string]string{"TULLE_IP_MASQ": value, "TULLE_IPV6_MASQ": value})
		return more
	}
	for name, test := range map[string]struct {
		environ []string
		want    Settings
	}{
		"nothing":  {[]string{"PATH=/bin", "TULLE_IFACE=eth9"}, Settings{EnvFile: "/run/flannel/subnet.env"}},
		"env file": {[]string{"FLANNELD_SUBNET_FILE=" + file}, Settings{Variables: masq("false", map[string]string{}), EnvFile: file, Taken: []string{"FLANNELD_SUBNET_FILE"}}},
		"all": {[]string{"FLANNELD_ETCD_ENDPOINTS=http://a:2379,http://b:2379", "FLANNELD_ETCD_PASSWORD=pa=ss", "FLANNELD_IP_MASQ=T", "FLANNELD_SUBNET_FILE=" + file,
			"FLANNELD_IFACE=eth1", "FLANNELD_HEALTHZ_PORT=8080", "FLANNELD_IFACE_REGEX=", "FLANNELD_IPTABLES_RESYNC=5", "FLANNELD_IPTABLES_FORWARD_RULES=0"},
			Settings{Variables: masq("true", map[string]string{"TULLE_ETCD_ENDPOINTS": "http://a:2379,http://b:2379", "TULLE_IFACE": "eth1", "TULLE_FORWARD_RULES": "false"}),
				EnvFile: file, Password: "pa=ss", Left: []string{"FLANNELD_HEALTHZ_PORT", "FLANNELD_IPTABLES_RESYNC"},
				Taken: []string{"FLANNELD_ETCD_ENDPOINTS", "FLANNELD_ETCD_PASSWORD", "FLANNELD_IFACE", "FLANNELD_IPTABLES_FORWARD_RULES", "FLANNELD_IP_MASQ", "FLANNELD_SUBNET_FILE"}}},
	} {
		got := Read(test.environ)
		if !maps.Equal(got.Variables, test.want.Variables) || got.EnvFile != test.want.EnvFile || got.Password != test.want.Password ||
			!slices.Equal(got.Taken, test.want.Taken) || !slices.Equal(got.Left, test.want.Left) {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}
