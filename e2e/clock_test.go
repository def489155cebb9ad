package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
	"github.com/tulle-net/tulle/etcd"
)

// silence is longer than a connection to etcd may be silent: whoever thinks that it is dead has said so by then.
const silence = 20 * time.Second

// TestClock sets the clock by hours, back and forth; etcd and agents start anew in another time, or sleep while it passes.
// Nobody notices: what a lease has left, and when to look again, is told by a clock that nobody sets.
func TestClock(t *testing.T) {
	if !virtual {
		t.Skip("this sets the machine's clock: e2e/vm runs it in a machine of its own")
	}
	l := newLab(t, lab.Options{Hosts: 2})
	started := time.Now()
	ahead := func(by time.Duration) func() { return func() { setClock(t, time.Now().Add(by)) } }
	agent, agents := l.Nodes[0], l.Nodes[:2]
	for _, c := range []struct {
		name     string
		do       func()
		wait     time.Duration // for somebody to notice
		peers    func(t *testing.T, l *lab.Lab)
		expected string // in the agents' warnings
	}{
		{"5 hours ahead", ahead(5 * time.Hour), time.Second, follows, ""},
		{"7 hours back", ahead(-7 * time.Hour), silence, follows, ""},
		{"30 hours ahead", func() { ahead(30 * time.Hour)(); lookAgain(t, agents) }, silence, follows, ""}, // each lease has expired by this clock
		{"etcd starts 30 hours ahead", func() { restartEtcd(t, l) }, time.Second, follows, "etcd is out of reach"},
		{"30 hours back", ahead(-30 * time.Hour), time.Second, follows, ""},
		{"back and back again", func() { backwards(t) }, time.Second, follows, ""},
		{"1970", func() { setClock(t, time.Unix(3600, 0)); lookAgain(t, agents) }, silence, joins, ""}, // where a clock without a battery starts
		{"etcd starts in 1970", func() { restartEtcd(t, l) }, time.Second, follows, "etcd is out of reach"},
		{"an agent starts in 1970", func() { restartAgent(t, l, agent) }, time.Second, follows, ""},
		{"back from 1970", func() { setClock(t, started.Add(time.Since(started))) }, time.Second, leaves, ""},
		{"an agent sleeps for 2 hours", func() { busy(t, agent); asleep(t, agent.Agent) }, time.Second, follows, ""},
		{"all sleep for 2 hours", func() { asleep(t, agent.Agent, l.Nodes[1].Agent, l.Server.Process) }, time.Second, follows, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			unmoved(t, l, c.do, c.wait, c.expected)
			c.peers(t, l)
		})
	}
}

func setClock(t *testing.T, to time.Time) {
	t.Helper()
	ts, err := unix.TimeToTimespec(to)
	if err == nil {
		err = unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
	}
	if err != nil {
		t.Fatalf("set the clock to %s: %v", to, err)
	}
	if off := time.Since(to.Round(0)).Abs(); off > time.Minute {
		t.Fatalf("the clock was set to %s and is at %s", to, time.Now())
	}
}

// backwards has the clock go backwards for as long as somebody may be silent: every answer comes before the one before it.
func backwards(t *testing.T) {
	t.Helper()
	const step = 4 * time.Second
	for range 2 * silence / step {
		setClock(t, time.Now().Add(-3*step))
		<-time.After(step)
	}
}

// unmoved does something, waits, and fails if an agent was moved to write to etcd, to change the network, or to warn of
// anything but what is expected; or if a packet is lost.
func unmoved(t *testing.T, l *lab.Lab, do func(), wait time.Duration, expected string) {
	t.Helper()
	hosts := l.Nodes[:2]
	const interval = 20 * time.Millisecond
	flow, err := lab.StartFlow(hosts[0].Container.Namespace, hosts[1].Container.Address, interval)
	if err != nil {
		t.Fatal(err)
	}
	stored := leaseKeys(t, l)
	network, changes, logged := map[*lab.Host]string{}, map[*lab.Host]string{}, map[*lab.Host]int{}
	for _, h := range hosts {
		network[h], changes[h], logged[h] = look(t, h, kernelView+" && "+filterView), changesOf(t, h), len(logOf(t, l, h))
	}
	do()
	sent := flow.Sent()
	eventually(t, time.Minute, "traffic has gone on for a while", func() error {
		if n := flow.Sent() - sent; time.Duration(n)*interval < wait {
			return fmt.Errorf("%d packets", n)
		}
		return nil
	})
	if after := leaseKeys(t, l); after != stored {
		t.Errorf("etcd has other leases:\n%s\nbefore:\n%s", after, stored)
	}
	for _, h := range hosts {
		if err := difference(network[h], look(t, h, kernelView+" && "+filterView)); err != nil {
			t.Errorf("%s has another network: %v", h.Name, err)
		}
		if after := changesOf(t, h); after != changes[h] && after != "" { // of an agent that has started anew, there are none
			t.Errorf("%s has made changes:\n%s\nbefore:\n%s", h.Name, after, changes[h])
		}
		for line := range strings.Lines(logOf(t, l, h)[logged[h]:]) {
			if !strings.Contains(line, "level=INFO") && (expected == "" || !strings.Contains(line, expected)) {
				t.Errorf("%s says: %s", h.Name, line)
			}
		}
		well(t, h)
	}
	if r := flow.Stop(t.Context()); r.Lost() > 0 {
		t.Errorf("%d of %d packets lost", r.Lost(), r.Sent)
	}
}

