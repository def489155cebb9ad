package probe

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// member is a host of an overlay with a Prober, which ticks 50 times as fast as an agent's.
type member struct {
	*host
	*Prober
	key  string
	self Target

	mu     sync.Mutex
	turned []string
	lost   map[Path]int
	trips  map[Path]int
}

const (
	testTick = 20 * time.Millisecond
	testWait = 60 * time.Millisecond
)

// overlay makes hosts on one underlay, 192.0.2.1 and so on, with a VXLAN between them, on which they are 10.5.1.0 and so on, and
// starts their Probers.
func overlay(t *testing.T, names ...string) (members []*member) {
	t.Helper()
	wire := newHost(t, "wire")
	wire.run("ip link add switch type bridge")
	wire.run("ip link set switch up")
	for i, name := range names {
		m := &member{host: newHost(t, name), key: fmt.Sprintf("10.5.%d.0-24", i+1), lost: map[Path]int{}, trips: map[Path]int{}}
		join(wire, "to-"+name, m.host, "eth0")
		wire.run("ip link set to-%s master switch", name)
		m.self = Target{netip.MustParseAddr(fmt.Sprintf("10.5.%d.0", i+1)), netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i+1))}
		m.run("ip addr add %s/24 dev eth0", m.self.Underlay)
		m.run("ip link add tulle.1 address 02:00:00:00:00:%02x type vxlan id 1 local %s dev eth0 dstport 8472 nolearning", i+1, m.self.Underlay)
		m.run("ip link set tulle.1 up")
		m.run("ip addr add %s/32 dev tulle.1", m.self.Overlay)
		members = append(members, m)
	}
	for _, m := range members {
		for i, to := range members {
			if to != m {
				m.run("ip neigh add %s lladdr 02:00:00:00:00:%02x dev tulle.1", to.self.Overlay, i+1)
				m.run("bridge fdb add 02:00:00:00:00:%02x dev tulle.1 dst %s", i+1, to.self.Underlay)
				m.run("ip route add 10.5.%d.0/24 via %s dev tulle.1 onlink", i+1, to.self.Overlay)
			}
		}
		m.start(members)
	}
	return members
}

// start starts a Prober that knows all the others.
func (m *member) start(members []*member) {
	m.Prober = New(Options{Observe: m.observe, Turned: m.turn, Tick: testTick, Wait: testWait})
	m.SetSelf(m.key, m.self)
	for _, to := range members {
		if to != m {
			m.Set(to.key, to.self)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var task errgroup.Group
	task.Go(func() error { return m.in(func() error { return m.Run(ctx) }) })
	m.Cleanup(func() {
		cancel()
		if err := task.Wait(); err != nil {
			m.Error(err)
		}
	})
}

func (m *member) observe(p Path, trip time.Duration, answered bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !answered:
		m.lost[p]++
	case trip > 0 && trip <= testWait:
		m.trips[p]++
	}
}

func (m *member) turn(key string, r Result) {
	again, _ := m.Result(key) // no lock is held
	m.mu.Lock()
	defer m.mu.Unlock()
	m.turned = append(m.turned, fmt.Sprint(key, " ", r.State, " ", again.State == r.State))
}

// told is what was told of peers that turned, and how many probes over the overlay were lost so far.
func (m *member) told() ([]string, int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.turned), m.lost[Overlay]
}

func (m *member) result(of *member) Result {
	m.Helper()
	r, ok := m.Result(of.key)
	if !ok {
		m.Fatalf("%s is not known", of.key)
	}
	return r
}

// becomes waits for a peer's state.
func (m *member) becomes(peer *member, s State) {
	m.Helper()
	eventually(m.TB, fmt.Sprintf("%s finds %s %s", m.key, peer.key, s), func() bool { return m.result(peer).State == s })
}

