package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

// What may pass from an alteration to its repair.
const (
	kernelLimit = time.Second     // routes, neighbours, FDB entries, nexthop objects, addresses, sysctls
	deviceLimit = 2 * time.Second // a device, with all that hangs on it
	filterLimit = 5 * time.Second // the packet filter
)

// alteration is something done by hand to what is an agent's.
type alteration struct {
	what, command string
	table         string // that the agent must count it under
}

// Each command finds in its environment: PEER, the subnet of a peer; VTEP, MAC and DST, its VTEP's address and MAC and its
// public address; ID, the nexthop object's; OWN, the bridge's address, and OWNNET its network.
var kernelAlterations = []alteration{
	{"route deleted", "ip route del $PEER", "route"},
	{"route via another gateway", "ip route replace $PEER via 192.0.2.1 proto 84", "route"},
	// `ip route flush proto 84` fails before it has deleted a single one: iproute2 gives the kernel back both a route's nexthop
	// object and the gateway that goes with it, which exclude each other.
	{"routes flushed", "ip route flush proto 84 2>/dev/null || ip route show proto 84 | while read -r to _; do ip route del $to; done", "route"},
	{"neighbour deleted", "ip neigh del $VTEP dev tulle.1", "neighbour"},
	{"neighbour's MAC changed", "ip neigh replace $VTEP lladdr 0a:00:00:00:00:66 dev tulle.1 nud permanent", "neighbour"},
	{"neighbour no longer permanent", "ip neigh replace $VTEP lladdr $MAC dev tulle.1 nud stale", "neighbour"},
	{"neighbours flushed", "ip neigh flush dev tulle.1 nud permanent", "neighbour"},
	{"stray neighbour", "ip neigh add 10.5.99.0 lladdr 0a:00:00:00:00:66 dev tulle.1 nud permanent", "neighbour"},
	{"FDB entry deleted", "bridge fdb del $MAC dev tulle.1 dst $DST self", "fdb"},
	{"FDB entry to another host", "bridge fdb replace $MAC dev tulle.1 dst 192.0.2.66 self permanent", "fdb"},
	{"stray FDB entry", "bridge fdb add 0a:00:00:00:00:66 dev tulle.1 dst 192.0.2.66 self permanent", "fdb"},
	{"nexthop object deleted", "ip nexthop del id $ID", "route"},
	{"nexthop objects flushed", "ip nexthop flush proto 84", "route"},
	{"nexthop object via another gateway", "ip nexthop replace id $ID via 10.5.99.0 dev tulle.1 onlink proto 84", "route"},
	{"nexthop object made somebody else's", "ip nexthop replace id $ID via 192.0.2.1 dev eth0", "route"},
	{"bridge's address deleted", "ip addr del $OWN dev docker0", "address"},
	{"tunnel's address deleted", "ip addr del ${OWNNET%/*}/32 dev tulle.1", "address"},
	{"bridge's connected route deleted", "ip route del $OWNNET dev docker0", "address"},
	{"forwarding switched off", "sysctl -qw net.ipv4.ip_forward=0", "sysctl"},
	{"route of another metric beside ours", "ip route add $PEER via 192.0.2.1 metric 50 proto 84", "route"},
	{"route of another metric instead of ours", "ip route del $PEER && ip route add $PEER via 192.0.2.1 metric 50 proto 84", "route"},
}

