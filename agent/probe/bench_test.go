package probe

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkTick says what it costs a host to probe five others, which it does every 5 s, whatever the number of its peers: all
// that is sent goes over a VXLAN and what carries it, to a host that answers for all addresses and probes back as much. Two hosts
// share what is measured, with all that the kernel does for them.
func BenchmarkTick(b *testing.B) {
	for _, peers := range []int{100, 10000} {
		for _, tick := range []time.Duration{5 * time.Millisecond, time.Second} { // caches are warm, and cold
			b.Run(fmt.Sprintf("peers=%d/tick=%s", peers, tick), func(b *testing.B) { benchmarkTick(b, peers, tick) })
		}
	}
}

func benchmarkTick(b *testing.B, peers int, tick time.Duration) {
	x, y := newHost(b, "x"), newHost(b, "y")
	join(x, "eth0", y, "eth0")
	for i, h := range []*host{x, y} {
		self, other := i+1, 2-i
		h.run("ip addr add 192.0.2.%d/24 dev eth0", self)
		h.run("ip link add tulle.1 address 02:00:00:00:00:%02x type vxlan id 1 local 192.0.2.%d dev eth0 dstport 8472 nolearning", self, self)
		h.run("ip link set tulle.1 up")
		h.run("bridge fdb add 02:00:00:00:00:%02x dev tulle.1 dst 192.0.2.%d", other, other)
		for _, n := range []int{10, 198} { // overlay and underlay
			h.run("ip route add local %d.%d.0.0/16 dev lo", n, self)
		}
		h.run("ip neigh add 10.%d.255.255 lladdr 02:00:00:00:00:%02x dev tulle.1", other, other)
		h.run("ip route add 10.%d.0.0/16 via 10.%d.255.255 dev tulle.1 onlink", other, other)
		h.run("ip route add 198.%d.0.0/16 via 192.0.2.%d", other, other)
	}
	var probers []*Prober
	sockets := []map[int]*socket{{}, {}}
	for i, h := range []*host{x, y} {
		p := New(Options{Tick: tick, Wait: time.Minute, Observe: func(_ Path, _ time.Duration, answered bool) {
			if !answered {
				b.Error("lost")
			}
		}})
		at := func(host, n int) Target {
			return Target{netip.AddrFrom4([4]byte{10, byte(host), byte(n >> 8), byte(n)}), netip.AddrFrom4([4]byte{198, byte(host), byte(n >> 8), byte(n)})}
		}
		targets := map[string][]Target{}
		for n := range peers {
			targets[fmt.Sprint(n)] = []Target{at(2-i, n)}
		}
		p.SetSelf("self", at(i+1, 0))
		p.Reset(maps.All(targets))
		p.table.newcomers = nil // they were probed long ago
		if err := h.in(func() error { return p.open(sockets[i], familyOf(netip.IPv4Unspecified())) }); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(sockets[i][unix.AF_INET].close)
		probers = append(probers, p)
	}
	ticker := time.NewTicker(tick / 2)
	defer ticker.Stop()
	var before time.Duration
	for n := range 2 * (b.N + 20) {
		if n == 2*20 { // all is warm
			b.ResetTimer()
			before = cpu(b)
		}
		if _, err := probers[n%2].tick(sockets[n%2], rest); err != nil {
			b.Fatal(err)
		}
		<-ticker.C
	}
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N)/2, "cpu-µs/tick")
}

// cpu is what this process has used of processors.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
