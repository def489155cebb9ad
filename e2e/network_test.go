package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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
			testSuite(t, newLab(t, lab.Options{Hosts: 3, Etcd: etcd}), ways[0])
		})
	}
}

// testSuite is what every network of three hosts must do, whatever carries its packets.
func testSuite(t *testing.T, l *lab.Lab, w way) {
	w.meet(t, l.Nodes...)
	t.Run("all pairs", func(t *testing.T) { testAllPairs(t, l) })
	t.Run("MTU", func(t *testing.T) { testMTU(t, l, w) })
	t.Run("outside", func(t *testing.T) { testOutside(t, l) })
	t.Run("join", func(t *testing.T) { testJoin(t, l, w) })
	t.Run("restarts", func(t *testing.T) { testRestarts(t, l, w) })
	t.Run("leave", func(t *testing.T) { testLeave(t, l, w) })
}

// testAllPairs pings and transfers between all pairs of containers. The far side must see the container's own address.
func testAllPairs(t *testing.T, l *lab.Lab) {
	size := int64(32 << 20)
	if virtual {
		size = 1 << 20
	}
	for _, from := range l.Nodes {
		for _, to := range l.Nodes {
			if from == to {
				continue
			}
			ping(t, from.Container, to.Container, 84)
			for _, address := range to.Container.Addresses {
				r, err := lab.Transfer(t.Context(), from.Container.Namespace, to.Container.Namespace, address, size)
				if err != nil {
					t.Fatal(err)
				}
				if !r.Correct {
					t.Errorf("%s to %s: what arrived is not what was sent", from.Name, to.Name)
				}
				if own := from.Container.Like(address); r.Source != own {
					t.Errorf("%s saw %s, not %s's own address %s", to.Container.Name, r.Source, from.Container.Name, own)
				}
			}
		}
	}
}

// testMTU sends packets that may not be fragmented: one that fills the overlay's MTU arrives, a longer one is refused, by the
// container itself and, if the container believes in a larger MTU, by its host. Between containers on one segment there is no
// host in between that could.
func testMTU(t *testing.T, l *lab.Lab, w way) {
	from, to := l.Nodes[0].Container, l.Nodes[1].Container
	if from.MTU != w.mtu {
		t.Errorf("the MTU for containers is %d, want %d", from.MTU, w.mtu)
	}
	tooLong := func(what string) {
		t.Helper()
		for _, address := range to.Addresses {
			r, err := lab.Ping(t.Context(), from.Namespace, address, 2, w.mtu+1)
			if err != nil {
				t.Fatal(err)
			}
			if r.Answered > 0 || !errors.Is(r.Refused, unix.EMSGSIZE) {
				t.Errorf("%s to %s: of %d packets of %d bytes %d were answered, error %v; want EMSGSIZE", what, address, r.Sent, w.mtu+1, r.Answered, r.Refused)
			}
		}
	}
	ping(t, from, to, w.mtu)
	tooLong("a container with the right MTU")
	if w.segment {
		return
	}
	believe := func(mtu int) {
		in(t, from.Namespace, "ip", "link", "set", "eth0", "mtu", fmt.Sprint(mtu))
		in(t, l.Nodes[0].Namespace, "ip", "link", "set", from.Name, "mtu", fmt.Sprint(mtu))
	}
	believe(w.mtu + 50)
	defer believe(w.mtu)
	ping(t, from, to, w.mtu)
	tooLong("a container with a larger MTU")
}

// testOutside connects to an address outside the network: it must see the host, not the container.
func testOutside(t *testing.T, l *lab.Lab) {
	for _, h := range l.Nodes {
		for i, outside := range l.Outsides() {
			if !h.Container.Like(outside).IsValid() {
				continue
			}
			r, err := lab.Transfer(t.Context(), h.Container.Namespace, l.Underlay(), outside, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			if r.Source != h.Addresses[i] {
				t.Errorf("outside saw %s, want %s's address %s", r.Source, h.Name, h.Addresses[i])
			}
		}
	}
}

// testJoin joins a fourth host.
func testJoin(t *testing.T, l *lab.Lab, w way) {
	h, err := l.AddHost(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.finish(t, l)
	w.meet(t, l.Nodes...)
	for _, other := range l.Nodes[:3] {
		ping(t, other.Container, h.Container, 84)
		ping(t, h.Container, other.Container, w.mtu)
	}
}

// testRestarts stops and starts the agents, one after another and each in several ways, under running pings between all of
// their containers. Not one may be lost, and an agent finds all as it left it.
func testRestarts(t *testing.T, l *lab.Lab, w way) {
	if w.process {
		testOutages(t, l)
		return
	}
	hosts := l.Nodes
	if virtual { // where a start takes seconds
		hosts = hosts[:2]
	}
	flows := ringFlows(t, l)
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		for _, h := range hosts {
			before := w.devices(t, h)
			restart(t, l, h, signal)
			testUnchanged(t, h, before, w.devices(t, h))
		}
	}
	stopFlows(t, flows)
}

func restart(t *testing.T, l *lab.Lab, h *lab.Host, signal unix.Signal) {
	t.Helper()
	if err := h.Agent.Stop(signal); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(t.Context(), h); err != nil {
		t.Fatal(err)
	}
}

// testOutages is testRestarts where packets go through the agent itself. They must come back. It returns for how long they did not, for
// each restart, the shortest first.
func testOutages(t *testing.T, l *lab.Lab) (outages []time.Duration) {
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		for i, h := range l.Nodes[:2] {
			flows, next := ringFlows(t, l), l.Nodes[(i+1)%len(l.Nodes)]
			restart(t, l, h, signal)
			firstAnswer(t, 10*time.Second, h, next)
			firstAnswer(t, 10*time.Second, next, h)
			var outage time.Duration
			for _, r := range stopAll(t, flows) {
				outage = max(outage, time.Duration(r.Lost())*unhurried(flowInterval))
			}
			outages = append(outages, outage)
		}
	}
	slices.Sort(outages)
	t.Logf("restarts cost %v", outages)
	return outages
}

