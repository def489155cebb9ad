package e2e

import (
	"bytes"
	bin "encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

const oneSegment = `{"Network":"10.5.0.0/16","Backend":{"Type":"l2"}}`

// TestL2 is what only a network has whose hosts are one segment. Packets between containers pass the hosts' packet filters, as
// Docker wants it, which drop what nobody accepts.
func TestL2(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 3, Config: oneSegment, Agent: []string{"--attach-addresses=100"}})
	for _, h := range l.Nodes {
		in(t, h.Namespace, "sysctl", "-w", "net.bridge.bridge-nf-call-iptables=1")
	}
	t.Run("neighbours", func(t *testing.T) { testNeighbours(t, l) })
	t.Run("all pairs", func(t *testing.T) { testAllPairs(t, l) })
	t.Run("outside", func(t *testing.T) { testOutside(t, l) })
	t.Run("MTU", func(t *testing.T) { testSegmentMTU(t, l) })
	t.Run("broadcast and multicast", func(t *testing.T) { testBroadcast(t, l) })
	t.Run("ARP stays at home", func(t *testing.T) { testSuppression(t, l) })
	t.Run("a container has another MAC", func(t *testing.T) { testOtherMAC(t, l) })
	t.Run("an address moves", func(t *testing.T) { testAddressMoves(t, l) })
	t.Run("attach", func(t *testing.T) { testSegmentAttach(t, l) })
	t.Run("leave", func(t *testing.T) { testSegmentLeave(t, l) })
	t.Run("another type", func(t *testing.T) { testSegmentEnds(t, l) })
}

// TestL2Families is the segment with IPv6 inside, and on the underlay.
func TestL2Families(t *testing.T) {
	for name, f := range map[string]families{"both on IPv4": {overlay: "both"}, "both on IPv6": {overlay: "both", underlay: "ipv6"}, "IPv6 on both": {overlay: "ipv6", underlay: "both"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, lab.Options{Hosts: 3, Config: "{" + f.network() + `,"Backend":{"Type":"l2"}}`, Families: f.underlay})
			testAllPairs(t, l)
			testSuppression(t, l)
		})
	}
}

// mac is a container's own.
func mac(t *testing.T, c *lab.Container) string {
	t.Helper()
	link := in(t, c.Namespace, "ip", "-o", "link", "show", "eth0")
	_, rest, _ := strings.Cut(link, "link/ether ")
	address, _, _ := strings.Cut(rest, " ")
	return address
}

// testNeighbours has containers of two hosts see each other's own MACs, and no router in between; hosts see far containers, too.
func testNeighbours(t *testing.T, l *lab.Lab) {
	from, to := l.Nodes[0], l.Nodes[1].Container
	out := in(t, from.Container.Namespace, "busybox", "ping", "-c1", "-W2", to.Address.String())
	if !strings.Contains(out, "ttl=64") {
		t.Errorf("somebody routed: %s", out)
	}
	if neighbour := in(t, from.Container.Namespace, "ip", "neigh", "show", to.Address.String()); !strings.Contains(neighbour, mac(t, to)) {
		t.Errorf("the neighbour is %q, and %s has %s", neighbour, to.Name, mac(t, to))
	}
	for _, h := range l.Nodes {
		r, err := lab.Ping(t.Context(), h.Namespace, to.Address, 3, 84)
		if err != nil || r.Lost() > 0 {
			t.Errorf("%s to %s: %+v, %v", h.Name, to.Name, r, err)
		}
	}
}

// testSegmentMTU fills the MTU: a container refuses to send more.
func testSegmentMTU(t *testing.T, l *lab.Lab) {
	from, to := l.Nodes[0].Container, l.Nodes[1].Container
	ping(t, from, to, 1450)
	if r, err := lab.Ping(t.Context(), from.Namespace, to.Address, 1, 1451); err != nil || !errors.Is(r.Refused, unix.EMSGSIZE) {
		t.Errorf("1451 bytes: %+v, %v; want EMSGSIZE", r, err)
	}
	env, err := l.Nodes[0].Env()
	if err != nil || env["FLANNEL_MTU"] != "1450" || !strings.HasSuffix(env["TULLE_BRIDGE"], ".1/16") || !strings.HasSuffix(env["FLANNEL_SUBNET"], ".1/24") {
		t.Errorf("the env file says %v, %v", env, err)
	}
}

