package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

// tracing is what tulle trace --json prints.
type tracing struct {
	Whole   bool
	Verdict string
	Hops    []struct{ Name, What, State, Why, Fix string }
}

// first is the first hop that is wrong: its name, and all that is said of it.
func (r tracing) first() (name, text string) {
	for _, h := range r.Hops {
		if h.State == "wrong" {
			return h.Name, h.What + "\n" + h.Why + "\n" + h.Fix
		}
	}
	return "", ""
}

// trace runs tulle trace on a host, and returns what it prints, its exit code and what it says on standard error.
func trace(t *testing.T, l *lab.Lab, h *lab.Host, args ...string) (out string, code int, stderr string) {
	t.Helper()
	var said, complained strings.Builder
	err := lab.In(h.Namespace, func() error {
		args := append([]string{"trace", "--run-dir", h.RunDir, "--etcd-endpoints", l.Endpoints()}, args...)
		cmd := exec.CommandContext(context.WithoutCancel(t.Context()), l.Binary, args...)
		cmd.Stdout, cmd.Stderr = &said, &complained
		return cmd.Run()
	})
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return said.String(), code, complained.String()
}

func traceJSON(t *testing.T, l *lab.Lab, h *lab.Host, args ...string) (r tracing, code int) {
	t.Helper()
	out, code, stderr := trace(t, l, h, append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("trace %q: %v\n%s%s", args, err, out, stderr)
	}
	return r, code
}

// tracesClean fails the test if a trace finds anything.
func tracesClean(t *testing.T, l *lab.Lab, h *lab.Host, args ...string) {
	t.Helper()
	if err := notClean(t, l, h, args...); err != nil {
		t.Error(err)
	}
}

func notClean(t *testing.T, l *lab.Lab, h *lab.Host, args ...string) error {
	t.Helper()
	r, code := traceJSON(t, l, h, args...)
	for _, hop := range r.Hops {
		if hop.State != "ok" {
			return fmt.Errorf("trace %q: %+v", args, hop)
		}
	}
	if code != 0 || !r.Whole || len(r.Hops) == 0 {
		return fmt.Errorf("trace %q: exit code %d, %q", args, code, r.Verdict)
	}
	return nil
}

// brokenHop is something broken on the way. The commands find in their environment what facts has, and C1 and C2, the containers'
// addresses, and OTHER, a third host's.
type brokenHop struct {
	name      string
	where     string // host1, host2, c1, c2, underlay
	inject    string
	undo      string
	from      bool   // traced from the first host's container
	hop       string // that must be named
	says, fix string // what must be said of it
}

// byAgent in an undo, a comment to the shell, has the host's agent put right what it can.
const byAgent = " # by the agent"

