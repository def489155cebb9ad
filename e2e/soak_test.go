package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

const (
	soakWait  = 45 * time.Second // for all to be well again: a host that lost etcd tries once in 15 s
	soakHosts = 4
)

// TestSoak breaks things at random, and looks each time whether all that must hold does again. TULLE_SOAK says for how long,
// TULLE_SOAK_SEED repeats a run's choices.
func TestSoak(t *testing.T) {
	t.Parallel()
	seed, limit := rand.Uint64(), time.Minute
	if text := os.Getenv("TULLE_SOAK"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("TULLE_SOAK: %v: want a time, as in 10m", err)
		}
		limit = d
	}
	if text := os.Getenv("TULLE_SOAK_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("TULLE_SOAK_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("%s of random faults; TULLE_SOAK_SEED=%d makes the same choices again", limit, seed)
	s := &soak{T: t, Rand: rand.New(rand.NewPCG(seed, 0)), lab: newLab(t, lab.Options{Hosts: soakHosts}), backup: t.TempDir() + "/etcd"}
	s.plantForeign()
	s.copyData(s.lab.Server.Data, s.backup)
	s.check()
	counts := map[string]int{}
	for began := time.Now(); time.Since(began) < limit; {
		faults := s.round()
		t.Logf("%5.0fs  %s", time.Since(began).Seconds(), strings.Join(faults, "; "))
		started := time.Now()
		s.check()
		t.Logf("        well again after %.1fs", time.Since(started).Seconds())
		for _, f := range faults {
			counts[strings.SplitN(f, ":", 2)[0]]++
		}
	}
	t.Logf("faults: %v", counts)
}

// soak is a lab that is being ill-treated.
type soak struct {
	*testing.T
	*rand.Rand
	lab    *lab.Lab
	backup string // of etcd's data
}

// damage is something that goes wrong. It returns what ends it; nil if it ends by itself.
type damage struct {
	name string
	do   func(s *soak, h *lab.Host) (end func())
}

// byHand is damage that one command makes.
func byHand(name, command string) damage {
	return damage{name, func(s *soak, h *lab.Host) func() {
		peer := s.other(h)
		// Another fault may have taken away what the command is about.
		_, _ = lab.Output(s.Context(), h.Namespace, "sh", "-c", command, "sh",
			s.subnet(peer).String(), s.subnet(peer).Addr().String(), peer.Address.String(), h.Container.Name)
		return nil
	}}
}