// leaseKeys is what etcd has of leases, each with its etcd lease, and the revisions it was made and last written at.
func leaseKeys(t *testing.T, l *lab.Lab) (text string) {
	t.Helper()
	err := asEtcd(t, l, func(ctx context.Context, c *clientv3.Client) error {
		got, err := c.Get(ctx, l.Prefix+"/subnets/", clientv3.WithPrefix())
		if err != nil {
			return err
		}
		text = fmt.Sprintf("revision %d", got.Header.Revision)
		for _, kv := range got.Kvs {
			if left, err := c.TimeToLive(ctx, clientv3.LeaseID(kv.Lease)); err != nil || left.TTL < etcd.LeaseTTL-3600 {
				t.Errorf("%s: %+v, %v", kv.Key, left, err)
			}
			text += fmt.Sprintf("\n%s made at %d, written at %d, on lease %x", kv.Key, kv.CreateRevision, kv.ModRevision, kv.Lease)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// changesOf is how many changes a host's agent has made since it started.
func changesOf(t *testing.T, h *lab.Host) string {
	t.Helper()
	return grep(get(t, h, "/metrics"), "tulle_changes_total{")
}

// well fails unless `tulle status` says that all is as it should be.
func well(t *testing.T, h *lab.Host) {
	t.Helper()
	in(t, h.Namespace, binary, "status", "--run-dir", h.RunDir) // it fails unless the agent is ready
	status, err := h.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !status.Etcd.Connected || len(status.Warnings) > 0 || status.Lease.Expires == nil {
		t.Fatalf("%s: %+v", h.Name, status)
	}
	if left := time.Until(*status.Lease.Expires).Round(time.Minute); left < 23*time.Hour || left > 24*time.Hour {
		t.Errorf("%s says that its lease expires in %s", h.Name, left)
	}
}

// lookAgain waits until each agent has compared everything with its plan once more.
func lookAgain(t *testing.T, hosts []*lab.Host) {
	t.Helper()
	looks := func(h *lab.Host) string { return grep(get(t, h, "/metrics"), `tulle_passes_total{scope="everything"}`) }
	before := map[*lab.Host]string{}
	for _, h := range hosts {
		before[h] = looks(h)
	}
	eventually(t, time.Minute, "each agent looks at everything again", func() error {
		for h, count := range before {
			if looks(h) == count {
				return fmt.Errorf("%s has not", h.Name)
			}
		}
		return nil
	})
}

// restartEtcd kills etcd and starts it again, and waits until each agent has come back to it.
func restartEtcd(t *testing.T, l *lab.Lab) {
	t.Helper()
	reached := func(want bool) func() error {
		return func() error {
			for _, h := range l.Nodes {
				if status, err := h.Status(t.Context()); err != nil || status.Etcd.Connected != want {
					return fmt.Errorf("%s: etcd is %q, %w", h.Name, status.Etcd.Error, err)
				}
			}
			return nil
		}
	}
	if err := l.Server.Stop(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "each agent has lost etcd", reached(false))
	if err := l.StartEtcd(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "each agent has found etcd again", reached(true))
}

func restartAgent(t *testing.T, l *lab.Lab, h *lab.Host) {
	t.Helper()
	stop(t, h)
	if err := l.StartAgent(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	if err := l.Converge(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// busy has a host's agent look at the packet filter, which somebody changes, and returns while it does.
func busy(t *testing.T, h *lab.Host) {
	t.Helper()
	eventually(t, 10*time.Second, h.Name+"'s agent asks iptables", func() error {
		in(t, h.Namespace, "sh", "-c", "iptables -w -N SOMEBODY && iptables -w -X SOMEBODY")
		children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", h.Agent.PID))
		for _, path := range children {
			if child, err := os.ReadFile(path); err == nil && len(child) > 0 {
				return nil
			}
		}
		return errors.Join(err, errors.New("it runs nothing"))
	})
}

// asleep has processes sleep for 2 hours by the clock.
func asleep(t *testing.T, processes ...*lab.Process) {
	t.Helper()
	for _, p := range processes {
		if err := unix.Kill(p.PID, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	setClock(t, time.Now().Add(2*time.Hour))
	<-time.After(silence)
	for _, p := range processes {
		if err := unix.Kill(p.PID, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
}

// follows has a peer come and go in etcd, and waits until the hosts have a route to it, and have none.
func follows(t *testing.T, l *lab.Lab) {
	t.Helper()
	key := l.Prefix + "/subnets/10.5.200.0-24"
	routed := func(want bool) func() error {
		return func() error {
			for _, h := range l.Nodes[:2] {
				if route := in(t, h.Namespace, "ip", "route", "show", "10.5.200.0/24"); (route != "") != want {
					return fmt.Errorf("%s has the route %q", h.Name, route)
				}
			}
			return nil
		}
	}
	etcdctl(t, l, "put", key, lease("192.0.2.200", "0a:00:00:00:00:c8", 1))
	if err := lab.Wait(t.Context(), 10*time.Second, "the hosts have a route to a peer that has come", routed(true)); err != nil {
		t.Error(err)
	}
	etcdctl(t, l, "del", key) // in any case: the test goes on
	eventually(t, 10*time.Second, "the hosts have no route to a peer that has gone", routed(false))
}

// joins has a third host join.
func joins(t *testing.T, l *lab.Lab) {
	t.Helper()
	h, err := l.AddHost(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Converge(t.Context()); err != nil {
		t.Fatal(err)
	}
	ping(t, l.Nodes[0].Container, h.Container, 84)
	ping(t, h.Container, l.Nodes[1].Container, 84)
}

// leaves has it leave for good.
func leaves(t *testing.T, l *lab.Lab) {
	t.Helper()
	h := l.Nodes[2]
	stop(t, h)
	if _, err := l.Tulle(t.Context(), "", "lease", "release", h.Container.Subnet.String()); err != nil {
		t.Fatal(err)
	}
	if err := l.Converge(t.Context()); err != nil {
		t.Fatal(err)
	}
}