func TestProber(t *testing.T) {
	members := overlay(t, "a", "b")
	a, b := members[0], members[1]
	a.becomes(b, Reachable)
	b.becomes(a, Reachable)
	eventually(t, "a trip by both paths", func() bool {
		r := a.result(b)
		return r.Paths[Overlay].Trip > 0 && r.Paths[Underlay].Trip > 0 && !r.Heard.IsZero() && !r.HeardUs.IsZero()
	})
	r := a.result(b)
	for path, p := range r.Paths {
		if p.Trip > testWait || time.Since(p.Sent) > 10*time.Second || time.Since(p.Answered) < 0 || p.Answered.Sub(p.Sent) > testWait {
			t.Errorf("%s: %+v", Path(path), p)
		}
	}
	if reachable, unreachable, unknown := a.Count(); reachable != 1 || unreachable+unknown != 0 {
		t.Errorf("counted %d, %d, %d", reachable, unreachable, unknown)
	}
	told, before := a.told()
	if len(told) != 0 {
		t.Errorf("told %q", told)
	}

	b.run("iptables -A INPUT -i tulle.1 -p icmp -j DROP")
	a.becomes(b, Unreachable)
	eventually(t, "being told", func() bool { told, _ := a.told(); return len(told) == 1 })
	told, lost := a.told()
	if want := []string{b.key + " unreachable true"}; !slices.Equal(told, want) || lost-before > 6 {
		t.Errorf("told %q after %d lost", told, lost-before)
	}
	if r := a.result(b); r.Paths[Overlay].Loss == 0 || r.Failures < 3 || time.Since(r.Paths[Underlay].Answered) > 5*time.Second {
		t.Errorf("blocked on the overlay: %+v", r)
	}
	if reachable, unreachable, unknown := a.Count(); unreachable != 1 || reachable+unknown != 0 {
		t.Errorf("counted %d, %d, %d", reachable, unreachable, unknown)
	}

	b.run("iptables -F INPUT")
	a.becomes(b, Reachable)
	eventually(t, "being told", func() bool { told, _ := a.told(); return len(told) == 2 && told[1] == b.key+" reachable true" })
	a.mu.Lock()
	if a.trips[Overlay] == 0 || a.trips[Underlay] == 0 {
		t.Errorf("observed %v", a.trips)
	}
	a.mu.Unlock()
	a.Drop(b.key)
	if _, ok := a.Result(b.key); ok {
		t.Error("a peer that was dropped is known")
	}
}

// TestWithoutOverlay has hosts that answer nowhere inside the overlay: how they are is not known, and the underlay tells what it can.
func TestWithoutOverlay(t *testing.T) {
	members := overlay(t, "a", "b")
	a, b := members[0], members[1]
	a.becomes(b, Reachable)
	a.SetSelf(a.key, Target{Underlay: a.self.Underlay})
	a.Set(b.key, Target{Underlay: b.self.Underlay})
	eventually(t, "answers over the underlay", func() bool { return a.result(b).Paths[Underlay].Trip > 0 })
	if r := a.result(b); r.State != Unknown || !r.Paths[Overlay].Sent.IsZero() {
		t.Errorf("without an address inside the overlay: %+v", r)
	}
	if m := a.Mesh(); len(m.Keys) != 0 {
		t.Errorf("the mesh has %v", m.Keys)
	}
}

// TestOneWay blocks the overlay's port in one direction, and then in both: each host learns whether what it sends arrives.
func TestOneWay(t *testing.T) {
	members := overlay(t, "a", "b")
	a, b := members[0], members[1]
	a.becomes(b, Reachable)
	b.becomes(a, Reachable)
	b.run("iptables -A INPUT -p udp --dport 8472 -j DROP") // from a to b
	blocked := time.Now()
	a.becomes(b, Unreachable)
	b.becomes(a, Unreachable)
	recent := func(t time.Time) bool { return t.After(blocked.Add(10 * testWait)) }
	eventually(t, "news of how it is now", func() bool {
		return recent(a.result(b).Heard) && recent(b.result(a).HeardUs)
	})
	if r := a.result(b); recent(r.HeardUs) || r.HeardUs.IsZero() {
		t.Errorf("what a sends does not arrive, but b seems to have heard it: %+v", r)
	}
	if r := b.result(a); recent(r.Heard) || r.Heard.IsZero() {
		t.Errorf("what a sends does not arrive, but b has heard it: %+v", r)
	}

	a.run("iptables -A INPUT -p udp --dport 8472 -j DROP")
	blocked = time.Now()
	eventually(t, "answers over the underlay after that", func() bool {
		return recent(a.result(b).Paths[Underlay].Answered) && recent(b.result(a).Paths[Underlay].Answered)
	})
	for _, r := range []Result{a.result(b), b.result(a)} {
		if recent(r.Heard) || recent(r.HeardUs) {
			t.Errorf("blocked both ways: %+v", r)
		}
	}
}