// The rules of somebody else's are in $INPUT and $NAT, for a command that flushes them, too: as an operator's script puts back
// what it knows of.
var filterAlterations = []alteration{
	{"rule of ours deleted", "iptables -w -D TULLE-FORWARD 1", "firewall"},
	{"rule of ours altered", "iptables -w -t nat -R TULLE-POSTROUTING 3 -s 10.99.0.0/16 -j ACCEPT", "firewall"},
	{"rule added to our chain", "iptables -w -I TULLE-FORWARD -s 10.5.0.0/16 -j DROP", "firewall"},
	{"chain flushed", "iptables -w -F TULLE-FORWARD", "firewall"},
	{"chain deleted", `printf '*filter\n-D FORWARD -j TULLE-FORWARD\n-F TULLE-FORWARD\n-X TULLE-FORWARD\nCOMMIT\n' | iptables-restore -w --noflush`, "firewall"},
	{"jump deleted", "iptables -w -D FORWARD -j TULLE-FORWARD", "firewall"},
	{"jump twice", "iptables -w -A FORWARD -j TULLE-FORWARD", "firewall"},
	{"jump no longer first", `printf '*nat\n-D POSTROUTING -j TULLE-POSTROUTING\n-A POSTROUTING -j TULLE-POSTROUTING\nCOMMIT\n' | iptables-restore -w --noflush`, "firewall"},
	{"iptables -F FORWARD", "iptables -w -F FORWARD", "firewall"},
	{"iptables -F", "iptables -w -F && iptables -w $INPUT", "firewall"},
	{"iptables -t nat -F", "iptables -w -t nat -F && iptables -w -t nat $NAT", "firewall"},
	{"iptables -t raw -F", "iptables -w -t raw -F", "firewall"},
	{"ruleset flushed", "nft flush ruleset && iptables -w -P FORWARD DROP && iptables -w $INPUT && iptables -w -t nat $NAT", "firewall"},
	{"ruleset replaced", `printf '*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n%s\nCOMMIT\n*nat\n%s\nCOMMIT\n*raw\nCOMMIT\n' "$INPUT" "$NAT" | iptables-restore -w`, "firewall"},
}

// Rules of somebody else's, as iptables takes them and iptables-save prints them.
const (
	foreignInput = "-A INPUT -s 203.0.113.0/24 -j DROP"
	foreignNAT   = "-A POSTROUTING -s 172.31.0.0/16 -j MASQUERADE"
)

// The kernel's own words for all that is an agent's, and some that isn't; in an order that does not depend on which came first.
const (
	kernelView = `{ printf 'route\nnexthop\nneigh show nud permanent\naddr\n' | ip -4 -o -batch - && bridge fdb show dev tulle.1 &&
		sysctl net.ipv4.ip_forward; } | sed 's/^[0-9]*: //' | sort`
	// The order of a chain's rules matters, that of the chains and tables does not.
	filterView = `iptables-save | awk '/^\*/ { table = $1 } /^-A/ { print table, $0 } /^:FORWARD/ { print table, "-P", $1, $2 }' | sort -s -k 1,1 -k 3,3`
)

// look runs a view in a host's namespace. What goes wrong is part of the view.
func look(t *testing.T, h *lab.Host, view string) string {
	t.Helper()
	out, err := lab.Output(t.Context(), h.Namespace, "sh", "-c", view)
	if err != nil {
		return err.Error()
	}
	return out
}

// difference says what two views don't share.
func difference(before, after string) error {
	if before == after {
		return nil
	}
	var text strings.Builder
	b, a := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, line := range b {
		if !slices.Contains(a, line) {
			fmt.Fprintf(&text, "\n- %s", line)
		}
	}
	for _, line := range a {
		if !slices.Contains(b, line) {
			fmt.Fprintf(&text, "\n+ %s", line)
		}
	}
	return errors.New("changed:" + text.String())
}

