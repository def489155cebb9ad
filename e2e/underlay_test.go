package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

// underlayLimit is what may pass from a change of a host's underlay until its peers send to where it is now.
const underlayLimit = 5 * time.Second

// move is a change of a host's underlay.
type move struct {
	what, command string
	address       string // the host's public address afterwards
	mtu           int    // and the MTU of its underlay device
}

var moves = []move{
	{"device down and up", "ip link set eth0 down && ip link set eth0 up && ip route add default via 192.0.2.1", "192.0.2.11", 1500},
	{"new address, old one deleted", "ip addr add 192.0.2.111/24 dev eth0 && ip addr del 192.0.2.11/24 dev eth0", "192.0.2.111", 1500},
	{"address deleted, new one", "ip addr del 192.0.2.111/24 dev eth0 && ip addr add 192.0.2.11/24 dev eth0 && ip route replace default via 192.0.2.1", "192.0.2.11", 1500},
	{"smaller MTU", "ip link set eth0 mtu 1400", "192.0.2.11", 1400},
	{"MTU as before", "ip link set eth0 mtu 1500", "192.0.2.11", 1500},
	{"default route to another device", "ip link set eth1 up && ip addr add 192.0.2.161/24 dev eth1 && ip route replace default via 192.0.2.1 dev eth1", "192.0.2.161", 1500},
	{"default route back", "ip route replace default via 192.0.2.1 dev eth0 && ip link set eth1 down", "192.0.2.11", 1500},
}

// TestUnderlay changes a host's underlay in every way that DHCP, an administrator or a broken cable would. The host keeps its
// subnet, the peers learn where it is now, and containers talk again.
func TestUnderlay(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3})
	h := l.Nodes[0]
	// As systemd has it: a device keeps its second address when its first one goes.
	in(t, h.Namespace, "sysctl", "-qw", "net.ipv4.conf.eth0.promote_secondaries=1")
	in(t, l.Underlay(), "ip", "link", "add", "host1b", "master", "underlay", "up", "type", "veth", "peer", "name", "eth1", "netns", h.Namespace)
	for _, m := range moves {
		t.Run(m.what, func(t *testing.T) { m.test(t, l) })
	}
	unchanging(t, h)
	for _, other := range l.Nodes[1:] {
		ping(t, h.Container, other.Container, 1450)
		ping(t, other.Container, h.Container, 1450)
	}
}

func (m move) test(t *testing.T, l *lab.Lab) {
	h, peers := l.Nodes[0], l.Nodes[1:]
	before, err := h.Env()
	if err != nil {
		t.Fatal(err)
	}
	flows := startFlows(t, l)
	started := time.Now()
	in(t, h.Namespace, "sh", "-ec", m.command)
	err = lab.Wait(t.Context(), 30*time.Second, "the lease, the peers and the host follow", func() error {
		value, _ := stored(t, l, key(t, h))
		if !strings.Contains(value, `"PublicIP":"`+m.address+`"`) {
			return fmt.Errorf("the lease is %s", value)
		}
		_, mac, _ := strings.Cut(value, `"VtepMAC":"`)
		mac, _, _ = strings.Cut(mac, `"`)
		for _, peer := range peers {
			if view := look(t, peer, kernelView); !strings.Contains(view, mac+" dst "+m.address+" ") {
				return fmt.Errorf("%s has\n%s", peer.Name, view)
			}
		}
		return m.followed(t, h, mac)
	})
	took := time.Since(started)
	if err != nil {
		t.Error(err)
	}
	firstAnswer(t, 30*time.Second, peers[0], h)
	answered := time.Since(started)
	firstAnswer(t, 30*time.Second, h, peers[1])
	lost := 0
	for name, f := range flows {
		r := f.Stop(t.Context())
		if lost = max(lost, r.Lost()); !strings.Contains(name, h.Name) && r.Lost() > 0 {
			t.Errorf("%s: %d of %d packets lost, which have nothing to do with %s", name, r.Lost(), r.Sent, h.Name)
		}
	}
	t.Logf("%-34s all follow after %5d ms, first ping answered after %5d ms, of one in 10 ms at most %d lost", m.what, took.Milliseconds(), answered.Milliseconds(), lost)
	if took > underlayLimit {
		t.Errorf("it took %s, more than %s", took, underlayLimit)
	}
	after, err := h.Env()
	if err != nil || after["FLANNEL_SUBNET"] != before["FLANNEL_SUBNET"] {
		t.Errorf("the host's subnet was %s and is %s, %v", before["FLANNEL_SUBNET"], after["FLANNEL_SUBNET"], err)
	}
}