var brokenHops = []brokenHop{
	{"device down", "host1", "ip link set tulle.1 down", byAgent, false, "device", "it is down", "systemctl start tulle"},
	{"device deleted", "host1", "ip link del tulle.1", byAgent, false, "device", "no such device", "systemctl start tulle"},
	{"device on another port", "host1", "ip link del tulle.1; ip link add tulle.1 type vxlan id 1 dstport 4789 dev eth0; ip link set tulle.1 up", "ip link del tulle.1" + byAgent, false, "device", "it should be", "systemctl start tulle"},
	{"forwarding off", "host1", "sysctl -qw net.ipv4.ip_forward=0", byAgent, false, "forwarding", "forwards nothing", "sysctl -w net.ipv4.ip_forward=1"},
	{"route deleted", "host1", "ip route del $PEER", byAgent, false, "route", "the route to $PEER is missing", "ip route replace $PEER via $VTEP dev tulle.1 onlink proto 84"},
	{"somebody's more specific route", "host1", "ip route add $C2 via 192.0.2.1 proto static", "ip route del $C2", false, "route", "somebody else's route", "ip route del $C2/32 via 192.0.2.1 dev eth0 proto static"},
	{"somebody's blackhole", "host1", "ip route add blackhole $C2", "ip route del $C2", false, "route", "blackhole $C2/32", "ip route del blackhole $C2/32"},
	{"policy route", "host1", "ip rule add from $OWNNET lookup 100 && ip route add $PEER via 192.0.2.1 table 100", "ip rule del from $OWNNET lookup 100; ip route flush table 100", false,
		"route", "asks table 100 first", "ip route del $PEER via 192.0.2.1 dev eth0 table 100"},
	{"nexthop elsewhere", "host1", "ip nexthop replace id $ID via 10.5.99.0 dev tulle.1 onlink proto 84", byAgent, false, "nexthop", "it should be via $VTEP dev tulle.1", "ip nexthop replace id $ID via $VTEP dev tulle.1 onlink proto 84"},
	{"neighbour deleted", "host1", "ip neigh del $VTEP dev tulle.1", byAgent, false, "neighbour", "no neighbour $VTEP", "ip neigh replace $VTEP lladdr $MAC dev tulle.1 nud permanent"},
	{"neighbour with another MAC", "host1", "ip neigh replace $VTEP lladdr 0a:00:00:00:00:66 dev tulle.1 nud permanent", byAgent, false, "neighbour", "its lease says $MAC", "ip neigh replace $VTEP lladdr $MAC"},
	{"FDB entry deleted", "host1", "bridge fdb del $MAC dev tulle.1 dst $DST self", byAgent, false, "fdb", "no entry for $MAC", "bridge fdb replace $MAC dev tulle.1 dst $DST self permanent"},
	{"FDB entry to another host", "host1", "bridge fdb replace $MAC dev tulle.1 dst $OTHER self permanent", byAgent, false, "fdb", "dst $OTHER", "bridge fdb replace $MAC dev tulle.1 dst $DST self permanent"},
	{"underlay blackholed", "host1", "ip route add blackhole $DST", "ip route del $DST", false, "underlay", "leads nowhere", "ip route del blackhole $DST/32"},
	{"FORWARD drops", "host1", "iptables -w -I FORWARD -s $OWNNET -j DROP", "iptables -w -D FORWARD 1", false, "forward", "-A FORWARD -s $OWNNET -j DROP (table filter)", "iptables -t filter -D FORWARD -s $OWNNET -j DROP"},
	{"our accept is missing", "host1", "iptables -w -D FORWARD -j TULLE-FORWARD", byAgent, false, "forward", "policy DROP of FORWARD", "systemctl start tulle"},
	{"raw drops", "host1", "iptables -w -t raw -I PREROUTING -i docker0 -d $PEER -j DROP", "iptables -w -t raw -D PREROUTING 1", false, "forward", "(table raw)", "iptables -t raw -D PREROUTING -d $PEER -i docker0 -j DROP"},
	{"masqueraded", "host1", "iptables -w -t nat -I POSTROUTING -s $OWNNET ! -o docker0 -j MASQUERADE", "iptables -w -t nat -D POSTROUTING 1", false, "masquerade", "its source is replaced", "systemctl start tulle"},
	{"UDP not let out", "host1", "iptables -w -I OUTPUT -p udp -m udp --dport 8472 -j DROP", "iptables -w -D OUTPUT 1", false, "output", "--dport 8472 -j DROP", "iptables -t filter -D OUTPUT -p udp -m udp --dport 8472 -j DROP"},
	{"UDP not let in", "host1", "iptables -w -A INPUT -p tcp -j ACCEPT && iptables -w -P INPUT DROP", "iptables -w -P INPUT ACCEPT && iptables -w -D INPUT -p tcp -j ACCEPT", false, "input", "policy DROP of INPUT", "iptables -t filter -I INPUT -p udp --dport 8472 -j ACCEPT"},
	{"answers dropped in raw, as by Docker 28", "host1", "iptables -w -t raw -A PREROUTING -d $C1 ! -i docker0 -j DROP && iptables -w -t raw -D PREROUTING -j TULLE-PREROUTING", "iptables -w -t raw -D PREROUTING -d $C1 ! -i docker0 -j DROP" + byAgent,
		true, "return", "! -i docker0 -j DROP (table raw)", "systemctl start tulle"},
	{"answers not forwarded", "host1", "iptables -w -I FORWARD -d $OWNNET -j REJECT", "iptables -w -D FORWARD 1", false, "return", "-j REJECT", "iptables -t filter -D FORWARD -d $OWNNET -j REJECT"},
	{"peer down", "host2", "ip link set eth0 down", "ip link set eth0 up; ip route add default via 192.0.2.1", false, "peer host", "the host is down or cut off", "is $DST up"},
	{"UDP blocked at the peer", "host2", "iptables -w -I INPUT -p udp --dport 8472 -j DROP", "iptables -w -D INPUT 1", false, "overlay", "UDP port 8472 is blocked", "let UDP port 8472 pass"},
	{"peer's device down", "host2", "ip link set tulle.1 down", byAgent, false, "overlay", "the peer's tulle.1 or agent", "look at $DST: tulle status"},
	// A bridge leaves room for a VLAN tag (is_skb_forwardable, net/core/dev.c).
	{"a narrow link on the way", "underlay", "ip link set host2 mtu 1300", "ip link set host2 mtu 1500", false, "path MTU", "carries 1304 bytes", `"MTU": 1304`},
	{"container down", "c2", "ip link set eth0 down", "ip link set eth0 up; ip route add default via ${PEER%0/24}1", false, "address", "the container is down", "look at $DST: docker ps"},
	{"the peer does not forward", "host2", "iptables -w -I FORWARD -d $C2 -j DROP", "iptables -w -D FORWARD 1", true, "address", "does not forward", "tulle trace $C1"},
	{"container's MTU", "c1", "ip link set eth0 mtu 1500", "ip link set eth0 mtu 1450", true, "container", "at most 1450 bytes", "dockerd with --mtu=1450"},
	{"container without a route", "c1", "ip route del default", "ip route add default via ${OWN%/24}", true, "container", "no way to $C2", "tulle attach"},
	{"container with a route to nobody", "c1", "ip route replace default via ${OWNNET%0/24}77", "ip route replace default via ${OWN%/24}", true, "gateway", "is not an address of this host", "docker0's address"},
	{"container's cable pulled", "host1", "ip link set c1 nomaster", "ip link set c1 master docker0", true, "gateway", "does not answer", "ip link show master docker0"},
}

