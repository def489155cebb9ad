package kernel

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/e2e/netnstest"
)

// sandbox is a network namespace of a test's own, on the thread that the test runs on. Its underlay is eth0, 192.0.2.1/24.
type sandbox struct {
	testing.TB
	options []Option
	before  []string // what was there before us, see objects
}

// newSandbox moves the calling goroutine into a new namespace.
func newSandbox(t testing.TB, options ...Option) *sandbox {
	t.Helper()
	netnstest.Enter(t)
	s := &sandbox{TB: t, options: options}
	// Duplicate address detection, router solicitations and MLD would ring the doorbell seconds later.
	for _, name := range []string{"accept_dad", "dad_transmits", "router_solicitations"} {
		for _, dev := range []string{"default", "all"} {
			s.write("/proc/sys/net/ipv6/conf/"+dev+"/"+name, "0")
		}
	}
	s.run("ip link set lo up")
	s.run("ip link add eth0 type veth peer name wire")
	s.run("ip link set wire addrgenmode none") // a link-local address would come whenever the kernel gets to it, and ring
	s.run("ip link set eth0 addrgenmode none")
	s.run("ip link set wire up")
	s.run("ip link set eth0 up")
	s.run("ip addr add 192.0.2.1/24 dev eth0")
	s.before = s.objects()
	return s
}

// eachMode runs test in a sandbox with nexthop objects and in one without.
func eachMode(t *testing.T, test func(s *sandbox)) {
	t.Run("nexthops", func(t *testing.T) { test(newSandbox(t)) })
	t.Run("plain", func(t *testing.T) { test(newSandbox(t, WithoutNexthops)) })
}

func (s *sandbox) objectsMode() bool { return len(s.options) == 0 }

// open returns a Kernel as a freshly started agent has it.
func (s *sandbox) open() *Kernel {
	s.Helper()
	k, err := Open(s.options...)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(k.Close)
	return k
}

// run runs a command in the sandbox; its words are split at spaces.
func (s *sandbox) run(format string, args ...any) string {
	s.Helper()
	return netnstest.Run(s, format, args...)
}

// setup puts what was made by hand among the things that must stay as they are.
func (s *sandbox) setup(commands string) {
	s.Helper()
	for line := range strings.Lines(commands) {
		if line = strings.TrimSpace(line); line != "" {
			s.run("%s", line)
		}
	}
	s.before = s.objects()
}

// setupBeside is setup when ours are there already.
func (s *sandbox) setupBeside(ours backend.State, commands string) {
	s.Helper()
	s.setup(commands)
	s.before = without(s.before, expected(ours))
}

func (s *sandbox) write(path, value string) {
	s.Helper()
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		s.Fatal(err)
	}
}

func (s *sandbox) apply(k *Kernel, want backend.State) backend.Changes {
	s.Helper()
	c, err := k.Apply(s.Context(), want)
	if err != nil {
		s.Fatalf("Apply: %v", err)
	}
	return c
}

// converged checks that the kernel has want beside what was there before, no more and no less, and that another Apply finds
// nothing to do.
func (s *sandbox) converged(k *Kernel, want backend.State) {
	s.Helper()
	s.has(expected(want)...)
	if c := s.apply(k, want).Count(); len(c) != 0 {
		s.Errorf("another Apply changed %v", c)
	}
}

// has checks that the sandbox holds the given objects beside those that were there before.
func (s *sandbox) has(objects ...string) {
	s.Helper()
	want := slices.Concat(objects, s.before)
	now := s.objects()
	slices.Sort(want)
	for _, line := range without(want, now) {
		s.Errorf("missing: %s", line)
	}
	for _, line := range without(now, want) {
		s.Errorf("too much: %s", line)
	}
	s.nexthopsPaired()
}

// without returns the entries of a that b lacks, duplicates counted.
func without(a, b []string) []string {
	count := map[string]int{}
	for _, x := range b {
		count[x]++
	}
	return slices.DeleteFunc(slices.Clone(a), func(x string) bool {
		count[x]--
		return count[x] >= 0
	})
}

