package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/e2e/lab"
)

// compose is the lab of deploy/compose, on a dockerd of the test's own.
type compose struct {
	daemon  *lab.Docker
	command []string // docker-compose, or the plugin
	env     []string
}

// TestCompose starts the lab of deploy/compose by the command that its README has.
func TestCompose(t *testing.T) {
	t.Parallel() // which begins when TestCompose2 has ended: both make bin/tulle
	c := newCompose(t, "", "docker-compose")
	before := c.everything(t)
	// Without COMPOSE it would take the plugin, where there is one.
	c.make(t, "compose-up", "COMPOSE=docker-compose", "VERSION=earlier")
	t.Run("all pairs", c.testAllPairs)
	t.Run("VXLAN", c.testVXLAN)
	t.Run("a node down", c.testNodeDown)
	t.Run("a node restarts", c.testNodeRestarts)
	c.make(t, "compose-up", "COMPOSE=docker-compose") // another image, other containers
	t.Run("a later version", c.testAllPairs)
	c.down(t, before, "COMPOSE=docker-compose")
}

// TestCompose2 has a newer dockerd, and the plugin, which make finds by itself.
func TestCompose2(t *testing.T) {
	docker28, err := filepath.Abs("../bin/docker28/usr")
	if err != nil {
		t.Fatal(err)
	}
	c := newCompose(t, filepath.Join(docker28, "sbin"), "docker", "compose")
	config := t.TempDir()
	if err := os.Symlink(filepath.Join(docker28, "libexec/docker/cli-plugins"), filepath.Join(config, "cli-plugins")); err != nil {
		t.Fatal(err)
	}
	c.env = append(c.env, "DOCKER_CONFIG="+config)
	before := c.everything(t)
	c.make(t, "compose-up")
	t.Run("all pairs", c.testAllPairs)
	c.down(t, before)
}

// newCompose makes a dockerd, of dir or PATH, in a host of its own.
func newCompose(t *testing.T, dir string, command ...string) *compose {
	t.Helper()
	l := newLab(t, lab.Options{Hosts: 1, Empty: true})
	d, err := l.NewDocker(l.Nodes[0], dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &compose{daemon: d, command: command, env: append(os.Environ(), "DOCKER_HOST="+d.Address())}
}

// make runs one of the Makefile's targets.
func (c *compose) make(t *testing.T, target string, variables ...string) {
	t.Helper()
	start := time.Now()
	out, err := c.run(t, "..", append([]string{"make", target}, variables...)...)
	if err != nil {
		logs, _ := c.do(t, "logs", "--no-color")
		t.Fatalf("make %s: %v\n%s\n%s", target, err, out, logs)
	}
	t.Logf("make %s took %s", target, time.Since(start).Round(100*time.Millisecond))
}

// down takes the lab down, and leaves what was there before.
func (c *compose) down(t *testing.T, before string, variables ...string) {
	t.Helper()
	c.make(t, "compose-down", variables...)
	if after := c.everything(t); after != before {
		t.Errorf("compose-down leaves\n%s\nbefore compose-up there was\n%s", after, before)
	}
}

// do runs a compose command where the compose file is.
func (c *compose) do(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return c.run(t, filepath.Join("..", "deploy", "compose"), append(c.command, args...)...)
}

func (c *compose) run(t *testing.T, dir string, command ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = dir, c.env, time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, out)
	}
	return string(out), err
}

// exec runs a command in a node.
func (c *compose) exec(t *testing.T, node int, command ...string) (string, error) {
	t.Helper()
	return c.do(t, append([]string{"exec", "-T", fmt.Sprintf("node%d", node)}, command...)...)
}

// ping has a node, or the container of one, ping the container of another. Between two containers there are two routers.
func (c *compose) ping(t *testing.T, from, to int, container ...string) error {
	t.Helper()
	out, err := c.exec(t, from, append(container, "ping", "-c1", "-W1", fmt.Sprintf("10.5.%d.2", to))...)
	hops := 1 + len(container)
	if err == nil && !strings.Contains(out, fmt.Sprintf(" ttl=%d ", 64-hops)) {
		err = fmt.Errorf("want an answer from %d routers away:\n%s", hops, out)
	}
	return err
}

// everything is what a dockerd has: containers, networks, volumes, images.
func (c *compose) everything(t *testing.T) string {
	t.Helper()
	all := ""
	for _, args := range [][]string{{"ps", "-aq"}, {"network", "ls", "-q"}, {"volume", "ls", "-q"}, {"image", "ls", "-aq"}} {
		out, err := c.daemon.Do(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		all += strings.Join(args, " ") + ": " + out + "\n"
	}
	return all
}

// testAllPairs comes right after `up`: nothing is waited for, and nothing may be lost.
func (c *compose) testAllPairs(t *testing.T) {
	for from := 1; from <= 3; from++ {
		for to := 1; to <= 3; to++ {
			if from == to {
				continue
			}
			for _, container := range [][]string{nil, {"container"}} {
				if err := c.ping(t, from, to, container...); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

// testVXLAN counts what a ping sends through the VXLAN device of either side.
func (c *compose) testVXLAN(t *testing.T) {
	sent := func(node int) (n int) {
		t.Helper()
		out, err := c.exec(t, node, "cat", "/sys/class/net/tulle.1/statistics/tx_packets")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(out, &n); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		return n
	}
	one, two := sent(1), sent(2)
	if err := c.ping(t, 1, 2, "container"); err != nil {
		t.Fatal(err)
	}
	if one, two = sent(1)-one, sent(2)-two; one < 1 || two < 1 {
		t.Errorf("a ping from one to the other, and through VXLAN node1 sent %d packets, node2 %d", one, two)
	}
}

// testNodeDown stops one node: the others don't care, and it is back when it is started.
func (c *compose) testNodeDown(t *testing.T) {
	if _, err := c.do(t, "stop", "node3"); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[int]int{1: 2, 2: 1} {
		if err := c.ping(t, from, to, "container"); err != nil {
			t.Error(err)
		}
	}
	if err := c.ping(t, 1, 3); err == nil {
		t.Error("the container of a node that is down answers")
	}
	if _, err := c.do(t, "start", "node3"); err != nil {
		t.Fatal(err)
	}
	c.back(t, 3)
}

// testNodeRestarts ends an agent and with it its node, which Docker starts again.
func (c *compose) testNodeRestarts(t *testing.T) {
	if _, err := c.exec(t, 2, "kill", "1"); err != nil {
		t.Fatal(err)
	}
	c.back(t, 2)
}

func (c *compose) back(t *testing.T, node int) {
	t.Helper()
	eventually(t, 30*time.Second, fmt.Sprintf("node%d's container pings and is pinged", node), func() error {
		if err := c.ping(t, node, 1, "container"); err != nil {
			return err
		}
		return c.ping(t, 1, node, "container")
	})
}
