package kernel

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// A deleted bridge leaves the containers' veths without a master; with the new bridge they get it back, and only they do.
func TestDeletedBridgeGetsItsPortsBack(t *testing.T) {
	for _, whose := range []string{"ours", "Docker's"} {
		t.Run(whose, func(t *testing.T) {
			s := newSandbox(t)
			if whose != "ours" {
				s.run("ip link add docker0 mtu 1450 type bridge")
			}
			k, want := s.open(), state(t, 3)
			s.apply(k, want)
			s.setup("ip link add br-other type bridge")
			for _, veth := range []string{"port1", "port2", "loose", "taken", "renamed", "remade"} {
				s.run("ip link add %s type veth peer name in-%s", veth, veth)
				if veth != "loose" {
					s.run("ip link set %s master docker0 up", veth)
				}
			}
			s.apply(k, want)
			s.run("ip link del docker0")
			s.run("ip link set taken master br-other")
			s.run("ip link set renamed name other")
			s.run("ip link del remade")
			s.run("ip link add remade type veth peer name in-remade")
			s.setupBeside(want, "")
			if got := s.apply(k, want).Count(); got["link"] != 1 {
				t.Errorf("changed %v, want one link", got)
			}
			ports := map[string]string{"port1": "docker0", "port2": "docker0", "taken": "br-other"}
			if got := s.masters(); !maps.Equal(got, ports) {
				t.Errorf("masters %v, want %v", got, ports)
			}
			s.converged(k, want)
		})
	}
}

// masters lists the links that have a master, with its name.
func (s *sandbox) masters() map[string]string {
	s.Helper()
	masters := map[string]string{}
	for _, o := range s.list("ip -j link show") {
		if o.Master != "" {
			masters[o.Ifname] = o.Master
		}
	}
	return masters
}

func (s *sandbox) index(device string) int {
	s.Helper()
	l, err := net.InterfaceByName(device)
	if err != nil {
		s.Fatal(err)
	}
	return l.Index
}

func TestRenamedLinksAreTheSameLinks(t *testing.T) {
	s := newSandbox(t)
	k, want := s.open(), state(t, 3)
	s.apply(k, want)
	s.setupPort()
	tunnel, bridge := s.index("tulle.1"), s.index("docker0")
	s.run("ip link set tulle.1 name lost1")
	s.run("ip link set docker0 name lost2")
	restarted := s.open()
	if got, links := s.apply(restarted, want).Count(), (count{"link": 2}); !maps.Equal(got, links) {
		t.Errorf("changed %v, want %v", got, links)
	}
	s.converged(restarted, want)
	if s.index("tulle.1") != tunnel || s.index("docker0") != bridge || s.masters()["veth1"] != "docker0" {
		t.Errorf("not the links that they were: %s", s.run("ip link show"))
	}
}

// Of two bridges of ours that could be the lost one, the older is it. The other stays: containers may hang on it.
func TestRenamedBridgeAndAnother(t *testing.T) {
	s := newSandbox(t)
	k, want := s.open(), state(t, 3)
	s.apply(k, want)
	bridge := s.index("docker0")
	s.run("ip link add a-bridge type bridge")
	s.alias("a-bridge", backend.Alias)
	s.setupBeside(want, "")
	s.run("ip link set docker0 name lost")
	s.apply(k, want)
	s.converged(k, want)
	if s.index("docker0") != bridge {
		t.Error("docker0 is another bridge")
	}
}

// Before Linux 6.2 a link that is up can't be renamed. Here the kernel can, so a test must refuse in its place.
func TestRenameOfALinkThatIsUp(t *testing.T) {
	s := newSandbox(t)
	k, want := s.open(), state(t, 3)
	s.apply(k, want)
	tunnel := s.index("tulle.1")
	s.run("ip link set tulle.1 name lost")
	refused := 0
	k.conn.fault = func(kind int) error {
		if l, err := net.InterfaceByName("lost"); kind == unix.RTM_SETLINK && err == nil && l.Flags&net.FlagUp != 0 {
			refused++
			return unix.EBUSY
		}
		return nil
	}
	s.apply(k, want)
	s.converged(k, want)
	if refused != 1 || s.index("tulle.1") != tunnel {
		t.Errorf("refused %d times; ifindex %d, was %d", refused, s.index("tulle.1"), tunnel)
	}
}

// moves are what can happen to a host's underlay, and where the overlay's packets must come from afterwards.
var moves = map[string]struct {
	change   func(*backend.Host)
	commands string
	source   string
}{
	"address": {func(h *backend.Host) { h.Underlay.Local.V4 = netip.MustParseAddr("192.0.2.77") }, "", "192.0.2.77"},
	"device": {func(h *backend.Host) { h.Underlay.Device = "eth1" },
		"ip route replace 172.20.0.0/16 via 198.51.100.254", "192.0.2.1"},
	"both": {func(h *backend.Host) {
		h.Underlay.Device, h.Underlay.Local.V4 = "eth1", netip.MustParseAddr("198.51.100.1")
	}, "ip route replace 172.20.0.0/16 via 198.51.100.254", "198.51.100.1"},
}