var damages = []damage{
	{"agent killed", func(s *soak, h *lab.Host) func() { return s.restart(h, unix.SIGKILL) }},
	{"agent stopped", func(s *soak, h *lab.Host) func() { return s.restart(h, unix.SIGTERM) }},
	{"agent suspended", func(s *soak, h *lab.Host) func() {
		s.must(unix.Kill(h.Agent.PID, unix.SIGSTOP))
		return func() { s.pause(3 * time.Second); s.must(unix.Kill(h.Agent.PID, unix.SIGCONT)) }
	}},
	byHand("route deleted", "ip route del $1"),
	byHand("routes flushed", "ip route flush proto 84"),
	byHand("nexthop objects flushed", "ip nexthop flush proto 84"),
	byHand("neighbours flushed", "ip neigh flush dev tulle.1 nud permanent"),
	byHand("neighbour changed", "ip neigh replace $2 lladdr 0a:00:00:00:00:66 dev tulle.1 nud permanent"),
	byHand("FDB entries changed", "bridge fdb show dev tulle.1 | while read mac _; do bridge fdb replace $mac dev tulle.1 dst 192.0.2.66 self permanent; done"),
	byHand("strays", "ip neigh add 10.5.0.9 lladdr 0a:00:00:00:00:66 dev tulle.1 nud permanent; bridge fdb add 0a:00:00:00:00:66 dev tulle.1 dst 192.0.2.66 self permanent; ip route add 10.5.0.0/24 via 192.0.2.1 proto 84"),
	byHand("addresses flushed", "ip addr flush dev docker0; ip addr flush dev tulle.1"),
	byHand("connected route deleted", "ip route del $(ip -o -4 route show dev docker0 proto kernel | cut -d' ' -f1) dev docker0"),
	byHand("forwarding off", "echo 0 >/proc/sys/net/ipv4/ip_forward"),
	byHand("our chains flushed", "iptables -w -F TULLE-FORWARD; iptables -w -t nat -F TULLE-POSTROUTING"),
	byHand("nat flushed", "iptables -w -t nat -F"),
	byHand("tunnel down", "ip link set tulle.1 down"),
	byHand("tunnel renamed", "ip link set tulle.1 down; ip link set tulle.1 name lost; ip link set lost up"),
	byHand("tunnel deleted", "ip link del tulle.1"),
	byHand("tunnel's MTU and MAC changed", "ip link set tulle.1 mtu 1280 address 0a:00:00:00:00:67"),
	byHand("bridge down", "ip link set docker0 down"),
	{"bridge deleted", func(s *soak, h *lab.Host) func() {
		if h.Ready(s.Context()) == nil { // an agent that does not run can't remember what hung on it
			in(s.T, h.Namespace, "ip", "link", "del", "docker0")
		}
		return nil
	}},
	{"underlay down", func(s *soak, h *lab.Host) func() {
		in(s.T, h.Namespace, "ip", "link", "set", "eth0", "down")
		return func() {
			s.pause(time.Second)
			in(s.T, h.Namespace, "ip", "link", "set", "eth0", "up")
			in(s.T, h.Namespace, "ip", "route", "replace", "default", "via", "192.0.2.1")
			in(s.T, h.Namespace, "ip", "route", "replace", foreignRoute, "via", "192.0.2.1")
		}
	}},
	{"underlay's MTU lower for a while", func(s *soak, h *lab.Host) func() {
		in(s.T, h.Namespace, "ip", "link", "set", "eth0", "mtu", "1400")
		return func() { s.pause(time.Second); in(s.T, h.Namespace, "ip", "link", "set", "eth0", "mtu", "1500") }
	}},
	{"etcd killed", func(s *soak, _ *lab.Host) func() {
		s.must(s.lab.Server.Stop(unix.SIGKILL))
		return func() { s.pause(3 * time.Second); s.must(s.lab.StartEtcd(s.Context())) }
	}},
	{"etcd hangs", func(s *soak, _ *lab.Host) func() {
		s.must(s.lab.Server.Pause())
		return func() { s.pause(5 * time.Second); s.must(s.lab.Server.Resume()) }
	}},
	{"etcd wiped", func(s *soak, _ *lab.Host) func() {
		return s.replaceEtcd("", func() { setConfig(s.T, s.lab, plain) })
	}},
	{"etcd restored", func(s *soak, _ *lab.Host) func() { return s.replaceEtcd(s.backup, nil) }},
	{"backup made", func(s *soak, _ *lab.Host) func() {
		s.must(s.lab.Server.Stop(unix.SIGTERM))
		s.must(os.RemoveAll(s.backup))
		s.copyData(s.lab.Server.Data, s.backup)
		s.must(s.lab.StartEtcd(s.Context()))
		return nil
	}},
	{"cut off from etcd", func(s *soak, h *lab.Host) func() {
		drop := []string{"iptables", "-w", "-A", "OUTPUT", "-p", "tcp", "--dport", "2379", "-j", "DROP"}
		in(s.T, h.Namespace, drop...)
		return func() { s.pause(5 * time.Second); drop[2] = "-D"; in(s.T, h.Namespace, drop...) }
	}},
	{"own key deleted", func(s *soak, h *lab.Host) func() {
		etcdctl(s.T, s.lab, "del", "/coreos.com/network/subnets/"+key(s.T, h))
		return nil
	}},
	{"host away, its lease released", func(s *soak, h *lab.Host) func() {
		end := s.restart(h, unix.SIGTERM)
		etcdctl(s.T, s.lab, "del", "/coreos.com/network/subnets/"+key(s.T, h))
		return end
	}},
	{"own key spoilt", func(s *soak, h *lab.Host) func() {
		etcdctl(s.T, s.lab, "put", "/coreos.com/network/subnets/"+key(s.T, h), "garbage")
		return nil
	}},
	{"junk", func(s *soak, h *lab.Host) func() {
		var keys []string
		for range 20 {
			keys = append(keys, fmt.Sprintf("/coreos.com/network/subnets/10.%d.%d.%d-%d", 5+s.IntN(2), s.IntN(256), s.IntN(256), s.IntN(40)))
			value := lease(s.other(h).Address.String(), "0a:00:00:00:00:6"+strconv.Itoa(s.IntN(10)), s.IntN(3))
			if s.IntN(3) == 0 {
				value = value[:s.IntN(len(value))]
			}
			if !s.real(keys[len(keys)-1]) {
				etcdctl(s.T, s.lab, "put", keys[len(keys)-1], value)
			}
		}
		return func() {
			for _, key := range keys {
				if !s.real(key) {
					etcdctl(s.T, s.lab, "del", key)
				}
			}
		}
	}},
	{"bad config for a while", func(s *soak, _ *lab.Host) func() {
		etcdctl(s.T, s.lab, "put", "/coreos.com/network/config", `{"Network":"10.5.0.0/16","SubnetLen":31}`)
		return func() { etcdctl(s.T, s.lab, "put", "/coreos.com/network/config", plain) }
	}},
}