// TestHeal alters by hand what is an agent's, in every way that we could think of. Each is repaired by itself, within the
// limits, and counted; what isn't ours stays; and when all is well again nothing is left to do.
func TestHeal(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 3})
	h := l.Nodes[0]
	in(t, h.Namespace, "sh", "-ec", `
		ip route add 203.0.113.0/24 via 192.0.2.1
		ip route add 10.5.250.0/24 via 192.0.2.1
		ip nexthop add id 77 via 192.0.2.1 dev eth0
		ip neigh add 192.0.2.99 lladdr 0a:00:00:00:00:99 dev eth0 nud permanent
		iptables -w `+foreignInput+`
		iptables -w -t nat `+foreignNAT)
	passes(t, h) // what these set off has come to rest before the first look
	flows := startFlows(t, l)
	t.Run("kernel", func(t *testing.T) {
		for _, a := range kernelAlterations {
			a.test(t, l, kernelView, kernelLimit)
		}
	})
	t.Run("packet filter", func(t *testing.T) {
		for _, a := range filterAlterations {
			a.test(t, l, filterView, filterLimit)
		}
	})
	t.Run("a second look changes nothing", func(t *testing.T) { unchanging(t, h) })
	t.Run("taken by somebody else", func(t *testing.T) { testTaken(t, l, h) })
	for name, f := range flows {
		r := f.Stop(t.Context())
		t.Logf("%s: %d of %d packets lost", name, r.Lost(), r.Sent)
	}
	for _, other := range l.Nodes[1:] {
		ping(t, h.Container, other.Container, 1450)
		ping(t, other.Container, h.Container, 1450)
	}
}

// test makes the alteration on the first host and waits until the view is as it was before.
func (a alteration) test(t *testing.T, l *lab.Lab, view string, limit time.Duration) {
	t.Run(a.what, func(t *testing.T) {
		h := l.Nodes[0]
		before, drift := look(t, h, view), repaired(t, h, a.table)
		command := append(append([]string{"env"}, facts(t, l)...), "sh", "-ec", a.command)
		started := time.Now()
		in(t, h.Namespace, command...)
		err := lab.Wait(t.Context(), 2*limit, "it is repaired", func() error { return difference(before, look(t, h, view)) })
		took := time.Since(started)
		if err != nil {
			t.Fatal(err)
		}
		if t.Logf("%-42s %5d ms", a.what, took.Milliseconds()); took > limit {
			t.Errorf("it took %s to repair, more than %s", took, limit)
		}
		eventually(t, time.Second, "it is counted as drift of table "+a.table, func() error {
			if n := repaired(t, h, a.table); n <= drift {
				return fmt.Errorf("%d entries were repaired before, %d now", drift, n)
			}
			return nil
		})
		firstAnswer(t, 2*time.Second, l.Nodes[1], h)
		if err := h.Ready(t.Context()); err != nil {
			t.Errorf("the agent is not ready: %v", err)
		}
	})
}

// facts are the variables for an alteration's command.
func facts(t *testing.T, l *lab.Lab) []string {
	t.Helper()
	own, peer := l.Nodes[0].Container.Subnet, l.Nodes[1].Container.Subnet
	b := peer.Addr().As4()
	id := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	return []string{"PEER=" + peer.String(), "VTEP=" + peer.Addr().String(), "MAC=" + vtepMAC(t, l.Nodes[1]), "DST=" + l.Nodes[1].Address.String(),
		fmt.Sprintf("ID=%d", id), "OWN=" + own.Addr().Next().String() + "/24", "OWNNET=" + own.String(), "INPUT=" + foreignInput, "NAT=" + foreignNAT}
}

// testTaken has somebody else's routes where ours belong. They are not ours to delete: the agent says so, is not ready, and
// puts its own back once they are gone.
func testTaken(t *testing.T, l *lab.Lab, h *lab.Host) {
	before, peer := look(t, h, kernelView), l.Nodes[1].Container.Subnet.String()
	in(t, h.Namespace, "ip", "route", "replace", peer, "via", "192.0.2.1")
	eventually(t, 2*time.Second, "the agent names the route that is in the way", func() error {
		if err := h.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "another route to "+peer) {
			return fmt.Errorf("readyz says: %v", err)
		}
		return nil
	})
	if routes := in(t, h.Namespace, "ip", "route", "show", peer); routes != peer+" via 192.0.2.1 dev eth0" {
		t.Errorf("a route that isn't ours was changed: %s", routes)
	}
	started := time.Now()
	in(t, h.Namespace, "ip", "route", "del", peer)
	eventually(t, 10*time.Second, "our route is back", func() error { return difference(before, look(t, h, kernelView)) })
	t.Logf("%-42s %5d ms", "somebody else's route, once deleted", time.Since(started).Milliseconds())
	eventually(t, 2*time.Second, "the agent is ready", func() error { return h.Ready(t.Context()) })
}

