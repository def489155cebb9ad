package l2

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/kernel"
	"github.com/tulle-net/tulle/subnet"
)

// host is a network namespace on the thread that the test runs on, joined to two others that play a peer and a stranger.
type host struct {
	*testing.T
	kernel *kernel.Kernel
	peers  map[string]socket // of their VXLAN devices, by underlay address
}

const (
	peer   = "192.0.2.2"
	nobody = "198.51.100.3"
)

func newHost(t *testing.T) *host {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("TULLE_TEST_ROOT") == "1":
		t.Fatal("TULLE_TEST_ROOT=1, but this is not root")
	default:
		t.Skip("needs root, for a network namespace")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and its namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	h := &host{T: t, peers: map[string]socket{}}
	h.join("eth0", "192.0.2.1", peer)
	h.join("eth1", "198.51.100.1", nobody)
	h.run("ip link add inside type veth peer name port")
	k, err := kernel.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	h.kernel = k
	h.apply(segmentState(t, 1))
	h.run("ip link set port master docker0 up")
	h.run("ip link set inside up")
	for _, port := range []string{"port", "tulle.1"} {
		h.eventually(port+" takes part", func() bool { return strings.Contains(h.run("bridge link show dev %s", port), "state forwarding") })
	}
	return h
}

// join makes a namespace with a VXLAN device that sends to the host, and lays a cable to it.
func (h *host) join(device, own, address string) {
	h.Helper()
	far := fmt.Sprintf("tulle-l2-test-%d-%s", os.Getpid(), device)
	h.run("ip netns add %s", far)
	h.Cleanup(func() { h.run("ip netns del %s", far) })
	h.run("ip link add %s type veth peer name eth0 netns %s", device, far)
	h.run("ip addr add %s/24 dev %s", own, device)
	h.run("ip link set %s up", device)
	h.run("ip -n %s addr add %s/24 dev eth0", far, address)
	h.run("ip -n %s link set eth0 up", far)
	h.run("ip -n %s link add vxlan1 type vxlan id 1 local %s remote %s dstport 8472 udpcsum", far, address, own)
	h.run("ip -n %s link set vxlan1 addrgenmode none", far) // it says nothing by itself
	h.run("ip -n %s link set vxlan1 up", far)
	h.peers[address] = h.peerSocket(far)
}