// round makes one to three faults, one after another, and then ends those that last.
func (s *soak) round() (names []string) {
	var ends []func()
	for range 1 + s.IntN(3) {
		f, h := damages[s.IntN(len(damages))], s.lab.Nodes[s.IntN(soakHosts)]
		if etcd := strings.HasPrefix(f.name, "etcd") || f.name == "backup made" || f.name == "own key deleted" || strings.HasPrefix(f.name, "host away") || f.name == "own key spoilt" || f.name == "junk" || f.name == "bad config for a while"; etcd && len(ends) > 0 {
			continue // it may be etcd that is away
		}
		names = append(names, f.name+": "+h.Name)
		if end := f.do(s, h); end != nil {
			ends = append(ends, end)
		}
		s.pause(500 * time.Millisecond)
	}
	for _, end := range slices.Backward(ends) {
		end()
	}
	return names
}

// pause lets up to d go by.
func (s *soak) pause(d time.Duration) { <-time.After(time.Duration(s.Int64N(int64(d)))) }

func (s *soak) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *soak) other(h *lab.Host) *lab.Host {
	for {
		if o := s.lab.Nodes[s.IntN(soakHosts)]; o != h {
			return o
		}
	}
}

func (s *soak) subnet(h *lab.Host) netip.Prefix {
	return netip.PrefixFrom(h.Container.Address, 24).Masked()
}

// real reports whether a key is a host's own.
func (s *soak) real(path string) bool {
	return slices.ContainsFunc(s.lab.Nodes, func(h *lab.Host) bool { return strings.HasSuffix(path, "/"+key(s.T, h)) })
}

func (s *soak) restart(h *lab.Host, signal unix.Signal) func() {
	s.must(h.Agent.Stop(signal))
	return func() { s.pause(2 * time.Second); launch(s.T, s.lab, h) }
}

// replaceEtcd stops etcd, and has it come back with the data in dir, or with none.
func (s *soak) replaceEtcd(dir string, then func()) func() {
	s.must(s.lab.Server.Stop(unix.SIGKILL))
	s.must(os.RemoveAll(s.lab.Server.Data))
	if dir != "" {
		s.copyData(dir, s.lab.Server.Data)
	}
	return func() {
		s.pause(3 * time.Second)
		s.must(s.lab.StartEtcd(s.Context()))
		if then != nil {
			then()
		}
	}
}

// copyData copies etcd's data as it is found. Of a running etcd that is what a crash would leave.
func (s *soak) copyData(from, to string) {
	s.Helper()
	s.must(os.CopyFS(to, os.DirFS(from)))
}

// What somebody else put beside ours, and must be left alone.
const (
	foreignRoute = "198.18.0.0/24"
	foreignRule  = "-A FORWARD -s 203.0.113.0/24 -j DROP"
)

func (s *soak) plantForeign() {
	for _, h := range s.lab.Nodes {
		in(s.T, h.Namespace, "ip", "route", "add", foreignRoute, "via", "192.0.2.1")
		in(s.T, h.Namespace, append([]string{"iptables", "-w"}, strings.Fields(foreignRule)...)...)
		in(s.T, h.Namespace, "ip", "nexthop", "add", "id", "7", "blackhole")
	}
}

