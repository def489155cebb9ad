package agent

import (
	"os"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// TestEnvAttach has addresses kept for tulle attach: Docker is told of its half, and nothing is said without the flag.
func TestEnvAttach(t *testing.T) {
	for _, test := range []struct {
		subnet        string
		n             int
		want, warning string
	}{
		{subnet: "10.5.7.0/24"},
		{subnet: "10.5.7.0/24", n: 100, want: "TULLE_ATTACH=10.5.7.128/25\n--fixed-cidr=10.5.7.0/25"},
		{subnet: "10.5.7.16/28", n: 7, want: "TULLE_ATTACH=10.5.7.24/29\n--fixed-cidr=10.5.7.16/29"},
		{subnet: "10.5.7.0/24", n: 200, warning: "--attach-addresses"},
	} {
		a, log := envAgent(t, t.TempDir(), test.subnet)
		host := a.state.plan.Host()
		host.Attach = test.n
		b, _, err := backend.New(host.Config)
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
			if !strings.Contains(string(text), strings.TrimSpace(line)) {
				t.Errorf("%+v: the env file is\n%s", test, text)
			}
		}
		if test.want == "" && (strings.Contains(string(text), "TULLE_ATTACH") || strings.Contains(string(text), "fixed-cidr")) {
			t.Errorf("%+v: the env file is\n%s", test, text)
		}
		if got := strings.Count(log.String(), "no address is kept"); got != 0 && test.warning == "" || got != 1 && test.warning != "" {
			t.Errorf("%+v: %d warnings:\n%s", test, got, log)
		}
	}
}