// expected renders what objects must find of want. Nexthop objects are not among it: see nexthopsPaired.
func expected(want backend.State) []string {
	var lines []string
	for line := range strings.Lines(want.String()) {
		line = strings.TrimSpace(line)
		switch kind, _, _ := strings.Cut(line, " "); kind {
		case "link":
			line += " up alias tulle addrgenmode none accept_ra 0"
		case "route":
			line += " protocol 84"
		case "sysctl", "masquerade", "forward", "mark", "tunnel", "peer", "endpoint", "run", "added":
			continue
		}
		lines = append(lines, line)
	}
	return lines
}

// object is what iproute2 prints with -j of any of the objects that concern us.
type object struct {
	Ifname, Master, Dev, Ifalias, Address, Mac, Dst, Gateway, Lladdr, Table, Protocol, Type string
	Flags, State                                                                            any
	Metric, Mtu, ID, Nhid                                                                   int
	Via                                                                                     struct{ Host string }
	GenMode                                                                                 string `json:"inet6_addr_gen_mode"`
	Linkinfo                                                                                struct {
		Kind string `json:"info_kind"`
		Data struct {
			ID, Port      int
			Local, Local6 string
			Link          string
			Learning, Gbp bool
		} `json:"info_data"`
		Port struct {
			Suppress bool `json:"neigh_suppress"`
		} `json:"info_slave_data"`
	}
	Addrs []struct {
		Local     string
		Prefixlen int
		Nodad     bool // which the kernel's own link-local ones are not
	} `json:"addr_info"`
}

// via is a route's gateway, if it has one.
func (o object) via() string {
	if gateway := cmp.Or(o.Gateway, o.Via.Host); gateway != "" {
		return " via " + gateway
	}
	return ""
}

func (o object) flag(name string) string {
	if list, ok := o.Flags.([]any); ok && slices.Contains(list, any(name)) {
		return " " + strings.ToLower(name)
	}
	return ""
}

func (s *sandbox) list(command string) []object {
	s.Helper()
	var list []object
	out := s.run("%s", command)
	if strings.TrimSpace(out) == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		s.Fatalf("%s: %v\n%s", command, err, out)
	}
	return list
}