// unchanging makes the agent compare everything and fails if it finds something to change.
func unchanging(t *testing.T, h *lab.Host) {
	t.Helper()
	before := grep(get(t, h, "/metrics"), "tulle_changes_total{")
	passes(t, h)
	if after := grep(get(t, h, "/metrics"), "tulle_changes_total{"); after != before {
		t.Errorf("%s: a second look found something to change: before\n%safter\n%s", h.Name, before, after)
	}
}

// passes makes the agent compare everything with its plan, and waits until it has: the underlay device says twice that something
// about it changed, which is nothing that matters.
func passes(t *testing.T, h *lab.Host) {
	t.Helper()
	for _, length := range []string{"999", "1000"} {
		before := metric(t, h, `tulle_passes_total{scope="everything"}`)
		in(t, h.Namespace, "ip", "link", "set", "eth0", "txqueuelen", length)
		eventually(t, 2*time.Second, h.Name+"'s agent looks at everything", func() error {
			if metric(t, h, `tulle_passes_total{scope="everything"}`) == before {
				return errors.New("it does not")
			}
			return nil
		})
	}
}

// metric is the value of one series; 0 if there is none.
func metric(t *testing.T, h *lab.Host, series string) (value float64) {
	t.Helper()
	for line := range strings.Lines(get(t, h, "/metrics")) {
		if text, ok := strings.CutPrefix(line, series+" "); ok {
			if _, err := fmt.Sscan(text, &value); err != nil {
				t.Fatalf("metric %s: %v", line, err)
			}
		}
	}
	return value
}

// repaired is how many entries of a table the agent says that it has restored.
func repaired(t *testing.T, h *lab.Host, table string) int {
	t.Helper()
	status, err := h.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return status.Repaired[table]
}

// startFlows starts pings between all pairs of containers.
func startFlows(t *testing.T, l *lab.Lab) map[string]*lab.Flow {
	t.Helper()
	flows := map[string]*lab.Flow{}
	for _, from := range l.Nodes {
		for _, to := range l.Nodes {
			if from == to {
				continue
			}
			f, err := lab.StartFlow(from.Container.Namespace, to.Container.Address, unhurried(10*time.Millisecond))
			if err != nil {
				t.Fatal(err)
			}
			flows[from.Name+" to "+to.Name] = f
		}
	}
	return flows
}

// stopFlows ends flows once each has sent on for a while, and fails the test if they lost a packet.
func stopFlows(t *testing.T, flows map[string]*lab.Flow) {
	t.Helper()
	more(t, flows, 30)
	for name, r := range stopAll(t, flows) {
		t.Logf("%s: %d of %d packets lost", name, r.Lost(), r.Sent)
		if r.Lost() > 0 {
			t.Errorf("%s: %d of %d packets lost (%v)", name, r.Lost(), r.Sent, r.Refused)
		}
	}
}

// What somebody may do to the devices. The peers' MAC tables name the tunnel's MAC, so it has to come back as it was.
var deviceAlterations = []alteration{
	{"tunnel down", "ip link set tulle.1 down", "link"},
	{"tunnel renamed", "ip link set tulle.1 name stolen0", "link"},
	{"tunnel deleted", "ip link del tulle.1", "link"},
	{"tunnel's MTU", "ip link set tulle.1 mtu 1300", "link"},
	{"tunnel's MAC", "ip link set tulle.1 address 0a:00:00:00:00:66", "link"},
	{"bridge down", "ip link set docker0 down", "link"},
	{"bridge's MTU", "ip link set docker0 mtu 1300", "link"},
	{"bridge's MAC", "ip link set docker0 address 0a:00:00:00:00:66", "link"},
	{"bridge deleted", "ip link del docker0", "link"},
	{"both deleted", "ip link del docker0 && ip link del tulle.1", "link"},
}

