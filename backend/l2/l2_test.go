package l2

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/kernel"
	"github.com/tulle-net/tulle/e2e/netnstest"
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
	netnstest.Enter(t)
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
	config, _, err := subnet.ParseConfig([]byte(`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12:3456::/48","Backend":{"Type":"l2"}}`))
	if err != nil {
		t.Fatal(err)
	}
	b, err := backend.New(config)
	if err != nil {
		t.Fatal(err)
	}
	lease := func(n int, data string) subnet.Lease {
		return subnet.Lease{Subnet: subnet.Pair[netip.Prefix]{V4: netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/24", n)), V6: netip.MustParsePrefix(fmt.Sprintf("fd12:3456:0:%x::/64", n))},
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
	return netnstest.Run(h, format, args...)
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
			s, err = openSocket(link.Index)
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

// says has somebody on the underlay send m for a container of its.
func (h *host) says(who string, m message) {
	h.Helper()
	if _, err := h.peers[who].Write(m.frame(m.mac, broadcast)); err != nil {
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

// talk is who talks to whom in one family.
type talk struct {
	far, near, gateway netip.Addr // a peer's container, one of ours, our bridge
	strange            []string   // what nobody may say of itself from afar: addresses of our slice, and outside the network
}

// talks are those of both families, by name.
func talks() map[string]talk {
	return map[string]talk{
		"IPv4": {ipA, ipB, netip.MustParseAddr("10.5.1.1"), []string{"10.5.1.7", "10.6.0.1", "127.0.0.1"}},
		"IPv6": {ip6A, ip6B, netip.MustParseAddr("fd12:3456:0:1::1"), []string{"fd12:3456:0:1::7", "fd12:3457::1", "::1", "fe80::1"}},
	}
}

func TestLearns(t *testing.T) {
	for name, talk := range talks() {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.start(segmentState(t, 1))
			for _, ip := range talk.strange {
				h.says(peer, announcement(netip.MustParseAddr(ip), macA))
			}
			h.says(nobody, announcement(talk.far.Next(), macB))
			h.says(peer, message{asks: true, mac: macA, ip: talk.far, target: talk.near})
			h.eventually("it has learned", func() bool { return h.has(talk.far, macA) })
			if fdb := h.run("bridge fdb show dev tulle.1"); !strings.Contains(fdb, "dst "+nobody) {
				t.Errorf("the stranger was not heard at all:\n%s", fdb)
			}
			if all := h.neighbours(); strings.Count(all, "\n") != 1 || !strings.Contains(all, "proto 84") {
				t.Errorf("it has learned\n%s", all)
			}
			h.says(peer, announcement(talk.far, backend.MAC{2, 0, 0, 0, 0, 0xc}))
			h.eventually("it has learned another MAC", func() bool { return h.has(talk.far, backend.MAC{2, 0, 0, 0, 0, 0xc}) })
		})
	}
}

// A container is answered for one that is there, and the one is asked whether it is.
func TestVerifies(t *testing.T) {
	for name, talk := range talks() {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.start(segmentState(t, 1))
			h.says(peer, announcement(talk.far, macA))
			h.eventually("it has learned", func() bool { return h.has(talk.far, macA) })
			asked := hears(h.peers[peer])
			inside, own := h.container()
			told := hears(inside)
			inside.relay(message{asks: true, mac: own, ip: talk.near, target: talk.far})
			if m := h.next(told, "the bridge's answer"); m.asks || m.ip != talk.far || m.mac != macA {
				t.Errorf("the answer is %+v", m)
			}
			for _, what := range []string{"the probe", "the question to all, once it is not answered"} {
				if m := h.next(asked, what); !m.asks || m.ip != talk.gateway || m.target != talk.far {
					t.Errorf("%s is %+v", what, m)
				}
			}
			h.eventually("it has forgotten who did not answer", func() bool { return !strings.Contains(h.neighbours(), talk.far.String()+" ") })
			h.peers[peer].Write(message{mac: macB, ip: talk.far, target: talk.gateway}.frame(macB, backend.MAC(h.mac("docker0"))))
			if m := h.next(told, "word to containers of who has the address now"); !m.gratuitous() || m.ip != talk.far || m.mac != macB {
				t.Errorf("containers are told %+v", m)
			}
			if !h.has(talk.far, macB) {
				t.Errorf("it has\n%s", h.neighbours())
			}
		})
	}
}

// Whether an address is free is asked of nobody else, and answered in nobody's name: another host has none of this one's slice.
func TestProbesForDuplicates(t *testing.T) {
	h := newHost(t)
	h.start(segmentState(t, 1))
	h.says(peer, announcement(ip6A, macA))
	h.eventually("it has learned", func() bool { return h.has(ip6A, macA) })
	inside, own := h.container()
	told, asked := hears(inside), hears(h.peers[peer])
	inside.relay(message{asks: true, mac: own, ip: netip.IPv6Unspecified(), target: ip6A})
	inside.relay(message{asks: true, mac: own, ip: ip6B, target: ip6A})
	h.next(told, "an answer")
	if m := h.next(asked, "the probe"); m.ip == ip6B || len(told) > 0 {
		t.Errorf("asked is %+v, and %+v is too much", m, <-told)
	}
}

// A container of this host tells of itself, unasked: peers hear of it, though the bridge keeps it from them.
func TestAnnounces(t *testing.T) {
	for name, talk := range talks() {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.start(segmentState(t, 1))
			asked := hears(h.peers[peer])
			inside, own := h.container()
			inside.relay(announcement(talk.near, own))
			if m := h.next(asked, "word of the container"); !m.gratuitous() || m.ip != talk.near || m.mac != own {
				t.Errorf("peers are told %+v", m)
			}
		})
	}
}

// container returns a socket on the interface of one of the host's, and its MAC.
func (h *host) container() (socket, backend.MAC) {
	h.Helper()
	link, err := net.InterfaceByName("inside")
	if err != nil {
		h.Fatal(err)
	}
	s, err := openSocket(link.Index)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { s.Close() })
	return s, backend.MAC(link.HardwareAddr)
}

// hears are the messages that come in by a socket, but for what a kernel says of link-local addresses of its own.
func hears(s socket) <-chan message {
	heard := make(chan message, 100)
	go s.listen(func(m message) {
		if !m.ip.IsLinkLocalUnicast() {
			heard <- m
		}
	})
	return heard
}

// next is the next message.
func (h *host) next(heard <-chan message, what string) (m message) {
	h.Helper()
	select {
	case m = <-heard:
	case <-time.After(5 * time.Second):
		h.Fatalf("%s did not come", what)
	}
	return m
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
