package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

func global(prefix string, flags ...uint32) ifAddr {
	a := ifAddr{prefix: netip.MustParsePrefix(prefix), flags: unix.IFA_F_PERMANENT}
	for _, f := range flags {
		a.flags |= f
	}
	return a
}

func linkLocal(prefix string) ifAddr {
	a := global(prefix)
	a.scope = unix.RT_SCOPE_LINK
	return a
}

func TestUsable(t *testing.T) {
	for name, c := range map[string]struct {
		addr ifAddr
		want bool
	}{
		"IPv4":            {global("192.0.2.1/24"), true},
		"secondary IPv4":  {global("192.0.2.2/24", unix.IFA_F_SECONDARY), true}, // the bit that is IFA_F_TEMPORARY in IPv6
		"IPv6":            {global("2001:db8::1/64"), true},
		"temporary IPv6":  {global("2001:db8::1/64", unix.IFA_F_TEMPORARY), false},
		"deprecated":      {global("2001:db8::1/64", unix.IFA_F_DEPRECATED), false},
		"deprecated IPv4": {global("192.0.2.1/24", unix.IFA_F_DEPRECATED), false},
		"tentative":       {global("2001:db8::1/64", unix.IFA_F_TENTATIVE), false},
		"duplicate":       {global("2001:db8::1/64", unix.IFA_F_DADFAILED), false},
		"nothing":         {ifAddr{}, false},
	} {
		if got := c.addr.usable(); got != c.want {
			t.Errorf("%s: usable is %v", name, got)
		}
	}
}

func TestRank(t *testing.T) {
	dynamic := global("2001:db8::2/64")
	dynamic.flags = 0
	later := global("2001:db8::/128")
	later.created = 1
	best := []ifAddr{global("2001:db8::1/64"), later, dynamic, linkLocal("fe80::1/64")}
	if !slices.IsSortedFunc(best, ifAddr.order) {
		t.Error("not in order")
	}
}

func TestDefaultRoute(t *testing.T) {
	v4 := func(index int, metric uint32) route {
		return route{dst: netip.MustParsePrefix("0.0.0.0/0"), index: index, priority: metric, kind: unix.RTN_UNICAST}
	}
	v6 := func(index int, metric uint32) route {
		return route{dst: netip.MustParsePrefix("::/0"), index: index, priority: metric, kind: unix.RTN_UNICAST}
	}
	blackhole := v4(4, 1)
	blackhole.kind = unix.RTN_BLACKHOLE
	subnetRoute := v4(4, 1)
	subnetRoute.dst = netip.MustParsePrefix("10.0.0.0/8")
	for name, c := range map[string]struct {
		routes []route
		want   int // index, 0 for none
	}{
		"none":                    {nil, 0},
		"one":                     {[]route{v4(2, 100)}, 2},
		"lowest metric first":     {[]route{v4(2, 100), v4(3, 200)}, 2},
		"lowest metric last":      {[]route{v4(3, 200), v4(2, 100)}, 2},
		"same metric":             {[]route{v4(2, 100), v4(3, 100)}, 2},
		"IPv4 before IPv6":        {[]route{v6(3, 1), v4(2, 100)}, 2},
		"IPv6 after IPv4":         {[]route{v4(2, 100), v6(3, 1)}, 2},
		"only IPv6":               {[]route{v6(3, 1024), v6(2, 100)}, 2},
		"blackhole":               {[]route{blackhole, v4(2, 100)}, 2},
		"not a default route":     {[]route{subnetRoute, v4(2, 100)}, 2},
		"without a device":        {[]route{v4(0, 1), v4(2, 100)}, 2},
		"no default route at all": {[]route{subnetRoute, blackhole}, 0},
	} {
		if got, found := defaultRoute(c.routes); got.index != c.want || found != (c.want != 0) {
			t.Errorf("%s: device %d, %v", name, got.index, found)
		}
	}
}

