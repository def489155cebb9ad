package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/agent/api"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func aStatus() api.Status {
	renewed, expires := noon.Add(-90*time.Second), noon.Add(23*time.Hour+58*time.Minute+30*time.Second)
	return api.Status{API: 1, Version: "1.2.3", Host: "web1", Ready: true, Reason: "10.5.1.0-24, 2 peers",
		Lease:    &api.Lease{Key: "10.5.1.0-24", Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.1.0/24")}, Renewed: &renewed, Expires: &expires},
		Network:  api.Network{Ranges: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")}, Backend: "vxlan", Device: "tulle.1", VNI: 1, Port: 8472, MTU: 1450},
		Underlay: api.Underlay{Device: "eth0", MTU: 1500, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, PublicIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
		Etcd:     api.EtcdState{Connected: true, Revision: 7, Endpoints: []string{"http://192.0.2.9:2379"}},
		Docker:   api.DockerState{Bridge: "docker0", Addresses: []netip.Prefix{netip.MustParsePrefix("10.5.1.1/24")}, EnvFile: "/run/tulle/subnet.env"},
		Peers:    api.PeerCount{Total: 2, Reachable: 2}, Probing: true}
}

func aPeer(n int, state api.State) api.Peer {
	subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(n >> 8), byte(n)}), 32)
	p := api.Peer{Key: fmt.Sprintf("%s-32", subnet.Addr()), Subnets: []netip.Prefix{subnet}, PublicIPs: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)})},
		State: state, Overlay: &api.Probe{RTT: 0.00042, Sent: noon, Answer: noon.Add(-3 * time.Second)}, Underlay: &api.Probe{RTT: 0.00021, Sent: noon, Answer: noon}}
	if state == api.Unreachable {
		p.Overlay.Loss, p.Why = 1, "the underlay answers, the overlay does not"
	}
	return p
}

