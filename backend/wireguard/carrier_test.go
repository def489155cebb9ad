package wireguard

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/e2e/lab"
	"github.com/tulle-net/tulle/subnet"
)

// What hosts send each other arrives, and nobody on the way can read it.
func TestEncrypted(t *testing.T) {
	n := newNetwork(t, 2)
	from, to := n.hosts[0], n.hosts[1]
	n.reach(from, to)
	marker := []byte("what nobody else is to read")
	for address, readable := range map[netip.Addr]bool{to.inside(): false, to.Address: true} {
		seen, outer := false, 0
		for _, frame := range n.capture(func() { n.say(from, to, address, marker) }) {
			seen = seen || bytes.Contains(frame, marker)
			if bytes.Contains(frame, []byte{51820 >> 8, 51820 & 0xff, 51820 >> 8, 51820 & 0xff}) {
				outer++
			}
		}
		if seen != readable {
			t.Errorf("to %s: readable on the underlay: %t", address, seen)
		}
		if !readable && outer == 0 {
			t.Error("no packet from port 51820 to port 51820")
		}
	}
}

// say sends text to an address of a host, in UDP, and waits until it is there.
func (n *network) say(from, to *host, address netip.Addr, text []byte) {
	n.Helper()
	var listener net.PacketConn
	var conn net.Conn
	to.in(func() (err error) {
		listener, err = net.ListenPacket("udp4", netip.AddrPortFrom(address, 0).String())
		return err
	})
	defer listener.Close()
	from.in(func() (err error) {
		conn, err = net.Dial("udp4", listener.LocalAddr().String())
		return err
	})
	defer conn.Close()
	if _, err := conn.Write(text); err != nil {
		n.Fatal(err)
	}
	buffer := make([]byte, 100)
	_ = listener.SetReadDeadline(time.Now().Add(5 * time.Second))
	if size, _, err := listener.ReadFrom(buffer); err != nil || !bytes.Equal(buffer[:size], text) {
		n.Fatalf("%q arrived at %s, %v", buffer[:size], address, err)
	}
}

// After Apply, another changes nothing, be it of the same agent or of one that was started anew, but for the peers' entries: those
// were in the process that ended.
func TestIdempotent(t *testing.T) {
	n := newNetwork(t, 2)
	h := n.hosts[0]
	n.reach(h, n.hosts[1])
	if c := h.apply().Count(); len(c) > 0 {
		t.Errorf("another Apply changed %v", c)
	}
	before := h.kept()
	h.stop()
	if after := h.kept(); after != before {
		t.Errorf("without a process:\n%s\nbefore:\n%s", after, before)
	}
	h.start()
	c := h.apply()
	if c.Links.Len()+c.Addrs.Len()+c.Routes.Len() > 0 || c.Peers.Len() != 1 {
		t.Errorf("after a restart changed: %v", c.Count())
	}
	if after := h.kept(); after != before {
		t.Errorf("after a restart:\n%s\nbefore:\n%s", after, before)
	}
	if c := h.apply().Count(); len(c) > 0 {
		t.Errorf("and then: %v", c)
	}
	n.reach(h, n.hosts[1])
}

// kept is what no restart may change.
func (h *host) kept() string {
	device, _, _ := strings.Cut(h.run("ip", "-o", "link", "show", "tulle-wg"), "<")
	return device + h.run("ip", "-o", "addr", "show", "tulle-wg") + strings.ReplaceAll(h.run("ip", "route"), " linkdown", "")
}

// A restart interrupts for less than a second, also what comes from peers that have old sessions, and nothing else to tell them so.
func TestRestart(t *testing.T) {
	n := newNetwork(t, 2)
	h, other := n.hosts[0], n.hosts[1]
	n.reach(other, h)
	f := n.flow(other, h, 5*time.Millisecond)
	n.more(f, 20)
	h.stop()
	n.more(f, 10)
	h.start()
	h.apply()
	n.more(f, 40)
	r := f.Stop(t.Context())
	if r.Lost() < 5 || r.Lost() > 100 {
		t.Errorf("%d of %d packets lost, of which 10 while nobody was there", r.Lost(), r.Sent)
	}
}

// Hosts with another preshared key than ours are cut off.
func TestPresharedKey(t *testing.T) {
	n := newNetwork(t, 2)
	psk := func(letter string) string {
		return `{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard","PSK":"` + strings.Repeat(letter, 42) + `A="}}`
	}
	n.hosts[0].config, n.hosts[1].config = psk("B"), psk("C")
	for _, h := range n.hosts {
		h.stop() // or the sessions of before would do
		h.start()
	}
	n.hosts[0].apply()
	n.hosts[1].apply()
	n.cut(n.hosts[0], n.hosts[1])
	n.hosts[1].config = n.hosts[0].config
	n.hosts[1].stop()
	n.hosts[1].start()
	n.hosts[1].apply()
	n.reach(n.hosts[0], n.hosts[1])
}

