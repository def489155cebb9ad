package doctor

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/e2e/netnstest"
	"github.com/vishvananda/netns"
)

// router is a network namespace of a test's own between two others, 10.5.1.2 behind left and 10.5.2.2 behind right.
type router struct {
	*testing.T
	own      netns.NsHandle
	sender   *net.UDPConn
	receiver map[uint16]*net.UDPConn
}

// markerPort is where a packet arrives whatever the rules: once it is there, one that was sent before it is, too, or never will.
const markerPort = 9

func newRouter(t *testing.T) *router {
	t.Helper()
	netnstest.Enter(t)
	r := &router{T: t, receiver: map[uint16]*net.UDPConn{}}
	r.own = r.handle(netns.Get())
	r.run("sysctl -qw net.ipv4.ip_forward=1")
	r.behind("left", 1, func() { r.sender = r.listen("10.5.1.2:5000") })
	r.behind("right", 2, func() {
		for _, port := range []uint16{markerPort, 53, 80, 8472} {
			r.receiver[port] = r.listen(fmt.Sprintf("10.5.2.2:%d", port))
		}
	})
	return r
}

func (r *router) handle(ns netns.NsHandle, err error) netns.NsHandle {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { ns.Close() })
	return ns
}

// behind makes a host behind a device, and calls f there. Sockets stay in the namespace that they were made in.
func (r *router) behind(dev string, n int, f func()) {
	r.Helper()
	ns := r.handle(netns.New())
	defer func() {
		if err := netns.Set(r.own); err != nil {
			r.Fatal(err)
		}
	}()
	r.run(fmt.Sprintf("ip link add eth0 type veth peer name %s netns /proc/%d/fd/%d && ip addr add 10.5.%d.2/24 dev eth0 && ip link set eth0 up", dev, os.Getpid(), r.own, n))
	if err := netns.Set(r.own); err != nil {
		r.Fatal(err)
	}
	r.run(fmt.Sprintf("ip addr add 10.5.%d.1/24 dev %s && ip link set %s up", n, dev, dev))
	if err := netns.Set(ns); err != nil {
		r.Fatal(err)
	}
	r.run(fmt.Sprintf("ip route add default via 10.5.%d.1", n))
	f()
}

func (r *router) run(command string) {
	r.Helper()
	if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
		r.Fatalf("%s: %v\n%s", command, err, out)
	}
}

func (r *router) listen(address string) *net.UDPConn {
	r.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { c.Close() })
	return c
}

// arrives sends a packet, and reports whether it arrives.
func (r *router) arrives(port uint16) bool {
	r.Helper()
	for _, to := range []uint16{port, markerPort} {
		if _, err := r.sender.WriteToUDPAddrPort([]byte{1}, netip.AddrPortFrom(netip.MustParseAddr("10.5.2.2"), to)); err != nil {
			r.Fatal(err)
		}
	}
	if !received(r.receiver[markerPort], 5*time.Second) {
		r.Fatal("a packet that every packet filter of this test lets pass does not arrive")
	}
	return received(r.receiver[port], 0)
}

// received takes one packet, if it comes in time.
func received(c *net.UDPConn, wait time.Duration) bool {
	_ = c.SetReadDeadline(time.Now().Add(wait + time.Millisecond))
	_, _, err := c.ReadFromUDPAddrPort(make([]byte, 8))
	return err == nil
}

// randomRules are rules for some chains: few words, so that many of them match.
func randomRules(random *rand.Rand) string {
	pick := func(of ...string) string { return of[random.IntN(len(of))] }
	chains := []string{"FORWARD", "A", "B", "C"}
	var b strings.Builder
	fmt.Fprintf(&b, "*filter\n:FORWARD %s [0:0]\n:A - [0:0]\n:B - [0:0]\n:C - [0:0]\n-A FORWARD -p udp -m udp --dport %d -j ACCEPT\n", pick("ACCEPT", "DROP"), markerPort)
	for range 3 + random.IntN(12) {
		from := random.IntN(len(chains))
		rule := "-A " + chains[from]
		for range random.IntN(3) {
			m := pick("-s 10.5.1.0/24", "-s 10.5.1.3/32", "-d 10.5.2.2/32", "-d 10.5.0.0/16", "-i left", "-i ri+", "-i le+", "-o right", "-o left", "-p udp", "-p tcp", "-p udp -m udp --dport 53",
				"-p udp -m udp --dport 80:9000", "-p udp -m multiport --dports 53,8000:9000", "-p udp -m udp --sport 5000", "-p udp -m multiport --sports 1:4999", "-m conntrack --ctstate NEW",
				"-m conntrack --ctstate RELATED,ESTABLISHED", "-m mark --mark 0x1/0x3", "-m mark --mark 0x6", "-m addrtype --dst-type LOCAL", `-m comment --comment "a \"-j DROP\" b"`)
			if option, value, _ := strings.Cut(m, " "); option != "-m" && !strings.Contains(value, " ") && random.IntN(3) == 0 {
				m = "! " + m
			}
			if option, _, _ := strings.Cut(strings.TrimPrefix(m, "! "), " "); !strings.Contains(rule, " "+option+" ") {
				rule += " " + m
			}
		}
		targets := []string{"-j ACCEPT", "-j DROP", "-j REJECT", "-j RETURN", "-j MARK --set-xmark 0x6/0xffffffff", "-j MARK --set-xmark 0x1/0x0", ""}
		for _, to := range chains[from+1:] {
			targets = append(targets, "-j "+to, "-g "+to)
		}
		fmt.Fprintln(&b, rule, pick(targets...))
	}
	return b.String() + "COMMIT\n"
}

// TestTruth asks the kernel itself: whatever the rules, a packet arrives if and only if the verdict says so.
func TestTruth(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random, r := rand.New(rand.NewPCG(seed, 0)), newRouter(t)
	arrived := map[bool]int{}
	for range 150 {
		rules := randomRules(random)
		restore := exec.Command("iptables-restore")
		restore.Stdin = strings.NewReader(rules)
		if out, err := restore.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s\n%s", err, out, rules)
		}
		f, err := ReadFilter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, port := range []uint16{53, 80, 8472} {
			v := f.Verdict("filter", "FORWARD", Packet{In: "left", Out: "right", Src: netip.MustParseAddr("10.5.1.2"), Dst: netip.MustParseAddr("10.5.2.2"), Protocol: "udp", Port: port, SourcePort: 5000, State: "NEW"})
			arrives := r.arrives(port)
			if arrived[arrives]++; v.Accept != arrives || !v.Sure {
				t.Fatalf("port %d arrives: %t, but the verdict is %+v of\n%s", port, arrives, v, rules)
			}
		}
	}
	if arrived[true] < 50 || arrived[false] < 50 {
		t.Errorf("the rules are too much alike: %v", arrived)
	}
}