func shown(t *testing.T, c statusCmd, status api.Status, peers ...api.Peer) string {
	t.Helper()
	var text strings.Builder
	s := screen{w: &text}
	printHealth(s, status)
	s.table(facts(status, noon))
	if err := c.printPeers(s, status, peers, noon); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

func TestStatusText(t *testing.T) {
	t.Parallel()
	status := aStatus()
	if got, want := shown(t, statusCmd{}, status, aPeer(2, api.Reachable), aPeer(3, api.Reachable)), `web1  ready, 2 peers, all reachable
lease     10.5.1.0/24, renewed 1 min 30 s ago, expires in 23 h 58 min
underlay  192.0.2.1 on eth0, MTU 1500
overlay   10.5.0.0/16 by vxlan on tulle.1, VNI 1, UDP 8472, MTU inside 1450
etcd      connected to http://192.0.2.9:2379, revision 7
docker    bridge docker0 has 10.5.1.1/24
PEER         PUBLIC IP  STATE      OVERLAY  UNDERLAY  LOSS
10.5.0.2/32  192.0.0.2  reachable  0.42 ms  0.21 ms   0 %
10.5.0.3/32  192.0.0.3  reachable  0.42 ms  0.21 ms   0 %
`; got != want {
		t.Errorf("all is well:\n%swant:\n%s", got, want)
	}
	status.Peers = api.PeerCount{Total: 2, Reachable: 1, Unreachable: 1}
	status.Etcd = api.EtcdState{Error: "no connection to etcd\x1b[2J", Revision: 7}
	status.Repaired, status.LeftOut, status.Warnings = map[string]int{"route": 2, "address": 1}, map[string]int{"bad-mac": 1}, []string{"look at this"}
	status.Underlay.PublicIPs = []netip.Addr{netip.MustParseAddr("198.51.100.7")}
	left := api.Peer{Key: "non\nsense", State: api.LeftOut, Why: "bad-key: not a subnet"}
	if got, want := shown(t, statusCmd{Wide: true}, status, aPeer(2, api.Reachable), left, aPeer(3, api.Unreachable)), `web1  ready, but 1 unreachable peer of 2: see tulle doctor
lease     10.5.1.0/24, renewed 1 min 30 s ago, expires in 23 h 58 min
underlay  192.0.2.1 on eth0, MTU 1500, to peers 198.51.100.7
overlay   10.5.0.0/16 by vxlan on tulle.1, VNI 1, UDP 8472, MTU inside 1450
etcd      no connection to etcd?[2J
docker    bridge docker0 has 10.5.1.1/24
left out  1 lease: bad-mac
repaired  1 address, 2 routes that somebody had changed: see tulle events
WARNING   look at this
PEER          PUBLIC IP  STATE        OVERLAY  UNDERLAY  LOSS   ANSWERED  CHANGED
10.5.0.3/32   192.0.0.3  unreachable  0.42 ms  0.21 ms   100 %  3 s ago   -        the underlay answers, the overlay does not
"non\nsense"  -          left-out     -        -         -      -         -        bad-key: not a subnet
10.5.0.2/32   192.0.0.2  reachable    0.42 ms  0.21 ms   0 %    3 s ago   -
`; got != want {
		t.Errorf("all is not well:\n%swant:\n%s", got, want)
	}
	status.Ready, status.Reason = false, "lease lost: out of subnets"
	if got := shown(t, statusCmd{}, status); !strings.HasPrefix(got, "web1  NOT READY: lease lost: out of subnets\n") {
		t.Errorf("%s", got)
	}
}

// Hosts with both families: a peer's row has all that it has, and tells of the family that is worse off; --wide tells of each.
func TestStatusOfBothFamilies(t *testing.T) {
	t.Parallel()
	status := aStatus()
	add := func(list *[]netip.Prefix, p string) { *list = append(*list, netip.MustParsePrefix(p)) }
	add(&status.Lease.Subnets, "fd12:3456:0:1::/64")
	add(&status.Network.Ranges, "fd12:3456::/48")
	add(&status.Docker.Addresses, "fd12:3456:0:1::1/64")
	status.Network.MTU = 1430
	status.Network.Devices = []api.Device{{Name: "tulle.1", Port: 8472}, {Name: "tulle-v6.1", Port: 8472}}
	status.Underlay.Addresses = append(status.Underlay.Addresses, netip.MustParseAddr("2001:db8::1"))
	status.Underlay.PublicIPs = status.Underlay.Addresses
	status.Peers = api.PeerCount{Total: 2, Reachable: 1, Unreachable: 1}
	status.LeftOut = map[string]int{"other-family": 1}
	well, ill := aPeer(2, api.Reachable), aPeer(3, api.Unreachable)
	for _, p := range []*api.Peer{&well, &ill} {
		add(&p.Subnets, fmt.Sprintf("fd12:3456:0:%s::/64", p.Subnets[0].Addr().String()[7:]))
		p.PublicIPs = append(p.PublicIPs, netip.MustParseAddr("2001:db8::"+p.Subnets[0].Addr().String()[7:]))
		p.Families = []api.Family{{Family: "IPv4", To: p.PublicIPs[0], State: api.Reachable, Overlay: well.Overlay, Underlay: p.Underlay},
			{Family: "IPv6", To: p.PublicIPs[1], State: p.State, Overlay: p.Overlay, Underlay: p.Underlay}}
	}
	ill.Why = "IPv4 gets through, IPv6 does not: is UDP port 8472 blocked?"
	left := api.Peer{Key: "fd12:3456:0:4::-64", Subnets: []netip.Prefix{netip.MustParsePrefix("fd12:3456:0:4::/64")}, PublicIPs: []netip.Addr{netip.MustParseAddr("2001:db8::4")}, State: api.LeftOut, Why: "other-family: its host has fd12:3456:0:4::/64, this host 10.5.1.0/24"}
	head := `web1  ready, but 1 unreachable peer of 2: see tulle doctor
lease     10.5.1.0/24, fd12:3456:0:1::/64, renewed 1 min 30 s ago, expires in 23 h 58 min
underlay  192.0.2.1, 2001:db8::1 on eth0, MTU 1500
overlay   10.5.0.0/16, fd12:3456::/48 by vxlan on tulle.1, tulle-v6.1, VNI 1, UDP 8472, MTU inside 1430
etcd      connected to http://192.0.2.9:2379, revision 7
docker    bridge docker0 has 10.5.1.1/24, fd12:3456:0:1::1/64
left out  1 lease: other-family
`
	if got, want := shown(t, statusCmd{}, status, well, ill, left), head+`PEER                             PUBLIC IP               STATE        OVERLAY  UNDERLAY  LOSS
10.5.0.3/32, fd12:3456:0:3::/64  192.0.0.3, 2001:db8::3  unreachable  0.42 ms  0.21 ms   100 %  IPv4 gets through, IPv6 does not: is UDP port 8472 blocked?
fd12:3456:0:4::/64               2001:db8::4             left-out     -        -         -      other-family: its host has fd12:3456:0:4::/64, this host 10.5.1.0/24
10.5.0.2/32, fd12:3456:0:2::/64  192.0.0.2, 2001:db8::2  reachable    0.42 ms  0.21 ms   0 %
`; got != want {
		t.Errorf("%swant:\n%s", got, want)
	}
	if got, want := shown(t, statusCmd{Wide: true}, status, ill), head+`PEER                             PUBLIC IP               STATE        OVERLAY  UNDERLAY  LOSS   ANSWERED  CHANGED
10.5.0.3/32, fd12:3456:0:3::/64  192.0.0.3, 2001:db8::3  unreachable  0.42 ms  0.21 ms   100 %  3 s ago   -        IPv4 gets through, IPv6 does not: is UDP port 8472 blocked?
  IPv4                           192.0.0.3               reachable    0.42 ms  0.21 ms   0 %    3 s ago
  IPv6                           2001:db8::3             unreachable  0.42 ms  0.21 ms   100 %  3 s ago
`; got != want {
		t.Errorf("--wide:\n%swant:\n%s", got, want)
	}
}

func TestStatusOfMany(t *testing.T) {
	t.Parallel()
	status := aStatus()
	status.Peers = api.PeerCount{Total: 10000, Reachable: 9959, Unreachable: 41}
	var peers []api.Peer
	for n := range 10000 {
		state := api.Reachable
		if n > 9958 {
			state = api.Unreachable
		}
		peers = append(peers, aPeer(n, state))
	}
	got := shown(t, statusCmd{}, status, peers...)
	if n := strings.Count(got, " unreachable "); strings.Count(got, "\n") != 6+1+1+summarised+1 || n != summarised+1 {
		t.Errorf("%d lines, %d unreachable peers:\n%s", strings.Count(got, "\n"), n, got)
	}
	for _, part := range []string{"ready, but 41 unreachable peers of 10,000: see tulle doctor\n", "10,000 peers: 9,959 reachable, 41 unreachable, 0 not known; 0 leases left out\n",
		"(9,970 peers not listed here: --wide lists all)\n"} {
		if !strings.Contains(got, part) {
			t.Errorf("no %q in\n%s", part, got)
		}
	}
	if n := strings.Count(shown(t, statusCmd{Wide: true}, status, peers...), "\n"); n != 6+1+10000 {
		t.Errorf("--wide prints %d lines", n)
	}
}

func TestColour(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	s := screen{w: &text, terminal: true, colour: true}
	s.table([][]cell{{{"a", good}, {"b", plain}}, {{"long", bad}, {"c", plain}}})
	if got, want := text.String(), "\x1b[32ma\x1b[0m     b\n\x1b[31mlong\x1b[0m  c\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestWords(t *testing.T) {
	t.Parallel()
	for got, want := range map[string]string{
		span(59 * time.Second): "59 s", span(61 * time.Second): "1 min 1 s", span(25*time.Hour + time.Minute): "25 h 1 min", span(50 * time.Hour): "2 d 2 h",
		plural(1, "peer"): "1 peer", plural(2, "address"): "2 addresses", plural(1234567, "lease"): "1,234,567 leases", thousands(0): "0", thousands(999): "999", thousands(1000): "1,000",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Each backend has a line that names what it has.
func TestOverlayText(t *testing.T) {
	t.Parallel()
	ranges := []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")}
	for want, n := range map[string]api.Network{
		"10.5.0.0/16 by l2 on tulle.7, VNI 7, UDP 4789, MTU inside 1450":   {Backend: "l2", Device: "tulle.7", Kind: "vxlan", VNI: 7, Port: 4789, MTU: 1450},
		"10.5.0.0/16 by udp on tulle-udp, UDP 8285, MTU inside 1472":       {Backend: "udp", Device: "tulle-udp", Kind: "tun", Port: 8285, MTU: 1472},
		"10.5.0.0/16 by ipip on tulle-ipip, MTU inside 1480":               {Backend: "ipip", Device: "tulle-ipip", Kind: "ipip", MTU: 1480},
		"10.5.0.0/16 by host-gw, MTU inside 1500":                          {Backend: "host-gw", MTU: 1500},
		"10.5.0.0/16 by wireguard on tulle-wg, UDP 51820, MTU inside 1420": {Backend: "wireguard", Device: "tulle-wg", Kind: "wireguard", Port: 51820, MTU: 1420},
	} {
		n.Ranges = ranges
		if got := overlayText(n); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