// TestDevices alters the devices. Each comes back whole, with what hangs on it, and no peer has to be told anything.
func TestDevices(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 2})
	h, peer := l.Nodes[0], l.Nodes[1]
	passes(t, h)
	_, written := stored(t, l, key(t, h))
	untouched := grep(get(t, peer, "/metrics"), "tulle_changes_total{")
	for _, a := range deviceAlterations {
		t.Run(a.what, func(t *testing.T) {
			before, drift := devices(t, h), repaired(t, h, a.table)
			started := time.Now()
			in(t, h.Namespace, "sh", "-ec", a.command)
			err := lab.Wait(t.Context(), 2*deviceLimit, "it is repaired", func() error { return difference(before, devices(t, h)) })
			took := time.Since(started)
			if err != nil {
				t.Fatal(err)
			}
			firstAnswer(t, 2*deviceLimit, peer, h)
			if t.Logf("%-42s %5d ms, first ping answered after %d ms", a.what, took.Milliseconds(), time.Since(started).Milliseconds()); took > deviceLimit {
				t.Errorf("it took %s to repair, more than %s", took, deviceLimit)
			}
			if n := repaired(t, h, a.table); n <= drift {
				t.Errorf("%d entries of table %s were repaired before, %d after", drift, a.table, n)
			}
			ping(t, h.Container, peer.Container, 1450)
			ping(t, peer.Container, h.Container, 1450)
		})
	}
	unchanging(t, h)
	if _, now := stored(t, l, key(t, h)); now != written {
		t.Errorf("the lease was written again, at revision %d", now)
	}
	if now := grep(get(t, peer, "/metrics"), "tulle_changes_total{"); now != untouched {
		t.Errorf("the peer had to change something: before\n%safter\n%s", untouched, now)
	}
}

// devices is kernelView with what makes the devices what they are, and with the bridge's ports.
func devices(t *testing.T, h *lab.Host) string {
	t.Helper()
	ports, err := lab.Output(t.Context(), h.Namespace, "ip", "-br", "link", "show", "master", "docker0")
	if err != nil {
		ports = err.Error()
	}
	return device(t, h, "tulle.1") + "\n" + device(t, h, "docker0") + "\nports: " + ports + "\n" + look(t, h, kernelView)
}

// device is a device as `ip -d link` shows it, without what no two devices share.
func device(t *testing.T, h *lab.Host, name string) string {
	t.Helper()
	text, err := lab.Output(t.Context(), h.Namespace, "ip", "-d", "-j", "link", "show", name)
	if err != nil {
		return err.Error()
	}
	var links []struct {
		MTU      int
		Address  string
		Flags    []string
		Alias    string `json:"ifalias"`
		LinkInfo struct {
			Kind string         `json:"info_kind"`
			Data map[string]any `json:"info_data"`
		}
	}
	if err := json.Unmarshal([]byte(text), &links); err != nil || len(links) != 1 {
		t.Fatalf("ip link show %s: %v: %s", name, err, text)
	}
	d := links[0]
	if d.LinkInfo.Kind == "bridge" {
		d.LinkInfo.Data = nil // timers
	}
	return fmt.Sprintf("%s: mtu %d mac %s up %t alias %s %s %v", name, d.MTU, d.Address, slices.Contains(d.Flags, "UP"), d.Alias, d.LinkInfo.Kind, d.LinkInfo.Data)
}

// firstAnswer waits until a container of one host gets an answer from the other's.
func firstAnswer(t *testing.T, limit time.Duration, from, to *lab.Host) {
	t.Helper()
	for _, address := range to.Container.Addresses {
		answersFirst(t, limit, from, to, address)
	}
}

func answersFirst(t *testing.T, limit time.Duration, from, to *lab.Host, address netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	answered := make(chan struct{}, 1)
	tick := time.NewTicker(20 * time.Millisecond) // much shorter than one ping waits for its answer
	defer tick.Stop()
	for {
		go func() {
			if r, err := lab.Ping(ctx, from.Container.Namespace, address, 1, 84); err == nil && r.Answered > 0 {
				select {
				case answered <- struct{}{}:
				default:
				}
			}
		}()
		select {
		case <-answered:
			return
		case <-ctx.Done():
			t.Fatalf("for %s no ping from %s to %s at %s was answered", limit, from.Name, to.Name, address)
		case <-tick.C:
		}
	}
}