// outageLimit is what a restart may cost where packets go through the agent itself. The race detector takes its time when a program
// starts.
func outageLimit() time.Duration {
	if raceEnabled {
		return 3 * time.Second
	}
	return time.Second
}

// TestOutage measures what a restart costs where packets go through the agent itself, with no other test beside. Half of them may take
// longer, for others' sake.
func TestOutage(t *testing.T) {
	for _, w := range ways {
		if w = w.here(t); !w.process { // TestBackends sees that it costs nothing
			continue
		}
		t.Run(w.name, func(t *testing.T) {
			outages := testOutages(t, newLab(t, lab.Options{Hosts: 2, Config: w.config()}))
			if median := outages[len(outages)/2-1]; median > outageLimit() {
				t.Errorf("a restart costs %v, more than %v", median, outageLimit())
			}
		})
	}
}

// more waits until every flow has sent so many packets more.
func more(t *testing.T, flows map[string]*lab.Flow, n int) {
	t.Helper()
	before := map[string]int{}
	for name, f := range flows {
		before[name] = f.Sent()
	}
	for name, f := range flows {
		eventually(t, 30*time.Second, name+" goes on", func() error {
			if sent := f.Sent() - before[name]; sent < n {
				return fmt.Errorf("%d of %d packets", sent, n)
			}
			return nil
		})
	}
}

// stopAll ends flows, and waits for what is still to be answered of all of them together.
func stopAll(t *testing.T, flows map[string]*lab.Flow) map[string]lab.Result {
	t.Helper()
	var mu sync.Mutex
	var stops sync.WaitGroup
	results := map[string]lab.Result{}
	for name, f := range flows {
		stops.Go(func() {
			r := f.Stop(t.Context())
			mu.Lock()
			defer mu.Unlock()
			results[name] = r
		})
	}
	stops.Wait()
	return results
}

// flowInterval is how often ringFlows ping.
const flowInterval = 5 * time.Millisecond

// ringFlows starts pings from each container to the next.
func ringFlows(t *testing.T, l *lab.Lab) map[string]*lab.Flow {
	t.Helper()
	flows := map[string]*lab.Flow{}
	for i, from := range l.Nodes {
		to := l.Nodes[(i+1)%len(l.Nodes)]
		for _, address := range to.Container.Addresses {
			f, err := lab.StartFlow(from.Container.Namespace, address, unhurried(flowInterval))
			if err != nil {
				t.Fatal(err)
			}
			flows[fmt.Sprintf("%s to %s at %s", from.Name, to.Name, address)] = f
		}
	}
	return flows
}

// testUnchanged fails if a restarted agent had anything to do.
func testUnchanged(t *testing.T, h *lab.Host, before, after string) {
	t.Helper()
	if after != before {
		t.Errorf("%s: a restart changed the device:\n%s\n%s", h.Name, before, after)
	}
	if metrics := get(t, h, "/metrics"); strings.Contains(metrics, "tulle_changes_total{") {
		t.Errorf("%s: a restarted agent found something to change:\n%s", h.Name, grep(metrics, "tulle_changes_total"))
	}
}

// testLeave takes the fourth host out for good: no other host may keep anything of it.
func testLeave(t *testing.T, l *lab.Lab, w way) {
	h := l.Nodes[3]
	subnet, all := h.Container.Subnet.String(), strings.Trim(fmt.Sprint(h.Container.Subnets), "[]")
	if !w.process { // until it is released it may come back
		stop(t, h)
		ping(t, l.Nodes[0].Container, h.Container, 84)
	}
	stop(t, h)
	out, err := l.Tulle(t.Context(), "", "lease", "release", subnet)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, all+" is released") {
		t.Errorf("lease release says %q", out)
	}
	for _, other := range l.Nodes[:3] {
		eventually(t, 5*time.Second, other.Name+" has forgotten "+h.Name, func() error { return w.forgotten(t, other, h) })
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