func TestMesh(t *testing.T) {
	members := overlay(t, "a", "b", "c")
	a, b, c := members[0], members[1], members[2]
	for _, m := range members {
		eventually(t, m.key+" knows the mesh", func() bool {
			mesh := m.Mesh()
			if !slices.Equal(mesh.Keys, []string{a.key, b.key, c.key}) {
				t.Fatalf("hosts %q", mesh.Keys)
			}
			for i, row := range mesh.RTT {
				for j, trip := range row {
					if (i == j) != (trip == 0) || trip < 0 || trip > testWait {
						return false
					}
				}
			}
			return true
		})
	}
	c.run("iptables -A INPUT -i tulle.1 -s 10.5.2.0 -j DROP") // b and c lose each other; a sees both
	eventually(t, "a hears of it", func() bool {
		mesh := a.Mesh()
		return mesh.RTT[1][2] < 0 && mesh.RTT[2][1] < 0 && mesh.RTT[0][1] > 0 && mesh.RTT[0][2] > 0
	})
	b.Drop(c.key)
	if mesh := b.Mesh(); !slices.Equal(mesh.Keys, []string{a.key, b.key}) || len(mesh.RTT) != 2 {
		t.Errorf("after a drop: %+v", mesh)
	}
}

// TestForged lets a host that is no peer send what it likes: it changes nothing, and keeps no answer out.
func TestForged(t *testing.T) {
	members := overlay(t, "a", "b", "foe")
	a, b, foe := members[0], members[1], members[2]
	a.Drop(foe.key)
	a.becomes(b, Reachable)
	mesh := a.Mesh().Keys
	told, lost := a.told()

	f := familyOf(a.self.Overlay)
	forged := func(kind byte, m message) []byte {
		packet, err := f.echo(int(a.id), int(a.id), m.append(nil))
		if err != nil {
			t.Fatal(err)
		}
		packet[0] = kind
		return packet
	}
	var row []entry
	for i := range 46 {
		row = append(row, entry{target(i).Overlay, noAnswer})
	}
	packets := [][]byte{
		forged(f.request, message{sender: foe.self.Overlay, age: 0, row: row}),
		forged(f.request, message{sender: b.self.Overlay, age: 0, row: row}),
		forged(f.request, message{path: Underlay, sender: b.self.Overlay, age: time.Hour}),
		forged(f.reply, message{sender: a.self.Overlay}),
	}
	before := a.result(b)
	err := foe.in(func() error {
		s, err := openSocket(f, 1)
		if err != nil {
			return err
		}
		defer s.close()
		for i := range 20000 {
			if err := s.send(foe.self.Overlay, a.self.Overlay, packets[i%len(packets)]); err != nil && err != unix.ENOBUFS {
				return err
			}
			if i%100 == 0 {
				_, err = Ping(t.Context(), foe.self.Overlay, a.self.Overlay, 100, false)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "answers after that", func() bool { return a.result(b).Paths[Overlay].Answered.After(before.Heard.Add(20 * testWait)) })
	r := a.result(b)
	if again, nowLost := a.told(); !slices.Equal(again, told) || nowLost-lost > 3 || r.State != Reachable {
		t.Errorf("told %q; lost %d; %+v", again, nowLost-lost, r)
	}
	if !slices.Equal(a.Mesh().Keys, mesh) {
		t.Errorf("mesh %q", a.Mesh().Keys)
	}
	if _, ok := a.Result(foe.key); ok {
		t.Error("who probes is known")
	}
}

func TestIPv6(t *testing.T) {
	a, _, b := routed(t)
	p, q := New(Options{Tick: testTick, Wait: testWait}), New(Options{Tick: testTick, Wait: testWait})
	p.SetSelf("near", Target{near6, near})
	p.Set("far", Target{far6, far})
	q.SetSelf("far", Target{far6, far})
	q.Set("near", Target{near6, near})
	ctx, cancel := context.WithCancel(t.Context())
	var tasks errgroup.Group
	tasks.Go(func() error { return a.in(func() error { return p.Run(ctx) }) })
	tasks.Go(func() error { return b.in(func() error { return q.Run(ctx) }) })
	eventually(t, "trips by both families, and the mesh", func() bool {
		r, _ := p.Result("far")
		m := p.Mesh()
		return r.Paths[Overlay].Trip > 0 && r.Paths[Underlay].Trip > 0 && !r.HeardUs.IsZero() && m.RTT[0][1] > 0 && m.RTT[1][0] > 0
	})
	cancel()
	if err := tasks.Wait(); err != nil {
		t.Error(err)
	}
}

// A host that answers by one family inside and not by the other is not reachable, and which it is can be seen. The underlay's family
// has no part in that.
func TestFamilies(t *testing.T) {
	members := overlay(t, "a", "b")
	a, b := members[0], members[1]
	for i, m := range members {
		m.run("ip addr add fd12::%d:0:0:0:0/128 dev tulle.1 nodad", i+1)
		m.run("ip neigh add fd12::%d:0:0:0:0 lladdr 02:00:00:00:00:%02x dev tulle.1", 2-i, 2-i)
		m.run("ip route add fd12::%d:0:0:0:0/64 via fd12::%d:0:0:0:0 dev tulle.1 onlink", 2-i, 2-i)
		six := Target{netip.MustParseAddr(fmt.Sprintf("fd12::%d:0:0:0:0", i+1)), m.self.Underlay}
		m.SetSelf(m.key, m.self, six)
		members[1-i].Set(m.key, m.self, six)
	}
	a.becomes(b, Reachable)
	b.becomes(a, Reachable)
	eventually(t, "both hear each other by IPv6", func() bool {
		r := a.Results(b.key)
		return len(r) == 2 && r[1].Paths[Overlay].Trip > 0 && r[1].Paths[Underlay].Trip > 0 && !r[1].Heard.IsZero() && !r[1].HeardUs.IsZero()
	})
	if reachable, unreachable, unknown := a.Count(); reachable != 1 || unreachable+unknown != 0 {
		t.Errorf("counted %d, %d, %d", reachable, unreachable, unknown)
	}
	eventually(t, "the mesh, with each host once", func() bool {
		m := a.Mesh()
		return slices.Equal(m.Keys, []string{a.key, b.key}) && m.RTT[0][1] > 0 && m.RTT[1][0] > 0
	})
	b.run("ip6tables -A INPUT -i tulle.1 -p icmpv6 -j DROP")
	a.becomes(b, Unreachable)
	if r := a.Results(b.key); r[0].State != Reachable || r[1].State != Unreachable || a.result(b).Target != r[1].Target {
		t.Errorf("%+v", r)
	}
	b.run("ip6tables -F INPUT")
	a.becomes(b, Reachable)
	eventually(t, "both turns are told", func() bool {
		told, _ := a.told()
		return slices.Equal(told, []string{b.key + " unreachable true", b.key + " reachable true"})
	})
}

func TestNotPermitted(t *testing.T) {
	err := newHost(t, "a").in(func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil { // of this thread, which ends
			t.Error(err)
		}
		return New(Options{}).Run(t.Context())
	})
	if err == nil || !strings.Contains(err.Error(), "CAP_NET_RAW") || strings.Contains(err.Error(), "\n") {
		t.Errorf("without any capability: %v", err)
	}
}

func TestReset(t *testing.T) {
	p := New(Options{})
	p.Reset(maps.All(map[string][]Target{name(1): {target(1)}, name(2): {target(2)}}))
	kept := p.table.peers[name(1)]
	moved := Target{target(7).Overlay, target(2).Underlay}
	p.Reset(maps.All(map[string][]Target{name(1): {target(1)}, name(2): {moved}, name(3): {target(3)}}))
	if p.table.peers[name(1)] != kept || p.table.peers[name(2)].target != moved || len(p.table.peers) != 3 {
		t.Errorf("%+v", p.table.peers)
	}
	p.Reset(maps.All(map[string][]Target{}))
	if _, _, unknown := p.Count(); unknown != 0 || len(p.table.byOverlay) != 0 {
		t.Errorf("%d left", unknown)
	}
}

// bare is a Prober without a network that has sent one probe over each path, to name(1), the first with the number 0.
func bare(t *testing.T) (*Prober, *peer) {
	p := New(Options{})
	p.SetSelf("self", target(0))
	p.Set(name(1), target(1))
	p.Set(name(2), target(2))
	p.chooseMesh()
	peer := p.table.peers[name(1)]
	for path := range paths {
		p.table.depart(flight{peer: peer, path: path, sent: later(time.Second), token: 7 + uint32(path)})
	}
	return p, peer
}

func echoed(t *testing.T, from netip.Addr, seq int, at moment, m message) packet {
	t.Helper()
	b, err := familyOf(from).echo(0, seq, m.append(nil))
	if err != nil {
		t.Fatal(err)
	}
	return packet{from, b, at.wall}
}

func TestAnswer(t *testing.T) {
	ours := message{sender: target(0).Overlay, token: 7, age: -1}
	good := func() packet {
		return echoed(t, target(1).Overlay, 0, later(time.Second+3*time.Millisecond), ours)
	}
	set := func(by time.Duration) moment { now := later(2 * time.Second); now.wall = now.wall.Add(by); return now }
	for _, test := range []struct {
		name   string
		packet packet
		now    moment
		count  uint8
		trip   uint32
	}{
		{"good", good(), set(0), 1, 3000},
		{"clock set forward", packet{good().from, good().message, good().at.Add(time.Hour)}, set(time.Hour), 1, 0},
		{"clock set back a little", packet{good().from, good().message, good().at.Add(-5 * time.Millisecond)}, set(-5 * time.Millisecond), 1, 0},
		{"clock set after it came", good(), set(-time.Hour), 1, 3000},
		{"clock set a little after it came", good(), set(2 * time.Millisecond), 1, 3000},
		{"no time", packet{from: good().from, message: good().message}, set(0), 1, 0},
		{"late, and read late", echoed(t, target(1).Overlay, 0, later(3*time.Second+1), ours), later(4 * time.Second), 0, 0},
		{"from another", echoed(t, target(2).Overlay, 0, later(time.Second), ours), set(0), 0, 0},
		{"from its other address", echoed(t, target(1).Underlay, 0, later(time.Second), ours), set(0), 0, 0},
		{"another token", echoed(t, target(1).Overlay, 0, later(time.Second), message{sender: target(0).Overlay, token: 6, age: -1}), set(0), 0, 0},
		{"another probe's number", echoed(t, target(1).Overlay, 1, later(time.Second), ours), set(0), 0, 0},
		{"no probe's number", echoed(t, target(1).Overlay, 2, later(time.Second), ours), set(0), 0, 0},
		{"cut", packet{good().from, good().message[:icmpHeader+20], good().at}, set(0), 0, 0},
	} {
		p, peer := bare(t)
		for range 2 { // a second one is none
			p.answer(test.packet, test.now)
		}
		r := peer.records[Overlay]
		if r.count != test.count || r.lost != 0 || r.trip != test.trip || (peer.state == uint8(Reachable)) != (test.count == 1) {
			t.Errorf("%s: %+v", test.name, r)
		}
		if peer.records[Underlay].count != 0 {
			t.Errorf("%s: it counts for the underlay", test.name)
		}
	}
}

func TestRequest(t *testing.T) {
	now := later(10 * time.Second)
	told := message{sender: target(1).Overlay, age: 2 * time.Second}
	told.row = []entry{{target(2).Overlay, 55}, {target(9).Overlay, 66}, {target(1).Overlay, 77}}
	below := told
	below.path = Underlay
	silent := message{sender: target(1).Overlay, age: -1}
	stranger := told
	stranger.sender = target(9).Overlay
	for _, test := range []struct {
		name           string
		from           netip.Addr
		message        message
		heard, heardUs time.Duration
		trip           time.Duration
	}{
		{"overlay", target(1).Overlay, told, 9 * time.Second, 7 * time.Second, 55 * time.Microsecond},
		{"underlay", target(1).Underlay, below, 0, 7 * time.Second, 0},
		{"never heard", target(1).Overlay, silent, 9 * time.Second, 0, 0},
		{"from another peer", target(2).Overlay, told, 0, 0, 0},
		{"over the other path", target(1).Underlay, told, 0, 0, 0},
		{"and the other way round", target(1).Overlay, below, 0, 0, 0},
		{"from a stranger", target(9).Overlay, stranger, 0, 0, 0},
		{"from a stranger, for a peer", target(9).Overlay, told, 0, 0, 0},
	} {
		p, peer := bare(t)
		p.request(echoed(t, test.from, 0, later(9*time.Second), test.message), now)
		m := p.Mesh()
		if peer.heard != test.heard || peer.heardUs != test.heardUs || m.RTT[1][2] != test.trip || m.RTT[1][0] != 0 || len(m.Keys) != 3 {
			t.Errorf("%s: heard %v, heard us %v, %v", test.name, peer.heard, peer.heardUs, m)
		}
		if peer.failures != 0 || peer.state != uint8(Unknown) {
			t.Errorf("%s: %+v", test.name, peer)
		}
	}
	p, peer := bare(t)
	p.request(echoed(t, target(1).Overlay, 0, later(time.Hour), told), now) // the wall clock was set back
	if peer.heard != now.at {
		t.Errorf("heard at %v", peer.heard)
	}
}