// TestRestarts50 kills agents at fifty random moments, many of them while they start, under pings between all containers.
// Not one is lost, and what the agents find when they are left alone is as it should be. Then comes another version.
func TestRestarts50(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	before := map[string]string{}
	for _, h := range l.Nodes {
		before[h.Name] = in(t, h.Namespace, "ip", "-d", "link", "show", "tulle.1")
	}
	flows, young := startFlows(t, l), 0
	for range 50 {
		h := l.Nodes[random.IntN(len(l.Nodes))]
		if h.Ready(t.Context()) != nil {
			young++
		}
		if err := h.Agent.Stop(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		launch(t, l, h)
		<-time.After(time.Duration(random.IntN(1+random.IntN(300))) * time.Millisecond) // oftener a short while than a long one
	}
	if t.Logf("%d of 50 were killed before they were ready", young); young < 5 {
		t.Errorf("too few were killed while they started")
	}
	if err := l.Converge(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := func(t *testing.T, signal unix.Signal, version string) {
		for _, h := range l.Nodes {
			if err := h.Agent.Stop(signal); err != nil {
				t.Fatal(err)
			}
			if err := l.StartAgent(t.Context(), h); err != nil {
				t.Fatal(err)
			}
			if metrics := grep(get(t, h, "/metrics"), "tulle_changes_total{"); metrics != "" {
				t.Errorf("%s: a restarted agent found something to change:\n%s", h.Name, metrics)
			}
			if err := difference(before[h.Name], in(t, h.Namespace, "ip", "-d", "link", "show", "tulle.1")); err != nil {
				t.Errorf("%s: %v", h.Name, err)
			}
			if status, err := h.Status(t.Context()); err != nil || status.Version != version {
				t.Errorf("%s runs version %q, %v; want %q", h.Name, status.Version, err, version)
			}
		}
	}
	status, err := l.Nodes[0].Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again(t, unix.SIGKILL, status.Version)
	l.Binary = build(t, "99.0.0")
	again(t, unix.SIGTERM, "99.0.0")
	if err := l.Converge(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopFlows(t, flows)
}

// build builds another version of tulle and returns its path.
func build(t *testing.T, version string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tulle")
	args := []string{"build", "-o", path, "-ldflags", "-X main.version=" + version}
	if raceEnabled {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "../cmd/tulle")...).CombinedOutput(); err != nil {
		t.Fatalf("build version %s: %v: %s", version, err, out)
	}
	return path
}

// TestStale changes the network while an agent is down. When it is back nothing is left of how things were.
func TestStale(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 3})
	h, gone, stays := l.Nodes[0], l.Nodes[1], l.Nodes[2]
	const oldMAC, newMAC, oldIP, newIP = "0a:00:00:00:01:01", "0a:00:00:00:01:02", "198.51.100.61", "198.51.100.62"
	keys := freeKeys(t, l, 2)
	etcdctl(t, l, "put", subnets+keys[0], lease("198.51.100.60", oldMAC, 1))
	etcdctl(t, l, "put", subnets+keys[1], lease(oldIP, "0a:00:00:00:01:03", 1))
	has := func(text string) error {
		if view := look(t, h, kernelView); !strings.Contains(view, text) {
			return fmt.Errorf("it does not have %s:\n%s", text, view)
		}
		return nil
	}
	eventually(t, 5*time.Second, "the peers are programmed", func() error { return errors.Join(has(oldMAC), has(oldIP)) })
	flow, err := lab.StartFlow(stays.Container.Namespace, h.Container.Address, 10*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	stop(t, h)
	stop(t, gone)
	left, leftMAC := strings.TrimSuffix(key(t, gone), "-24"), vtepMAC(t, gone)
	if _, err := l.Tulle(t.Context(), "", "lease", "release", left+"/24"); err != nil {
		t.Fatal(err)
	}
	etcdctl(t, l, "put", subnets+keys[0], lease("198.51.100.60", newMAC, 1))
	etcdctl(t, l, "put", subnets+keys[1], lease(newIP, "0a:00:00:00:01:03", 1))
	if err := errors.Join(has(left), has(oldMAC), has(oldIP)); err != nil {
		t.Fatalf("without an agent nothing should change: %v", err)
	}
	started := time.Now()
	if err := l.StartAgent(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	t.Logf("ready %d ms after the start", time.Since(started).Milliseconds())
	view := look(t, h, kernelView)
	for _, stale := range []string{left, leftMAC, gone.Address.String(), oldMAC, oldIP} {
		if strings.Contains(view, stale) {
			t.Errorf("%s is stale, and still there:\n%s", stale, view)
		}
	}
	if err := errors.Join(has(newMAC), has(newIP), has(key(t, stays)[:len(key(t, stays))-3])); err != nil {
		t.Error(err)
	}
	stopFlows(t, map[string]*lab.Flow{"past the restart": flow})
}

// freeKeys returns keys of subnets that no host of the lab has.
func freeKeys(t *testing.T, l *lab.Lab, n int) (keys []string) {
	t.Helper()
	taken := map[string]bool{}
	for _, h := range l.Nodes {
		taken[key(t, h)] = true
	}
	for i := 1; len(keys) < n; i += 2 {
		if k := fmt.Sprintf("10.5.%d.0-24", i); !taken[k] {
			keys = append(keys, k)
		}
	}
	return keys
}

// fault is what a file system can have.
type fault struct {
	what, message string
	happen        func(t *testing.T, dir string) (mend func())
}

var faults = []fault{
	{"full", "no space left on device", func(t *testing.T, dir string) func() {
		path := filepath.Join(dir, "filler")
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o644); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("fill %s: %v", dir, err)
		}
		return func() {
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
	}},
	// A mount of the directory over itself: the file system can't be made read-only as long as the agent has its lock open.
	{"read-only", "read-only file system", func(t *testing.T, dir string) func() {
		mount(t, dir, dir, "", unix.MS_BIND, "")
		if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	}},
}

// mount mounts something for as long as the test runs.
func mount(t *testing.T, source, target, kind string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		t.Fatalf("mount on %s: %v", target, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) }) // it may be gone already
}