// objects lists all objects of the kinds that Apply makes, whosever they are, in the language of backend.State and sorted.
// It asks iproute2, not the code under test. What the kernel made by itself is left out, and so are our nexthop objects.
func (s *sandbox) objects() []string {
	s.Helper()
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for _, o := range s.list("ip -N -j -d link show") {
		add("link %s %s%s%s", o.Ifname, o.link(), o.marks(), s.listens(o.Ifname))
	}
	for _, o := range s.list("ip -j addr show") {
		for _, a := range o.Addrs {
			if a.Nodad || !strings.HasPrefix(a.Local, "fe80:") {
				add("address %s/%d dev %s", a.Local, a.Prefixlen, o.Ifname)
			}
		}
	}
	for _, o := range s.list("bridge -j fdb show") {
		if o.Dst != "" && o.State == "permanent" {
			add("fdb %s dev %s dst %s", o.Mac, o.Ifname, o.Dst)
		}
	}
	for _, o := range s.list("ip -N -j neigh show nud permanent") {
		add("neighbour %s lladdr %s dev %s", o.Dst, o.Lladdr, o.Dev)
	}
	for _, o := range s.list("ip -N -j nexthop show") {
		if o.Protocol != fmt.Sprint(protocol) {
			add("nexthop %d via %s dev %s protocol %s", o.ID, o.Gateway, o.Dev, o.Protocol)
		}
	}
	for _, o := range s.routes() {
		if o.Protocol != fmt.Sprint(unix.RTPROT_KERNEL) {
			line := fmt.Sprintf("route %s%s dev %s%s protocol %s", o.Dst, o.via(), o.Dev, o.flag("onlink"), o.Protocol)
			if o.Type == "7" {
				line = fmt.Sprintf("route %s unreachable protocol %s", o.Dst, o.Protocol)
			}
			if o.Metric != 0 && !(o.Metric == 1024 && strings.Contains(o.Dst, ":")) {
				line += fmt.Sprintf(" metric %d", o.Metric)
			}
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return lines
}

func (s *sandbox) routes() []object {
	return slices.Concat(s.list("ip -N -j -d -4 route show table all"), s.list("ip -N -j -d -6 route show table all"))
}

func (o object) link() string {
	text := "type " + o.Linkinfo.Kind
	if v := o.Linkinfo.Data; o.Linkinfo.Kind == "vxlan" {
		learning := "nolearning"
		if v.Learning {
			learning = "learning"
		}
		text += fmt.Sprintf(" id %d local %s dev %s dstport %d %s", v.ID, cmp.Or(v.Local, v.Local6), v.Link, v.Port, learning)
	}
	if o.Linkinfo.Kind == "ipip" {
		text += fmt.Sprintf(" local %s dev %s mtu %d", o.Linkinfo.Data.Local, o.Linkinfo.Data.Link, o.Mtu)
	} else {
		text += fmt.Sprintf(" mtu %d", o.Mtu)
		if o.Address != "" {
			text += " address " + o.Address
		}
	}
	if o.Linkinfo.Data.Gbp {
		text += " gbp"
	}
	if o.Linkinfo.Kind == "vxlan" && o.Master != "" {
		text += " master " + o.Master
	}
	if o.Linkinfo.Port.Suppress {
		text += " neigh_suppress on"
	}
	return text
}

// marks is what a State takes for granted of a link of ours.
func (o object) marks() string {
	text := o.flag("UP")
	if o.Ifalias != "" {
		text += " alias " + o.Ifalias
	}
	if o.GenMode == "none" {
		text += " addrgenmode none"
	}
	return text
}

// listens is a device's accept_ra, unless it is the default.
func (s *sandbox) listens(device string) string {
	now, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + device + "/accept_ra")
	if value := strings.TrimSpace(string(now)); err == nil && value != "1" {
		return " accept_ra " + value
	}
	return ""
}

// nexthopsPaired checks that each of our nexthop objects carries one of our routes, and that no route has two.
func (s *sandbox) nexthopsPaired() {
	s.Helper()
	used := map[int]int{}
	for _, o := range s.routes() {
		if o.Nhid != 0 && o.Protocol == fmt.Sprint(protocol) {
			used[o.Nhid]++
		}
	}
	for _, o := range s.list("ip -N -j nexthop show protocol 84") {
		if used[o.ID] != 1 {
			s.Errorf("nexthop object %d is used by %d of our routes", o.ID, used[o.ID])
		}
		delete(used, o.ID)
	}
	if len(used) > 0 {
		s.Errorf("our routes go through nexthop objects of others: %v", used)
	}
}

// nexthops counts our nexthop objects.
func (s *sandbox) nexthops() int {
	s.Helper()
	return len(s.list("ip -N -j nexthop show protocol 84"))
}

// eventually waits for a condition that the kernel brings about by itself.
func (s *sandbox) eventually(what string, condition func() bool) {
	s.Helper()
	for deadline := time.Now().Add(5 * time.Second); !condition(); {
		if time.Now().After(deadline) {
			s.Fatalf("waited in vain: %s", what)
		}
	}
}

// notifications subscribes to all that the doorbell hears, calls f, and returns what came while it ran.
func (s *sandbox) notifications(f func()) []syscall.NetlinkMessage {
	s.Helper()
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, groups...)
	if err != nil {
		s.Fatal(err)
	}
	defer socket.Close()
	f()
	return s.drain(socket)
}

// drain reads a subscription up to now. The kernel queues notifications before it answers who caused them, so a marker made
// now comes after all that happened before.
func (s *sandbox) drain(socket *nl.NetlinkSocket) (messages []syscall.NetlinkMessage) {
	s.Helper()
	limit := unix.NsecToTimeval((5 * time.Second).Nanoseconds())
	if err := socket.SetReceiveTimeout(&limit); err != nil {
		s.Fatal(err)
	}
	defer socket.SetReceiveTimeout(&unix.Timeval{})
	s.run("ip addr add 127.84.84.84/32 dev lo")
	s.run("ip addr del 127.84.84.84/32 dev lo")
	for {
		batch, _, err := socket.Receive()
		if err != nil {
			s.Fatal(err)
		}
		for _, m := range batch {
			marker := bytes.Contains(m.Data, []byte{127, 84, 84, 84})
			switch {
			case marker && m.Header.Type == unix.RTM_DELADDR:
				return messages
			case !marker:
				messages = append(messages, m)
			}
		}
	}
}