// check waits until all is as it must be.
func (s *soak) check() {
	s.Helper()
	for _, h := range s.lab.Nodes {
		eventually(s.T, soakWait, h.Name+" is well", func() error { return s.well(h) })
	}
	for _, from := range s.lab.Nodes {
		for _, to := range s.lab.Nodes {
			if from != to {
				eventually(s.T, 5*time.Second, from.Container.Name+" reaches "+to.Container.Name, func() error { return reaches(s.T, from, to) })
			}
		}
	}
	for _, h := range s.lab.Nodes {
		s.idle(h)
	}
}

func reaches(t *testing.T, from, to *lab.Host) error {
	r, err := lab.Ping(t.Context(), from.Container.Namespace, to.Container.Address, 1, 1450)
	if err == nil && r.Lost() > 0 {
		err = fmt.Errorf("ping lost (%v)", r.Refused)
	}
	return err
}

// well says what is wrong with a host: with its agent, its lease, or its tables, which must have all peers and nobody else.
func (s *soak) well(h *lab.Host) error {
	if err := h.Ready(s.Context()); err != nil {
		return err
	}
	status, err := h.Status(s.Context())
	if err != nil {
		return err
	}
	if !status.Etcd.Connected || status.Lease == nil || status.Lease.Key != key(s.T, h) {
		return fmt.Errorf("etcd %s; it holds %+v, not %s", status.Etcd.Error, status.Lease, key(s.T, h))
	}
	var routes, neighbours, fdb []string
	for _, o := range s.lab.Nodes {
		if o != h {
			routes = append(routes, s.subnet(o).String())
			neighbours = append(neighbours, s.subnet(o).Addr().String())
			fdb = append(fdb, o.Address.String())
		}
	}
	for _, table := range []struct {
		name, command string
		want          []string
	}{
		{"routes", "ip route show proto 84 | cut -d' ' -f1", routes},
		{"nexthop objects", "ip nexthop show proto 84 | sed 's/.*via //; s/ .*//'", neighbours},
		{"neighbours", "ip neigh show dev tulle.1 nud permanent | cut -d' ' -f1", neighbours},
		{"FDB entries", "bridge fdb show dev tulle.1 | grep -w dst | sed 's/.*dst //; s/ .*//'", fdb},
	} {
		out, err := lab.Output(s.Context(), h.Namespace, "sh", "-c", table.command)
		if err != nil {
			return err
		}
		got := strings.Fields(out)
		slices.Sort(got)
		slices.Sort(table.want)
		if !slices.Equal(got, table.want) {
			return fmt.Errorf("%s: %v, want %v", table.name, got, table.want)
		}
	}
	return s.foreign(h)
}

// foreign says what of somebody else's is missing.
func (s *soak) foreign(h *lab.Host) error {
	for command, want := range map[string]string{
		"ip route show " + foreignRoute: foreignRoute, "iptables -w -S FORWARD": foreignRule,
		"ip nexthop show id 7": "id 7 blackhole",
	} {
		out, err := lab.Output(s.Context(), h.Namespace, strings.Fields(command)...)
		if err != nil {
			return err
		}
		if !strings.Contains(out, want) {
			return fmt.Errorf("%s shows no %s: it was not ours", command, want)
		}
	}
	return nil
}

// idle makes the agent compare everything once more: it must find nothing to do.
func (s *soak) idle(h *lab.Host) {
	s.Helper()
	sum := func(name string) (n float64) {
		for line := range strings.Lines(get(s.T, h, "/metrics")) {
			if strings.HasPrefix(line, name) {
				value, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndex(line, " ")+1:]), 64)
				s.must(err)
				n += value
			}
		}
		return n
	}
	const passes, changes = `tulle_passes_total{scope="everything"}`, "tulle_changes_total{"
	before, changed := sum(passes), sum(changes)
	in(s.T, h.Namespace, "sh", "-c", "ip addr add 192.0.2.200/32 dev eth0 && ip addr del 192.0.2.200/32 dev eth0")
	eventually(s.T, 10*time.Second, h.Name+" has looked at everything", func() error {
		if sum(passes) <= before {
			return fmt.Errorf("it has not")
		}
		return nil
	})
	if after := sum(changes); after != changed {
		s.Errorf("%s: a pass that should have found nothing changed %v entries:\n%s", h.Name, after-changed, logOf(s.T, s.lab, h))
	}
}
