package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/e2e/lab"
)

// dualIllnesses are of a host with both families, each carried by its own on the underlay.
var dualIllnesses = []illness{
	{what: "IPv6 forwarding off", agentless: true, make: "sysctl -qw net.ipv6.conf.all.forwarding=0", mend: "sysctl -qw net.ipv6.conf.all.forwarding=1",
		found: []string{"agent", "ip-forward"}, says: "does not forward", fix: "sysctl -w net.ipv6.conf.all.forwarding=1"},
	{what: "IPv6 device down", agentless: true, make: "ip link set tulle-v6.1 down", mend: "ip link set tulle-v6.1 up",
		found: []string{"agent", "overlay-device"}, says: "tulle-v6.1 is down: no peer is reached by it", fix: "ip link set tulle-v6.1 up"},
	{what: "IPv6 off on the tunnel", agentless: true, make: "sysctl -qw net.ipv6.conf.tulle-v6/1.disable_ipv6=1", mend: "sysctl -qw net.ipv6.conf.tulle-v6/1.disable_ipv6=0",
		found: []string{"agent", "ipv6-off", "not-programmed"}, says: "IPv6 is switched off", fix: "disable_ipv6=0"},
	{what: "IPv6 address gone from the tunnel", agentless: true, make: "ip -6 addr flush dev tulle-v6.1 scope global", mend: "true",
		found: []string{"agent", "overlay-address"}, says: "tulle-v6.1 lacks fd12:3456:", fix: "systemctl restart tulle"},
	{what: "IPv6 rule before ours", make: "ip6tables -w -I FORWARD -s fd12:3456::/48 -j DROP", mend: "ip6tables -w -D FORWARD -s fd12:3456::/48 -j DROP",
		found: []string{"forward-shadowed"}, says: "before they are accepted", fix: "ip6tables -t filter -D FORWARD -s fd12:3456::/48 -j DROP"},
	{what: "UDP over IPv6 dropped by the host", make: "ip6tables -w -I INPUT -p udp --dport 8472 -j DROP", mend: "ip6tables -w -D INPUT -p udp --dport 8472 -j DROP",
		found: []string{"overlay-filtered"}, says: "from peers", fix: "ip6tables -t filter -D INPUT -p udp -m udp --dport 8472 -j DROP"},
	{what: "UDP over IPv6 blocked both ways", underlay: true, make: "ip6tables -w -I FORWARD -p udp --dport 8472 -j DROP", mend: "ip6tables -w -D FORWARD -p udp --dport 8472 -j DROP",
		found: []string{"overlay-blocked"}, says: "both ways", fix: "let UDP port 8472 pass between 2001:db8::"},
	{what: "VPN in the overlay's IPv6 range", make: tunDevice + " && ip route add fd12:3456:0:0::/49 dev vpn0", mend: "ip link del vpn0",
		found: []string{"overlapping-routes"}, says: "fd12:3456::/48", fix: "take the route"},
}

// TestSeeBothFamilies has all that shows and probes look at a network with both families: that it is well, and that one family fails.
func TestSeeBothFamilies(t *testing.T) {
	t.Parallel()
	c := newClinic(t, lab.Options{Hosts: 3, Families: "both", Config: ways[0].of(dual).config()})
	peer := c.Nodes[1]
	wantPeer(t, c.h, peer, api.Reachable, "")
	p := peerOf(t, c.h, peer)
	if len(p.Subnets) != 2 || len(p.Families) != 2 || p.Families[0].To != p.PublicIPs[0] || p.Families[1].To != p.PublicIPs[1] || p.Families[1].Overlay.RTT == 0 {
		t.Errorf("%+v", p)
	}
	c.well(t)
	for _, a := range peer.Container.Addresses {
		tracesClean(t, c.Lab, c.h, a.String())
		tracesClean(t, c.Lab, c.h, a.String(), "--from", "netns:"+c.h.Container.Namespace)
	}
	for _, p := range p.Subnets { // as a peer's, and as its own
		tracesClean(t, c.Lab, c.h, p.Addr().String())
		tracesClean(t, c.Lab, peer, p.Addr().Next().String())
	}
	t.Run("one family fails", func(t *testing.T) { testOneFamily(t, c, peer) })
	for _, ill := range dualIllnesses {
		t.Run(ill.what, func(t *testing.T) { c.test(t, ill) })
	}
}

// testOneFamily has a peer's kernel answer nothing inside by IPv6: it is not reachable then, and which family it is is told.
func testOneFamily(t *testing.T, c clinic, peer *lab.Host) {
	in(t, peer.Namespace, "ip6tables", "-w", "-I", "INPUT", "-i", "tulle-v6.1", "-j", "DROP")
	wantPeer(t, c.h, peer, api.Unreachable, "IPv4 gets through, IPv6 does not: ")
	if p := peerOf(t, c.h, peer); p.Families[0].State != api.Reachable || p.Families[1].State != api.Unreachable {
		t.Errorf("%+v", p.Families)
	}
	eventually(t, 30*time.Second, "status tells of it", func() error {
		out, _, _ := told(t, c.h, "status", "--wide")
		rows := strings.Split(out, "\n")
		i := slices.IndexFunc(rows, func(row string) bool { return strings.HasPrefix(row, "  IPv6") && strings.Contains(row, "unreachable") })
		if i < 1 || !strings.HasPrefix(rows[i-1], "  IPv4") || !strings.Contains(rows[i-1], " reachable") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	out, _, _ := told(t, c.h, "events", "--json")
	if want, _ := json.Marshal("is unreachable: IPv4 gets through, IPv6 does not: "); !strings.Contains(out, strings.Trim(string(want), `"`)) {
		t.Errorf("no %s in\n%s", want, out)
	}
	r, code := traceJSON(t, c.Lab, c.h, peer.Container.Addresses[1].String())
	if name, _ := r.first(); name != "overlay" || code != 1 {
		t.Errorf("code %d, %+v", code, r)
	}
	tracesClean(t, c.Lab, c.h, peer.Container.Addresses[0].String())
	in(t, peer.Namespace, "ip6tables", "-w", "-D", "INPUT", "-i", "tulle-v6.1", "-j", "DROP")
	wantPeer(t, c.h, peer, api.Reachable, "")
	c.well(t)
}
