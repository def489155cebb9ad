package netfilter

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// lab is a host, which is the sandbox, with a container on docker0, a peer's container behind tulle.1, and everything else, the world,
// behind eth0. Everybody knows a way to all containers: a packet that should have been masqueraded and was not arrives all the same.
type lab struct {
	sandbox
	host, container, peer, world netns.NsHandle
}

// addresses are those of one family.
type addresses struct {
	gateway, container string // on docker0
	vtep, peer         string // on tulle.1
	underlay, world    string // on eth0
	other              string // the host's, elsewhere
	liar               string // a peer's container's, which the world uses
}

func addressesOf(f subnet.Family) addresses {
	if f == subnet.IPv4 {
		return addresses{"10.5.1.1", "10.5.1.2", "10.5.1.0", "10.5.2.2", "203.0.113.1", "203.0.113.2", "198.51.100.1", "10.5.3.3"}
	}
	return addresses{"fd00:5:0:1::1", "fd00:5:0:1::2", "fd00:5:0:1::3", "fd00:5:0:2::2", "2001:db8::1", "2001:db8::2", "2001:db8:1::1", "fd00:5:0:3::3"}
}

func newLab(s sandbox) *lab {
	s.Helper()
	l := &lab{sandbox: s}
	l.host = l.handle(netns.Get())
	l.container, l.peer, l.world = l.handle(netns.New()), l.handle(netns.New()), l.handle(netns.New())
	for _, ns := range []netns.NsHandle{l.host, l.container, l.peer, l.world} { // nobody else has these addresses: nothing to wait for
		l.in(ns, func() { l.write("ipv6/conf/default/accept_dad", "0") })
	}
	l.in(l.host, func() {
		for device, ns := range map[string]netns.NsHandle{"docker0": l.container, "tulle.1": l.peer, "eth0": l.world} {
			s.run("ip link add %s type veth peer name eth0 netns %s", device, l.path(ns))
			s.run("ip link set %s up", device)
		}
		l.write("ipv4/ip_forward", "1")
		l.write("ipv6/conf/all/forwarding", "1")
	})
	for _, f := range families() {
		l.address(f, addressesOf(f))
	}
	return l
}

func (l *lab) address(f subnet.Family, a addresses) {
	l.Helper()
	length := map[subnet.Family]int{subnet.IPv4: 24, subnet.IPv6: 64}[f]
	add := func(device, address string, bits int) {
		l.run("ip addr add %s/%d dev %s", address, bits, device)
	}
	l.in(l.host, func() {
		add("docker0", a.gateway, length)
		add("tulle.1", a.vtep, f.Bits())
		add("eth0", a.underlay, length)
		add("lo", a.other, f.Bits())
		l.run("ip route add %s dev tulle.1", a.peer)
		l.run("ip route add %s dev tulle.1", a.liar)
	})
	for _, end := range []struct {
		ns           netns.NsHandle
		address, via string
	}{{l.container, a.container, a.gateway}, {l.peer, a.peer, a.vtep}, {l.world, a.world, a.underlay}} {
		l.in(end.ns, func() {
			l.run("ip link set eth0 up")
			l.run("ip link set lo up")
			add("eth0", end.address, length)
			l.run("ip route add %s dev eth0", end.via)
			l.run("ip route add default via %s dev eth0", end.via)
		})
	}
	l.in(l.world, func() { add("lo", a.liar, f.Bits()) })
}

// write sets a sysctl below net.
func (l *lab) write(name, value string) {
	l.Helper()
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
		l.Fatal(err)
	}
}

func (l *lab) handle(ns netns.NsHandle, err error) netns.NsHandle {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { ns.Close() })
	return ns
}

// path names a namespace to the ip command, which finds it under its parent, this process.
func (l *lab) path(ns netns.NsHandle) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns) }

// in calls f with the thread in another namespace. Sockets stay in the namespace that they were made in.
func (l *lab) in(ns netns.NsHandle, f func()) {
	l.Helper()
	if err := netns.Set(ns); err != nil {
		l.Fatal(err)
	}
	f()
	if err := netns.Set(l.host); err != nil {
		l.Fatal(err)
	}
}

