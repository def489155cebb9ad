package wireguard

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/e2e/lab"
	"github.com/tulle-net/tulle/subnet"
)

const (
	both  = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12:3456::/48","Backend":{"Type":"wireguard"}}`
	alone = `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd12:3456::/48","Backend":{"Type":"wireguard"}}`
)

// inMode is a config with another Mode.
func inMode(config, mode string) string {
	return strings.Replace(config, `"wireguard"`, `"wireguard","Mode":"`+mode+`"`, 1)
}

// Each family inside gets through, whatever the underlay's, by as many devices as the mode asks for; after Apply another changes nothing,
// and after a restart of the process nothing but the peers.
func TestFamilies(t *testing.T) {
	everywhere(t, func(t *testing.T, where ...Option) {
		for name, test := range map[string]struct{ config, underlay, devices string }{
			"both on both":            {both, "both", "tulle-wg-v6:51821 tulle-wg:51820"},
			"both on IPv6":            {both, "ipv6", "tulle-wg-v6:51821"},
			"IPv6 on IPv4":            {alone, "ipv4", "tulle-wg:51820"},
			"IPv4 on IPv6":            {plain, "ipv6", "tulle-wg-v6:51821"},
			"both on both, Mode auto": {inMode(both, "auto"), "both", "tulle-wg:51820"},
			"both on both, Mode ipv6": {inMode(both, "ipv6"), "both", "tulle-wg:51820"},
			"IPv4 on IPv6, Mode auto": {inMode(plain, "auto"), "ipv6", "tulle-wg:51820"},
		} {
			t.Run(name, func(t *testing.T) { newNetworkOf(t, 2, test.config, test.underlay, where...).lives(test.devices) })
		}
	})
}

// lives checks that two hosts reach each other by these devices, and that all is as it was when the first begins a new life.
func (n *network) lives(devices string) {
	h, other := n.hosts[0], n.hosts[1]
	n.reach(h, other)
	n.reach(other, h)
	if got := h.devices(); got != devices {
		n.Errorf("devices %s, want %s", got, devices)
	}
	if c := h.apply().Count(); len(c) > 0 {
		n.Errorf("another Apply changed %v", c)
	}
	peers := len(h.plan.State().Peers)
	if last, err := h.carrier.Handshakes(); err != nil || len(last) != peers {
		n.Errorf("%d peers, of %d is known when they last shook hands: %v", peers, len(last), err)
	}
	h.stop()
	h.start()
	if !h.plan.Host().Facts.Userspace {
		peers = 0 // the kernel has kept them
	}
	if c := h.apply(); c.Links.Len()+c.Addrs.Len()+c.Routes.Len() > 0 || c.Peers.Len() != peers {
		n.Errorf("after a restart changed: %v", c.Count())
	}
	if c := h.apply().Count(); len(c) > 0 {
		n.Errorf("and then: %v", c)
	}
	n.reach(other, h)
}