var testDevices = []device{
	{name: "lo", index: 1, mtu: 65536, addrs: []ifAddr{global("127.0.0.1/8")}},
	{name: "eth0", index: 2, mtu: 1500, addrs: []ifAddr{global("192.0.2.1/24"), global("192.0.2.2/24"), global("2001:db8::1/64")}},
	{name: "eth1", index: 3, mtu: 9000, addrs: []ifAddr{global("198.51.100.1/24")}},
	{name: "bond0", index: 4, mtu: 1500},
}

func TestChoose(t *testing.T) {
	routes := []route{{dst: netip.MustParsePrefix("0.0.0.0/0"), index: 3, kind: unix.RTN_UNICAST}}
	reach := func(a netip.Addr) (int, error) {
		if a == netip.MustParseAddr("203.0.113.9") {
			return 2, nil
		}
		return 0, unix.ENETUNREACH
	}
	re := func(list ...string) (res []*regexp.Regexp) {
		for _, text := range list {
			res = append(res, regexp.MustCompile(text))
		}
		return res
	}
	reachable, unreachable := netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("203.0.113.10")
	for name, c := range map[string]struct {
		choice backend.Choice
		want   string // device and address, or what the error says
	}{
		"default":                     {backend.Choice{}, "eth1"},
		"name":                        {backend.Choice{Ifaces: []string{"eth0"}}, "eth0"},
		"address":                     {backend.Choice{Ifaces: []string{"192.0.2.2"}}, "eth0 192.0.2.2"},
		"IPv6 address":                {backend.Choice{Ifaces: []string{"2001:db8::1"}}, "eth0 2001:db8::1"},
		"the first that exists":       {backend.Choice{Ifaces: []string{"eth7", "bond0", "eth0"}}, "bond0"},
		"none of them":                {backend.Choice{Ifaces: []string{"eth7", "192.0.2.9"}}, "there are lo, eth0, eth1, bond0"},
		"regex on a name":             {backend.Choice{Regexes: re("^bond")}, "bond0"},
		"regex on an address":         {backend.Choice{Regexes: re(`^198\.51\.`)}, "eth1 198.51.100.1"},
		"regex on the second address": {backend.Choice{Regexes: re(`\.2\.2$`)}, "eth0 192.0.2.2"},
		"addresses before names":      {backend.Choice{Regexes: re(`^(bond0|198.*)$`)}, "eth1 198.51.100.1"},
		"regexes in order":            {backend.Choice{Regexes: re("^nothing$", "^bond", "^198")}, "bond0"},
		"no regex matches":            {backend.Choice{Regexes: re("^nothing$")}, "there are lo, eth0, eth1, bond0"},
		"names before regexes":        {backend.Choice{Ifaces: []string{"eth0"}, Regexes: re("^bond")}, "eth0"},
		"regexes after names":         {backend.Choice{Ifaces: []string{"eth7"}, Regexes: re("^bond")}, "bond0"},
		"can reach":                   {backend.Choice{CanReach: reachable}, "eth0"},
		"can't reach":                 {backend.Choice{CanReach: unreachable}, "203.0.113.10"},
		"name, whatever it reaches":   {backend.Choice{Ifaces: []string{"bond0"}, CanReach: unreachable}, "bond0"},
		"can reach after names":       {backend.Choice{Ifaces: []string{"eth7"}, CanReach: reachable}, "eth0"},
	} {
		d, local, err := choose(c.choice, testDevices, routes, reach)
		got := d.name
		if local.IsValid() {
			got += " " + local.String()
		}
		if err != nil {
			if got = err.Error(); !errors.Is(err, ErrNoUnderlay) {
				t.Errorf("%s: %v is not ErrNoUnderlay", name, err)
			}
		}
		if err == nil && got != c.want || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if _, _, err := choose(backend.Choice{}, testDevices, nil, reach); !errors.Is(err, ErrNoUnderlay) {
		t.Errorf("without a default route: %v", err)
	}
	routes[0].index = 9 // a device of ours is not among the devices
	if _, _, err := choose(backend.Choice{}, testDevices, routes, reach); !errors.Is(err, ErrNoUnderlay) {
		t.Errorf("default route on an unknown device: %v", err)
	}
}

func TestDescribe(t *testing.T) {
	eth0 := testDevices[1]
	gateway := route{dst: netip.MustParsePrefix("0.0.0.0/0"), index: 2, kind: unix.RTN_UNICAST, gateway: netip.MustParseAddr("203.0.113.1")}
	onLink := route{dst: netip.MustParsePrefix("172.16.0.0/12"), index: 2, kind: unix.RTN_UNICAST}
	elsewhere := route{dst: netip.MustParsePrefix("172.20.0.0/16"), index: 3, kind: unix.RTN_UNICAST}
	unreachable := route{dst: netip.MustParsePrefix("172.21.0.0/16"), index: 2, kind: unix.RTN_UNREACHABLE}
	routes := []route{gateway, onLink, elsewhere, unreachable}
	for name, c := range map[string]struct {
		device device
		local  string
		public string
		want   string
	}{
		"first address":  {eth0, "", "", "192.0.2.1 2001:db8::1, public 192.0.2.1 2001:db8::1"},
		"chosen address": {eth0, "192.0.2.2", "", "192.0.2.2 2001:db8::1, public 192.0.2.2 2001:db8::1"},
		"behind NAT":     {eth0, "", "203.0.113.7", "192.0.2.1 2001:db8::1, public 203.0.113.7 2001:db8::1"},
		"only link-local": {device{name: "eth0", index: 2, mtu: 1500, addrs: []ifAddr{linkLocal("fe80::1/64")}}, "", "",
			"invalid IP invalid IP, public invalid IP invalid IP"},
		"no address": {device{name: "eth0", index: 2, mtu: 1500}, "", "", "invalid IP invalid IP, public invalid IP invalid IP"},
	} {
		local, _ := netip.ParseAddr(c.local)
		var public subnet.Pair[netip.Addr]
		public.V4, _ = netip.ParseAddr(c.public)
		u := describe(c.device, local, public, routes)
		if got := fmt.Sprintf("%s %s, public %s %s", u.Local.V4, u.Local.V6, u.Public.V4, u.Public.V6); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		for p, want := range map[string]bool{"203.0.113.1/32": true, "172.16.0.0/12": true, "172.20.0.0/16": false, "172.21.0.0/16": false} {
			if slices.Contains(u.OnLink, netip.MustParsePrefix(p)) != want {
				t.Errorf("%s: on-link %v, about %s", name, u.OnLink, p)
			}
		}
		if u.Device != "eth0" || u.MTU != 1500 || !slices.IsSortedFunc(u.OnLink, netip.Prefix.Compare) {
			t.Errorf("%s: %+v", name, u)
		}
	}
}

// Of several nexthops only the first counts, whatever the next looks like.
func TestParseRouteMultipath(t *testing.T) {
	nexthop := func(flags byte, index uint32, gateway ...byte) []byte {
		b := binary.NativeEndian.AppendUint16(nil, 16)
		b = binary.NativeEndian.AppendUint32(append(b, flags, 0), index)
		b = binary.NativeEndian.AppendUint16(b, 8)
		return append(binary.NativeEndian.AppendUint16(b, unix.RTA_GATEWAY), gateway...)
	}
	// The second one's flags lie where an attribute has its type, and RTNH_F_DEAD|RTNH_F_ONLINK is RTA_GATEWAY's number.
	value := append(nexthop(0, 2, 192, 0, 2, 254), nexthop(unix.RTNH_F_DEAD|unix.RTNH_F_ONLINK, 3, 198, 51, 100, 254)...)
	entry := make([]byte, unix.SizeofRtMsg)
	entry[0] = unix.AF_INET
	entry = binary.NativeEndian.AppendUint16(entry, uint16(4+len(value)))
	entry = append(binary.NativeEndian.AppendUint16(entry, unix.RTA_MULTIPATH), value...)
	if r, ok := parseRoute(entry); !ok || r.index != 2 || r.gateway != netip.MustParseAddr("192.0.2.254") {
		t.Errorf("%+v, %v", r, ok)
	}
}

func TestUnderlay(t *testing.T) {
	const twoDevices = `
		ip link add eth1 type veth peer name wire1
		ip link set eth1 up
		ip link set wire1 up
		ip link set eth1 mtu 9000
		ip addr add 198.51.100.1/24 dev eth1
	`
	type test struct {
		choice   backend.Choice
		commands string
		want     string // device, MTU, addresses and what is on link; or the error
	}
	eth0 := "eth0 1500 192.0.2.1 [192.0.2.0/24"
	eth1 := "eth1 9000 198.51.100.1 [198.51.100.0/24"
	tests := map[string]test{}
	add := func(name, want string, choice backend.Choice, commands ...string) {
		tests[name] = test{choice, strings.Join(commands, "\n"), want}
	}
	none := backend.Choice{}
	add("nothing to choose by", "no default route to choose it by: name one with --iface; there are lo, wire, eth0", none)
	add("default route", eth0+" 192.0.2.254/32]", none, twoDevices, "ip route add default via 192.0.2.254")
	add("lowest metric", eth1+" 198.51.100.254/32]", none, twoDevices,
		"ip route add default via 192.0.2.254 metric 200", "ip route add default via 198.51.100.254 metric 100")
	add("blackhole default", eth0+" 192.0.2.254/32]", none, "ip route add blackhole default metric 1", "ip route add default via 192.0.2.254 metric 200")
	add("default route in another table", "no default route", none, "ip route add default via 192.0.2.254 table 100")
	add("default route without gateway", eth0+"]", none, "ip route add default dev eth0")
	add("default route through a nexthop object", eth0+" 192.0.2.254/32]", none,
		"ip nexthop add id 5 via 192.0.2.254 dev eth0", "ip route add default nhid 5")
	add("default route through a nexthop group", eth0+" 192.0.2.254/32]", none, "ip nexthop add id 5 via 192.0.2.254 dev eth0",
		"ip nexthop add id 6 via 192.0.2.253 dev eth0", "ip nexthop add id 7 group 5/6", "ip route add default nhid 7")
	add("multipath default route", eth0+" 192.0.2.254/32]", none, twoDevices,
		"ip route add default nexthop via 192.0.2.254 nexthop via 198.51.100.254")
	add("cloud", "eth0 1500 192.0.2.1 [192.0.2.1/32 192.0.2.254/32]", none, "ip addr flush dev eth0", "ip addr add 192.0.2.1/32 dev eth0",
		"ip route add 192.0.2.254 dev eth0", "ip route add default via 192.0.2.254")
	add("cloud, onlink", "eth0 1500 192.0.2.1 [169.254.1.1/32 192.0.2.1/32]", none, "ip addr flush dev eth0",
		"ip addr add 192.0.2.1/32 dev eth0", "ip route add default via 169.254.1.1 dev eth0 onlink")
	add("only an IPv6 default route", "eth0 1500 192.0.2.1 2001:db8::1 [192.0.2.0/24 2001:db8::/64 2001:db8::fe/128]", none,
		"ip addr add 2001:db8::1/64 dev eth0 nodad", "ip route add default via 2001:db8::fe")
	add("on-link routes", eth0+" 198.51.100.0/24]", backend.Choice{Ifaces: []string{"eth0"}}, "ip route add 198.51.100.0/24 dev eth0",
		"ip route add unreachable 203.0.113.0/24")
	add("IPv4 by an IPv6 gateway", eth0+" 2001:db8::/64 2001:db8::fe/128]", backend.Choice{Ifaces: []string{"192.0.2.1"}},
		"ip addr add 2001:db8::1/64 dev eth0 nodad", "ip addr change 2001:db8::1/64 dev eth0 nodad preferred_lft 0", "ip route add 198.51.100.0/24 via inet6 2001:db8::fe dev eth0")
	add("name", eth1+"]", backend.Choice{Ifaces: []string{"eth1"}}, twoDevices, "ip route add default via 192.0.2.254")
	add("address", eth1+"]", backend.Choice{Ifaces: []string{"198.51.100.1"}}, twoDevices)
	add("regex", eth1+"]", backend.Choice{Regexes: []*regexp.Regexp{regexp.MustCompile(`^198\.51\.`)}}, twoDevices)
	add("can reach", eth1+" 198.51.100.254/32]", backend.Choice{CanReach: netip.MustParseAddr("203.0.113.9")}, twoDevices,
		"ip route add default via 192.0.2.254", "ip route add 203.0.113.0/24 via 198.51.100.254")
	add("can't reach", "no route to 203.0.113.9", backend.Choice{CanReach: netip.MustParseAddr("203.0.113.9")})
	add("no such device", "there are lo, wire, eth0", backend.Choice{Ifaces: []string{"eth7"}})
	add("secondary addresses", eth0+"]", backend.Choice{Ifaces: []string{"eth0"}}, "ip addr add 192.0.2.200/24 dev eth0")
	add("the chosen secondary address", "eth0 1500 192.0.2.200 [192.0.2.0/24]", backend.Choice{Ifaces: []string{"192.0.2.200"}},
		"ip addr add 192.0.2.200/24 dev eth0")
	add("deprecated IPv6", "eth0 1500 192.0.2.1 2001:db8::2 [192.0.2.0/24 2001:db8::/64]", backend.Choice{Ifaces: []string{"eth0"}},
		"ip addr add 2001:db8::2/64 dev eth0 nodad", "ip addr add 2001:db8::1/64 dev eth0 nodad preferred_lft 0")
	add("permanent before dynamic IPv6", "eth0 1500 192.0.2.1 2001:db8::1 [192.0.2.0/24 2001:db8::/64]", backend.Choice{Ifaces: []string{"eth0"}},
		"ip addr add 2001:db8::1/64 dev eth0 nodad", "ip addr add 2001:db8::2/64 dev eth0 nodad valid_lft 9999 preferred_lft 9999")
	const only6 = "ip addr flush dev eth0\nip addr add 2001:db8::1/64 dev eth0 nodad"
	add("IPv6 alone, by a link-local gateway", "eth0 1500 invalid IP 2001:db8::1 [2001:db8::/64]", none, only6, "ip addr add fe80::9/64 dev eth0 nodad",
		"ip route add default via fe80::1 dev eth0")
	add("by its IPv6 address", "eth0 1500 192.0.2.1 fd00:9::1 [192.0.2.0/24 2001:db8::/64 fd00:9::/64]", backend.Choice{Ifaces: []string{"fd00:9::1"}},
		"ip addr add 2001:db8::1/64 dev eth0 nodad", "ip addr add fd00:9::1/64 dev eth0 nodad")
	add("can reach IPv6", "eth0 1500 invalid IP 2001:db8::1 [2001:db8::/64]", backend.Choice{CanReach: netip.MustParseAddr("2001:db8:9::1")}, twoDevices, only6,
		"ip addr add fe80::9/64 dev eth0 nodad", "ip route add 2001:db8:9::/48 via fe80::1 dev eth0", "ip route add default via 198.51.100.254")
	add("tentative IPv6", "eth0 1500 192.0.2.1 2001:db8::9 [192.0.2.0/24 2001:db8::/64 2001:db8:1::/64]", backend.Choice{Ifaces: []string{"eth0"}},
		"sysctl -qw net.ipv6.conf.eth0.accept_dad=1 net.ipv6.conf.eth0.dad_transmits=1", "ip link set wire down", "ip addr add 2001:db8:1::1/64 dev eth0",
		"ip addr add 2001:db8::9/64 dev eth0 nodad")
	add("point to point", "eth0 1500 192.0.2.1 [192.0.2.1/32 192.0.2.9/32]", backend.Choice{Ifaces: []string{"eth0"}},
		"ip addr flush dev eth0", "ip addr add 192.0.2.1 peer 192.0.2.9/32 dev eth0")

	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			s.setup(c.commands)
			u, err := s.open().Underlay(c.choice)
			if err != nil {
				if !errors.Is(err, ErrNoUnderlay) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, want %s", err, c.want)
				}
				return
			}
			got := []string{u.Device, fmt.Sprint(u.MTU), u.Local.V4.String()}
			if u.Local.V6.IsValid() {
				got = append(got, u.Local.V6.String())
			}
			if text := fmt.Sprintf("%s %v", strings.Join(got, " "), u.OnLink); text != c.want {
				t.Errorf("%s, want %s", text, c.want)
			}
			if u.Public != u.Local {
				t.Errorf("public %v, local %v", u.Public, u.Local)
			}
		})
	}
}