func (l *lab) listen(ns netns.NsHandle, addr netip.AddrPort) (c *net.UDPConn) {
	l.Helper()
	l.in(ns, func() {
		var err error
		if c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr)); err != nil {
			l.Fatal(err)
		}
	})
	l.Cleanup(func() { c.Close() })
	return c
}

// source sends a packet and returns the source address that it arrives with; the zero Addr if it does not arrive within
// the wait.
func (l *lab) source(from netns.NsHandle, src string, to netns.NsHandle, dst string, port uint16, wait time.Duration) netip.Addr {
	l.Helper()
	target := netip.AddrPortFrom(netip.MustParseAddr(dst), port)
	receiver := l.listen(to, target)
	defer receiver.Close()
	sender := l.listen(from, netip.AddrPortFrom(netip.MustParseAddr(src), 0)) // another port each time, or conntrack would remember
	defer sender.Close()
	if _, err := sender.WriteToUDPAddrPort([]byte("?"), target); err != nil {
		l.Fatal(err)
	}
	if err := receiver.SetReadDeadline(time.Now().Add(wait)); err != nil {
		l.Fatal(err)
	}
	_, addr, err := receiver.ReadFromUDPAddrPort(make([]byte, 8))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		l.Fatal(err)
	}
	return addr.Addr().Unmap()
}

// arrives checks what source a packet has when it arrives.
func (l *lab) arrives(from netns.NsHandle, src string, to netns.NsHandle, dst string, port uint16, want string) {
	l.Helper()
	if got := l.source(from, src, to, dst, port, 5*time.Second); got != netip.MustParseAddr(want) {
		l.Errorf("%s → %s: arrives from %s, want %s", src, dst, got, want)
	}
}

// lost checks that a packet does not arrive.
func (l *lab) lost(from netns.NsHandle, src string, to netns.NsHandle, dst string, port uint16) {
	l.Helper()
	if got := l.source(from, src, to, dst, port, 200*time.Millisecond); got.IsValid() {
		l.Errorf("%s → %s: a packet from %s arrived", src, dst, got)
	}
}