// TestTrace breaks each hop in turn, while no agent runs that would repair it: the trace names it before all others, and says
// what to do.
func TestTrace(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3})
	host, c1, c2 := l.Nodes[0], l.Nodes[0].Container, l.Nodes[1].Container
	variables := append(facts(t, l), "C1="+c1.Address.String(), "C2="+c2.Address.String(), "OTHER="+l.Nodes[2].Address.String())
	expand := func(text string) string {
		return os.Expand(text, func(name string) string {
			for _, v := range variables {
				if value, ok := strings.CutPrefix(v, name+"="); ok {
					return value
				}
			}
			return "$" + name
		})
	}
	from := "netns:" + c1.Namespace
	t.Run("clean", func(t *testing.T) {
		for _, address := range []string{c2.Address.String(), l.Nodes[2].Container.Address.String(), c2.Subnet.Addr().String(), c2.Subnet.Addr().Next().String(),
			c1.Address.String(), c1.Subnet.Addr().Next().String(), lab.Outside.String()} {
			tracesClean(t, l, host, address)
			tracesClean(t, l, host, "--from", from, address)
		}
	})
	t.Run("nothing to trace", func(t *testing.T) { testNoTrace(t, l, host) })
	for _, h := range l.Nodes {
		if err := h.Agent.Stop(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("without agents", func(t *testing.T) {
		tracesClean(t, l, host, c2.Address.String())
		tracesClean(t, l, host, "--from", from, c2.Address.String())
		if out, code, stderr := trace(t, l, host, c2.Address.String()); code != 0 || !strings.Contains(stderr, "no agent answers") || !strings.Contains(stderr, "nothing is repaired") {
			t.Errorf("exit code %d\n%s%s", code, stderr, out)
		}
	})
	for _, f := range brokenHops {
		t.Run(f.name, func(t *testing.T) {
			run := func(command string) {
				in(t, namespaceOf(t, l, f.where), append(append([]string{"env"}, variables...), "sh", "-ec", command)...)
			}
			run(f.inject)
			args := []string{c2.Address.String()}
			if f.from {
				args = append(args, "--from", from)
			}
			r, code := traceJSON(t, l, host, args...)
			hop, text := r.first()
			if says, fix := expand(f.says), expand(f.fix); hop != f.hop || !strings.Contains(text, says) || !strings.Contains(text, fix) || code != 1 || r.Whole {
				t.Errorf("exit code %d, %s: it names %q and says\n%s\nwant %s, %q and %q", code, r.Verdict, hop, text, f.hop, says, fix)
			}
			run(f.undo)
			if strings.HasSuffix(f.undo, byAgent) {
				revive(t, l, l.Nodes[map[string]int{"host1": 0, "host2": 1}[f.where]])
			}
			// A host that got no answer to ARP answers for some seconds that there is nobody, instead of asking again.
			eventually(t, 10*time.Second, "the path is whole again", func() error { return notClean(t, l, host, c2.Address.String(), "--from", from) })
		})
	}
	t.Run("lease deleted", func(t *testing.T) {
		if _, err := l.Tulle(t.Context(), "", "lease", "release", c2.Subnet.String()); err != nil {
			t.Fatal(err)
		}
		r, code := traceJSON(t, l, host, c2.Address.String())
		if hop, text := r.first(); hop != "lease" || code != 1 || !strings.Contains(text, "nobody has leased") || !strings.Contains(text, "start the agent") {
			t.Errorf("exit code %d, %s: %s\n%s", code, r.Verdict, hop, text)
		}
	})
}

// TestTraceFromDocker begins in containers that dockerd knows by name: on the overlay, on another of Docker's networks, in the
// host's own, and in one that does not run.
func TestTraceFromDocker(t *testing.T) {
	t.Parallel()
	l := newDockers(t, 2, "")
	host, d, to := l.Nodes[0], l.daemons[0], l.containers[1].Address.String()
	at := []string{"--docker-host", d.URL(), to, "--from"}
	run := func(args ...string) {
		t.Helper()
		if _, err := d.Do(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
	tracesClean(t, l.Lab, host, append(at, "web")...)
	run("network", "create", "other")
	for name, network := range map[string]string{"beside": "other", "within": "host"} {
		if _, err := d.Run(t.Context(), name, "--network", network); err != nil {
			t.Fatal(err)
		}
		tracesClean(t, l.Lab, host, append(at, name)...)
	}
	run("stop", "web")
	for name, says := range map[string]string{"web": "does not run", "nosuch": "no container"} {
		if out, code, stderr := trace(t, l.Lab, host, append(at, name)...); code != 2 || !strings.Contains(stderr, says) {
			t.Errorf("from %s: exit code %d\n%s%s", name, code, stderr, out)
		}
	}
}

// revive has a host's agent put everything right, and kills it again.
func revive(t *testing.T, l *lab.Lab, h *lab.Host) {
	t.Helper()
	if err := l.StartAgent(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	passes(t, h)
	if err := h.Agent.Stop(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func namespaceOf(t *testing.T, l *lab.Lab, name string) string {
	t.Helper()
	if name == "underlay" {
		return l.Underlay()
	}
	namespace, err := l.Find(name)
	if err != nil {
		t.Fatal(err)
	}
	return namespace
}

// testNoTrace gives what can't be traced: one line says why.
func testNoTrace(t *testing.T, l *lab.Lab, h *lab.Host) {
	for _, test := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"web"}, 2, `"web" is not an address`},
		{[]string{"10.5.1.2/24"}, 2, "is not an address"},
		{[]string{"10.5.0.2", "--from", "netns:nosuch"}, 2, "network namespace /run/netns/nosuch"},
		{[]string{"10.5.0.2", "--from", "pid:x"}, 2, "not a process's number"},
		{[]string{"10.5.0.2", "--from", "web", "--docker-host", "unix:///nowhere"}, 2, "dockerd at /nowhere"},
		{[]string{"10.5.0.2", "--from", "web", "--docker-host", "tcp://192.0.2.1"}, 2, "unix://PATH"},
		{[]string{"10.5.0.2", "--run-dir", "/nowhere", "--etcd-endpoints", "http://192.0.2.1:1"}, 2, "this host holds no lease"},
	} {
		out, code, stderr := trace(t, l, h, test.args...)
		last := stderr[strings.LastIndex(strings.TrimSpace(stderr), "\n")+1:]
		if code != test.code || out != "" || !strings.Contains(last, test.says) {
			t.Errorf("trace %q: exit code %d\n%s%s", test.args, code, stderr, out)
		}
	}
	const free = "10.5.255.7"
	if r, code := traceJSON(t, l, h, free); code != 1 {
		t.Errorf("%s: exit code %d, %+v", free, code, r)
	} else if hop, text := r.first(); hop != "lease" || !strings.Contains(text, "nobody has leased") {
		t.Errorf("%s: %s\n%s", free, hop, text)
	}
}