// TestDisk has file systems that can't be written to. The network works all the same, the agent says what is wrong, and is
// well again by itself when the file system is.
func TestDisk(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 2})
	h := l.Nodes[0]
	state := t.TempDir()
	stop(t, h)
	for _, dir := range []string{h.RunDir, state} {
		mount(t, "tmpfs", dir, "tmpfs", 0, "size=64k")
	}
	l.Agent = []string{"--state-dir", state}
	if err := l.StartAgent(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	flows := startFlows(t, l)
	mtu := 1500
	for _, f := range faults {
		t.Run("run directory "+f.what+" at start", func(t *testing.T) {
			stop(t, h)
			if err := os.Remove(filepath.Join(h.RunDir, "subnet.env")); err != nil {
				t.Fatal(err)
			}
			mend := sync.OnceFunc(f.happen(t, h.RunDir))
			defer mend()
			news := complaints(t, l, h)
			launch(t, l, h)
			f.survive(t, l, h, news, mend)
		})
		t.Run("run directory "+f.what+" later", func(t *testing.T) {
			mend := sync.OnceFunc(f.happen(t, h.RunDir))
			defer mend()
			news := complaints(t, l, h)
			mtu -= 10
			setMTU(t, l, mtu)
			f.survive(t, l, h, news, mend)
			hasMTU(t, filepath.Join(h.RunDir, "subnet.env"), mtu)
		})
		t.Run("state directory "+f.what, func(t *testing.T) {
			mend := sync.OnceFunc(f.happen(t, state))
			defer mend()
			mtu -= 10
			setMTU(t, l, mtu)
			hasMTU(t, filepath.Join(h.RunDir, "subnet.env"), mtu)
			eventually(t, 2*time.Second, "the agent says that the copy can't be written", func() error {
				return logs(t, l, h, `error="`+f.message)
			})
			works(t, l, h)
			if err := h.Ready(t.Context()); err != nil {
				t.Errorf("without the env file's copy the agent is not ready: %v", err)
			}
			mend()
			passes(t, h) // or wait for the resync
			hasMTU(t, filepath.Join(state, "subnet.env"), mtu)
		})
	}
	stopFlows(t, flows)
	for _, dir := range []string{h.RunDir, state} {
		left, err := filepath.Glob(filepath.Join(dir, ".*"))
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %q, %v", left, err)
		}
	}
}

