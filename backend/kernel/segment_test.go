package kernel

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// segment is a State whose VXLAN device is a port of the bridge, and floods to its peers.
func segment(t testing.TB, peers int) backend.State {
	return newPlan(t, `{"Network": "10.0.0.0/8", "Backend": {"Type": "l2"}}`, peers).State()
}

func TestSegment(t *testing.T) {
	for _, peers := range []int{0, 3, 200} {
		t.Run(fmt.Sprint(peers), func(t *testing.T) {
			s := newSandbox(t)
			k, want := s.open(), segment(t, peers)
			all := count{"link": 2, "address": 1, "flood": peers}
			maps.DeleteFunc(all, func(_ string, n int) bool { return n == 0 })
			if got := s.apply(k, want).Count(); !maps.Equal(got, all) {
				t.Errorf("the first Apply changed %v, want %v", got, all)
			}
			s.converged(k, want)
			s.settle(k, want)
			if !k.Holds(want) {
				t.Error("what was just applied is not held")
			}
			s.converged(s.open(), want)
		})
	}
}

// One Apply puts right whatever somebody did to the port and to what it floods to, and the doorbell asks for it.
func TestSegmentDrift(t *testing.T) {
	for _, d := range []drift{
		{"taken out", "ip link set tulle.1 nomaster", count{"link": 1}, false, false},
		{"put into another bridge", "ip link set tulle.1 master br-other", count{"link": 1}, false, false},
		{"suppression switched off", "bridge link set dev tulle.1 neigh_suppress off", count{"link": 1}, false, false},
		{"port deleted", "ip link del tulle.1", count{"link": 1, "flood": 3}, false, false},
		{"port down", "ip link set tulle.1 down", count{"link": 1}, false, false},
		{"bridge deleted", "ip link del docker0", count{"link": 2, "address": 1}, false, false},
		{"flood deleted", "bridge fdb del 00:00:00:00:00:00 dev tulle.1 dst 172.20.0.2", count{"flood": 1}, false, false},
		{"flood added", "bridge fdb append 00:00:00:00:00:00 dev tulle.1 dst 172.20.9.9", count{"flood": 1}, false, false},
		{"floods replaced", "bridge fdb del 00:00:00:00:00:00 dev tulle.1\nbridge fdb append 00:00:00:00:00:00 dev tulle.1 dst 172.20.9.9", count{"flood": 4}, false, false},
		{"fdb added", "bridge fdb add 02:bb:00:00:00:01 dev tulle.1 dst 172.20.9.9", count{"fdb": 1}, false, false},
	} {
		t.Run(d.name, func(t *testing.T) {
			s := newSandbox(t)
			s.setup("ip link add br-other address 02:aa:00:00:00:0b type bridge") // else it takes its ports'
			k, want := s.open(), segment(t, 3)
			s.apply(k, want)
			s.settle(k, want)
			ring := s.listen(k)
			for line := range strings.Lines(d.commands) {
				s.run("%s", line)
			}
			s.rings(ring)
			if got := s.apply(k, want).Count(); !maps.Equal(got, d.count) {
				t.Errorf("changed %v, want %v", got, d.count)
			}
			s.converged(k, want)
		})
	}
}

// Docker deletes and makes docker0 again as it likes: the port is put back.
func TestSegmentOnAForeignBridge(t *testing.T) {
	s := newSandbox(t)
	s.setup("ip link add docker0 type bridge")
	k, want := s.open(), segment(t, 3)
	s.apply(k, want)
	index := s.index("tulle.1")
	for range 2 {
		if got := s.masters()["tulle.1"]; got != "docker0" || s.index("tulle.1") != index {
			t.Errorf("tulle.1 is a port of %q; ifindex %d, was %d", got, s.index("tulle.1"), index)
		}
		s.settle(k, want)
		ring := s.listen(k)
		s.run("ip link del docker0")
		s.run("ip link add docker0 mtu 1450 type bridge")
		s.rings(ring)
		if got := s.apply(k, want).Count(); !maps.Equal(got, count{"link": 1}) {
			t.Errorf("changed %v", got)
		}
		k = s.open()
	}
}

// What has the bridge's name and is none is named, and once it is gone all is as it should be.
func TestSegmentWithoutABridge(t *testing.T) {
	s := newSandbox(t)
	s.setup("ip link add docker0 type vxlan id 9 dev eth0 dstport 4789")
	k, want := s.open(), segment(t, 3)
	_, err := k.Apply(t.Context(), want)
	wantError(t, err, "tulle.1", "docker0 is a vxlan, not a bridge", "--bridge")
	s.run("ip link del docker0")
	s.before = without(s.objects(), expected(want))
	s.before = slices.DeleteFunc(s.before, func(line string) bool { return strings.Contains(line, "tulle.1") || strings.Contains(line, "docker0") })
	s.apply(k, want)
	s.converged(k, want)
}

