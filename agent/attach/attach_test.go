package attach

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/e2e/netnstest"
)

// host is a network namespace of a test's own with a bridge, on the thread that the test runs on.
type host struct {
	*testing.T
	ns  netns.NsHandle
	dir string
}

func newHost(t *testing.T) *host {
	t.Helper()
	netnstest.Enter(t)
	ns, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	h := &host{t, ns, t.TempDir()}
	h.run("ip link add docker0 mtu 1450 type bridge")
	h.run("ip addr add 10.5.1.1/24 dev docker0")
	h.run("ip link set docker0 up")
	return h
}

func (h *host) run(format string, args ...any) string {
	h.Helper()
	return netnstest.Run(h, format, args...)
}

// container makes a named network namespace that goes away with the test.
func (h *host) container(name string) string {
	h.Helper()
	name = fmt.Sprintf("tulle-attach-test-%d-%s", os.Getpid(), name)
	h.run("ip netns add %s", name)
	h.Cleanup(func() { h.run("ip netns del %s", name) })
	return name
}

func (h *host) open(name string) Target {
	h.Helper()
	target, err := Open(name, "/run/netns/"+name)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(target.Close)
	return target
}

func (h *host) request() Request {
	return Request{Bridge: "docker0", Gateway: netip.MustParsePrefix("10.5.1.1/24"), Network: netip.MustParsePrefix("10.5.0.0/16"), MTU: 1450,
		Range: netip.MustParsePrefix("10.5.1.128/25"), Name: "tulle0", RunDir: h.dir}
}

func (h *host) attach(target Target, r Request, want string) {
	h.Helper()
	if got, err := Attach(target, r); err != nil || got.String() != want {
		h.Fatalf("attach: %s, %v; want %s", got, err, want)
	}
}

// refuses checks that an attach fails with a line that has words in it, and leaves nothing behind.
func (h *host) refuses(target Target, r Request, words string) {
	h.Helper()
	before := h.links()
	_, err := Attach(target, r)
	if err == nil || !strings.Contains(err.Error(), words) || strings.Contains(err.Error(), "\n") {
		h.Errorf("attach: %v; want one line with %q", err, words)
	}
	if after := h.links(); after != before {
		h.Errorf("a refused attach changed the host's links from %q to %q", before, after)
	}
}

// links is the names of the host's links.
func (h *host) links() (names string) {
	h.Helper()
	for line := range strings.Lines(h.run("ip -o link")) {
		names += strings.Fields(line)[1]
	}
	return names
}

// ports lists the ends on the host.
func (h *host) ports() int {
	h.Helper()
	return strings.Count(h.run("ip -o link show master docker0"), "\n")
}

func TestAttach(t *testing.T) {
	h := newHost(t)
	name := h.container("c")
	target := h.open(name)
	h.attach(target, h.request(), "10.5.1.128/24")
	link := h.run("ip -n %s link show tulle0", name)
	if !strings.Contains(link, "mtu 1450") || !strings.Contains(link, "LOWER_UP") || !strings.Contains(link, "02:42:0a:05:01:80") {
		t.Errorf("the interface is\n%s", link)
	}
	routes := h.run("ip -n %s route", name)
	for _, want := range []string{"default via 10.5.1.1 dev tulle0 src 10.5.1.128", "10.5.0.0/16 via 10.5.1.1 dev tulle0 src 10.5.1.128"} {
		if !strings.Contains(routes, want) {
			t.Errorf("no route %q:\n%s", want, routes)
		}
	}
	port := h.run("ip link show %s", target.device())
	if !strings.Contains(port, "master docker0") || !strings.Contains(port, "alias tulle attach 10.5.1.128 "+name) || !strings.Contains(port, "mtu 1450") {
		t.Errorf("the host's end is\n%s", port)
	}
	h.run("ip netns exec %s busybox ping -c1 -w5 10.5.1.1", name)

	h.refuses(target, h.request(), "attached already, with 10.5.1.128")
	a, err := Detach(target)
	if err != nil || a.Address.String() != "10.5.1.128" || a.ID != name {
		t.Errorf("detach: %+v, %v", a, err)
	}
	if _, err := Detach(target); err == nil || !strings.Contains(err.Error(), "nothing to detach") {
		t.Errorf("detach of nothing: %v", err)
	}
	if h.ports() != 0 || strings.Contains(h.run("ip -n %s link", name), "tulle0") {
		t.Error("detach left something behind")
	}
	h.attach(target, h.request(), "10.5.1.128/24")
}