// survive waits until the agent says what is wrong, has the network tried, and waits until the agent has got over it.
func (f fault) survive(t *testing.T, l *lab.Lab, h *lab.Host, news func() int, mend func()) {
	t.Helper()
	eventually(t, 10*time.Second, "the agent says what is wrong", func() error {
		err := h.Ready(t.Context())
		if err == nil || !strings.Contains(err.Error(), "env file "+h.RunDir) || !strings.Contains(err.Error(), f.message) {
			return fmt.Errorf("readyz says: %v", err)
		}
		return logs(t, l, h, f.message)
	})
	works(t, l, h)
	failed := metric(t, h, "tulle_pass_errors_total")
	eventually(t, 10*time.Second, "the agent tries again", func() error {
		if metric(t, h, "tulle_pass_errors_total") == failed {
			return errors.New("it does not")
		}
		return nil
	})
	if n := news(); n != 1 {
		t.Errorf("the agent said %d times that not everything is programmed, want once", n)
	}
	mend()
	eventually(t, 20*time.Second, "the agent is ready again", func() error { return h.Ready(t.Context()) })
	if _, err := h.Env(); err != nil {
		t.Error(err)
	}
}

// complaints counts how often a host's agent says from now on that not everything is programmed.
func complaints(t *testing.T, l *lab.Lab, h *lab.Host) (news func() int) {
	t.Helper()
	count := func() int { return strings.Count(logOf(t, l, h), "not everything is programmed") }
	before := count()
	return func() int { return count() - before }
}

// works fails unless a peer that comes and goes is programmed and forgotten.
func works(t *testing.T, l *lab.Lab, h *lab.Host) {
	t.Helper()
	const path, route = subnets + "10.5.98.0-25", "10.5.98.0/25"
	etcdctl(t, l, "put", path, lease("198.51.100.60", "0a:00:00:00:01:01", 1))
	eventually(t, 2*time.Second, "a peer that joins is programmed", func() error {
		if text := in(t, h.Namespace, "ip", "route"); !strings.Contains(text, route) {
			return fmt.Errorf("no route to %s:\n%s", route, text)
		}
		return nil
	})
	etcdctl(t, l, "del", path)
	eventually(t, 2*time.Second, "a peer that leaves is forgotten", func() error {
		if text := in(t, h.Namespace, "ip", "route"); strings.Contains(text, route) {
			return fmt.Errorf("still a route to %s:\n%s", route, text)
		}
		return nil
	})
}

// setMTU tells the whole network what its underlay's MTU is.
func setMTU(t *testing.T, l *lab.Lab, mtu int) {
	t.Helper()
	setConfig(t, l, fmt.Sprintf(`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":%d}}`, mtu))
}

// hasMTU waits until an env file tells the MTU that an underlay's leaves.
func hasMTU(t *testing.T, path string, underlay int) {
	t.Helper()
	line := fmt.Sprintf("FLANNEL_MTU=%d\n", underlay-50)
	eventually(t, 5*time.Second, path+" has "+strings.TrimSpace(line), func() error {
		text, err := os.ReadFile(path)
		if err == nil && !strings.Contains(string(text), line) {
			err = fmt.Errorf("it has\n%s", text)
		}
		return err
	})
}
