package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/e2e/lab"
)

// way is a way to carry packets.
type way struct {
	name, backend string // the backend as it stands in the network's config
	mtu           int    // of containers, on an underlay of 1500
	device        string // of ours; "" for none, several in the order of their names
	direct        bool   // on one segment, packets go without it
	kind          string // kind of link that the kernel must have for it; "" for none that any lacks
	instead       string // kind of link without which packets go through the agent itself; "" if they never do
	process       bool   // they do
	segment       bool   // all containers are on one segment
	byHand        bool   // the operator carries packets, and the agent nothing
	families             // of what is inside, and of what carries it
}

var ways = []way{
	{name: "vxlan", backend: `{"Type":"vxlan"}`, mtu: 1450, device: "tulle.1"},
	{name: "vxlan with DirectRouting", backend: `{"Type":"vxlan","DirectRouting":true}`, mtu: 1450, device: "tulle.1", direct: true},
	{name: "host-gw", backend: `{"Type":"host-gw"}`, mtu: 1500},
	{name: "ipip", backend: `{"Type":"ipip"}`, mtu: 1480, device: "tulle-ipip", kind: "ipip"},
	{name: "ipip with DirectRouting", backend: `{"Type":"ipip","DirectRouting":true}`, mtu: 1480, device: "tulle-ipip", direct: true, kind: "ipip"},
	{name: "wireguard", backend: `{"Type":"wireguard"}`, mtu: 1420, device: "tulle-wg", instead: "wireguard"},
	{name: "udp", backend: `{"Type":"udp"}`, mtu: 1472, device: "tulle-udp", process: true},
	{name: "l2", backend: `{"Type":"l2"}`, mtu: 1450, device: "tulle.1", segment: true},
	{name: "extension", backend: `{"Type":"extension","SubnetAddCommand":"ip route replace \"$SUBNET\" via \"$PUBLIC_IP\"","SubnetRemoveCommand":"ip route flush exact \"$SUBNET\""}`, mtu: 1500},
	{name: "alloc", backend: `{"Type":"alloc"}`, mtu: 1500, byHand: true},
}

// leaves is the device that a host sends packets to another's containers by.
func (w way) leaves() string {
	switch {
	case w.segment:
		return "docker0"
	case w.device == "", w.direct:
		return "eth0"
	}
	return w.device
}

func (w way) config() string { return `{` + w.network() + `,"Backend":` + w.backend + `}` }

// TestBackends is the network as its users see it, by each way to carry packets.
func TestBackends(t *testing.T) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			w.need(t)
			w = w.here(t)
			l := newLab(t, lab.Options{Hosts: 3, Config: w.config(), Empty: w.byHand})
			w.finish(t, l)
			leavesBy(t, l.Nodes[0], l.Nodes[1], w.leaves())
			testSuite(t, l, w)
		})
	}
}

// TestTypeChange changes the type of a running network, from vxlan to each other and back. The agents switch in turn, none is
// restarted; subnets stay, containers talk again, and nothing is left of the type before.
func TestTypeChange(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3})
	before := map[*lab.Host]string{}
	for _, h := range l.Nodes {
		before[h] = look(t, h, wholeView)
	}
	for _, w := range ways[1:] {
		if w.kind != "" && !hasKind(t, w.kind) {
			t.Log(skipped(t, w.kind))
			continue
		}
		if virtual && w.kind == "" && w.instead == "" { // what any kernel has need not take its time here
			continue
		}
		w.take(t, l)
		if t.Failed() {
			return
		}
		ways[0].take(t, l)
		for _, h := range l.Nodes {
			eventually(t, 5*time.Second, "nothing is left of "+w.name, func() error { return difference(before[h], look(t, h, wholeView)) })
		}
	}
	if err := logs(t, l, l.Nodes[0], `msg="the network's config has changed" before="{\"Network\":\"10.5.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}" now="{\"Network\":\"10.5.0.0/16\",\"Backend\":{\"Type\":\"wireguard\"}}"`); err != nil {
		t.Error(err)
	}
}

// wholeView is all that an agent may have set, of whatever type.
const wholeView = kernelView + ` && ` + filterView + ` && { ip -o link 2>/dev/null | awk '{ print $2, $5 }' && ip neigh show nud permanent && bridge fdb | grep permanent && ip route show table all proto 84; } | sort`