// devices are those that are open, with their ports.
func (h *host) devices() string {
	var names []string
	for name, d := range h.carrier.devices {
		have, err := d.look()
		if err != nil {
			h.t.Error(err)
		}
		names = append(names, fmt.Sprintf("%s:%d", name, have.Port))
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// flows are one in each direction between all hosts by each family.
func (n *network) flows(pace time.Duration) (flows []*lab.Flow) {
	n.Helper()
	for _, from := range n.hosts {
		for _, to := range n.hosts {
			if from == to {
				continue
			}
			n.reach(from, to)
			for _, inside := range to.insides() {
				flows = append(flows, n.flowTo(from, inside, pace))
			}
		}
	}
	return flows
}

func (n *network) lossless(flows []*lab.Flow) {
	n.Helper()
	for i, f := range flows {
		if r := f.Stop(n.Context()); r.Lost() > 0 || r.Sent < 20 {
			n.Errorf("flow %d: %d of %d packets lost", i, r.Lost(), r.Sent)
		}
	}
}

// A key is rotated under running pings by both devices, and no packet is lost.
func TestRotateBoth(t *testing.T) { everywhere(t, rotateBoth) }

func rotateBoth(t *testing.T, where ...Option) {
	n := newNetworkOf(t, 2, both, "both", where...)
	h, other := n.hosts[0], n.hosts[1]
	flows := n.flows(20 * time.Millisecond)
	for range 2 {
		drain(h.carrier.Doorbell())
		if _, _, err := Rotate(h.key); err != nil {
			t.Fatal(err)
		}
		n.rung(h, "a new key")
		h.apply()
		n.more(flows[0], 3)
		other.update(h.self.Key(), subnet.Entry{Lease: h.lease(), Created: 1})
		n.more(flows[0], 20)
	}
	n.lossless(flows)
}

// One of the devices is deleted: it comes back, and what goes by the other does not notice.
func TestOneDeleted(t *testing.T) {
	n := newNetworkOf(t, 2, both, "both", InUserspace)
	h, other := n.hosts[0], n.hosts[1]
	n.reach(other, h)
	flow := n.flow(other, h, 5*time.Millisecond)
	drain(h.carrier.Doorbell())
	h.run("ip", "link", "del", "tulle-wg-v6")
	n.rung(h, "the device is gone")
	h.apply()
	n.reach(other, h)
	n.more(flow, 20)
	if c := h.apply().Count(); len(c) > 0 {
		t.Errorf("another Apply changed %v", c)
	}
	n.lossless([]*lab.Flow{flow})
}

// What somebody changes of one device's peers is put right, and reported once.
func TestDriftOfOne(t *testing.T) { everywhere(t, driftOfOne) }

func driftOfOne(t *testing.T, where ...Option) {
	n := newNetworkOf(t, 3, both, "both", where...)
	h, gone, strange := n.hosts[0], n.hosts[1].carrier.key.Public(), backend.Key{9}
	d := h.carrier.devices["tulle-wg-v6"]
	if err := d.deletePeers([]backend.Key{gone}); err != nil {
		t.Fatal(err)
	}
	if err := d.setPeers([]peer{{strange, backend.Peer{Endpoint: netip.MustParseAddrPort("[2001:db8::9]:9")}}}); err != nil {
		t.Fatal(err)
	}
	c := h.apply()
	_, set := c.Peers.Set[backend.PeerKey{Dev: "tulle-wg-v6", Key: gone}]
	_, deleted := c.Peers.Del[backend.PeerKey{Dev: "tulle-wg-v6", Key: strange}]
	if !set || !deleted || c.Peers.Len() != 2 {
		t.Errorf("changes %+v", c.Peers)
	}
	if c := h.apply().Count(); len(c) > 0 {
		t.Errorf("another Apply changed %v", c)
	}
	n.reach(h, n.hosts[1])
}

// A host loses a family of the underlay and gets it back: what went by that device goes by the other meanwhile. Here hosts hear of it at
// different times, and lose what is on its way then, but no more.
func TestUnderlayLosesFamily(t *testing.T) { everywhere(t, underlayLosesFamily) }

func underlayLosesFamily(t *testing.T, where ...Option) {
	n := newNetworkOf(t, 2, both, "both", where...)
	h, other := n.hosts[0], n.hosts[1]
	whole := h.self.PublicIP
	for _, public := range []subnet.Pair[netip.Addr]{subnet.PairOf(subnet.IPv4, whole.V4), whole, subnet.PairOf(subnet.IPv6, whole.V6), whole} {
		h.self.PublicIP = public
		h.apply()
		other.update(h.self.Key(), subnet.Entry{Lease: h.lease(), Created: 1})
		n.reach(h, other)
		n.reach(other, h)
		other.peers = []subnet.Lease{h.lease()}
		err := lab.Wait(t.Context(), 5*time.Second, "peers that are no more are gone", func() error {
			if c := other.apply().Count(); len(c) > 0 {
				return fmt.Errorf("changed %v", c)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// IPv6 is switched on while the network runs, by one host after the other: IPv4 goes on.
func TestIPv6SwitchedOn(t *testing.T) { everywhere(t, switchIPv6On) }

func switchIPv6On(t *testing.T, where ...Option) {
	n := newNetworkOf(t, 2, plain, "both", where...)
	flows := n.flows(5 * time.Millisecond)
	for i, h := range n.hosts {
		before := h.self.Key()
		h.config = both
		h.apply()
		other := n.hosts[1-i]
		other.updates(map[string]subnet.Entry{before: {}, h.self.Key(): {Lease: h.lease(), Created: 1}})
		other.peers = []subnet.Lease{h.lease()}
		n.more(flows[0], 20)
	}
	n.reach(n.hosts[0], n.hosts[1])
	n.lossless(flows)
}
