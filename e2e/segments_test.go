package e2e

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tulle-net/tulle/e2e/lab"
)

// Of the second segment, which the underlay's router joins with the first.
const (
	farRange  = "203.0.113.0/24"
	farRouter = "203.0.113.1"
	farHost   = "203.0.113.13"
	nearRange = "192.0.2.0/24"
)

// newSegments makes a lab of three hosts, of which the third is on another segment. Its agent is not started.
func newSegments(t *testing.T, w way) *lab.Lab {
	t.Helper()
	l := newLab(t, lab.Options{Hosts: 2, Config: w.config()})
	h, err := l.NewHost()
	if err != nil {
		t.Fatal(err)
	}
	// The router keeps its MAC whatever is plugged in, and answers on each segment with the one that it has there.
	in(t, l.Underlay(), "sh", "-ec", fmt.Sprintf(`ip link add far address 02:00:00:00:00:02 type bridge; ip addr add %s/24 dev far; ip link set far up
		ip link set %s master far; sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.arp_ignore=1`, farRouter, h.Name))
	in(t, h.Namespace, "sh", "-ec", fmt.Sprintf("ip addr flush dev eth0; ip addr add %s/24 dev eth0; ip route add default via %s", farHost, farRouter))
	h.Address = netip.MustParseAddr(farHost)
	return l
}

// bridgeSegments makes one segment of the two by a cable and routes, as an administrator would; or takes the routes away again.
func bridgeSegments(t *testing.T, l *lab.Lab, one bool) {
	t.Helper()
	verb := "del"
	if one {
		verb = "add"
		in(t, l.Underlay(), "sh", "-ec", "ip link add patch0 master underlay up type veth peer name patch1; ip link set patch1 master far up")
		eventually(t, 5*time.Second, "the cable carries", func() error {
			if ports := in(t, l.Underlay(), "bridge", "link"); strings.Count(ports, "patch") < 2 || strings.Contains(ports, "state disabled") {
				return fmt.Errorf("it does not yet:\n%s", ports)
			}
			return nil
		})
	}
	for _, h := range l.Nodes[:2] {
		in(t, h.Namespace, "ip", "route", verb, farRange, "dev", "eth0")
	}
	in(t, l.Nodes[2].Namespace, "ip", "route", verb, nearRange, "dev", "eth0")
}

// leavesBy waits until a host sends packets to another's container by a device.
func leavesBy(t *testing.T, from, to *lab.Host, device string) {
	t.Helper()
	eventually(t, 10*time.Second, fmt.Sprintf("%s sends to %s by %s", from.Name, to.Name, device), func() error {
		return sendsBy(t, from, to.Container.Address, device)
	})
}

// sendsBy fails unless a host sends to an address by a device.
func sendsBy(t *testing.T, from *lab.Host, to netip.Addr, device string) error {
	t.Helper()
	if out := in(t, from.Namespace, "ip", "route", "get", to.String()); !strings.Contains(out, " dev "+device+" ") {
		return fmt.Errorf("it sends by %s", out)
	}
	return nil
}

// TestDirectRouting has hosts on two segments, that become one and two again. Each host sends directly to whom it can, and through
// the tunnel to the others; what is established stays so.
func TestDirectRouting(t *testing.T) {
	for _, w := range ways {
		if !w.direct {
			continue
		}
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			w.need(t)
			l := newSegments(t, w)
			near, far := l.Nodes[0], l.Nodes[2]
			startLate(t, l, far)
			leavesBy(t, near, l.Nodes[1], "eth0")
			leavesBy(t, near, far, w.device)
			leavesBy(t, far, near, w.device)
			flows, talks := startFlows(t, l), []*talk{startTalk(t, near, far), startTalk(t, far, near)}
			for range 10 {
				bridgeSegments(t, l, true)
				leavesBy(t, near, far, "eth0")
				leavesBy(t, far, near, "eth0")
				bridgeSegments(t, l, false)
				for _, h := range l.Nodes[:2] { // all of them, before the cable goes
					leavesBy(t, h, far, w.device)
					leavesBy(t, far, h, w.device)
				}
				in(t, l.Underlay(), "ip", "link", "del", "patch0")
				ping(t, near.Container, far.Container, w.mtu)
			}
			stopFlows(t, flows)
			for _, k := range talks {
				k.stop(t)
			}
		})
	}
}