// take changes a running network to w, and waits until all have followed.
func (w way) take(t *testing.T, l *lab.Lab) {
	t.Helper()
	subnets := map[*lab.Host]string{}
	for _, h := range l.Nodes {
		subnets[h] = key(t, h)
	}
	started := time.Now()
	setConfig(t, l, w.config())
	for i, h := range l.Nodes {
		eventually(t, 20*time.Second, h.Name+" has changed to "+w.name, func() error { return w.taken(t, h, len(l.Nodes)-1) })
		if !w.byHand {
			firstAnswer(t, shakeLimit, h, l.Nodes[(i+1)%len(l.Nodes)])
		}
		if env, err := h.Env(); err != nil || env["FLANNEL_SUBNET"] != strings.Replace(subnets[h], ".0-", ".1/", 1) || env["FLANNEL_MTU"] != fmt.Sprint(w.mtu) {
			t.Errorf("%s: the env file says %v, %v", h.Name, env, err)
		}
	}
	t.Logf("all hosts have changed to %s, and talk, after %v", w.name, time.Since(started).Round(time.Millisecond))
}

// taken fails unless a host runs w, and nothing else.
func (w way) taken(t *testing.T, h *lab.Host, peers int) error {
	t.Helper()
	status, err := h.Status(t.Context())
	if err == nil && (!status.Ready || status.Peers.Total != peers) {
		err = fmt.Errorf("it is ready: %t, with %d peers: %s", status.Ready, status.Peers.Total, status.Reason)
	}
	if err != nil {
		return err
	}
	if names := ourDevices(t, h); strings.Join(names, " ") != w.device {
		return fmt.Errorf("it has devices %v", names)
	}
	for _, word := range strings.Fields(in(t, h.Namespace, "iptables-save")) {
		if strings.HasPrefix(word, "tulle") && !slices.Contains(strings.Fields(w.device), word) {
			return fmt.Errorf("it has rules for %s\n%s", word, in(t, h.Namespace, "iptables-save"))
		}
	}
	if ours := in(t, h.Namespace, "ip", "route", "show", "proto", "84"); w.routed() != (ours != "") {
		return fmt.Errorf("it has routes:\n%s", ours)
	}
	return nil
}

// routed reports whether the agent sets routes.
func (w way) routed() bool { return !w.byHand && !w.segment && w.name != "extension" }

// TestLaggard has a host that still runs the type before, as one of flannel's would that was not restarted. The others say so, and
// go on with each other; and with it when it comes.
func TestLaggard(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3})
	a, b, late := l.Nodes[0], l.Nodes[1], l.Nodes[2]
	stop(t, late)
	setConfig(t, l, wayOf(t, "host-gw").config())
	for _, h := range []*lab.Host{a, b} {
		eventually(t, 10*time.Second, h.Name+" names the host that has not changed", func() error {
			return logs(t, l, h, "lease="+key(t, late)+` reason=wrong-backend detail="its host runs \"vxlan\", the network's config says host-gw"`)
		})
	}
	for _, h := range []*lab.Host{a, b} {
		eventually(t, 10*time.Second, h.Name+" goes on with the other", func() error { return wayOf(t, "host-gw").taken(t, h, 1) })
	}
	ping(t, a.Container, b.Container, 84)
	status := in(t, a.Namespace, binary, "status", "--run-dir", a.RunDir)
	for _, words := range []string{"left out", "1 lease: wrong-backend"} {
		if !strings.Contains(status, words) {
			t.Errorf("tulle status does not say %q:\n%s", words, status)
		}
	}
	launch(t, l, late)
	if err := l.Converge(t.Context()); err != nil {
		t.Fatal(err)
	}
	ping(t, a.Container, late.Container, 84)
	ping(t, late.Container, b.Container, 84)
}

// TestAlloc leases a subnet and leaves the host as it was: no device, address, route, rule or sysctl. The env file is for others.
func TestAlloc(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 2, Config: wayOf(t, "alloc").config(), Empty: true})
	h, err := l.NewHost()
	if err != nil {
		t.Fatal(err)
	}
	before := look(t, h, bareView)
	if err := l.StartAgent(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	if err := l.Converge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := difference(before, look(t, h, bareView)); err != nil {
		t.Error(err)
	}
	env, err := h.Env()
	if err != nil {
		t.Fatal(err)
	}
	own := env["FLANNEL_SUBNET"]
	want := map[string]string{"FLANNEL_NETWORK": "10.5.0.0/16", "FLANNEL_SUBNET": own, "FLANNEL_MTU": "1500", "FLANNEL_IPMASQ": "true",
		"DOCKER_OPTS": "--bip=" + own + " --ip-masq=false --mtu=1500"}
	if !maps.Equal(env, want) || !strings.HasPrefix(own, "10.5.") || !strings.HasSuffix(own, ".1/24") {
		t.Errorf("the env file says %v, want %v", env, want)
	}
}