// moved returns p for a host that change was done to.
func (s *sandbox) moved(p *backend.Plan, change func(*backend.Host)) backend.State {
	s.Helper()
	host := p.Host()
	change(&host)
	b, _ := backend.New(host.Config)
	moved, err := backend.NewPlan(b, host, p.Entries())
	if err != nil {
		s.Fatal(err)
	}
	return moved.State()
}

const twoUnderlays = `
	ip addr add 192.0.2.77/24 dev eth0
	ip neigh add 192.0.2.254 lladdr 02:aa:00:00:00:fe dev eth0 nud permanent
	ip link add eth1 type veth peer name wire1
	ip link set eth1 up
	ip link set wire1 up
	ip addr add 198.51.100.1/24 dev eth1
	ip neigh add 198.51.100.254 lladdr 02:aa:00:00:00:fe dev eth1 nud permanent
	ip route add 172.20.0.0/16 via 192.0.2.254
`

// A new underlay device or address of it leaves all that hangs on the VXLAN device as it is, and packets flow all the time.
func TestUnderlayChangesInPlace(t *testing.T) {
	for name, c := range moves {
		t.Run(name, func(t *testing.T) {
			eachMode(t, func(s *sandbox) {
				s.setup(twoUnderlays)
				k, p := s.open(), newPlan(s, vxlanConfig, 10)
				s.apply(k, p.State())
				s.settle(k, p.State())
				tunnel, want := s.index("tulle.1"), s.moved(p, c.change)
				talk := s.talk("10.5.1.0", "10.5.2.2", "wire", "wire1")
				talk.goesOn(s)
				s.setupBeside(p.State(), c.commands)
				if got := s.apply(k, want).Count(); !maps.Equal(got, count{"link": 1}) {
					s.Errorf("changed %v, want the link alone", got)
				}
				talk.goesOn(s)
				if source := talk.source.Load(); source != netip.MustParseAddr(c.source) {
					s.Errorf("packets come from %v, want %s", source, c.source)
				}
				if s.index("tulle.1") != tunnel {
					s.Error("another device")
				}
				s.converged(k, want)
				s.Logf("%d packets went round, %d were lost", talk.answered.Load(), talk.lost.Load())
				if n := talk.lost.Load(); n > 1 {
					s.Errorf("%d packets were lost", n)
				}
			})
		})
	}
}

// So it is over IPv6: the kernel remembers no source of before.
func TestIPv6UnderlayChangesInPlace(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		s.setup(underlay6)
		s.setup("ip addr add 2001:db8::77/64 dev eth0 nodad\nip neigh add 2001:db8::2 lladdr 02:aa:00:00:00:fe dev eth0 nud permanent")
		n := networks()[5]
		k, p := s.open(), newPlanOn(s, n.local, n.config, 10)
		s.apply(k, p.State())
		tunnel, wire := s.index("tulle-v6.1"), s.packetSocket("wire", unix.ETH_P_IPV6)
		if source := s.outerSource(wire); source != n.local.V6 {
			s.Fatalf("packets come from %s", source)
		}
		moved := netip.MustParseAddr("2001:db8::77")
		want := s.moved(p, func(h *backend.Host) { h.Underlay.Local.V6 = moved })
		if got := s.apply(k, want).Count(); !maps.Equal(got, count{"link": 1}) {
			s.Errorf("changed %v, want the link alone", got)
		}
		if source := s.outerSource(wire); source != moved {
			s.Errorf("packets come from %s", source)
		}
		if s.index("tulle-v6.1") != tunnel {
			s.Error("another device")
		}
		s.converged(k, want)
	})
}

// outerSource sends a packet to a peer, and returns what address of this host it comes from on an IPv6 underlay.
func (s *sandbox) outerSource(wire int) (source netip.Addr) {
	s.Helper()
	conn, err := net.Dial("udp4", "10.5.2.2:9")
	if err != nil {
		s.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("?")); err != nil {
		s.Fatal(err)
	}
	frame := make([]byte, 2048)
	s.eventually("a VXLAN packet", func() bool {
		n, _, err := unix.Recvfrom(wire, frame, 0)
		source, _ = netip.AddrFromSlice(frame[22:38])
		return err == nil && n > 54 && frame[20] == unix.IPPROTO_UDP
	})
	return netip.AddrFrom16(source.As16())
}