// With net.ipv4.nexthop_compat_mode at 0 a route through a nexthop object is listed without device and gateway.
func TestUnderlayThroughNexthopObjects(t *testing.T) {
	for name, commands := range map[string]string{
		"object": "ip route add default nhid 5",
		"group":  "ip nexthop add id 7 group 5/6\nip route add default nhid 7",
		"of two": "ip route add default nhid 5 metric 100\nip route add default nhid 6 metric 200",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			s.write("/proc/sys/net/ipv4/nexthop_compat_mode", "0")
			s.setup("ip nexthop add id 5 via 192.0.2.254 dev eth0\nip nexthop add id 6 dev wire")
			s.setup(commands)
			k, want := s.open(), state(t, 3)
			s.apply(k, want)
			if c := s.apply(k, want).Count(); len(c) != 0 {
				t.Errorf("ours are not read as they are: another Apply changed %v", c)
			}
			u, err := k.Underlay(backend.Choice{})
			if err != nil || u.Device != "eth0" || !slices.Contains(u.OnLink, netip.MustParsePrefix("192.0.2.254/32")) {
				t.Errorf("%+v, %v", u, err)
			}
		})
	}
	t.Run("IPv6", func(t *testing.T) {
		s := newSandbox(t)
		s.write("/proc/sys/net/ipv4/nexthop_compat_mode", "0")
		s.setup(`
			ip addr add 2001:db8::1/64 dev eth0 nodad
			ip nexthop add id 5 via 2001:db8::fe dev eth0
			ip -6 route add default nhid 5
		`)
		u, err := s.open().Underlay(backend.Choice{})
		if err != nil || u.Device != "eth0" || !slices.Contains(u.OnLink, netip.MustParsePrefix("2001:db8::fe/128")) {
			t.Errorf("%+v, %v", u, err)
		}
	})
}