// A host joins, leaves, and comes back with another key: for the others one peer's change.
func TestPeers(t *testing.T) {
	n := newNetwork(t, 3)
	h, leaver := n.hosts[0], n.hosts[2]
	n.reach(h, leaver)
	f := n.flow(h, n.hosts[1], 5*time.Millisecond)
	h.update(leaver.self.Key(), subnet.Entry{})
	n.cut(leaver, h)
	h.peers = []subnet.Lease{n.hosts[1].lease()}
	if c := h.apply().Count(); len(c) > 0 {
		t.Errorf("after a peer left changed: %v", c)
	}
	h.update(leaver.self.Key(), subnet.Entry{Lease: leaver.lease(), Created: 9})
	n.reach(h, leaver) // it could not know that we had forgotten its session
	n.reach(leaver, h)
	h.peers = []subnet.Lease{n.hosts[1].lease(), leaver.lease()}
	if c := h.apply().Count(); len(c) > 0 {
		t.Errorf("after a join changed: %v", c)
	}
	if r := f.Stop(t.Context()); r.Lost() > 0 {
		t.Errorf("the other peer: %d of %d packets lost", r.Lost(), r.Sent)
	}
}

// A key is rotated under running pings in all directions: the doorbell tells of it, and no packet is lost. The pace leaves room for a
// machine that is busy with other tests, under the race detector: no more than 128 packets wait for each peer's handshake.
func TestRotate(t *testing.T) {
	n := newNetwork(t, 3)
	h := n.hosts[0]
	var flows []*lab.Flow
	for _, from := range n.hosts {
		for _, to := range n.hosts {
			if from != to {
				n.reach(from, to)
				flows = append(flows, n.flow(from, to, 20*time.Millisecond))
			}
		}
	}
	for range 3 {
		drain(h.carrier.Doorbell())
		before, now, err := Rotate(h.key)
		if err != nil {
			t.Fatal(err)
		}
		n.rung(h, "a new key")
		if old := h.lease(); !strings.Contains(old.Data.V4, before.String()) {
			t.Errorf("%s was not the key in %s", before, old.Data.V4)
		}
		h.apply()
		if !strings.Contains(h.lease().Data.V4, now.String()) {
			t.Errorf("the lease has %s, want %s", h.lease().Data.V4, now)
		}
		n.more(flows[0], 3) // what it takes etcd to tell the others
		told, lease := sync.WaitGroup{}, h.lease()
		for _, other := range n.hosts[1:] {
			told.Go(func() { other.update(h.self.Key(), subnet.Entry{Lease: lease, Created: 1}) })
		}
		told.Wait()
		n.more(flows[0], 20)
	}
	for i, f := range flows {
		if r := f.Stop(t.Context()); r.Lost() > 0 || r.Sent < 50 {
			t.Errorf("flow %d: %d of %d packets lost", i, r.Lost(), r.Sent)
		}
	}
}

func drain(c <-chan struct{}) {
	select {
	case <-c:
	default:
	}
}

// rung waits until a host's doorbell rings.
func (n *network) rung(h *host, why string) {
	n.Helper()
	select {
	case <-h.carrier.Doorbell():
	case <-time.After(5 * time.Second):
		n.Fatalf("%s: the doorbell does not ring: %s", h.Name, why)
	}
}

// A device that somebody deletes rings, and comes back; peers are told at once.
func TestDeleted(t *testing.T) {
	n := newNetwork(t, 2)
	h, other := n.hosts[0], n.hosts[1]
	n.reach(other, h)
	drain(h.carrier.Doorbell())
	h.run("ip", "link", "del", "tulle-wg")
	n.rung(h, "the device is gone")
	h.apply()
	n.reach(other, h)
	if c := h.apply().Count(); len(c) > 0 {
		t.Errorf("another Apply changed %v", c)
	}
}