// TestIPIPMissing asks for IPIP of a kernel that has none. The agent says what is missing, and goes on when another type is asked for.
func TestIPIPMissing(t *testing.T) {
	t.Parallel()
	if hasKind(t, "ipip") {
		t.Skip("this kernel has ipip")
	}
	l := newLab(t, lab.Options{Hosts: 2})
	setConfig(t, l, wayOf(t, "ipip").config())
	for _, h := range l.Nodes {
		unready(t, h, "set link tulle-ipip: this kernel has no ipip: load or build the module (modprobe ipip; CONFIG_NET_IPIP)")
	}
	mended(t, l)
}

// unready waits until a host is not ready for a reason, which it logs, once.
func unready(t *testing.T, h *lab.Host, reason string) {
	t.Helper()
	eventually(t, 10*time.Second, h.Name+" says "+reason, func() error {
		status, err := h.Status(t.Context())
		if err == nil && (status.Ready || !strings.Contains(status.Reason, reason)) {
			err = fmt.Errorf("ready %t: %s", status.Ready, status.Reason)
		}
		return err
	})
}

// mended stores a config that is as it should be: all goes on.
func mended(t *testing.T, l *lab.Lab) {
	t.Helper()
	setConfig(t, l, plain)
	eventually(t, 10*time.Second, "the agents go on", func() error {
		for _, h := range l.Nodes {
			if names := ourDevices(t, h); strings.Join(names, " ") != "tulle.1" {
				return fmt.Errorf("%s has devices %v", h.Name, names)
			}
		}
		return l.Converge(t.Context())
	})
	ping(t, l.Nodes[0].Container, l.Nodes[1].Container, 84)
}

// Of a Backend object, what is wrong with it, and what must be said.
var badBackends = map[string]string{
	`{"Type":"carrier-pigeon"}`:                    `Backend.Type: \"carrier-pigeon\" is not a type that this version of tulle knows: it knows vxlan, host-gw, wireguard, udp, ipip, l2, alloc, extension`,
	`{"Type":"host-gw","Port":1}`:                  "Backend.Port: not a key of this type",
	`{"Type":"udp","Port":70000}`:                  "Backend.Port: 70000 is not within 1 and 65535",
	`{"Type":"wireguard","ListenPort":-1}`:         "Backend.ListenPort: -1 is not within 1 and 65535",
	`{"Type":"wireguard","PSK":"c2hvcnQ="}`:        "Backend.PSK: 5 bytes long: a key is 32 bytes",
	`{"Type":"wireguard","Mode":"sometimes"}`:      "Backend.Mode: not one of separate, auto, ipv4, ipv6",
	`{"Type":"extension","SubnetAddedCommand":""}`: "Backend.SubnetAddedCommand: not a key of this type",
	`{"Type":"l2","VNI":16777216}`:                 "Backend.VNI: 16777216 is not within",
}

// TestBadBackends stores configs that nobody can follow, past `tulle config set`: in a running network, which goes on as before with one
// line about each; and in a new one, where nothing at all is programmed.
func TestBadBackends(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 2})
	h := l.Nodes[0]
	before := look(t, h, wholeView)
	for backend, reason := range badBackends {
		putBackend(t, l, backend)
		eventually(t, 10*time.Second, "the agent refuses "+backend, func() error { return logs(t, l, h, reason) })
		if n := strings.Count(logOf(t, l, h), reason); n != 1 {
			t.Errorf("%s: it is said %d times", backend, n)
		}
		if err := h.Ready(t.Context()); err != nil {
			t.Errorf("%s: a network that runs became unready: %v", backend, err)
		}
	}
	if err := difference(before, look(t, h, wholeView)); err != nil {
		t.Errorf("a config that is not valid changed something: %v", err)
	}
	late, err := l.NewHost()
	if err != nil {
		t.Fatal(err)
	}
	before = look(t, late, bareView)
	launch(t, l, late)
	for backend, reason := range badBackends {
		putBackend(t, l, backend)
		eventually(t, 10*time.Second, "a new agent refuses "+backend, func() error { return logs(t, l, late, reason) })
	}
	if err := difference(before, look(t, late, bareView)); err != nil {
		t.Errorf("without a valid config something was programmed: %v", err)
	}
	setConfig(t, l, plain)
	if err := late.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.NewContainer(late); err != nil {
		t.Fatal(err)
	}
	mended(t, l)
}