// segmentState is what a host wants that has so many peers.
func segmentState(t *testing.T, peers int) backend.State {
	t.Helper()
	config, _, err := subnet.ParseConfig([]byte(`{"Network":"10.5.0.0/16","Backend":{"Type":"l2"}}`))
	if err != nil {
		t.Fatal(err)
	}
	b, err := backend.New(config)
	if err != nil {
		t.Fatal(err)
	}
	lease := func(n int, data string) subnet.Lease {
		return subnet.Lease{Subnet: subnet.PairOf(subnet.IPv4, netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/24", n))),
			PublicIP: subnet.PairOf(subnet.IPv4, netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", n))), Backend: "l2", Data: subnet.PairOf(subnet.IPv4, data)}
	}
	self := lease(1, `{"VNI":1}`)
	entries := map[string]subnet.Entry{}
	for n := range peers {
		l := lease(n+2, `{"VNI":1}`)
		entries[l.Key()] = subnet.Entry{Lease: l, Created: int64(n + 1)}
	}
	plan, err := backend.NewPlan(b, backend.Host{Config: config, Self: self, Options: backend.Options{Bridge: "docker0"},
		Underlay: backend.Underlay{Device: "eth0", MTU: 1500, Local: self.PublicIP, Public: self.PublicIP}}, entries)
	if err != nil || len(plan.Rejected()) > 0 {
		t.Fatal(err, plan.Rejected())
	}
	return plan.State()
}

func (h *host) run(format string, args ...any) string {
	h.Helper()
	words := strings.Fields(fmt.Sprintf(format, args...))
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		h.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
	}
	return string(out)
}

// peerSocket opens a socket on the VXLAN device of a namespace.
func (h *host) peerSocket(namespace string) (s socket) {
	h.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromName(namespace)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		var link *net.Interface
		if err == nil {
			link, err = net.InterfaceByName("vxlan1")
		}
		if err == nil {
			s, err = openSocket(link.Index, true)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { s.Close() })
	return s
}

func (h *host) apply(want backend.State) {
	h.Helper()
	if _, err := h.kernel.Apply(h.Context(), want); err != nil {
		h.Fatal(err)
	}
}

// start runs a Carrier until the test ends, or stop is called.
func (h *host) start(want backend.State) (c *Carrier, stop func()) {
	h.Helper()
	c, err := New()
	if err != nil {
		h.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	ended := false
	stop = func() {
		if cancel(); !ended {
			ended = true
			if err := <-done; err != nil {
				h.Error(err)
			}
			c.Close()
		}
	}
	h.Cleanup(stop)
	h.carry(c, want)
	return c, stop
}

func (h *host) carry(c *Carrier, want backend.State) {
	h.Helper()
	if changes, err := c.Apply(h.Context(), want); err != nil || len(changes.Count()) > 0 {
		h.Fatalf("Apply: %v, %v", changes.Count(), err)
	}
}

// says has somebody on the underlay send a for a container of its.
func (h *host) says(who string, a arp) {
	h.Helper()
	if _, err := h.peers[who].Write(a.frame(a.mac, broadcast)); err != nil {
		h.Fatal(err)
	}
}

func (h *host) eventually(what string, condition func() bool) {
	h.Helper()
	for deadline := time.Now().Add(5 * time.Second); !condition(); {
		if time.Now().After(deadline) {
			h.Fatalf("waited in vain: %s\n%s", what, h.neighbours())
		}
	}
}

func (h *host) neighbours() string {
	h.Helper()
	return h.run("ip -N neigh show dev docker0")
}

func (h *host) has(ip netip.Addr, mac backend.MAC) bool {
	return strings.Contains(h.neighbours(), fmt.Sprintf("%s lladdr %s extern_learn", ip, mac))
}

func TestLearns(t *testing.T) {
	h := newHost(t)
	h.start(segmentState(t, 1))
	for _, ip := range []string{"10.5.1.7", "10.6.0.1", "127.0.0.1"} { // in our own slice, outside the network
		h.says(peer, announcement(netip.MustParseAddr(ip), macA))
	}
	h.says(nobody, announcement(netip.MustParseAddr("10.5.2.66"), macB))
	h.says(peer, arp{operation: reply, mac: macA, ip: ipA, target: ipB})
	h.eventually("it has learned", func() bool { return h.has(ipA, macA) })
	if fdb := h.run("bridge fdb show dev tulle.1"); !strings.Contains(fdb, "dst "+nobody) {
		t.Errorf("the stranger was not heard at all:\n%s", fdb)
	}
	if all := h.neighbours(); strings.Count(all, "\n") != 1 || !strings.Contains(all, "proto 84") {
		t.Errorf("it has learned\n%s", all)
	}
	h.says(peer, announcement(ipA, backend.MAC{2, 0, 0, 0, 0, 0xc}))
	h.eventually("it has learned another MAC", func() bool { return h.has(ipA, backend.MAC{2, 0, 0, 0, 0, 0xc}) })
}

// A container is answered for one that is there, and the one is asked whether it is.
func TestVerifies(t *testing.T) {
	h := newHost(t)
	h.start(segmentState(t, 1))
	h.says(peer, announcement(ipA, macA))
	h.eventually("it has learned", func() bool { return h.has(ipA, macA) })
	asked := make(chan arp, 100)
	go h.peers[peer].listen(func(a arp) { asked <- a })
	h.run("ip addr add 10.5.1.2/16 dev inside")
	h.run("busybox arping -c1 -w1 -I inside %s", ipA) // the bridge answers
	gateway := netip.MustParseAddr("10.5.1.1")
	for _, what := range []string{"the probe", "the question to all, once it is not answered"} {
		select {
		case a := <-asked:
			if a.operation != request || a.ip != gateway || a.target != ipA {
				t.Errorf("%s is %+v", what, a)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s did not come", what)
		}
	}
	h.eventually("it has forgotten who did not answer", func() bool { return !strings.Contains(h.neighbours(), ipA.String()+" ") })
	told := make(chan arp, 100)
	index, err := net.InterfaceByName("inside")
	if err != nil {
		t.Fatal(err)
	}
	inside, err := openSocket(index.Index, true)
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	go inside.listen(func(a arp) { told <- a })
	h.peers[peer].Write(arp{operation: reply, mac: macB, ip: ipA, target: gateway}.frame(macB, backend.MAC(h.mac("docker0"))))
	select {
	case a := <-told:
		if !a.gratuitous() || a.ip != ipA || a.mac != macB {
			t.Errorf("containers are told %+v", a)
		}
	case <-time.After(5 * time.Second):
		t.Error("containers are not told who has the address now")
	}
	if !h.has(ipA, macB) {
		t.Errorf("it has\n%s", h.neighbours())
	}
}

func (h *host) mac(device string) net.HardwareAddr {
	h.Helper()
	l, err := net.InterfaceByName(device)
	if err != nil {
		h.Fatal(err)
	}
	return l.HardwareAddr
}

// A restarted agent goes on with what it knew, an agent of another network sweeps it, and what others made stays.
func TestOutlivesTheAgent(t *testing.T) {
	h := newHost(t)
	want := segmentState(t, 1)
	_, stop := h.start(want)
	h.run("ip neigh add 10.5.2.77 lladdr 02:00:00:00:00:77 dev docker0 nud permanent")
	h.says(peer, announcement(ipA, macA))
	h.eventually("it has learned", func() bool { return h.has(ipA, macA) })
	stop()
	if !h.has(ipA, macA) {
		t.Errorf("without an agent there is\n%s", h.neighbours())
	}
	c, _ := h.start(want)
	if c.segment.table.find(ipA) == nil || c.segment.table.find(netip.MustParseAddr("10.5.2.77")) != nil {
		t.Errorf("it knows %v", c.segment.table.entries)
	}
	h.carry(c, backend.NewState())
	if all := h.neighbours(); strings.Contains(all, ipA.String()) || !strings.Contains(all, "10.5.2.77") {
		t.Errorf("a network that is not one segment has\n%s", all)
	}
}

// What was behind a peer that left goes with it, whether the agent sees it leave or not.
func TestPeersLeave(t *testing.T) {
	h := newHost(t)
	want, alone := segmentState(t, 1), segmentState(t, 0)
	c, stop := h.start(want)
	learn := func() {
		t.Helper()
		h.says(peer, announcement(ipA, macA))
		h.eventually("it has learned", func() bool { return h.has(ipA, macA) })
	}
	gone := func(what string) {
		t.Helper()
		if all, fdb := h.neighbours(), h.run("bridge fdb show dev tulle.1"); strings.Contains(all, ipA.String()) || strings.Contains(fdb, "dst "+peer+" self \n") {
			t.Errorf("%s: it still has\n%s%s", what, all, fdb)
		}
	}
	learn()
	leave := backend.Diff(want, alone)
	if err := c.Change(t.Context(), leave); err != nil {
		t.Fatal(err)
	}
	gone("seen")
	if err := c.Change(t.Context(), backend.Diff(alone, want)); err != nil {
		t.Fatal(err)
	}
	learn()
	stop()
	h.apply(alone)
	h.start(alone)
	gone("not seen")
}

// The port is deleted and made anew, and learned from again.
func TestDeviceGone(t *testing.T) {
	h := newHost(t)
	want := segmentState(t, 1)
	c, _ := h.start(want)
	h.run("ip link del tulle.1")
	select {
	case <-c.Doorbell():
	case <-time.After(5 * time.Second):
		t.Fatal("the doorbell was silent")
	}
	h.carry(c, want) // without the device there is nothing to do
	h.apply(want)
	h.carry(c, want)
	h.says(peer, announcement(ipA, macA))
	h.eventually("it has learned", func() bool { return h.has(ipA, macA) })
	h.run("ip link set docker0 down")
	h.run("ip link set docker0 up")
	<-c.Doorbell()
	h.carry(c, want)
	h.says(peer, announcement(ipA, macB))
	h.eventually("it has learned again", func() bool { return h.has(ipA, macB) })
}