// ear hears what a UDP port is sent in a namespace, and counts it by text and source.
type ear struct {
	*net.UDPConn
	mu    sync.Mutex
	heard map[string]int
}

const earPort = 7777

var group = net.IPv4(239, 84, 84, 84)

func listenUDP(t *testing.T, c *lab.Container) *ear {
	t.Helper()
	e := &ear{heard: map[string]int{}}
	err := lab.In(c.Namespace, func() (err error) {
		if e.UDPConn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: earPort}); err != nil {
			return err
		}
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		p := ipv4.NewPacketConn(e.UDPConn)
		return errors.Join(p.JoinGroup(eth0, &net.UDPAddr{IP: group}), p.SetMulticastInterface(eth0))
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 100)
		for {
			n, from, err := e.ReadFromUDP(buffer)
			if err != nil {
				return
			}
			e.mu.Lock()
			e.heard[string(buffer[:n])+" from "+from.IP.String()]++
			e.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		e.Close()
		<-done
	})
	return e
}

// testBroadcast sends to all: containers on every host receive it once, from the sender's own address, and it does not come back.
func testBroadcast(t *testing.T, l *lab.Lab) {
	ears := map[string]*ear{}
	for _, h := range l.Nodes {
		ears[h.Name] = listenUDP(t, h.Container)
	}
	const rounds = 20
	for _, from := range l.Nodes {
		own := mac(t, from.Container)
		echo := watch(t, from.Container.Namespace, func(frame []byte) bool { return net.HardwareAddr(frame[6:12]).String() == own })
		for to, ip := range map[string]net.IP{"subnet": net.IPv4(10, 5, 255, 255), "all": net.IPv4bcast, "group": group} {
			for n := range rounds {
				text := fmt.Sprintf("%s %s %d", from.Name, to, n)
				if _, err := ears[from.Name].WriteToUDP([]byte(text), &net.UDPAddr{IP: ip, Port: earPort}); err != nil {
					t.Fatal(err)
				}
			}
		}
		for name, e := range ears {
			if name == from.Name {
				continue // it hears its own without any wire
			}
			what := name + " has heard what " + from.Name + " said"
			eventually(t, 5*time.Second, what, func() error {
				e.mu.Lock()
				defer e.mu.Unlock()
				if n := count(e.heard, from.Name, from.Container.Address); n < 3*rounds {
					return fmt.Errorf("%d of %d: %v", n, 3*rounds, e.heard)
				}
				return nil
			})
		}
		for _, to := range l.Nodes { // behind all that was sent
			if to != from {
				ping(t, from.Container, to.Container, 84)
			}
		}
		if n := echo.stop(); n > 0 {
			t.Errorf("%d frames of %s came back to it", n, from.Container.Name)
		}
	}
	for name, e := range ears {
		e.mu.Lock()
		for text, n := range e.heard {
			if n != 1 && !strings.HasPrefix(text, name) {
				t.Errorf("%s heard %q %d times", name, text, n)
			}
		}
		e.mu.Unlock()
	}
}

// count counts what was heard of a host, and from its container's address.
func count(heard map[string]int, host string, address netip.Addr) (n int) {
	for text, times := range heard {
		if strings.HasPrefix(text, host+" ") && strings.HasSuffix(text, " from "+address.String()) {
			n += times
		}
	}
	return n
}

// watcher counts frames that come in to a container.
type watcher struct {
	file *os.File
	done chan int
}

func watch(t *testing.T, namespace string, counts func(frame []byte) bool) *watcher {
	t.Helper()
	w := &watcher{done: make(chan int, 1)}
	err := lab.In(namespace, func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		w.file = os.NewFile(uintptr(fd), "frames")
		protocol := bin.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: eth0.Index}))
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		n := 0
		for frame := make([]byte, 2048); ; {
			size, err := w.file.Read(frame)
			if err != nil {
				w.done <- n
				return
			}
			if size >= 14 && counts(frame[:size]) {
				n++
			}
		}
	}()
	return w
}

func (w *watcher) stop() int {
	w.file.Close()
	return <-w.done
}

