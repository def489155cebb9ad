package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

// TestNetwork is the network as its users see it, on the embedded etcd and on Debian's.
func TestNetwork(t *testing.T) {
	debian, err := filepath.Abs("../bin/debian/usr/bin/etcd")
	if err != nil {
		t.Fatal(err)
	}
	for name, etcd := range map[string]string{"embedded etcd": "", "Debian's etcd": debian} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, lab.Options{Hosts: 3, Etcd: etcd})
			t.Run("all pairs", func(t *testing.T) { testAllPairs(t, l) })
			t.Run("MTU", func(t *testing.T) { testMTU(t, l) })
			t.Run("outside", func(t *testing.T) { testOutside(t, l) })
			t.Run("join", func(t *testing.T) { testJoin(t, l) })
			t.Run("restarts lose nothing", func(t *testing.T) { testRestarts(t, l) })
			t.Run("leave", func(t *testing.T) { testLeave(t, l) })
		})
	}
}

// testAllPairs pings and transfers between all pairs of containers. The far side must see the container's own address.
func testAllPairs(t *testing.T, l *lab.Lab) {
	for _, from := range l.Nodes {
		for _, to := range l.Nodes {
			if from == to {
				continue
			}
			ping(t, from.Container, to.Container, 84)
			r, err := lab.Transfer(t.Context(), from.Container.Namespace, to.Container.Namespace, to.Container.Address, 64<<20)
			if err != nil {
				t.Fatal(err)
			}
			if !r.Correct {
				t.Errorf("%s to %s: what arrived is not what was sent", from.Name, to.Name)
			}
			if r.Source != from.Container.Address {
				t.Errorf("%s saw %s, not %s's own address %s", to.Container.Name, r.Source, from.Container.Name, from.Container.Address)
			}
		}
	}
}

// testMTU sends packets that may not be fragmented: one that fills the overlay's MTU arrives, a longer one is refused, by the
// container itself and, if the container believes in a larger MTU, by its host.
func testMTU(t *testing.T, l *lab.Lab) {
	from, to := l.Nodes[0].Container, l.Nodes[1].Container
	if from.MTU != 1450 {
		t.Errorf("the MTU for containers is %d, want 1450", from.MTU)
	}
	tooLong := func(what string) {
		t.Helper()
		r, err := lab.Ping(t.Context(), from.Namespace, to.Address, 2, 1451)
		if err != nil {
			t.Fatal(err)
		}
		if r.Answered > 0 || !errors.Is(r.Refused, unix.EMSGSIZE) {
			t.Errorf("%s: of %d packets of 1451 bytes %d were answered, error %v; want EMSGSIZE", what, r.Sent, r.Answered, r.Refused)
		}
	}
	ping(t, from, to, 1450)
	tooLong("a container with the right MTU")
	in(t, from.Namespace, "ip", "link", "set", "eth0", "mtu", "1500")
	in(t, l.Nodes[0].Namespace, "ip", "link", "set", from.Name, "mtu", "1500")
	defer func() {
		in(t, from.Namespace, "ip", "link", "set", "eth0", "mtu", "1450")
		in(t, l.Nodes[0].Namespace, "ip", "link", "set", from.Name, "mtu", "1450")
	}()
	ping(t, from, to, 1450)
	tooLong("a container with MTU 1500")
}

// testOutside connects to an address outside the network: it must see the host, not the container.
func testOutside(t *testing.T, l *lab.Lab) {
	for _, h := range l.Nodes {
		r, err := lab.Transfer(t.Context(), h.Container.Namespace, l.Underlay(), lab.Outside, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if r.Source != h.Address {
			t.Errorf("outside saw %s, want %s's address %s", r.Source, h.Name, h.Address)
		}
	}
}

// testJoin joins a fourth host.
func testJoin(t *testing.T, l *lab.Lab) {
	h, err := l.AddHost(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range l.Nodes[:3] {
		ping(t, other.Container, h.Container, 84)
		ping(t, h.Container, other.Container, 1450)
	}
}

// testRestarts stops and starts the agents, one after another and each in several ways, under running pings between all of
// their containers. Not one may be lost.
func testRestarts(t *testing.T, l *lab.Lab) {
	flows := map[string]*lab.Flow{}
	for i, from := range l.Nodes {
		to := l.Nodes[(i+1)%len(l.Nodes)]
		f, err := lab.StartFlow(from.Container.Namespace, to.Container.Address, 5*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		flows[from.Name+" to "+to.Name] = f
	}
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		for _, h := range l.Nodes {
			before := in(t, h.Namespace, "ip", "-d", "link", "show", "tulle.1")
			if err := h.Agent.Stop(signal); err != nil {
				t.Fatal(err)
			}
			if err := l.StartAgent(t.Context(), h); err != nil {
				t.Fatal(err)
			}
			if after := in(t, h.Namespace, "ip", "-d", "link", "show", "tulle.1"); after != before {
				t.Errorf("%s: restart after %v changed the device:\n%s\n%s", h.Name, signal, before, after)
			}
			metrics := get(t, h, "/metrics")
			if strings.Contains(metrics, "tulle_changes_total{") {
				t.Errorf("%s: a restarted agent found something to change:\n%s", h.Name, grep(metrics, "tulle_changes_total"))
			}
		}
	}
	for name, f := range flows {
		if r := f.Stop(t.Context()); r.Lost() > 0 || r.Sent < 100 {
			t.Errorf("%s: %d of %d packets lost", name, r.Lost(), r.Sent)
		}
	}
}

// testLeave takes the fourth host out for good: no other host may keep anything of it.
func testLeave(t *testing.T, l *lab.Lab) {
	h := l.Nodes[3]
	env, err := h.Env()
	if err != nil {
		t.Fatal(err)
	}
	subnet := strings.Replace(env["FLANNEL_SUBNET"], ".1/", ".0/", 1)
	if err := h.Agent.Stop(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ping(t, l.Nodes[0].Container, h.Container, 84) // until it is released it may come back
	out, err := l.Tulle(t.Context(), "", "lease", "release", subnet)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, subnet+" is released") {
		t.Errorf("lease release says %q", out)
	}
	vtep := strings.TrimSuffix(subnet, "/24")
	for _, other := range l.Nodes[:3] {
		eventually(t, 5*time.Second, other.Name+" has forgotten "+h.Name, func() error {
			for _, table := range []string{"ip route", "ip neigh show dev tulle.1", "bridge fdb show dev tulle.1", "ip nexthop"} {
				left := in(t, other.Namespace, strings.Fields(table)...)
				if strings.Contains(left, vtep) || strings.Contains(left, h.Address.String()) {
					return fmt.Errorf("%s still has it:\n%s", table, left)
				}
			}
			return nil
		})
	}
	ping(t, l.Nodes[0].Container, l.Nodes[1].Container, 84)
}

func get(t *testing.T, h *lab.Host, path string) string {
	t.Helper()
	_, body, err := h.Get(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// grep returns the lines of text that contain word.
func grep(text, word string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}