// TestAttachOneSegment has a network that is one segment: the address says what is reached, and other hosts' containers are neighbours.
func TestAttachOneSegment(t *testing.T) {
	h := newHost(t)
	name := h.container("c")
	h.run("ip addr del 10.5.1.1/24 dev docker0")
	h.run("ip addr add 10.5.1.1/16 dev docker0")
	r := h.request()
	r.Gateway = netip.MustParsePrefix("10.5.1.1/16")
	h.attach(h.open(name), r, "10.5.1.128/16")
	routes := h.run("ip -n %s route", name)
	if strings.Count(routes, "\n") != 2 || !strings.Contains(routes, "default via 10.5.1.1 dev tulle0 src 10.5.1.128") || !strings.Contains(routes, "10.5.0.0/16 dev tulle0 proto kernel") {
		t.Errorf("the routes are\n%s", routes)
	}
}

// TestDefaultRoute has a container with a network of its own: its default route stays, or is covered until the detach.
func TestDefaultRoute(t *testing.T) {
	h := newHost(t)
	name := h.container("c")
	h.run("ip -n %s link add eth0 type veth peer eth9", name)
	h.run("ip -n %s addr add 172.28.0.2/16 dev eth0", name)
	h.run("ip -n %s link set eth9 up", name)
	h.run("ip -n %s link set eth0 up", name)
	h.run("ip -n %s route add default via 172.28.0.1", name)
	before := h.run("ip -n %s route", name)
	for forced, want := range map[bool]string{false: "via 172.28.0.1 dev eth0", true: "via 10.5.1.1 dev tulle0"} {
		target, r := h.open(name), h.request()
		r.DefaultRoute = forced
		h.attach(target, r, "10.5.1.128/24")
		for _, outside := range []string{"198.51.100.1", "1.1.1.1"} {
			if got := h.run("ip -n %s route get %s", name, outside); !strings.Contains(got, want) {
				t.Errorf("default route forced %t: %s, want %s", forced, got, want)
			}
		}
		if got := h.run("ip -n %s route get 10.5.9.9", name); !strings.Contains(got, "via 10.5.1.1 dev tulle0 src 10.5.1.128") {
			t.Errorf("the overlay: %s", got)
		}
		if _, err := Detach(target); err != nil {
			t.Error(err)
		}
		if after := h.run("ip -n %s route", name); after != before {
			t.Errorf("detach leaves the routes\n%snot\n%s", after, before)
		}
	}
}