// bareView is all of a host without a network. Its addresses may still be looked for, which ends by itself.
const bareView = `ip -o addr | sed 's/ tentative//'; ip route; ip neigh show nud permanent; iptables-save | grep -v "^#"; sysctl net.ipv4.ip_forward`

func putBackend(t *testing.T, l *lab.Lab, backend string) {
	t.Helper()
	etcdctl(t, l, "put", "/coreos.com/network/config", `{"Network":"10.5.0.0/16","Backend":`+backend+`}`)
}

// TestBadCommands has commands that are not there, that hang or print what is no use. What was in force before stays so while it is the
// first that fails; the agent names the command, and goes on when it is mended.
func TestBadCommands(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 2})
	h := l.Nodes[0]
	before := look(t, h, wholeView)
	for command, reason := range map[string]string{
		"no-such-program":     "command Backend.PreStartupCommand (no-such-program): exit status 127: sh: 1: no-such-program: not found. A program in it is not there",
		"/etc/passwd":         "command Backend.PreStartupCommand (/etc/passwd): exit status 126: sh: 1: /etc/passwd: Permission denied. A program in it can't be executed",
		"head -c 9 /dev/zero": "it prints what can't be handed on: there are control characters in it",
		"sleep 1000":          "waiting for Backend.PreStartupCommand to end, at most 30s",
	} {
		setConfig(t, l, fmt.Sprintf(`{"Network":"10.5.0.0/16","Backend":{"Type":"extension","PreStartupCommand":%q}}`, command))
		unready(t, h, reason)
		if err := difference(before, look(t, h, wholeView)); err != nil {
			t.Errorf("%s: %v", command, err)
		}
		ping(t, h.Container, l.Nodes[1].Container, 84)
		if n := strings.Count(logOf(t, l, h), reason); n != 1 && !strings.HasPrefix(reason, "waiting") {
			t.Errorf("%s: it is said %d times", command, n)
		}
	}
	setConfig(t, l, `{"Network":"10.5.0.0/16","Backend":{"Type":"extension","SubnetAddCommand":"no-such-program $SUBNET"}}`)
	unready(t, h, "command Backend.SubnetAddCommand for "+key(t, l.Nodes[1])+" (no-such-program $SUBNET): exit status 127")
	good := wayOf(t, "extension")
	good.take(t, l)
	mended(t, l)
}

// wayOf is the way of a name.
func wayOf(t *testing.T, name string) way {
	t.Helper()
	i := slices.IndexFunc(ways, func(w way) bool { return w.name == name })
	if i < 0 {
		t.Fatalf("no way is called %s", name)
	}
	return ways[i]
}

// here is w with what depends on the kernel.
func (w way) here(t *testing.T) way {
	t.Helper()
	w.process = w.process || w.instead != "" && !hasKind(t, w.instead)
	return w
}

// need skips a test that this kernel has not what it takes for.
func (w way) need(t *testing.T) {
	t.Helper()
	if w.kind != "" {
		needKind(t, w.kind)
	}
}

// needKind skips a test for a kernel that can't make links of a kind. The virtual machine's can: it is there for the tests that are
// skipped elsewhere.
func needKind(t *testing.T, kind string) {
	t.Helper()
	if hasKind(t, kind) {
		return
	}
	if virtual {
		t.Fatalf("the virtual machine's kernel has no %s", kind)
	}
	t.Skip(skipped(t, kind))
}

// skipped says what of a test is not run for want of a kind of links: in the file, too, that make test shows at its end, as go test says
// nothing of what was skipped.
func skipped(t *testing.T, kind string) string {
	t.Helper()
	text := fmt.Sprintf("%s: SKIPPED, for this kernel has no %s: make test-kernel runs it under one that has", t.Name(), kind)
	if path := os.Getenv("TULLE_SKIPPED"); path != "" {
		file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := fmt.Fprintln(file, text); err != nil {
			t.Fatal(err)
		}
	}
	return text
}

// hasKind reports whether this kernel can make links of a kind. The kernel is asked, and not its list of modules: it may have none.
func hasKind(t *testing.T, kind string) bool {
	t.Helper()
	l := newLab(t, lab.Options{Hosts: 1, Bare: true})
	out, err := lab.Output(t.Context(), l.Nodes[0].Namespace, "ip", "link", "add", "probe", "type", kind)
	return err == nil || strings.Contains(out, "File exists") // it comes with one of its own that is just like it
}