// A device of somebody else's with the name of ours stays as it is.
func TestForeign(t *testing.T) {
	n := newNetwork(t, 1)
	h := n.hosts[0]
	h.stop()
	h.run("ip", "link", "del", "tulle-wg")
	h.run("ip", "tuntap", "add", "dev", "tulle-wg", "mode", "tun")
	h.run("ip", "link", "set", "tulle-wg", "mtu", "1234")
	before := h.run("ip", "-o", "-d", "link", "show", "tulle-wg")
	h.start()
	const want = "set link tulle-wg: a tuntap of this name exists and is not ours: remove it (ip link del tulle-wg)"
	if _, err := h.try(); err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if after := h.run("ip", "-o", "-d", "link", "show", "tulle-wg"); after != before {
		t.Errorf("it is\n%s, was\n%s", after, before)
	}
	h.run("ip", "link", "del", "tulle-wg")
	h.apply()
}

// A port that is in use is named, and taken as soon as it is free.
func TestPortInUse(t *testing.T) {
	n := newNetwork(t, 2)
	h := n.hosts[0]
	n.reach(n.hosts[1], h)
	h.config = `{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard","ListenPort":51999}}`
	var other net.PacketConn
	h.in(func() (err error) {
		other, err = net.ListenPacket("udp4", ":51999")
		return err
	})
	_, err := h.try()
	if err == nil || !strings.Contains(err.Error(), "UDP port 51999 is in use") || backend.Failed(err)["tunnel"] != 1 {
		t.Errorf("error %v", err)
	}
	other.Close()
	h.apply()
	n.hosts[1].peers = []subnet.Lease{h.lease()}
	n.hosts[1].apply() // though its session with the port of before is fresh
	n.reach(n.hosts[1], h)
}

// Where there was a network of the type wireguard, and is another, no device is left.
func TestOtherBackend(t *testing.T) {
	n := newNetwork(t, 2)
	h := n.hosts[0]
	n.reach(n.hosts[1], h)
	h.config = `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`
	h.apply()
	if links := h.run("ip", "-o", "link"); strings.Contains(links, "tulle-wg:") {
		t.Error(links)
	}
	h.config = plain
	h.apply()
	n.reach(n.hosts[1], h)
}

// The link's MTU follows the plan's.
func TestMTU(t *testing.T) {
	n := newNetwork(t, 2)
	h := n.hosts[0]
	h.config = `{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard","MTU":1400}}`
	h.apply()
	n.reach(h, n.hosts[1])
	if r, err := lab.Ping(t.Context(), h.Namespace, n.hosts[1].inside(), 1, 1320); err != nil || r.Lost() > 0 {
		t.Errorf("1320 bytes: %d lost, %v %v", r.Lost(), r.Refused, err)
	}
	if r, err := lab.Ping(t.Context(), h.Namespace, n.hosts[1].inside(), 1, 1321); err != nil || r.Answered > 0 || !errors.Is(r.Refused, unix.EMSGSIZE) {
		t.Errorf("1321 bytes: %d answered, %v, %v", r.Answered, r.Refused, err)
	}
	if mtu, _ := h.carrier.devices["tulle-wg"].(*userspace).plug.MTU(); mtu != 1320 {
		t.Errorf("wireguard-go pads up to %d", mtu)
	}
}

// A key that is gone is put back, one that others can read is mended, and what is no key is refused without a word of what it is.
func TestKeyFile(t *testing.T) {
	n := newNetwork(t, 1)
	h := n.hosts[0]
	before := h.lease().Data
	if err := os.Remove(h.key); err != nil {
		t.Fatal(err)
	}
	h.apply()
	if h.lease().Data != before {
		t.Errorf("another key: %s, before %s", h.lease().Data, before)
	}
	if err := os.Chmod(h.key, 0o644); err != nil {
		t.Fatal(err)
	}
	h.apply()
	if info, err := os.Stat(h.key); err != nil || info.Mode() != 0o600 || h.lease().Data != before {
		t.Errorf("mode %v, %v; lease %s", info.Mode(), err, h.lease().Data)
	}
	if err := os.WriteFile(h.key, []byte("my password\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.try(); err == nil || strings.Contains(err.Error(), "password") || !strings.Contains(err.Error(), h.key) {
		t.Errorf("error %v", err)
	}
}

// Run leaves nothing of the process's, not even if a pass comes after it.
func TestRunEnds(t *testing.T) {
	n := newNetwork(t, 2)
	h := n.hosts[0]
	carrier, want := h.carrier, h.plan.State()
	h.stop()
	h.in(func() error { return carrier.Open(context.Background(), want) })
	if len(carrier.devices) > 0 {
		t.Error("a device was opened after the end")
	}
	fd := -1
	h.in(func() (err error) {
		fd, err = attach("tulle-wg", false) // nobody stands behind it
		return err
	})
	unix.Close(fd)
}