// followed fails unless the host's own devices and its env file fit its underlay.
func (m move) followed(t *testing.T, h *lab.Host, mac string) error {
	for name, want := range map[string]string{"tulle.1": fmt.Sprintf("mtu %d mac %s", m.mtu-50, mac), "docker0": fmt.Sprintf("mtu %d ", m.mtu-50)} {
		if d := device(t, h, name); !strings.Contains(d, want) {
			return fmt.Errorf("want %s: %s", want, d)
		}
	}
	env, err := h.Env()
	if err != nil {
		return err
	}
	if env["FLANNEL_MTU"] != fmt.Sprint(m.mtu-50) {
		return fmt.Errorf("FLANNEL_MTU is %s", env["FLANNEL_MTU"])
	}
	return h.Ready(t.Context())
}

// TestSuspend stops an agent as a host's suspension would. Containers talk on, and it catches up by itself with what it has
// missed, soon after it is resumed.
func TestSuspend(t *testing.T) {
	t.Parallel()
	t.Run("for a moment", func(t *testing.T) { testSuspend(t, suspend, time.Second, 5*time.Second) })
	t.Run("in the middle of a pass", func(t *testing.T) { testSuspend(t, suspendInPass, 7*time.Second, 5*time.Second) })
	// Etcd's client gives a connection 10 s without a word, and 5 s more to answer (etcd/client.go).
	t.Run("longer than its connection lives", func(t *testing.T) { testSuspend(t, suspendCutOff, 17*time.Second, 20*time.Second) })
}

// suspend stops a host's agent.
func suspend(t *testing.T, h *lab.Host) (resume func()) {
	t.Helper()
	signal(t, h, unix.SIGSTOP)
	return func() { signal(t, h, unix.SIGCONT) }
}

// suspendCutOff stops a host's agent, and what comes from etcd meanwhile is lost, as it would be with the whole host asleep.
func suspendCutOff(t *testing.T, h *lab.Host) (resume func()) {
	t.Helper()
	awake := suspend(t, h)
	in(t, h.Namespace, "iptables", "-w", "-I", "INPUT", "-p", "tcp", "--sport", "2379", "-j", "DROP")
	return func() {
		in(t, h.Namespace, "iptables", "-w", "-D", "INPUT", "-p", "tcp", "--sport", "2379", "-j", "DROP")
		awake()
	}
}

// suspendInPass stops a host's agent when it is busy: it has a child then, which reads the packet filter for it.
func suspendInPass(t *testing.T, h *lab.Host) (resume func()) {
	t.Helper()
	eventually(t, 10*time.Second, "the agent is caught in a pass", func() error {
		in(t, h.Namespace, "nft", "add table ip somebody; delete table ip somebody") // which it looks at, as it could be ours
		for range 1000 {
			if !hasChild(t, h) {
				continue
			}
			resume = suspend(t, h)
			if hasChild(t, h) {
				return nil
			}
			resume()
		}
		return errors.New("it has no child")
	})
	return resume
}

// hasChild reports whether a host's agent has a child that it has not waited for.
func hasChild(t *testing.T, h *lab.Host) bool {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", h.Agent.PID))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(lists, func(path string) bool {
		text, _ := os.ReadFile(path) // the thread may be gone
		return len(text) > 0
	})
}

func signal(t *testing.T, h *lab.Host, s unix.Signal) {
	t.Helper()
	if err := unix.Kill(h.Agent.PID, s); err != nil {
		t.Fatal(err)
	}
}

func testSuspend(t *testing.T, suspend func(*testing.T, *lab.Host) (resume func()), pause, limit time.Duration) {
	l := newLab(t, lab.Options{Hosts: 3})
	h, leaves := l.Nodes[0], l.Nodes[2]
	flow, err := lab.StartFlow(h.Container.Namespace, l.Nodes[1].Container.Address, 10*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	back, err := lab.StartFlow(l.Nodes[1].Container.Namespace, h.Container.Address, 10*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	resume, over := suspend(t, h), time.After(pause)
	stop(t, leaves)
	gone := strings.TrimSuffix(key(t, leaves), "-24")
	if _, err := l.Tulle(t.Context(), "", "lease", "release", gone+"/24"); err != nil {
		t.Fatal(err)
	}
	joins, err := l.NewHost()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(t.Context(), joins); err != nil {
		t.Fatal(err)
	}
	if err := l.NewContainer(joins); err != nil {
		t.Fatal(err)
	}
	<-over
	resume()
	started := time.Now()
	eventually(t, limit, "the agent catches up", func() error {
		view := look(t, h, kernelView)
		if strings.Contains(view, gone) || strings.Contains(view, leaves.Address.String()) {
			return errors.New("the peer that left is still there:\n" + view)
		}
		if !strings.Contains(view, joins.Container.Subnet.String()) {
			return errors.New("the peer that joined is not there:\n" + view)
		}
		status, err := h.Status(t.Context())
		if err == nil && (!status.Ready || !status.Etcd.Connected) {
			err = fmt.Errorf("ready %t, etcd %s", status.Ready, status.Etcd.Error)
		}
		return err
	})
	t.Logf("suspended for %s, it has caught up %d ms after it was resumed", pause, time.Since(started).Milliseconds())
	ping(t, h.Container, joins.Container, 1450)
	stopFlows(t, map[string]*lab.Flow{"out": flow, "back": back})
}
