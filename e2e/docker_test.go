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

// dockers is a lab whose hosts run a real dockerd each, and a container.
type dockers struct {
	*lab.Lab
	daemons    []*lab.Docker
	containers []*lab.Container
}

// newDockers makes such a lab. dir has the programs to run, if not PATH.
func newDockers(t *testing.T, hosts int, dir string) *dockers {
	t.Helper()
	return dockersIn(t, newLab(t, lab.Options{Hosts: hosts, Empty: true}), dir)
}

// dockersIn gives each host of an empty lab a dockerd and a container.
func dockersIn(t *testing.T, empty *lab.Lab, dir string) *dockers {
	t.Helper()
	l := &dockers{Lab: empty}
	for _, h := range l.Nodes {
		d, err := l.NewDocker(h, dir)
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
		if err := d.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		c, err := d.Run(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		l.daemons, l.containers = append(l.daemons, d), append(l.containers, c)
	}
	return l
}

// allPairs pings and transfers between all pairs of containers, by each of their addresses. The far side must see the container's own.
func (l *dockers) allPairs(t *testing.T) {
	t.Helper()
	for i, from := range l.containers {
		for j, to := range l.containers {
			if i == j {
				continue
			}
			ping(t, from, to, 1450)
			for _, address := range to.Addresses {
				r, err := lab.Transfer(t.Context(), from.Namespace, to.Namespace, address, 8<<20)
				if err != nil {
					t.Fatal(err)
				}
				if !r.Correct || r.Source != from.Like(address) {
					t.Errorf("%s to %s: correct %t, and the source was %s", from.Like(address), address, r.Correct, r.Source)
				}
			}
		}
	}
}

// reached waits until a container answers another again.
func (l *dockers) reached(t *testing.T, limit time.Duration, from, to *lab.Container) {
	t.Helper()
	eventually(t, limit, "the container answers", func() error { return answers(t, from, to) })
}

func answers(t *testing.T, from, to *lab.Container) error {
	t.Helper()
	for _, address := range to.Addresses {
		r, err := lab.Ping(t.Context(), from.Namespace, address, 1, 84)
		if err != nil {
			return err
		}
		if r.Lost() > 0 {
			return fmt.Errorf("%s does not answer", address)
		}
	}
	return nil
}

// TestDocker has three real dockerds, started with what the agents say.
func TestDocker(t *testing.T) {
	t.Parallel()
	l := newDockers(t, 3, "")
	t.Run("all pairs", l.allPairs)
	t.Run("network modes", l.testModes)
	t.Run("published port", l.testPublished)
	t.Run("restarts", l.testRestarts)
	t.Run("flushed", l.testFlushed)
	t.Run("an operator's drop", l.testOperatorsDrop)
}

// testRestarts stops and starts dockerd, politely and not. Its containers are gone then; a new one is reached at once, and
// the rules are there once each.
func (l *dockers) testRestarts(t *testing.T) {
	h, d := l.Nodes[0], l.daemons[0]
	before := in(t, h.Namespace, "iptables-save")
	var err error
	for i := range 20 {
		if _, err := d.Do(t.Context(), "rm", "-f", "web"); err != nil {
			t.Fatal(err)
		}
		if i%4 == 3 {
			err = d.Kill()
		} else {
			err = d.Stop(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		l.restart(t)
	}
	after := in(t, h.Namespace, "iptables-save")
	for line := range strings.Lines(before) {
		if strings.Contains(line, "TULLE") && strings.Count(after, line) != strings.Count(before, line) {
			t.Errorf("after 20 restarts the rules have %q %d times, before %d times:\n%s", line, strings.Count(after, line), strings.Count(before, line), after)
		}
	}
	l.allPairs(t)
}

// testFlushed flushes the packet filter under Docker's and our feet.
func (l *dockers) testFlushed(t *testing.T) {
	h := l.Nodes[0]
	for _, flush := range []string{"iptables -F FORWARD", "iptables -F DOCKER-USER", "iptables -F; iptables -t nat -F; iptables -t raw -F", "nft flush ruleset"} {
		in(t, h.Namespace, "sh", "-c", flush+"; iptables -P FORWARD DROP")
		if err := lab.Wait(t.Context(), 2*time.Second, "the container answers", func() error { return answers(t, l.containers[1], l.containers[0]) }); err != nil {
			t.Errorf("%s: %v\n%s", flush, err, in(t, h.Namespace, "iptables-save"))
		}
	}
	if err := l.daemons[0].Stop(t.Context()); err != nil { // Docker's own rules don't come back by themselves
		t.Fatal(err)
	}
	l.restart(t)
}

// restart starts the first host's dockerd, which was ended, and a new container on it. It must be reached at once.
func (l *dockers) restart(t *testing.T) {
	t.Helper()
	d := l.daemons[0]
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := d.Run(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	l.containers[0] = c
	l.reached(t, 2*time.Second, l.containers[1], c)
}

// testOperatorsDrop has an operator drop one source in DOCKER-USER: it stays dropped, and others are let through.
func (l *dockers) testOperatorsDrop(t *testing.T) {
	h := l.Nodes[0]
	rule := "DOCKER-USER -s " + l.containers[1].Address.String() + " -j DROP"
	in(t, h.Namespace, "sh", "-c", "iptables -I "+rule)
	if answers(t, l.containers[1], l.containers[0]) == nil {
		t.Error("a source that an operator drops got through")
	}
	if err := answers(t, l.containers[2], l.containers[0]); err != nil {
		t.Errorf("one that is not dropped did not: %v", err)
	}
	in(t, h.Namespace, "sh", "-c", "iptables -D "+rule)
	l.reached(t, 2*time.Second, l.containers[1], l.containers[0])
}

// testModes tries Docker's network modes, each beside the overlay.
func (l *dockers) testModes(t *testing.T) {
	d, far := l.daemons[0], l.containers[1]
	do := func(args ...string) string {
		t.Helper()
		out, err := d.Do(context.WithoutCancel(t.Context()), args...) // cleanups come after the test's context
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	run := func(t *testing.T, name string, args ...string) *lab.Container {
		t.Helper()
		c, err := d.Run(t.Context(), name, args...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { do("rm", "-f", name) })
		return c
	}
	t.Run("host", func(t *testing.T) {
		c := run(t, "on-host", "--net=host")
		if addrs := do("exec", "on-host", "ip", "addr"); !strings.Contains(addrs, l.Nodes[0].Address.String()) {
			t.Errorf("a container with --net=host does not see its host's address:\n%s", addrs)
		}
		ping(t, c, far, 84)
	})
	t.Run("none", func(t *testing.T) {
		run(t, "alone", "--net=none")
		if links := do("exec", "alone", "ip", "-o", "link"); strings.Count(links, "\n") > 0 {
			t.Errorf("a container with --net=none has more than a loopback device:\n%s", links)
		}
	})
	t.Run("container", func(t *testing.T) {
		guest := run(t, "guest", "--net=container:web")
		r, err := lab.Transfer(t.Context(), guest.Namespace, far.Namespace, far.Address, 1<<20)
		if err != nil || r.Source != l.containers[0].Address {
			t.Errorf("from a container in web's network: %+v, %v; want web's address %s", r, err, l.containers[0].Address)
		}
	})
	t.Run("user-defined bridge", func(t *testing.T) {
		do("network", "create", "--subnet", "172.28.0.0/16", "own")
		t.Cleanup(func() { do("network", "rm", "own") })
		one := run(t, "one", "--net=own")
		run(t, "two", "--net=own")
		do("exec", "one", "ping", "-c1", "-W2", "two") // by name
		ping(t, one, far, 84)
		// Docker masquerades what leaves a network of the user's own, whatever --ip-masq says.
		vtep := l.containers[0].Address.As4()
		vtep[3] = 0
		r, err := lab.Transfer(t.Context(), one.Namespace, far.Namespace, far.Address, 1<<20)
		if err != nil || r.Source.As4() != vtep {
			t.Errorf("from a user-defined network: %+v, %v; want the host's overlay address %v", r, err, vtep)
		}
		do("network", "connect", "own", "web")
		do("exec", "web", "ping", "-c1", "-W2", "one")
		ping(t, l.containers[0], far, 84)
		ping(t, far, l.containers[0], 84)
		do("network", "disconnect", "own", "web")
	})
}

// testPublished fetches a page from a published port: from outside, from another host, and from a container there.
func (l *dockers) testPublished(t *testing.T) {
	d := l.daemons[0]
	if _, err := d.Do(t.Context(), "run", "-d", "--init", "--name", "pages", "-p", "8080:80", lab.Image,
		"sh", "-c", "echo hello > /tmp/index.html && exec httpd -f -p 80 -h /tmp"); err != nil {
		t.Fatal(err)
	}
	for from, namespace := range map[string]string{"outside": l.Underlay(), "another host": l.Nodes[1].Namespace, "a container there": l.containers[1].Namespace} {
		eventually(t, 5*time.Second, from+" gets the page", func() error {
			out, err := lab.Output(t.Context(), namespace, "busybox", "nc", "-w2", l.Nodes[0].Address.String(), "8080", "-e", "sh", "-c", "printf 'GET / HTTP/1.0\\r\\n\\r\\n'; cat >&2")
			if err == nil && !strings.Contains(out, "hello") {
				err = fmt.Errorf("got %q", out)
			}
			return err
		})
	}
	if _, err := d.Do(t.Context(), "rm", "-f", "pages"); err != nil {
		t.Fatal(err)
	}
}

// docker28 is where a newer Docker than Debian's is unpacked.
func docker28(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../bin/docker28/usr/sbin")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestDockerFamilies has dockerds on networks of both families, and on one of IPv6 alone: there, IPv4 is Docker's own. Where it is Docker
// that masquerades, it does not between members.
func TestDockerFamilies(t *testing.T) {
	t.Parallel()
	const both = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12:3456::/48","Backend":{"Type":"vxlan"}}`
	const alone = `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd12:3456::/48","Backend":{"Type":"vxlan"}}`
	for _, test := range []struct {
		name, config, dir string
		agent             []string
	}{
		{"both", both, "", nil},
		{"both, Docker 28", both, docker28(t), nil},
		{"IPv6", alone, "", nil},
		{"IPv6, Docker 28", alone, docker28(t), nil},
		{"Docker 28 masquerades", both, docker28(t), []string{"--no-ip-masq"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := dockersIn(t, newLab(t, lab.Options{Hosts: 2, Empty: true, Config: test.config, Agent: test.agent}), test.dir)
			if test.config == alone {
				l.testOwnIPv4(t)
			}
			for i, c := range l.containers {
				if want := map[string]int{both: 2, alone: 1}[test.config]; len(c.Addresses) != want {
					t.Fatalf("%s has %v, not %d addresses", c.Name, c.Addresses, want)
				}
				env, err := l.Nodes[i].Env()
				if err != nil {
					t.Fatal(err)
				}
				if own, err := netip.ParsePrefix(env["FLANNEL_IPV6_SUBNET"]); err != nil || !own.Contains(c.Addresses[len(c.Addresses)-1]) {
					t.Errorf("%v is not within %s (%v)", c.Addresses, own, err)
				}
				l.reached(t, 10*time.Second, l.containers[1-i], c) // the bridge's link-local address has to be found unique first
			}
			l.allPairs(t)
		})
	}
}

// testOwnIPv4 checks that containers reach the world by IPv4, and leaves them their overlay's addresses alone.
func (l *dockers) testOwnIPv4(t *testing.T) {
	t.Helper()
	for _, c := range l.containers {
		if c.Addresses[0].Is4() {
			c.Addresses = c.Addresses[1:]
		}
		c.Address = c.Addresses[0]
		if r, err := lab.Ping(t.Context(), c.Namespace, lab.Outside, 1, 84); err != nil || r.Lost() > 0 {
			t.Errorf("%s does not reach the world by IPv4 (%v)", c.Name, err)
		}
	}
}

// TestDocker28 has dockerds that drop routed traffic to containers, and shows that ours gets through because of our rules.
func TestDocker28(t *testing.T) {
	t.Parallel()
	l := newDockers(t, 2, docker28(t))
	version, err := l.daemons[0].Do(t.Context(), "version", "--format", "{{.Server.Version}}")
	if err != nil {
		t.Fatal(err)
	}
	var major int
	if _, err := fmt.Sscanf(version, "%d.", &major); err != nil || major < 28 {
		t.Fatalf("this is dockerd %s, not 28 or later", version)
	}
	t.Run("all pairs", l.allPairs)
	t.Run("without our raw rule", func(t *testing.T) {
		h := l.Nodes[0]
		stop(t, h)
		in(t, h.Namespace, "iptables", "-t", "raw", "-D", "PREROUTING", "-j", "TULLE-PREROUTING")
		if answers(t, l.containers[1], l.containers[0]) == nil {
			t.Error("Docker does not drop routed traffic: this test shows nothing")
		}
		launch(t, l.Lab, h)
		l.reached(t, 5*time.Second, l.containers[1], l.containers[0])
	})
	t.Run("flushed", l.testFlushed)
	t.Run("an operator's drop", l.testOperatorsDrop28)
}

// testOperatorsDrop28 appends to DOCKER-USER, which has no RETURN at its end any more: the rule must come before ours.
func (l *dockers) testOperatorsDrop28(t *testing.T) {
	h := l.Nodes[0]
	rule := "DOCKER-USER -s " + l.containers[1].Address.String() + "/32 -j DROP"
	in(t, h.Namespace, "sh", "-c", "iptables -A "+rule)
	eventually(t, 5*time.Second, "the operator's rule stands before ours", func() error {
		chain := in(t, h.Namespace, "iptables", "-S", "DOCKER-USER")
		if strings.Index(chain, rule) > strings.Index(chain, "TULLE-DOCKER") {
			return fmt.Errorf("it does not:\n%s", chain)
		}
		return nil
	})
	if answers(t, l.containers[1], l.containers[0]) == nil {
		t.Error("a source that an operator drops got through")
	}
}

// TestLiveRestore moves the network under a dockerd that keeps its containers, and with them its old --bip, over a restart. The
// operator is told, by an agent that knows nothing of before, too.
func TestLiveRestore(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 1, Empty: true})
	h := l.Nodes[0]
	d, err := l.NewDocker(h, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	if err := d.Start(t.Context(), "--live-restore"); err != nil {
		t.Fatal(err)
	}
	if err := d.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Run(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	env, err := h.Env()
	if err != nil {
		t.Fatal(err)
	}
	old := env["FLANNEL_SUBNET"]
	if _, err := l.Tulle(t.Context(), `{"Network":"10.77.0.0/16"}`, "config", "set", "--force", "-"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the host has another subnet", func() error {
		env, err := h.Env()
		if err == nil && !strings.HasPrefix(env["FLANNEL_SUBNET"], "10.77.") {
			err = fmt.Errorf("it has %s", env["FLANNEL_SUBNET"])
		}
		return err
	})
	if err := d.Process.Stop(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context(), "--live-restore"); err != nil {
		t.Fatal(err)
	}
	stop(t, h)
	launch(t, l, h)
	if err := h.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status := in(t, h.Namespace, binary, "status", "--run-dir", h.RunDir); !strings.Contains(status, old+" beside this host's 10.77.") || !strings.Contains(status, "--live-restore") {
		t.Errorf("tulle status does not say that Docker keeps %s:\n%s", old, status)
	}
}