// finish gives hosts what no agent gives them: where nothing is programmed, what an operator would type.
func (w way) finish(t *testing.T, l *lab.Lab) {
	t.Helper()
	if !w.byHand {
		return
	}
	for _, h := range l.Nodes {
		if h.Container == nil {
			asDocker(t, l, h)
		}
	}
	for _, h := range l.Nodes {
		for _, other := range l.Nodes {
			if h != other {
				in(t, h.Namespace, "ip", "route", "replace", other.Container.Subnet.String(), "via", other.Address.String())
			}
		}
	}
}

// asDocker does what Docker does when it starts with the env file's options, and puts a container behind the bridge.
func asDocker(t *testing.T, l *lab.Lab, h *lab.Host) {
	t.Helper()
	env, err := h.Env()
	if err != nil {
		t.Fatal(err)
	}
	in(t, h.Namespace, "sh", "-ec", fmt.Sprintf(`FLANNEL_SUBNET=%s FLANNEL_NETWORK=%s
		ip link add docker0 type bridge; ip addr add $FLANNEL_SUBNET dev docker0; ip link set docker0 up
		sysctl -qw net.ipv4.ip_forward=1
		iptables -w -A FORWARD -s $FLANNEL_NETWORK -j ACCEPT; iptables -w -A FORWARD -d $FLANNEL_NETWORK -j ACCEPT
		iptables -w -t nat -A POSTROUTING -s $FLANNEL_NETWORK ! -d $FLANNEL_NETWORK -j MASQUERADE`, env["FLANNEL_SUBNET"], env["FLANNEL_NETWORK"]))
	if err := l.NewContainer(h); err != nil {
		t.Fatal(err)
	}
}

// devices are h's devices of ours, as the kernel describes them. There must be no other than w's.
func (w way) devices(t *testing.T, h *lab.Host) string {
	t.Helper()
	if names := ourDevices(t, h); strings.Join(names, " ") != w.device {
		t.Errorf("%s has devices %v, want %q", h.Name, names, w.device)
	}
	if w.device == "" {
		return ""
	}
	return in(t, h.Namespace, "sh", "-ec", "for d in "+w.device+"; do ip -d link show $d | grep -v bridge_slave; done") // which has a timer
}

// ourDevices are the names of h's devices of ours.
func ourDevices(t *testing.T, h *lab.Host) (names []string) {
	t.Helper()
	for line := range strings.Lines(in(t, h.Namespace, "ip", "-o", "link")) {
		if name, _, _ := strings.Cut(strings.TrimSuffix(strings.Fields(line)[1], ":"), "@"); strings.HasPrefix(name, "tulle") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// shakeLimit is how long WireGuard may take if both sides of two begin at the same time. It tries again after 5 s and a little, and that
// may happen twice (RekeyTimeout, WireGuard's paper, 6.1).
const shakeLimit = 30 * time.Second

// meet waits until hosts have met: where each pair must shake hands first, and may do so at the same time, which takes another try.
func (w way) meet(t *testing.T, hosts ...*lab.Host) {
	t.Helper()
	if w.instead == "" {
		return
	}
	for i, a := range hosts {
		for _, b := range hosts[i+1:] {
			firstAnswer(t, shakeLimit, a, b)
			firstAnswer(t, shakeLimit, b, a)
		}
	}
}

// forgotten fails if a host still has something of another, which has left.
func (w way) forgotten(t *testing.T, h, left *lab.Host) error {
	t.Helper()
	status, err := h.Status(t.Context())
	if err == nil && status.Peers.Total != 2 {
		err = fmt.Errorf("it has %d peers", status.Peers.Total)
	}
	if err != nil || w.byHand {
		return err
	}
	view := `ip route; ip -6 route; ip nexthop; ip neigh | grep -v "dev eth0"; bridge fdb`
	if w.segment { // what the kernel has heard on a segment it forgets in its own time
		view = `ip route; ip -6 route; ip nexthop; ip neigh show nud permanent; bridge fdb | grep permanent`
	}
	tables := in(t, h.Namespace, "sh", "-c", view)
	for line := range strings.Lines(tables) {
		if mentions(line, left) {
			return fmt.Errorf("it still has %s", line)
		}
	}
	return nil
}

// mentions reports whether a line of a kernel's table is about a host: by its place in the overlay, or its address on the underlay.
func mentions(line string, h *lab.Host) bool {
	for _, p := range h.Container.Subnets {
		if overlay := strings.TrimSuffix(p.Addr().String(), "0"); strings.Contains(line, overlay) {
			return true
		}
	}
	return slices.ContainsFunc(h.Addresses, func(a netip.Addr) bool { return strings.Contains(line+" ", a.String()+" ") })
}
