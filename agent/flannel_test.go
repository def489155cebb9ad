package agent

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/tulle-net/tulle/subnet"
)

// What is stored for this host's address is what it announces again, flannel's MAC with it: of two, the older. Another host's is not.
func TestLeaseOfFlannelIsAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "")
		for n, data := range map[int]string{65: `{"VNI":1,"VtepMAC":"a6:59:a7:17:56:cd"}`, 66: `{"VNI":1,"VtepMAC":"a6:00:00:00:00:66"}`, 2: `{"VNI":1,"VtepMAC":"a6:00:00:00:00:02"}`} {
			e := peer(n)
			if e.Lease.Data.V4 = data; n != 2 {
				e.Lease.PublicIP.V4 = r.kernel.underlay.Public.V4
			}
			r.store.pending.Leases[e.Lease.Key()] = e
		}
		defer r.run()()
		r.list(vxlan)
		want := r.store.lastWant()
		if want.Data.V4 != `{"VNI":1,"VtepMAC":"a6:59:a7:17:56:cd"}` || want.Revision != 0 {
			t.Errorf("wants %+v", want)
		}
		r.hold("10.5.65.0/24")
		if again := r.store.lastWant(); again.Data != want.Data {
			t.Errorf("once it is held, wants %+v", again)
		}
	})
}

// Flannel's env file says what this host held, and if it is where no reboot keeps it, that nobody else does.
func TestFlannelEnvFile(t *testing.T) {
	if err := os.MkdirAll("/run/tulle-lab", 0o755); err != nil {
		t.Skipf("no directory in /run: %v", err)
	}
	run, err := os.MkdirTemp("/run/tulle-lab", "test-")
	if err != nil {
		t.Skipf("no directory in /run: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	for name, test := range map[string]struct {
		dir, env, own, previous string
		revision                int64
	}{
		"kept by no reboot":  {dir: run, env: "FLANNEL_SUBNET=10.5.65.1/24\n", previous: "10.5.65.0/24", revision: subnet.AnyRevision},
		"kept":               {dir: t.TempDir(), env: "FLANNEL_SUBNET=10.5.65.1/24\n", previous: "10.5.65.0/24"},
		"older than our own": {dir: run, env: "FLANNEL_SUBNET=10.5.65.1/24\n", own: "FLANNEL_SUBNET=10.5.66.1/24\n", previous: "10.5.66.0/24"},
		"unreadable":         {dir: run, env: "FLANNEL_SUBNET=10.5.65.1\n", previous: "invalid Prefix"},
		"without a subnet":   {dir: run, env: "FLANNEL_MTU=1450\n", previous: "invalid Prefix"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, "")
				r.agent.config.FlannelFile = filepath.Join(test.dir, "flannel.env")
				for path, text := range map[string]string{r.agent.config.FlannelFile: test.env, r.agent.config.SubnetFile: test.own} {
					if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				defer r.run()()
				r.list(vxlan)
				if got := r.store.lastWant(); got.Revision != test.revision || got.Previous.V4.String() != test.previous {
					t.Errorf("wants revision %d of %s", got.Revision, got.Previous.V4)
				}
				r.hold("10.5.1.0/24")
				if got := r.store.lastWant(); got.Revision < 0 {
					t.Errorf("wants revision %d of what it holds", got.Revision)
				}
			})
		})
	}
}