// startDocker makes the rules that a dockerd makes when it starts: its chains, if need be, and the jumps to them, anew and first. From
// 28 on it drops what comes to containers' addresses from elsewhere.
func (s sandbox) startDocker(version int) {
	s.Helper()
	for _, f := range families() {
		name, _ := toolName(f)
		tool := name + " -w "
		for _, chain := range []string{"DOCKER", "DOCKER-USER"} {
			if !s.succeeds(tool + "-S " + chain) {
				s.run("%s -N %s", tool, chain)
			}
		}
		if !s.succeeds(tool + "-t nat -S DOCKER") {
			s.run("%s -t nat -N DOCKER", tool)
		}
		s.run("%s -F DOCKER", tool)
		s.run("%s -P FORWARD DROP", tool)
		rules := []string{"FORWARD -i docker0 -o docker0 -j ACCEPT", "FORWARD -i docker0 ! -o docker0 -j ACCEPT", "FORWARD -o docker0 -j DOCKER",
			"FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "FORWARD -j DOCKER-USER"}
		if version >= 28 {
			rules = append([]string{"DOCKER ! -i docker0 -o docker0 -j DROP"}, rules...)
			raw := fmt.Sprintf("PREROUTING -d %s ! -i docker0 -j DROP", addressesOf(f).container)
			s.again(tool+"-t raw", raw)
		}
		for _, rule := range rules {
			s.again(tool, rule)
		}
	}
}

// again deletes a rule, if it is there, and inserts it.
func (s sandbox) again(tool, rule string) {
	s.Helper()
	for s.succeeds(tool + " -D " + rule) {
	}
	s.run("%s -I %s", tool, rule)
}

func (s sandbox) succeeds(command string) bool {
	words := strings.Fields(command)
	return exec.Command(words[0], words[1:]...).Run() == nil
}

// everyPacket runs test with each way to make our rules, in a lab, beside the Dockers of some versions; 0 for none.
func everyPacket(t *testing.T, versions []int, test func(l *lab, f subnet.Family, a addresses, policy backend.Firewall)) {
	for _, version := range versions {
		t.Run(fmt.Sprintf("docker %d", version), func(t *testing.T) {
			eachWay(t, func(s sandbox) {
				l := newLab(s)
				if version > 0 {
					s.startDocker(version)
				}
				for _, f := range families() {
					test(l, f, addressesOf(f), dual(besideDocker()))
				}
			})
		})
	}
}

func TestPackets(t *testing.T) {
	everyPacket(t, []int{0, 20, 28}, func(l *lab, f subnet.Family, a addresses, policy backend.Firewall) {
		name, _ := toolName(f)
		l.run("%s -w -t mangle -A PREROUTING -p udp -m udp --dport 4000 -j MARK --set-xmark 0x4000/0x4000", name)
		l.apply(policy)

		// Nothing between two members of the overlay is masqueraded.
		l.arrives(l.container, a.container, l.peer, a.peer, 9, a.container)
		l.arrives(l.peer, a.peer, l.container, a.container, 9, a.peer)
		l.arrives(l.host, a.gateway, l.peer, a.peer, 9, a.gateway)
		// Between the overlay and elsewhere what leaves the host is.
		l.arrives(l.container, a.container, l.world, a.world, 9, a.underlay)
		l.arrives(l.host, a.other, l.peer, a.peer, 9, a.vtep)
		// What has nothing to do with the overlay is left alone.
		l.arrives(l.host, a.other, l.world, a.world, 9, a.other)
		l.arrives(l.container, a.container, l.world, a.world, 4000, a.container) // marked to be exempt

		policy.Masquerade = subnet.Pair[bool]{}
		l.apply(policy)
		l.arrives(l.container, a.container, l.world, a.world, 9, a.container)
	})
}

// What comes to a host's own containers from elsewhere keeps its source, if nobody drops it.
func TestFromElsewhere(t *testing.T) {
	everyPacket(t, []int{0}, func(l *lab, f subnet.Family, a addresses, policy backend.Firewall) {
		l.apply(policy)
		l.arrives(l.world, a.world, l.container, a.container, 9, a.world)
	})
}

// Without our rules, Docker's policy of DROP keeps peers out.
func TestNotForwarded(t *testing.T) {
	everyPacket(t, []int{20, 28}, func(l *lab, f subnet.Family, a addresses, policy backend.Firewall) {
		l.apply(policy)
		policy.Forward = false
		l.apply(policy)
		l.lost(l.peer, a.peer, l.container, a.container, 9)
	})
}

// A packet that claims to come from a peer's container, and comes by the underlay, is dropped, whatever others accept.
func TestSpoofed(t *testing.T) {
	everyPacket(t, []int{0, 20, 28}, func(l *lab, f subnet.Family, a addresses, policy backend.Firewall) {
		name, _ := toolName(f)
		l.run("%s -w -I FORWARD -o docker0 -j ACCEPT", name)
		l.again(name+" -w -t raw", "PREROUTING -i eth0 -j ACCEPT")
		l.write("ipv4/conf/all/rp_filter", "0")
		l.write("ipv4/conf/eth0/rp_filter", "0")
		l.arrives(l.world, a.liar, l.container, a.container, 9, a.liar) // else this shows nothing
		l.apply(policy)
		l.lost(l.world, a.liar, l.container, a.container, 9)
		l.arrives(l.peer, a.peer, l.container, a.container, 9, a.peer)
		l.arrives(l.world, a.world, l.container, a.container, 9, a.world)
		l.arrives(l.host, a.gateway, l.container, a.container, 9, a.gateway)
		policy.Forward = false
		l.apply(policy)
		l.arrives(l.world, a.liar, l.container, a.container, 9, a.liar)
	})
}

// A dockerd that was not told --ip-masq=false masquerades its bridge. It must not hide containers from their peers, also when its
// rule comes first.
func TestDockersMasquerading(t *testing.T) {
	everyPacket(t, []int{20}, func(l *lab, f subnet.Family, a addresses, policy backend.Firewall) {
		name, _ := toolName(f)
		l.apply(policy)
		l.run("%s -w -t nat -I POSTROUTING -s %s ! -o docker0 -j MASQUERADE", name, policy.Subnet.Of(f))
		l.apply(policy)
		l.arrives(l.container, a.container, l.peer, a.peer, 9, a.container)
		l.arrives(l.container, a.container, l.world, a.world, 9, a.underlay)
	})
}

// What an operator drops stays dropped: our forwarding rules come after all others.
func TestOperatorsDropPrevails(t *testing.T) {
	everyPacket(t, []int{0, 20}, func(l *lab, f subnet.Family, a addresses, policy backend.Firewall) {
		name, _ := toolName(f)
		l.apply(policy)
		l.run("%s -w -I FORWARD -p udp -m udp --dport 9 -j DROP", name)
		l.apply(policy)
		l.lost(l.container, a.container, l.peer, a.peer, 9)
		l.arrives(l.container, a.container, l.peer, a.peer, 10, a.container)
	})
}

// A Docker whose firewall backend is nftables drops what another table accepts, and lets in what has the mark that it was told of.
func TestDockersNFTables(t *testing.T) {
	eachWay(t, func(s sandbox) {
		l := newLab(s)
		s.runAll(`
			nft add table inet docker-bridges
			nft add chain inet docker-bridges f { type filter hook forward priority filter ; policy accept ; }
			nft add rule inet docker-bridges f oifname docker0 meta mark & 0x1000000 == 0x1000000 accept
			nft add rule inet docker-bridges f oifname docker0 ct state established,related accept
			nft add rule inet docker-bridges f oifname docker0 drop
		`)
		policy := dual(besideDocker())
		for _, f := range families() {
			a := addressesOf(f)
			policy.Mark = 0
			l.apply(policy)
			l.lost(l.peer, a.peer, l.container, a.container, 9)
			policy.Mark = 0x1000000
			l.apply(policy)
			l.arrives(l.peer, a.peer, l.container, a.container, 9, a.peer)
			l.arrives(l.container, a.container, l.peer, a.peer, 9, a.container)
			l.lost(l.world, a.world, l.container, a.container, 9)
		}
	})
}

// Where all hosts are one segment, peers' packets pass the bridge, and with br_netfilter the packet filter: they come by the bridge.
func TestBridged(t *testing.T) {
	if _, err := os.Stat("/proc/sys/net/bridge"); err != nil {
		t.Skip("this kernel has no br_netfilter")
	}
	eachWay(t, func(s sandbox) {
		l := newLab(s)
		s.runAll(`
			ip link set docker0 down
			ip link set docker0 name port0
			ip link set tulle.1 down
			ip link set tulle.1 name port1
			ip link add docker0 type bridge
			ip link set port0 master docker0 up
			ip link set port1 master docker0 up
			ip link set docker0 up
		`)
		for _, name := range []string{"bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables", "ipv6/conf/eth0/forwarding"} {
			l.write(name, "1")
		}
		policy := dual(besideDocker())
		policy.From = backend.Devices{"docker0"}
		l.apply(policy)
		for _, f := range families() {
			a := addressesOf(f)
			for _, end := range []struct {
				ns   netns.NsHandle
				peer string
			}{{l.container, a.peer}, {l.peer, a.container}} {
				l.in(end.ns, func() { s.run("ip route add %s dev eth0", end.peer) })
			}
			s.run("ip route add %s dev docker0", a.container)
			l.arrives(l.peer, a.peer, l.container, a.container, 9, a.peer)
			l.arrives(l.container, a.container, l.peer, a.peer, 9, a.container)
			l.lost(l.world, a.liar, l.container, a.container, 9)
		}
	})
}