func TestRefused(t *testing.T) {
	h := newHost(t)
	name := h.container("c")
	target := h.open(name)
	change := func(f func(*Request)) Request {
		r := h.request()
		f(&r)
		return r
	}
	h.run("ip link add other type veth peer name wire")
	h.refuses(target, change(func(r *Request) { r.Bridge = "nosuch" }), "--bridge")
	h.refuses(target, change(func(r *Request) { r.Bridge = "other" }), "is a veth, not a bridge")
	h.refuses(target, change(func(r *Request) { r.Gateway = netip.MustParsePrefix("10.5.2.1/24") }), "restart Docker")
	h.refuses(target, change(func(r *Request) { r.Name = "lo" }), "--ifname")
	h.refuses(target, change(func(r *Request) { r.Name = "a/b" }), "--ifname")
	h.refuses(target, change(func(r *Request) { r.Name = "0123456789abcdef" }), "at most 15")
	h.refuses(target, change(func(r *Request) { r.Wish = netip.MustParseAddr("10.5.1.9") }), "is not among")
	h.refuses(target, change(func(r *Request) { r.RunDir += "/nosuch" }), "run directory")
	h.refuses(target, change(func(r *Request) { // it fails when the interface is there already
		r.Network = netip.MustParsePrefix("10.5.0.1/16")
	}), "10.5.0.1/16")
	h.run("ip -n %s link add eth0 type veth peer eth9", name)
	h.run("ip -n %s addr add 10.5.1.2/24 dev eth0", name)
	h.refuses(target, h.request(), "on the overlay already: it has 10.5.1.2/24")
	own := fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
	for path, words := range map[string]string{"/run/netns/nosuch": "no network namespace", "/proc/self/ns/mnt": "is not a network namespace", "/etc/passwd": "is not a network namespace", own: "host's own network"} {
		if _, err := Open("it", path); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("open %s: %v; want %q", path, err, words)
		}
	}
}

// TestFull attaches as many as there are addresses, all at once: none may have another's.
func TestFull(t *testing.T) {
	h := newHost(t)
	r := h.request()
	r.Range = netip.MustParsePrefix("10.5.1.248/29")
	r.Taken = []netip.Addr{netip.MustParseAddr("10.5.1.250")}
	var mu sync.Mutex
	var tasks sync.WaitGroup
	has, failures := map[netip.Addr]bool{}, []string{}
	for i := range 8 {
		target := h.open(h.container(fmt.Sprint(i)))
		tasks.Go(func() {
			runtime.LockOSThread() // never unlocked: it is in the wrong namespace for anybody else
			if err := netns.Set(h.ns); err != nil {
				t.Error(err)
			}
			p, err := Attach(target, r)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failures = append(failures, err.Error())
			} else {
				has[p.Addr()] = true
			}
		})
	}
	tasks.Wait()
	if len(has) != 6 || has[r.Taken[0]] || len(failures) != 2 || !strings.Contains(failures[0], "all addresses of 10.5.1.248/29 are taken") {
		t.Errorf("attached %v, failed %q", has, failures)
	}
	if h.ports() != 6 {
		t.Errorf("%d ports, want 6", h.ports())
	}
}

// TestKilled has an attach that was killed before it marked its interface: the next one takes it over.
func TestKilled(t *testing.T) {
	h := newHost(t)
	name := h.container("c")
	target := h.open(name)
	h.run("ip link add %s type veth peer tulle9 netns %s", target.device(), name)
	h.attach(target, h.request(), "10.5.1.128/24")
	if h.ports() != 1 {
		t.Errorf("%d ports, want 1", h.ports())
	}
}

// TestGone has a container that ended while something else keeps its namespace.
func TestGone(t *testing.T) {
	h := newHost(t)
	target := h.open(h.container("c"))
	target.ID = strings.Repeat("0123456789abcdef", 4)
	h.attach(target, h.request(), "10.5.1.128/24")
	if _, err := Detach(Gone("another")); err == nil || !strings.Contains(err.Error(), "does not run") {
		t.Errorf("detach of one that does not run: %v", err)
	}
	if a, err := Detach(Gone(target.ID)); err != nil || a.ID != target.ID {
		t.Errorf("detach: %+v, %v", a, err)
	}
	if h.ports() != 0 {
		t.Error("the port is still there")
	}
}

func TestAlias(t *testing.T) {
	target := Target{ID: strings.Repeat("long", 100), inode: 4026532345}
	alias := target.alias(netip.MustParseAddr("fd00:1111:2222:3333:4444:5555:6666:7777"))
	if len(alias) > 255 || !strings.HasPrefix(alias, backend.AttachAlias) {
		t.Errorf("alias %q", alias)
	}
	if name := target.device(); name != "tulle-af00001f9" {
		t.Errorf("name %q", name)
	}
}