// A network that changes its type takes the device out of the bridge, or puts it in.
func TestSegmentAndBack(t *testing.T) {
	s := newSandbox(t)
	k := s.open()
	for _, want := range []backend.State{segment(t, 3), state(t, 3), segment(t, 3), state(t, 0)} {
		s.apply(k, want)
		s.converged(k, want)
		if got, want := s.masters()["tulle.1"], want.Links["tulle.1"].Master; got != want {
			t.Errorf("tulle.1 is a port of %q, want %q", got, want)
		}
	}
}

// Others' entries stay, and so does what the kernel learned; neither rings, nor do joins and leaves of ours.
func TestSegmentsLearnedEntries(t *testing.T) {
	s := newSandbox(t)
	s.setup(neighbourhood + "bridge fdb append 00:00:00:00:00:00 dev vxlan9 dst 192.0.2.9\n")
	k := s.open()
	s.apply(k, segment(t, 3))
	s.eventually("docker0 has a carrier", func() bool { return strings.Contains(s.run("ip -br link show docker0"), " UP ") })
	s.settle(k, segment(t, 3))
	clear(k.bell.wrote) // nobody has listened yet
	quiet := func(what string, f func()) {
		t.Helper()
		messages := s.notifications(f)
		if len(messages) < 3 {
			t.Errorf("%s: only %d notifications", what, len(messages))
		}
		for _, m := range messages {
			if k.bell.news(m) {
				t.Errorf("%s: would ring for %s, %x", what, describeMessage(m), m.Data)
			}
		}
	}
	change := func(from, to int) {
		if err := k.Change(t.Context(), backend.Diff(segment(t, from), segment(t, to))); err != nil {
			t.Fatal(err)
		}
	}
	quiet("learn", func() {
		s.run("bridge fdb add 02:cc:00:00:00:01 dev tulle.1 dst 172.20.0.2 dynamic")
		s.run("bridge fdb add 02:cc:00:00:00:02 dev tulle.1 master dynamic")
		s.run("bridge fdb del 02:cc:00:00:00:02 dev tulle.1 master")
	})
	quiet("join", func() { change(3, 9) })
	quiet("leave", func() { change(9, 3) })
	s.converged(k, segment(t, 3))
	if learned := s.run("bridge fdb show dev tulle.1"); !strings.Contains(learned, "02:cc:00:00:00:01 dst 172.20.0.2") {
		t.Errorf("what was learned is gone:\n%s", learned)
	}
}

// A kernel that refuses one entry has the others, and the error counts it in its table.
func TestSegmentFails(t *testing.T) {
	s := newSandbox(t)
	k, want := s.open(), segment(t, 3)
	refused := false
	k.conn.fault = func(kind int) error {
		if kind == unix.RTM_NEWNEIGH && !refused {
			refused = true
			return unix.ENOMEM
		}
		return nil
	}
	_, err := k.Apply(t.Context(), want)
	wantError(t, err, "set flooding entry", "172.20.0.")
	if got := backend.Failed(err); !maps.Equal(got, count{"flood": 1}) {
		t.Errorf("failed: %v", got)
	}
	s.apply(k, want)
	s.converged(k, want)
}

// What was learned is ours as well, and a cleanup removes it; what others taught the bridge stays.
func TestSegmentCleanup(t *testing.T) {
	s := newSandbox(t)
	s.setup(`
		ip link add docker0 address 02:aa:00:00:00:0b type bridge
		ip link set docker0 up
		ip link add veth1 mtu 1450 type veth peer name inside
		ip link set veth1 master docker0 up
		ip link set inside up
	`)
	s.eventually("docker0 has a carrier", func() bool { return strings.Contains(s.run("ip -br link show docker0"), " UP ") })
	k := s.open()
	s.apply(k, segment(t, 3))
	learned, err := OpenLearned()
	if err != nil {
		t.Fatal(err)
	}
	defer learned.Close()
	s.run("ip neigh add 10.5.2.9 lladdr 02:cc:00:00:00:09 dev docker0 nud stale")
	for _, ip := range []string{"10.5.2.7", "10.5.2.8"} {
		if err := learned.SetNeighbour(s.index("docker0"), netip.MustParseAddr(ip), backend.MAC{2, 0xcc, 0, 0, 0, 7}); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := s.open().Cleanup(t.Context())
	if err != nil || !slices.Contains(removed, "2 learned neighbours") {
		t.Errorf("%q, %v", removed, err)
	}
	if left := s.run("ip neigh show dev docker0"); strings.Contains(left, "10.5.2.7") || !strings.Contains(left, "10.5.2.9") {
		t.Errorf("left:\n%s", left)
	}
	s.has()
}