// The kernel cuts the MTU of a device that moves to an underlay which carries less, and raises none.
func TestUnderlayOfAnotherMTU(t *testing.T) {
	s := newSandbox(t)
	s.setup(twoUnderlays)
	k, p := s.open(), newPlan(t, vxlanConfig, 3)
	home := p.State()
	s.apply(k, home)
	tunnel := s.index("tulle.1")
	for _, mtu := range []int{1400, 9000} {
		s.setupBeside(home, fmt.Sprintf("ip link set eth1 mtu %d", mtu))
		away := s.moved(p, func(h *backend.Host) { h.Underlay.Device, h.Underlay.MTU = "eth1", mtu })
		for _, want := range []backend.State{away, home} {
			s.apply(k, want)
			s.converged(k, want)
		}
	}
	if s.index("tulle.1") != tunnel {
		t.Error("another device")
	}
}

// A kernel that refuses to change the device gets a new one.
func TestUnderlayChangeRefused(t *testing.T) {
	s := newSandbox(t)
	s.setup(twoUnderlays)
	k, p := s.open(), newPlan(t, vxlanConfig, 10)
	s.apply(k, p.State())
	tunnel, want := s.index("tulle.1"), s.moved(p, moves["both"].change)
	k.conn.fault = func(kind int) error {
		if kind == unix.RTM_NEWLINK {
			return unix.EOPNOTSUPP
		}
		return nil
	}
	s.apply(k, want)
	s.converged(k, want)
	if s.index("tulle.1") == tunnel {
		t.Error("the device is the old one")
	}
}

// conversation sends packets into the overlay, one after the other's answer. Peers are an echo on the underlay's wires.
type conversation struct {
	answered, lost atomic.Int64
	source         atomic.Value // netip.Addr of the last outer packet
}

// goesOn waits for some answers from now on.
func (c *conversation) goesOn(s *sandbox) {
	s.Helper()
	enough := c.answered.Load() + 50
	s.eventually("answers", func() bool { return c.answered.Load() >= enough })
}

// talk has a conversation from an address of ours with a peer's until the test ends.
func (s *sandbox) talk(from, to string, wires ...string) *conversation {
	s.Helper()
	c, done := &conversation{}, make(chan struct{})
	ended := make(chan struct{}, len(wires)+1)
	run := func(turn func()) {
		go func() {
			defer func() { ended <- struct{}{} }()
			for {
				select {
				case <-done:
					return
				default:
					turn()
				}
			}
		}()
	}
	for _, wire := range wires {
		fd := s.packetSocket(wire, unix.ETH_P_IP)
		run(func() { c.echo(fd) })
	}
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0)),
		net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(to), 9)))
	if err != nil {
		s.Fatal(err)
	}
	run(func() { c.ask(conn) })
	s.Cleanup(func() {
		close(done)
		for range cap(ended) {
			<-ended
		}
		conn.Close()
	})
	return c
}

// ask sends a packet and waits for its answer; an answer to an earlier one, which counted as lost, is none.
func (c *conversation) ask(conn *net.UDPConn) {
	number := byte(c.answered.Load() + c.lost.Load())
	buffer := make([]byte, 1)
	_, _ = conn.Write([]byte{number})
	conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	for {
		_, err := conn.Read(buffer)
		switch {
		case err != nil:
			c.lost.Add(1)
			return
		case buffer[0] == number:
			c.answered.Add(1)
			return
		}
	}
}

// packetSocket returns a socket that sees a device's packets of a protocol, ETH_P_…, until the test ends.
func (s *sandbox) packetSocket(device string, protocol uint16) int {
	s.Helper()
	protocol = protocol>>8 | protocol<<8 // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(protocol))
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { unix.Close(fd) })
	limit := unix.NsecToTimeval((50 * time.Millisecond).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		s.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: s.index(device)}); err != nil {
		s.Fatal(err)
	}
	return fd
}

// echo answers one VXLAN packet with itself, sender and receiver exchanged at all layers. No checksum but UDP's notices, and
// that one may be missing.
func (c *conversation) echo(fd int) {
	frame := make([]byte, 2048)
	n, _, err := unix.Recvfrom(fd, frame, 0)
	const outerIP, outerUDP, innerEther, innerIP, innerUDP = 14, 34, 50, 64, 84
	if err != nil || n < innerUDP+8 || frame[outerIP+9] != unix.IPPROTO_UDP || frame[innerIP+9] != unix.IPPROTO_UDP {
		return
	}
	frame = frame[:n]
	source, _ := netip.AddrFromSlice(slices.Clone(frame[outerIP+12 : outerIP+16]))
	c.source.Store(source)
	for _, field := range []struct{ at, length int }{{0, 6}, {outerIP + 12, 4}, {innerEther, 6}, {innerIP + 12, 4}, {innerUDP, 2}} {
		for i := range field.length {
			a, b := field.at+i, field.at+field.length+i
			frame[a], frame[b] = frame[b], frame[a]
		}
	}
	copy(frame[outerUDP+6:], []byte{0, 0})
	copy(frame[innerUDP+6:], []byte{0, 0})
	_, _ = unix.Write(fd, frame)
}
