package e2e

import (
	"cmp"
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

// families are those of a network, and of the underlay that it is on: each ipv4, ipv6 or both, "" for ipv4. And what filters its packets.
type families struct{ overlay, underlay, firewall string }

func (f families) has4() bool { return f.overlay != "ipv6" }
func (f families) has6() bool { return f.overlay == "ipv6" || f.overlay == "both" }

// network is what a config says of the families.
func (f families) network() string {
	const v4, v6 = `"Network":"10.5.0.0/16"`, `"EnableIPv6":true,"IPv6Network":"fd12:3456::/48"`
	switch f.overlay {
	case "ipv6":
		return `"EnableIPv4":false,` + v6
	case "both":
		return v4 + "," + v6
	}
	return v4
}

func (f families) String() string {
	return fmt.Sprintf("%s on %s, %s", cmp.Or(f.overlay, "ipv4"), cmp.Or(f.underlay, "ipv4"), cmp.Or(f.firewall, "iptables"))
}

// carrying is the underlay's family that carries one of the overlay's: the same, if the underlay has it.
func (f families) carrying(inner string) string {
	if f.underlay == "both" {
		return inner
	}
	return cmp.Or(f.underlay, "ipv4")
}

// outer are the families of the underlay that carry anything.
func (f families) outer() (outer []string) {
	if f.has4() {
		outer = append(outer, f.carrying("ipv4"))
	}
	if f.has6() {
		outer = append(outer, f.carrying("ipv6"))
	}
	slices.Sort(outer)
	return slices.Compact(outer)
}

// deviceOver is a way's device over a family of the underlay.
func (w way) deviceOver(outer string) string {
	if outer == "ipv6" {
		if device, differs := map[string]string{"tulle.1": "tulle-v6.1", "tulle-wg": "tulle-wg-v6"}[w.device]; differs {
			return device
		}
	}
	return w.device
}

// of is a way with other families.
func (w way) of(f families) way {
	outer := f.outer()
	if slices.Contains(outer, "ipv6") && (w.name == "vxlan" || w.name == "udp") { // what an IPv6 header is longer
		w.mtu -= 20
	}
	var devices []string
	for _, o := range outer {
		if d := w.deviceOver(o); !slices.Contains(devices, d) {
			devices = append(devices, d)
		}
	}
	slices.Sort(devices)
	w.families, w.device = f, strings.Join(devices, " ")
	return w
}

// possible reports whether a way can carry the families: IPv6 can't be routed by way of an IPv4 gateway.
func (w way) possible(f families) bool {
	return w.name != "host-gw" || !f.has6() || f.carrying("ipv6") == "ipv6"
}

// usual are the combinations of families and packet filters that CI has time for, for each way. Each value of each is among them with
// each value of each other; make test-matrix has the rest. (IPv4 on IPv4 with iptables is TestBackends'.)
var usual = map[string][]families{
	"vxlan":     {{"both", "both", "nftables"}, {"ipv6", "ipv6", ""}, {"ipv6", "", "nftables"}, {"", "ipv6", "nftables"}, {"both", "ipv6", ""}, {"both", "", ""}},
	"host-gw":   {{"both", "both", ""}, {"ipv6", "ipv6", "nftables"}, {"", "ipv6", ""}, {"ipv6", "both", ""}},
	"udp":       {{"both", "both", ""}, {"ipv6", "", ""}, {"", "ipv6", "nftables"}, {"", "both", "nftables"}},
	"wireguard": {{"both", "both", "nftables"}, {"ipv6", "", ""}, {"", "ipv6", ""}},
}

// combinations are those to test of a way.
func combinations(w way) (all []families) {
	if os.Getenv("TULLE_MATRIX") == "" {
		return usual[w.name]
	}
	for _, overlay := range []string{"", "both", "ipv6"} {
		for _, underlay := range []string{"", "both", "ipv6"} {
			for _, firewall := range []string{"", "nftables"} {
				if f := (families{overlay, underlay, firewall}); w.possible(f) && f != (families{}) {
					all = append(all, f)
				}
			}
		}
	}
	return all
}

// TestMatrix is the network as its users see it, by each family on each underlay, for those ways that can, with both packet filters.
func TestMatrix(t *testing.T) {
	for _, name := range []string{"vxlan", "host-gw", "udp", "wireguard"} {
		for _, f := range combinations(wayOf(t, name)) {
			t.Run(name+" "+f.String(), func(t *testing.T) {
				t.Parallel()
				w := wayOf(t, name).here(t)
				by := map[string]string{"ipv4": w.deviceOver(f.carrying("ipv4")), "ipv6": w.deviceOver(f.carrying("ipv6"))}
				w = w.of(f)
				l := newLab(t, lab.Options{Hosts: 3, Config: w.config(), Families: f.underlay,
					Agent: []string{"--firewall", cmp.Or(f.firewall, "iptables"), "--ipv6-masq"}})
				for _, a := range l.Nodes[1].Container.Addresses {
					family := "ipv6"
					if a.Is4() {
						family = "ipv4"
					}
					if err := sendsBy(t, l.Nodes[0], a, cmp.Or(by[family], "eth0")); err != nil {
						t.Errorf("%s: %v", a, err)
					}
				}
				testSuite(t, l, w)
			})
		}
	}
}

// dual is a network of both families.
var dual = families{overlay: "both", underlay: "both"}

// TestFamilyChange switches IPv6 on in a network of IPv4 that runs. The hosts follow one by one; IPv4 goes on without losing a packet, also to
// and from a host that has not followed yet. Then IPv4 is switched off and on again, and IPv6 goes on.
func TestFamilyChange(t *testing.T) {
	t.Parallel()
	w := ways[0]
	l := newLab(t, lab.Options{Hosts: 3, Families: "both", Config: w.config()})
	a, b, late := l.Nodes[0], l.Nodes[1], l.Nodes[2]
	before := places(l)
	flows := ringFlows(t, l)
	stop(t, late)
	setConfig(t, l, w.of(dual).config())
	for _, h := range []*lab.Host{a, b} {
		hasFamilies(t, l, h, 2)
	}
	firstAnswer(t, 10*time.Second, a, b)
	ping(t, a.Container, b.Container, 1430)
	ping(t, a.Container, late.Container, 84)
	launch(t, l, late)
	hasFamilies(t, l, late, 2)
	for _, to := range []*lab.Host{a, b} {
		firstAnswer(t, 10*time.Second, late, to)
		firstAnswer(t, 10*time.Second, to, late)
	}
	if now := places(l); !maps.EqualFunc(before, now, func(a, b []netip.Prefix) bool { return a[0] == b[0] }) {
		t.Errorf("hosts had %v, and have %v", before, now)
	}
	stopFlows(t, flows)

	both := places(l)
	flows = map[string]*lab.Flow{}
	for i, h := range l.Nodes {
		to := l.Nodes[(i+1)%len(l.Nodes)].Container.Addresses[1]
		flow, err := lab.StartFlow(h.Container.Namespace, to, unhurried(flowInterval))
		must(t, err)
		flows[to.String()] = flow
	}
	if out, err := l.Tulle(t.Context(), w.of(families{overlay: "ipv6", underlay: "both"}).config(), "config", "set", "--force", "-"); err != nil { // live leases lose their subnets of IPv4
		t.Fatal(out, err)
	}
	for _, h := range l.Nodes {
		hasFamilies(t, l, h, 1)
		if left := in(t, h.Namespace, "ip", "-4", "route", "show", "proto", "84"); left != "" {
			t.Errorf("%s still has routes of IPv4:\n%s", h.Name, left)
		}
	}
	setConfig(t, l, w.of(dual).config())
	for _, h := range l.Nodes {
		hasFamilies(t, l, h, 2)
	}
	for i, h := range l.Nodes {
		firstAnswer(t, 10*time.Second, h, l.Nodes[(i+1)%len(l.Nodes)])
		firstAnswer(t, 10*time.Second, l.Nodes[(i+1)%len(l.Nodes)], h)
	}
	testAllPairs(t, l)
	if now := places(l); !maps.EqualFunc(both, now, func(a, b []netip.Prefix) bool { return a[1] == b[1] }) {
		t.Errorf("hosts had %v, and have %v", both, now)
	}
	stopFlows(t, flows)
}

// places are the subnets of each host.
func places(l *lab.Lab) map[string][]netip.Prefix {
	of := map[string][]netip.Prefix{}
	for _, h := range l.Nodes {
		of[h.Name] = h.Container.Subnets
	}
	return of
}

// hasFamilies waits until a host has leases of so many families, and is ready, and gives its container their addresses.
func hasFamilies(t *testing.T, l *lab.Lab, h *lab.Host, families int) {
	t.Helper()
	eventually(t, 20*time.Second, fmt.Sprintf("%s has %d families", h.Name, families), func() error {
		if err := h.Ready(t.Context()); err != nil {
			return err
		}
		must(t, l.NewContainer(h))
		if n := len(h.Container.Subnets); n != families {
			return fmt.Errorf("it has %v", h.Container.Subnets)
		}
		status, err := h.Status(t.Context())
		if err == nil && status.Peers.Total != len(l.Nodes)-1 {
			err = fmt.Errorf("it has %d peers", status.Peers.Total)
		}
		return err
	})
}

// TestMixedUnderlays has a host that is reached by IPv4 only, one by IPv6 only, and one by both. The third talks with the others in both of
// the network's families; the first two can't, and say why.
func TestMixedUnderlays(t *testing.T) {
	for _, name := range []string{"vxlan", "udp", "wireguard"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := wayOf(t, name).here(t).of(dual)
			l := newLab(t, lab.Options{Hosts: 1, Families: "both", Config: w.config(), Agent: []string{"--underlay-family", "both"}})
			for _, family := range []string{"ipv4", "ipv6"} {
				h, err := l.NewHost()
				must(t, err)
				l.Agent = []string{"--underlay-family", family}
				must(t, l.StartAgent(t.Context(), h))
				must(t, l.NewContainer(h))
			}
			both := l.Nodes[0]
			for _, h := range l.Nodes[1:] {
				firstAnswer(t, shakeLimit, both, h)
				firstAnswer(t, shakeLimit, h, both)
				ping(t, both.Container, h.Container, both.Container.MTU) // its own packets may leave over IPv6
			}
			only4, only6 := l.Nodes[1], l.Nodes[2]
			for from, words := range map[*lab.Host]string{
				only4: fmt.Sprintf("its host is reached at %s, this host at %s: they need a family in common on the underlay", only6.Addresses[1], only4.Addresses[0]),
				only6: fmt.Sprintf("its host is reached at %s, this host at %s: they need a family in common on the underlay", only4.Addresses[0], only6.Addresses[1]),
			} {
				eventually(t, 5*time.Second, from.Name+" says why it leaves the other out", func() error { return logs(t, l, from, words) })
			}
		})
	}
}