// startLate starts the agent of a host that has joined late, and its container.
func startLate(t *testing.T, l *lab.Lab, h *lab.Host) {
	t.Helper()
	if err := l.StartAgent(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	if err := l.NewContainer(h); err != nil {
		t.Fatal(err)
	}
	if err := l.Converge(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// talk is a TCP connection on which one side says something all the time, and the other repeats it.
type talk struct {
	conn   net.Conn
	ended  sync.WaitGroup
	hangUp chan struct{}
	rounds int
	pause  time.Duration // the longest that an answer took
	err    error
}

func startTalk(t *testing.T, from, to *lab.Host) *talk {
	t.Helper()
	var listener net.Listener
	err := lab.In(to.Container.Namespace, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(to.Container.Address, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	k := &talk{hangUp: make(chan struct{})}
	k.ended.Go(func() { repeat(listener) })
	err = lab.In(from.Container.Namespace, func() (err error) {
		k.conn, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(t.Context(), "tcp", listener.Addr().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	k.ended.Go(k.say)
	return k
}

// repeat sends back what it hears.
func repeat(l net.Listener) {
	conn, err := l.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.Copy(conn, conn) // whoever speaks knows whether it came back
}

func (k *talk) say() {
	defer k.conn.Close()
	tick := time.NewTicker(unhurried(time.Millisecond))
	defer tick.Stop()
	said, heard := make([]byte, 4096), make([]byte, 4096)
	for {
		select {
		case <-k.hangUp:
			return
		case <-tick.C:
		}
		started := time.Now()
		copy(said, fmt.Sprint(k.rounds))
		if _, k.err = k.conn.Write(said); k.err != nil {
			return
		}
		if _, k.err = io.ReadFull(k.conn, heard); k.err != nil {
			return
		}
		if string(heard) != string(said) {
			k.err = fmt.Errorf("round %d came back as %.10q", k.rounds, heard)
			return
		}
		k.rounds++
		k.pause = max(k.pause, time.Since(started))
	}
}

// stop hangs up, and fails the test if the connection broke.
func (k *talk) stop(t *testing.T) {
	t.Helper()
	close(k.hangUp)
	k.ended.Wait()
	if k.err != nil || k.rounds == 0 {
		t.Errorf("an established connection broke after %d rounds: %v", k.rounds, k.err)
	}
	t.Logf("an established connection went on for %d rounds, one of which took %v", k.rounds, k.pause.Round(time.Millisecond))
}

// TestOffLink has a host-gw network of which one host is on another segment: it is left out and named, and the others talk.
func TestOffLink(t *testing.T) {
	w := wayOf(t, "host-gw")
	l := newSegments(t, w)
	far := l.Nodes[2]
	if err := l.LaunchAgent(far); err != nil {
		t.Fatal(err)
	}
	if err := far.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Nodes[:2] {
		eventually(t, 10*time.Second, h.Name+" names the host that it can't send to", func() error {
			return logs(t, l, h, `reason=not-on-link detail="`+farHost+` is not on the segment of eth0`)
		})
		if status := in(t, h.Namespace, binary, "status", "--run-dir", h.RunDir); !strings.Contains(status, "1 lease: not-on-link") {
			t.Errorf("tulle status does not say it:\n%s", status)
		}
	}
	ping(t, l.Nodes[0].Container, l.Nodes[1].Container, w.mtu)
	routes := in(t, l.Nodes[0].Namespace, "ip", "route", "show", "proto", "84")
	if strings.Contains(routes, farHost) || strings.Count(routes, "\n") > 0 {
		t.Errorf("routes:\n%s", routes)
	}
	if status, err := far.Status(t.Context()); err != nil || status.Peers.Total != 0 || status.LeftOut["not-on-link"] != 2 {
		t.Errorf("the far host has %+v and leaves out %v, %v", status.Peers, status.LeftOut, err)
	}
	bridgeSegments(t, l, true)
	if err := l.NewContainer(far); err != nil {
		t.Fatal(err)
	}
	if err := l.Converge(t.Context()); err != nil {
		t.Fatal(err)
	}
	ping(t, l.Nodes[0].Container, far.Container, w.mtu)
	ping(t, far.Container, l.Nodes[1].Container, w.mtu)
}
