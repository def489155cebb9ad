package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/e2e/lab"
)

// TestSharedAddress starts a host that tells its peers another host's public address, as a cloned machine does, or one behind
// the same NAT. Neither takes the other's lease, both say so, and the first one's containers go on talking.
func TestSharedAddress(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 2})
	first, peer := l.Nodes[0], l.Nodes[1]
	flow, err := lab.StartFlow(first.Container.Namespace, peer.Container.Address, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	list := leases(t, l)
	clone, err := l.NewHost()
	if err != nil {
		t.Fatal(err)
	}
	l.Agent = []string{"--public-ip", first.Address.String()}
	launch(t, l, clone)
	for h, text := range map[*lab.Host]string{
		clone: "another host with our public address 192.0.2.11 holds " + key(t, first) + ", and answers: give each host an address of its own (--public-ip)",
		first: "has our public address 192.0.2.11 and claims our lease " + key(t, first) + ": give each host an address of its own (--public-ip)",
	} {
		eventually(t, 15*time.Second, h.Name+" says that its address is another's, too", func() error {
			status, err := h.Status(t.Context())
			if err == nil && (status.Ready || !strings.Contains(status.Reason, text)) {
				err = fmt.Errorf("ready %t: %s", status.Ready, status.Reason)
			}
			return err
		})
		if err := logs(t, l, h, text); err != nil {
			t.Error(err)
		}
	}
	if out, err := lab.Output(t.Context(), first.Namespace, binary, "status", "--run-dir", first.RunDir); err == nil || !strings.Contains(out, "claims our lease") {
		t.Errorf("tulle status says\n%s\n%v", out, err)
	}
	stop(t, clone)
	if r := flow.Stop(t.Context()); r.Lost() > 0 {
		t.Errorf("%d of %d packets lost", r.Lost(), r.Sent)
	}
	if after := leases(t, l); after != list {
		t.Errorf("leases are\n%s\nand were\n%s", after, list)
	}
}

// leases is who holds what.
func leases(t *testing.T, l *lab.Lab) string {
	t.Helper()
	out, err := l.Tulle(t.Context(), "", "lease", "ls")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(out) {
		lines = append(lines, strings.Join(strings.Fields(line)[:2], " ")) // without the time that is left
	}
	return strings.Join(lines, "\n")
}