// Our own devices carry the overlay, and must never be taken for what it runs over.
func TestUnderlayIsNeverOurs(t *testing.T) {
	s := newSandbox(t)
	s.setup("ip route add default via 192.0.2.254")
	k, want := s.open(), state(t, 3)
	before, err := k.Underlay(backend.Choice{})
	if err != nil {
		t.Fatal(err)
	}
	s.apply(k, want)
	after, err := k.Underlay(backend.Choice{})
	if err != nil || fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("%+v, before Apply it was %+v; %v", after, before, err)
	}
	for _, name := range []string{"tulle.1", "docker0", "10.5.1.1"} {
		if _, err := k.Underlay(backend.Choice{Ifaces: []string{name}}); !errors.Is(err, ErrNoUnderlay) {
			t.Errorf("--iface %s: %v", name, err)
		}
	}
}

// TestOthers lists what addresses the host has beside those that it sends from: those of every device, but for what each has.
func TestOthers(t *testing.T) {
	devices := []device{
		{name: "lo", addrs: []ifAddr{global("127.0.0.1/8"), global("::1/128"), global("198.51.100.77/32")}},
		{name: "eth1", addrs: []ifAddr{global("10.5.100.7/24"), linkLocal("fe80::1/64")}},
		{name: "eth0", addrs: []ifAddr{global("192.0.2.1/24"), global("192.0.2.101/24"), global("2001:db8::1/64"), global("2001:db8::2/64")}},
	}
	local := subnet.Pair[netip.Addr]{V4: netip.MustParseAddr("192.0.2.1"), V6: netip.MustParseAddr("2001:db8::1")}
	if got, want := fmt.Sprint(others(devices, local)), "[{eth0 192.0.2.101/24} {eth0 2001:db8::2/64} {eth1 10.5.100.7/24} {lo 198.51.100.77/32}]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
