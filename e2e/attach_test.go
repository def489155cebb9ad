package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

// attachLab is two hosts that keep half of a small lease for attach, each with a dockerd and a container.
func attachLab(t *testing.T) *dockers {
	t.Helper()
	return dockersIn(t, newLab(t, lab.Options{Hosts: 2, Empty: true, Agent: []string{"--attach-addresses=7"},
		Config: `{"Network":"10.5.0.0/16","SubnetLen":28,"Backend":{"Type":"vxlan"}}`}), "")
}

// tulle runs the lab's binary on a host.
func (l *dockers) tulle(t *testing.T, h *lab.Host, args ...string) (string, error) {
	t.Helper()
	return lab.Output(t.Context(), h.Namespace, append([]string{l.Binary}, args...)...)
}

// attach attaches a container of the first host, and returns it as the overlay sees it.
func (l *dockers) attach(t *testing.T, c *lab.Container, args ...string) *lab.Container {
	t.Helper()
	h := l.Nodes[0]
	out, err := l.tulle(t, h, append([]string{"attach", "--run-dir", h.RunDir, "--docker-host", l.daemons[0].URL(), c.Name}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	var address, device string
	if _, err := fmt.Sscanf(out, "attached: %s on %s", &address, &device); err != nil {
		t.Fatalf("attach prints %q", out)
	}
	attached := *c
	attached.Address = netip.MustParsePrefix(address).Addr()
	attached.Addresses = []netip.Addr{attached.Address}
	return &attached
}

// TestAttach attaches containers that Docker gave no network, or another one.
func TestAttach(t *testing.T) {
	t.Parallel()
	l := attachLab(t)
	h, d, far := l.Nodes[0], l.daemons[0], l.containers[1]
	env, err := h.Env()
	if err != nil {
		t.Fatal(err)
	}
	kept := netip.MustParsePrefix(env["TULLE_ATTACH"])
	if kept.Bits() != 29 || !strings.Contains(env["DOCKER_OPTS"], "--fixed-cidr=") {
		t.Fatalf("the env file keeps %s: %s", kept, env["DOCKER_OPTS"])
	}
	alone, err := d.Run(t.Context(), "alone", "--net=none")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Do(t.Context(), "network", "create", "--subnet", "172.28.0.0/16", "own"); err != nil {
		t.Fatal(err)
	}
	both, err := d.Run(t.Context(), "both", "--net=own")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("Docker keeps out", func(t *testing.T) { l.testKept(t, kept) })
	alone, both = l.attach(t, alone), l.attach(t, both)
	l.checkAttached(t, kept, alone, both, far)
	if _, err := d.Do(t.Context(), "exec", "both", "ping", "-c1", "-W5", "172.28.0.1"); err != nil {
		t.Errorf("its own network: %v", err)
	}
	r, err := lab.Transfer(t.Context(), alone.Namespace, l.Underlay(), lab.Outside, 1<<20)
	if err != nil || r.Source != h.Address {
		t.Errorf("outside saw %+v, %v; want the host", r, err)
	}
	t.Run("refused", l.testAttachRefused)
	t.Run("agent restarts", func(t *testing.T) {
		for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
			if err := h.Agent.Stop(signal); err != nil {
				t.Fatal(err)
			}
			if err := l.StartAgent(t.Context(), h); err != nil {
				t.Fatal(err)
			}
			l.checkAttached(t, kept, alone, both, far)
		}
	})
	t.Run("detach", func(t *testing.T) { l.testDetach(t, alone, far) })
	t.Run("container stops", func(t *testing.T) { l.testAttachedStops(t) })
	t.Run("cleanup", func(t *testing.T) {
		if err := h.Agent.Stop(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		out, err := l.tulle(t, h, "cleanup", "--run-dir", h.RunDir)
		if err != nil || !strings.Contains(out, "tulle attach "+both.Address.String()) {
			t.Errorf("cleanup: %v\n%s", err, out)
		}
		if links := in(t, h.Namespace, "ip", "-o", "link"); strings.Contains(links, "tulle-a") || strings.Contains(links, "alias tulle") {
			t.Errorf("cleanup left\n%s", links)
		}
	})
}

// checkAttached sends packets both ways between each attached container and one on another host, which must see the attached
// address.
func (l *dockers) checkAttached(t *testing.T, kept netip.Prefix, alone, both, far *lab.Container) {
	t.Helper()
	for _, c := range []*lab.Container{alone, both} {
		if !kept.Contains(c.Address) {
			t.Errorf("%s has %s, which is not in %s", c.Name, c.Address, kept)
		}
		ping(t, c, far, 1450)
		ping(t, far, c, 1450)
		ping(t, l.containers[0], c, 1450)
		r, err := lab.Transfer(t.Context(), c.Namespace, far.Namespace, far.Address, 1<<20)
		if err != nil || !r.Correct || r.Source != c.Address {
			t.Errorf("from %s: %+v, %v; want the attached address %s", c.Name, r, err, c.Address)
		}
	}
	ping(t, alone, both, 1450)
}

// testKept has Docker hand out addresses until it has no more: none may be kept for attach.
func (l *dockers) testKept(t *testing.T, kept netip.Prefix) {
	d := l.daemons[0]
	for i := range 8 {
		name := fmt.Sprintf("filler%d", i)
		c, err := d.Run(t.Context(), name)
		t.Cleanup(func() {
			if _, err := d.Do(context.WithoutCancel(t.Context()), "rm", "-f", name); err != nil {
				t.Error(err)
			}
		})
		if err != nil {
			if !strings.Contains(err.Error(), "no available IPv4 addresses") || i == 0 {
				t.Error(err)
			}
			return
		}
		if kept.Contains(c.Address) {
			t.Errorf("Docker gave %s to a container, and it is kept for attach", c.Address)
		}
	}
	t.Error("Docker had more addresses than its half of the lease")
}

// testAttachRefused has what can't be attached.
func (l *dockers) testAttachRefused(t *testing.T) {
	h, docker := l.Nodes[0], "--docker-host="+l.daemons[0].URL()
	if _, err := l.daemons[0].Do(t.Context(), "create", "--name", "idle", "--net=none", lab.Image, "true"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.daemons[0].Run(t.Context(), "on-host", "--net=host"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"alone": "attached already", "nosuch": "no container \"nosuch\"", "idle": "does not run", "on-host": "nothing to attach", "web": "on the overlay already"} {
		out, err := l.tulle(t, h, "attach", "--run-dir", h.RunDir, docker, name)
		if err == nil || !strings.Contains(out, want) || strings.Contains(out, "\n") {
			t.Errorf("attach %s: %v, %q; want one line with %q", name, err, out, want)
		}
	}
	if out, err := l.tulle(t, h, "detach", docker, "idle"); err == nil || !strings.Contains(out, "nothing to detach") {
		t.Errorf("detach of one that does not run: %q, %v", out, err)
	}
}

// testDetach takes an interface away: its address is free, and the container as it was.
func (l *dockers) testDetach(t *testing.T, c, far *lab.Container) {
	h, docker := l.Nodes[0], "--docker-host="+l.daemons[0].URL()
	if out, err := l.tulle(t, h, "detach", docker, c.Name); err != nil || !strings.Contains(out, c.Address.String()+" is free") {
		t.Fatalf("detach: %v, %q", err, out)
	}
	if links := in(t, c.Namespace, "ip", "-o", "link"); strings.Contains(links, "tulle0") {
		t.Errorf("the interface is still there:\n%s", links)
	}
	if out, err := l.tulle(t, h, "detach", docker, c.Name); err == nil || !strings.Contains(out, "not attached") {
		t.Errorf("detach of nothing: %q, %v", out, err)
	}
	again := l.attach(t, c, "--ip", c.Address.String(), "--ifname", "eth0")
	ping(t, far, again, 1450)
	if out, err := l.tulle(t, h, "detach", "--netns", filepath.Join("/run/netns", c.Namespace)); err != nil {
		t.Errorf("detach by the namespace: %q, %v", out, err)
	}
}

// testAttachedStops stops an attached container: its interface goes with it, and the next one has its address.
func (l *dockers) testAttachedStops(t *testing.T) {
	d := l.daemons[0]
	var last netip.Addr
	for i := range 2 {
		name := fmt.Sprintf("short%d", i)
		c, err := d.Run(t.Context(), name, "--net=none")
		if err != nil {
			t.Fatal(err)
		}
		c = l.attach(t, c)
		if i > 0 && c.Address != last {
			t.Errorf("a stopped container's %s is not free: the next one has %s", last, c.Address)
		}
		last = c.Address
		if _, err := d.Do(t.Context(), "rm", "-f", name); err != nil {
			t.Fatal(err)
		}
		in(t, l.Underlay(), "ip", "netns", "del", c.Namespace) // the lab's name for the namespace keeps it
		eventually(t, 5*time.Second, "the interface is gone", func() error {
			if links := in(t, l.Nodes[0].Namespace, "ip", "-o", "link"); strings.Contains(links, last.String()) {
				return fmt.Errorf("it is not:\n%s", links)
			}
			return nil
		})
	}
}
