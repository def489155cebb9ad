package agent

import (
	"os"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// TestEnvSlice has addresses of the bridge's subnet that are not Docker's, tulle attach's or, where all hosts are one segment, the
// other hosts'. Else nothing is said of them.
func TestEnvSlice(t *testing.T) {
	for _, test := range []struct {
		typ, subnet   string
		n             int
		want, warning string
	}{
		{subnet: "10.5.7.0/24"},
		{subnet: "10.5.7.0/24", n: 100, want: "TULLE_ATTACH=10.5.7.128/25\n--fixed-cidr=10.5.7.0/25"},
		{subnet: "10.5.7.16/28", n: 7, want: "TULLE_ATTACH=10.5.7.24/29\n--fixed-cidr=10.5.7.16/29"},
		{subnet: "10.5.7.0/24", n: 200, warning: "--attach-addresses"},
		{typ: "l2", subnet: "10.5.7.0/24", want: "FLANNEL_SUBNET=10.5.7.1/24\nTULLE_BRIDGE=10.5.7.1/16\n--bip=10.5.7.1/16 --fixed-cidr=10.5.7.0/24 "},
		{typ: "l2", subnet: "10.5.7.0/24", n: 100, want: "FLANNEL_SUBNET=10.5.7.1/24\nTULLE_BRIDGE=10.5.7.1/16\nTULLE_ATTACH=10.5.7.128/25\n--bip=10.5.7.1/16 --fixed-cidr=10.5.7.0/25 "},
	} {
		a, log := envAgent(t, t.TempDir(), test.subnet)
		host := a.state.plan.Host()
		host.Attach = test.n
		host.Config.Backend.Type, host.Bridge = test.typ, "docker0"
		b, err := backend.New(host.Config)
		if err != nil {
			t.Fatal(err)
		}
		if a.state.plan, err = backend.NewPlan(b, host, map[string]subnet.Entry{}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := a.writeEnv(1450); err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(a.config.SubnetFile)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(test.want) {
			if !strings.Contains(string(text), strings.TrimRight(line, "\n")) {
				t.Errorf("%+v: the env file is\n%s", test, text)
			}
		}
		if test.want == "" && (strings.Contains(string(text), "TULLE_") || strings.Contains(string(text), "fixed-cidr")) {
			t.Errorf("%+v: the env file is\n%s", test, text)
		}
		if got := strings.Count(log.String(), "no address is kept"); got != 0 && test.warning == "" || got != 1 && test.warning != "" {
			t.Errorf("%+v: %d warnings:\n%s", test, got, log)
		}
	}
}