// asks is true of ARP requests and neighbour solicitations for one of a container's addresses.
func asks(whom ...netip.Addr) func([]byte) bool {
	return func(frame []byte) bool {
		target := netip.Addr{}
		switch {
		case len(frame) >= 42 && bytes.Equal(frame[12:14], []byte{8, 6}) && bytes.Equal(frame[20:22], []byte{0, 1}):
			target = netip.AddrFrom4([4]byte(frame[38:42]))
		case len(frame) >= 78 && bytes.Equal(frame[12:14], []byte{0x86, 0xdd}) && frame[20] == unix.IPPROTO_ICMPV6 && frame[54] == 135:
			target = netip.AddrFrom16([16]byte(frame[62:78]))
		}
		return slices.Contains(whom, target)
	}
}

// afresh pings an address as a container that knows nothing of the other yet.
func afresh(t *testing.T, from *lab.Container, to netip.Addr) lab.Result {
	t.Helper()
	in(t, from.Namespace, "ip", "neigh", "flush", "all")
	r, err := lab.Ping(t.Context(), from.Namespace, to, 1, 84)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// testSuppression counts what a third host's container is asked while two others find each other again and again.
func testSuppression(t *testing.T, l *lab.Lab) {
	const rounds = 20
	h, from, to, third := l.Nodes[0], l.Nodes[0].Container, l.Nodes[1].Container, l.Nodes[2].Container
	all := rounds * len(to.Addresses)
	asked := func(what string) int {
		t.Helper()
		w := watch(t, third.Namespace, asks(to.Addresses...))
		for i := range all {
			if r := afresh(t, from, to.Addresses[i%len(to.Addresses)]); r.Lost() > 0 {
				t.Errorf("%s: a ping is lost", what)
			}
		}
		ping(t, from, third, 84) // behind all that was sent
		n := w.stop()
		t.Logf("%s: %d questions reached %s in %d rounds", what, n, third.Name, all)
		return n
	}
	if n := asked("with suppression"); n > 0 {
		t.Errorf("%d questions were flooded", n)
	}
	if err := h.Agent.Stop(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if n := asked("without an agent"); n > 0 {
		t.Errorf("%d questions were flooded", n)
	}
	in(t, h.Namespace, "sh", "-c", "bridge link set dev $(ip -o link show type vxlan | cut -d: -f2) neigh_suppress off")
	if n := asked("without suppression"); n != all {
		t.Errorf("%d questions were flooded: this test shows nothing", n)
	}
	if err := l.StartAgent(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	if n := asked("with an agent again"); n > 0 {
		t.Errorf("%d questions were flooded", n)
	}
}

// testOtherMAC gives a container another MAC, as a new container has that gets the address of an old one. Whoever asks for it
// finds it, whether it has told of itself or not.
func testOtherMAC(t *testing.T, l *lab.Lab) {
	from, to, third := l.Nodes[0].Container, l.Nodes[1].Container, l.Nodes[2].Container
	change := func(mac string) {
		t.Helper()
		in(t, to.Namespace, "sh", "-c", "ip link set eth0 down && ip link set eth0 address "+mac+" && ip link set eth0 up && ip route add default via "+to.Subnet.Addr().Next().String())
	}
	found := func(what string, limit time.Duration) {
		t.Helper()
		started := time.Now()
		afresh(t, from, to.Address)
		eventually(t, limit, what, func() error {
			r, err := lab.Ping(t.Context(), from.Namespace, to.Address, 1, 84)
			if err == nil && r.Lost() > 0 {
				err = errors.New("it does not answer")
			}
			return err
		})
		t.Logf("%s: found after %s", what, time.Since(started).Round(time.Millisecond))
	}
	ping(t, from, to, 84)
	ping(t, third, to, 84)
	t.Run("in silence", func(t *testing.T) {
		change("02:00:00:00:84:01")
		found("the container is found that is silent", 5*time.Second)
		if neighbour := in(t, from.Namespace, "ip", "neigh", "show", to.Address.String()); !strings.Contains(neighbour, "02:00:00:00:84:01") {
			t.Errorf("the neighbour is %q", neighbour)
		}
	})
	t.Run("asking for its gateway", func(t *testing.T) {
		change("02:00:00:00:84:02")
		in(t, to.Namespace, "busybox", "ping", "-c1", "-W2", to.Subnet.Addr().Next().String())
		learnt(t, []*lab.Container{from, third}, to, "02:00:00:00:84:02")
	})
	t.Run("and says so", func(t *testing.T) {
		change("02:00:00:00:84:03")
		in(t, to.Namespace, "busybox", "arping", "-U", "-c1", "-I", "eth0", to.Address.String())
		learnt(t, []*lab.Container{from, third}, to, "02:00:00:00:84:03")
	})
}

// learnt waits until containers have a MAC for another's address, and can use it. A kernel that changed it less than a second ago takes
// no notice of a gratuitous ARP (locktime in arp(7)), and finds out by itself that it is wrong, 8 seconds later.
func learnt(t *testing.T, who []*lab.Container, of *lab.Container, mac string) {
	t.Helper()
	for _, c := range who {
		eventually(t, 20*time.Second, c.Name+" knows the other MAC", func() error {
			if n := in(t, c.Namespace, "ip", "neigh", "show", of.Address.String()); !strings.Contains(n, mac) {
				return fmt.Errorf("it has %q, not %s", n, mac)
			}
			return nil
		})
		ping(t, c, of, 84)
	}
}

// testAddressMoves has an address of nobody's slice that one container takes over from another, as keepalived does.
func testAddressMoves(t *testing.T, l *lab.Lab) {
	address := netip.MustParseAddr("10.5.255.84")
	asker := l.Nodes[0].Container
	for _, h := range []*lab.Host{l.Nodes[1], l.Nodes[2], l.Nodes[1], l.Nodes[0]} {
		c := h.Container
		in(t, c.Namespace, "ip", "addr", "add", address.String()+"/16", "dev", "eth0")
		in(t, c.Namespace, "busybox", "arping", "-U", "-c1", "-I", "eth0", address.String())
		if c != asker {
			started := time.Now()
			eventually(t, 20*time.Second, c.Name+" has the address", func() error {
				r, err := lab.Ping(t.Context(), asker.Namespace, address, 1, 84)
				if err == nil && r.Lost() > 0 {
					err = errors.New("nobody answers")
				}
				return err
			})
			if n := in(t, asker.Namespace, "ip", "neigh", "show", address.String()); !strings.Contains(n, mac(t, c)) {
				t.Errorf("%s is at %q, not at %s", address, n, c.Name)
			}
			t.Logf("%s answered after %s", c.Name, time.Since(started).Round(time.Millisecond))
		}
		in(t, c.Namespace, "ip", "addr", "del", address.String()+"/16", "dev", "eth0")
	}
}

// testSegmentAttach attaches a namespace of its own: it is a neighbour of all others.
func testSegmentAttach(t *testing.T, l *lab.Lab) {
	h, far := l.Nodes[0], l.Nodes[1].Container
	name := l.Name + "-attached"
	in(t, h.Namespace, "ip", "netns", "add", name)
	defer in(t, h.Namespace, "ip", "netns", "del", name)
	out := in(t, h.Namespace, binary, "attach", "--run-dir", h.RunDir, "--netns", name)
	var address, device string
	if _, err := fmt.Sscanf(out, "attached: %s on %s", &address, &device); err != nil || !strings.HasSuffix(address, "/16") {
		t.Fatalf("attach prints %q", out)
	}
	r, err := lab.Transfer(t.Context(), name, far.Namespace, far.Address, 1<<20)
	if err != nil || !r.Correct || r.Source != netip.MustParsePrefix(address).Addr() {
		t.Errorf("%+v, %v; want it from %s", r, err, address)
	}
	if neighbour := in(t, name, "ip", "neigh", "show", far.Address.String()); !strings.Contains(neighbour, mac(t, far)) {
		t.Errorf("the neighbour is %q", neighbour)
	}
	if r, err = lab.Transfer(t.Context(), name, l.Underlay(), lab.Outside, 1<<20); err != nil || r.Source != h.Address {
		t.Errorf("outside saw %+v, %v", r, err)
	}
}

// testSegmentLeave has a host die, and its lease released: nothing that was learned of it stays.
func testSegmentLeave(t *testing.T, l *lab.Lab) {
	h := l.Nodes[2]
	subnet, far := h.Container.Subnet, mac(t, h.Container)
	ping(t, l.Nodes[0].Container, h.Container, 84)
	if err := h.Agent.Stop(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	in(t, h.Namespace, "ip", "link", "set", "eth0", "down")
	if _, err := l.Tulle(t.Context(), "", "lease", "release", subnet.String()); err != nil {
		t.Fatal(err)
	}
	for _, other := range l.Nodes[:2] {
		eventually(t, 5*time.Second, other.Name+" has forgotten "+h.Name, func() error {
			left := in(t, other.Namespace, "bridge", "fdb", "show", "dev", "tulle.1")
			neighbours := in(t, other.Namespace, "ip", "neigh", "show", "dev", "docker0")
			if strings.Contains(left, "dst "+h.Address.String()) || strings.Contains(neighbours, far) {
				return fmt.Errorf("it has\n%s\n%s", left, neighbours)
			}
			return nil
		})
	}
	ping(t, l.Nodes[0].Container, l.Nodes[1].Container, 84)
}

// testSegmentEnds gives the network another type: what was learned goes with the port.
func testSegmentEnds(t *testing.T, l *lab.Lab) {
	if _, err := l.Tulle(t.Context(), plain, "config", "set", "--force", "-"); err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Nodes[:2] {
		eventually(t, 10*time.Second, h.Name+" is one of a routed network", func() error {
			link, learned := in(t, h.Namespace, "ip", "-d", "link"), in(t, h.Namespace, "ip", "neigh", "show", "dev", "docker0")
			_, link, _ = strings.Cut(link, " tulle.1: ")
			if strings.Contains(link, "neigh_suppress on") || !strings.Contains(link, "nolearning") || strings.Contains(learned, "proto 84") {
				return fmt.Errorf("it has\n%s\n%s", link, learned)
			}
			return nil
		})
	}
}

// TestDockerL2 has real dockerds that share one range: each hands out its host's slice of it. They are of a version that drops what
// comes to containers from elsewhere, and gives each new container a MAC of its own.
func TestDockerL2(t *testing.T) {
	t.Parallel()
	dir, err := filepath.Abs("../bin/docker28/usr/sbin")
	if err != nil {
		t.Fatal(err)
	}
	l := dockersIn(t, newLab(t, lab.Options{Hosts: 3, Empty: true, Config: oneSegment}), dir)
	for i, c := range l.containers {
		env, err := l.Nodes[i].Env()
		if err != nil {
			t.Fatal(err)
		}
		if slice := netip.MustParsePrefix(env["FLANNEL_SUBNET"]); !slice.Contains(c.Address) {
			t.Errorf("%s's container has %s", l.Nodes[i].Name, c.Address)
		}
		if addrs := in(t, c.Namespace, "ip", "-o", "-4", "addr", "show", "eth0"); !strings.Contains(addrs, c.Address.String()+"/16") {
			t.Errorf("%s's container has %s", l.Nodes[i].Name, addrs)
		}
	}
	t.Run("all pairs", l.allPairs)
	t.Run("outside", func(t *testing.T) {
		r, err := lab.Transfer(t.Context(), l.containers[0].Namespace, l.Underlay(), lab.Outside, 1<<20)
		if err != nil || r.Source != l.Nodes[0].Address {
			t.Errorf("outside saw %+v, %v", r, err)
		}
	})
	t.Run("published port", l.testPublished)
	t.Run("container replaced", func(t *testing.T) {
		d, macs := l.daemons[0], map[netip.Addr]string{l.containers[0].Address: mac(t, l.containers[0])}
		for range 3 {
			if _, err := d.Do(t.Context(), "rm", "-f", "web"); err != nil {
				t.Fatal(err)
			}
			before := macs[l.containers[0].Address]
			c, err := d.Run(t.Context(), "web")
			if err != nil {
				t.Fatal(err)
			}
			if macs[c.Address] = mac(t, c); macs[c.Address] == before || before == "" {
				t.Errorf("it has %s, %s: this test shows nothing", c.Address, macs[c.Address])
			}
			started := time.Now()
			l.reached(t, 5*time.Second, l.containers[1], c)
			t.Logf("reached after %s", time.Since(started).Round(time.Millisecond))
			l.containers[0] = c
		}
	})
}
