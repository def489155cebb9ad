package doctor

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/docker"
	"github.com/tulle-net/tulle/agent/probe"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/kernel"
	"github.com/tulle-net/tulle/subnet"
)

var now = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

// cleanRules are those of a host whose FORWARD policy Docker set to DROP, with the agent's.
const cleanRules = `*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:TULLE-PREROUTING - [0:0]
-A PREROUTING -j TULLE-PREROUTING
-A TULLE-PREROUTING -s 10.5.0.0/16 -d 10.5.1.0/24 -i tulle.1 -j ACCEPT
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
:TULLE-POSTROUTING - [0:0]
-A POSTROUTING -j TULLE-POSTROUTING
-A TULLE-POSTROUTING -s 10.5.1.0/24 -d 10.5.0.0/16 -j ACCEPT
-A TULLE-POSTROUTING -s 10.5.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:TULLE-FORWARD - [0:0]
-A FORWARD -j TULLE-FORWARD
-A TULLE-FORWARD -s 10.5.0.0/16 -j ACCEPT
-A TULLE-FORWARD -d 10.5.0.0/16 -j ACCEPT
COMMIT
`

// host is a host that can be made ill before its facts are asked for.
type host struct {
	*Facts
	view   api.View
	rules  string
	rules6 string // ip6tables'
}

// rule puts a rule at the head of a chain.
func (h *host) rule(table, rule string) {
	begin := strings.Index(h.rules, "*"+table)
	at := begin + strings.Index(h.rules[begin:], "-A ")
	h.rules = h.rules[:at] + rule + "\n" + h.rules[at:]
}

// dev is a device; nil if there is none.
func (h *host) dev(name string) *Device {
	for i := range h.Devices {
		if h.Devices[i].Name == name {
			return &h.Devices[i]
		}
	}
	return nil
}

func (h *host) lease(key, value string) {
	h.view.Leases[key] = api.StoredLease{Key: key, Value: value, Created: int64(100 + len(h.view.Leases))}
}

func leaseOf(ip, mac string) string {
	return fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q}}`, ip, mac)
}

// facts completes the facts by the plan.
func (h *host) facts(t *testing.T) Facts {
	t.Helper()
	plan, err := Plan(h.view)
	if err != nil {
		t.Fatal(err)
	}
	if h.Unseen[PartNetwork] == "" {
		h.Plan = plan
	}
	h.Filter = ParseFilter(h.rules)
	h.Filter.sets = append(h.Filter.sets, parseRules(subnet.IPv6, h.rules6))
	if tunnel := h.dev("tulle.1"); tunnel != nil && tunnel.VNI == 0 { // as the plan has it, unless it was made ill
		link := plan.State().Links["tulle.1"]
		tunnel.VNI, tunnel.Port, tunnel.Local, tunnel.MTU = link.VXLAN.VNI, link.VXLAN.Port, link.VXLAN.Local, link.MTU
	}
	return *h.Facts
}

// well is host 192.0.2.11 with 10.5.1.0/24, and two peers.
func well() *host {
	expires, renewed := now.Add(20*time.Hour), now.Add(-4*time.Hour)
	p := netip.MustParsePrefix
	v4 := func(text string) subnet.Pair[netip.Prefix] { return subnet.PairOf(subnet.IPv4, p(text)) }
	a := netip.MustParseAddr
	h := &host{rules: cleanRules, view: api.View{
		Config: `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`, Leases: map[string]api.StoredLease{},
		Underlay: backend.Underlay{Device: "eth0", MTU: 1500, Local: subnet.Pair[netip.Addr]{V4: a("192.0.2.11")}, Public: subnet.Pair[netip.Addr]{V4: a("192.0.2.11")},
			OnLink: []netip.Prefix{p("192.0.2.0/24"), p("192.0.2.1/32")}},
		Options: backend.Options{Bridge: "docker0", Masquerade: subnet.PairOf(subnet.IPv4, true), Forward: true}}}
	h.lease("10.5.1.0-24", leaseOf("192.0.2.11", "0a:00:00:00:00:11"))
	h.lease("10.5.2.0-24", leaseOf("192.0.2.12", "0a:00:00:00:00:12"))
	h.lease("10.5.3.0-24", leaseOf("192.0.2.13", "0a:00:00:00:00:13"))
	h.view.Self = h.view.Leases["10.5.1.0-24"]
	stored := h.view.Self
	h.Facts = &Facts{Unseen: map[Part]string{}, Host: "host1", Now: now, EnvPath: "/run/tulle/subnet.env", FlannelPath: flannelEnv,
		Status: api.Status{Ready: true, Lease: &api.Lease{Key: "10.5.1.0-24", Expires: &expires, Renewed: &renewed}, Docker: api.DockerState{Bridge: "docker0"}},
		Etcd:   api.Etcd{Endpoints: []api.EtcdEndpoint{{URL: "http://192.0.2.1:2379", Clock: 1}}, Revision: 200, Lease: &stored, TTL: 72000},
		Env:    docker.Env{Network: v4("10.5.0.0/16"), Subnet: v4("10.5.1.1/24"), Bridge: v4("10.5.1.1/24"), MTU: 1450, Masquerade: true},
		Devices: []Device{{Name: "lo", Up: true, MTU: 65536, Addrs: []netip.Prefix{p("127.0.0.1/8")}}, {Name: "eth0", Up: true, MTU: 1500, Addrs: []netip.Prefix{p("192.0.2.11/24")}},
			{Name: "docker0", Kind: "bridge", Up: true, MTU: 1450, Addrs: []netip.Prefix{p("10.5.1.1/24")}}, {Name: "tulle.1", Kind: "vxlan", Up: true, Addrs: []netip.Prefix{p("10.5.1.0/32")}},
			{Name: "veth1", Kind: "veth", Up: true, MTU: 1450, Master: "docker0"}},
		Routes: []Route{{Dst: p("0.0.0.0/0"), Dev: "eth0", Via: a("192.0.2.1"), Table: 254, Kind: "unicast"}, {Dst: p("192.0.2.0/24"), Dev: "eth0", Table: 254, Protocol: 2, Kind: "unicast"},
			{Dst: p("10.5.1.0/24"), Dev: "docker0", Table: 254, Protocol: 2, Kind: "unicast"}},
		Policies: []Policy{{0, 255, "0: from all lookup local"}, {32766, 254, "32766: from all lookup main"}},
		Sysctls:  map[string]string{ipForward: "1", bridgeCall: "1", conf("all", "rp_filter"): "0", conf("eth0", "rp_filter"): "0", conf("tulle.1", "forwarding"): "1", conf("docker0", "forwarding"): "1"},
	}
	for i, ip := range []string{"192.0.2.12", "192.0.2.13"} {
		vtep := netip.AddrFrom4([4]byte{10, 5, byte(i + 2), 0})
		h.Paths = append(h.Paths, Path{Key: vtep.String() + "-24", Public: a(ip), Subnet: netip.PrefixFrom(vtep, 24), Inside: vtep, Outer: routeOf("192.0.2.0/24 dev eth0 proto 2"), Inner: kernel.Way{Prefix: netip.PrefixFrom(vtep, 24), Type: "unicast", Via: vtep, Dev: "tulle.1", Protocol: ours},
			Carrier: backend.Outer{Device: "tulle.1", Kind: backend.KindVXLAN, Port: 8472}, Underlay: true, Overlay: true, Longest: 1450, Checksum: probe.ChecksumFine})
	}
	return h
}

// routeOf reads a route like "192.0.2.0/24 dev eth0 proto 2 table 100".
func routeOf(text string) kernel.Way {
	w := kernel.Way{Type: "unicast"}
	words := strings.Fields(text)
	w.Prefix = netip.MustParsePrefix(words[0])
	for i, word := range words[:len(words)-1] {
		n, _ := strconv.Atoi(words[i+1])
		switch word {
		case "dev":
			w.Dev = words[i+1]
		case "proto":
			w.Protocol = uint8(n)
		case "table":
			w.Table = uint32(n)
		}
	}
	return w
}

// byDefault is the way of what no other route is for.
var byDefault = routeOf("0.0.0.0/0 dev eth0 proto 3")

// heardAgo is what the agent knows of its probes over the overlay, by how long ago each was.
func heardAgo(answer, heardUs, heard time.Duration) *api.Probe {
	return &api.Probe{Answer: now.Add(-answer), HeardUs: now.Add(-heardUs), Heard: now.Add(-heard)}
}

// silent cuts the overlay to the first peer.
func (h *host) silent(p *api.Probe) {
	h.Paths[0].Overlay, h.Paths[0].Longest, h.Paths[0].Checksum, h.Paths[0].Heard = false, 0, probe.ChecksumUnknown, p
}

// loseTunnel takes the overlay's device away, and what hangs on it.
func (h *host) loseTunnel() {
	h.Devices = slices.DeleteFunc(h.Devices, func(d Device) bool { return d.Name == "tulle.1" })
	for i := range h.Paths {
		h.Paths[i].Inner, h.Paths[i].Overlay, h.Paths[i].Longest, h.Paths[i].Checksum = byDefault, false, 0, probe.ChecksumUnknown
	}
}

// leased is a lease's value, of a host with another backend than vxlan.
func leased(ip, backend string) string {
	data := map[string]string{"wireguard": `,"BackendData":{"PublicKey":"` + base64.StdEncoding.EncodeToString([]byte(fmt.Sprintf("%32s", ip))) + `","Port":51820}`, "l2": `,"BackendData":{"VNI":1}`}[backend]
	if backend == "udp" || backend == "alloc" {
		return fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null}`, ip)
	}
	return fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":%q%s}`, ip, backend, data)
}

// carry has the network on another backend, as its Backend object says, and all well with it.
func (h *host) carry(object string) {
	h.view.Config = `{"Network":"10.5.0.0/16","Backend":` + object + `}`
	config, _, err := subnet.ParseConfig([]byte(h.view.Config))
	if err != nil {
		panic(err)
	}
	for i, key := range []string{"10.5.1.0-24", "10.5.2.0-24", "10.5.3.0-24"} {
		h.lease(key, leased(fmt.Sprintf("192.0.2.%d", 11+i), config.Backend.Type))
	}
	h.view.Self = h.view.Leases["10.5.1.0-24"]
	stored := h.view.Self
	h.Etcd.Lease = &stored
	plan, err := Plan(h.view)
	if err != nil {
		panic(err)
	}
	s := plan.State()
	h.Devices = slices.DeleteFunc(h.Devices, func(d Device) bool { return d.Name == "tulle.1" })
	h.rules = strings.ReplaceAll(h.rules, " -i tulle.1", "")
	if o := s.Outer(); o.Device != "" {
		d := deviceOf(s.Links[o.Device])
		d.Name, d.Up = o.Device, true
		h.Devices = append(h.Devices, d)
		h.Sysctls[conf(o.Device, "forwarding")] = "1"
	}
	for _, dev := range []string{"docker0", "veth1"} {
		h.dev(dev).MTU = s.MTU
	}
	for a := range s.Addrs {
		if h.dev(a.Dev).Addrs = append(h.dev(a.Dev).Addrs, a.Prefix); a.Dev == "docker0" {
			h.dev(a.Dev).Addrs = []netip.Prefix{a.Prefix}
		}
	}
	for i := range h.Paths {
		p := &h.Paths[i]
		row, _ := rowFor(plan, p.Subnet.Addr())
		p.Carrier, p.Inside, p.Longest = row.Outer, row.Inside, s.MTU
		p.Overlay = row.Inside.IsValid()
		p.Inner = kernel.Way{Prefix: row.Prefix, Type: "unicast", Via: row.Via, Dev: row.Dev, Protocol: ours}
		if !row.routed() {
			p.Inner = byDefault
		}
		if bridged(plan) {
			p.Inner = routeOf("10.5.0.0/16 dev docker0 proto 2")
		}
	}
}

// six has a network of dualStack and its like, and all well with it.
func (h *host) six(config string) {
	h.view = sixView(config)
	stored := h.view.Self
	h.Etcd.Lease = &stored
	plan, err := Plan(h.view)
	if err != nil {
		panic(err)
	}
	s, u := plan.State(), h.view.Underlay
	h.Devices, h.Paths, h.Routes = nil, nil, nil
	for name, l := range s.Links {
		d := deviceOf(l)
		d.Name, d.Up = name, true
		h.Devices = append(h.Devices, d)
		h.Sysctls[conf(name, "forwarding")], h.Sysctls[confOf(subnet.IPv6, name, "disable_ipv6")] = "1", "0"
	}
	h.Devices = append(h.Devices, Device{Name: "eth0", Up: true, MTU: 1500}, Device{Name: "veth1", Kind: "veth", Up: true, MTU: s.MTU, Master: "docker0"})
	for a := range s.Addrs {
		d := h.dev(a.Dev)
		d.Addrs = append(d.Addrs, a.Prefix)
		slices.SortFunc(d.Addrs, netip.Prefix.Compare)
	}
	for f, a := range u.Local.All() {
		h.dev("eth0").Addrs = append(h.dev("eth0").Addrs, netip.PrefixFrom(a, []int{24, 64}[f]))
	}
	h.Sysctls[forwards.V6], h.Sysctls[confOf(subnet.IPv6, "eth0", "accept_ra")] = "1", "1"
	facts := Facts{Plan: plan, Devices: h.Devices}
	h.Paths = facts.choosePaths()
	for i := range h.Paths {
		p := &h.Paths[i]
		row, _ := rowFor(plan, p.Subnet.Addr())
		p.Outer = kernel.Way{Prefix: u.OnLink[p.outerFamily()], Type: "unicast", Dev: "eth0", Protocol: 2}
		p.Inner = kernel.Way{Prefix: row.Prefix, Type: "unicast", Via: row.Via, Dev: row.Dev, Protocol: ours}
		p.Underlay, p.Overlay, p.Longest, p.Checksum = true, true, s.MTU, probe.ChecksumFine
	}
	h.rules = strings.ReplaceAll(h.rules, " -i tulle.1", "")
	h.rules6 = strings.NewReplacer("10.5.0.0/16", "fd12:3456::/48", "10.5.1.0/24", "fd12:3456:0:1::/64", "224.0.0.0/4", "ff00::/8").Replace(h.rules)
}

// with is an illness of a host in such a network.
func with(config string, make func(h *host)) func(h *host) {
	return func(h *host) {
		h.six(config)
		make(h)
	}
}

// cut cuts the overlay to the first peer, by a family inside.
func (h *host) cut(family subnet.Family) *Path {
	i := slices.IndexFunc(h.Paths, func(p Path) bool { return p.family() == family })
	h.Paths[i].Overlay, h.Paths[i].Longest, h.Paths[i].Checksum = false, 0, probe.ChecksumUnknown
	return &h.Paths[i]
}

// carried is an illness of a host whose network has another backend.
func carried(object string, make func(h *host)) func(h *host) {
	return func(h *host) {
		h.carry(object)
		make(h)
	}
}

// unrouted takes the route to the first peer away.
func unrouted(h *host) {
	h.silent(nil)
	h.Paths[0].Inner = byDefault
}

func nothing(*host) {}

// Backend objects.
const (
	hostGW    = `{"Type":"host-gw"}`
	overIPIP  = `{"Type":"ipip"}`
	overUDP   = `{"Type":"udp"}`
	overWG    = `{"Type":"wireguard"}`
	oneL2     = `{"Type":"l2"}`
	leaseOnly = `{"Type":"alloc"}`
	commands  = `{"Type":"extension","SubnetAddCommand":"ip route replace $SUBNET via $PUBLIC_IP"}`
)

// illnesses are what may be wrong, and the names of what must be found: nothing else.
var illnesses = []struct {
	name  string
	make  func(h *host)
	found []string
}{
	{"healthy", func(*host) {}, nil},
	{"no agent", func(h *host) {
		h.Absent, h.Unseen[PartAgent] = "no agent answers: there is no /run/tulle/agent.sock", "no agent answers"
		h.Status = api.Status{}
	}, []string{"agent"}},
	{"agent not ready", func(h *host) { h.Status.Ready, h.Status.Reason = false, "waiting for a lease" }, []string{"agent-not-ready"}},
	{"agent warns", func(h *host) {
		h.Status.Warnings = []string{"docker0 has 10.9.0.1/24, not this host's 10.5.1.1/24: containers are not reached", "/etc/docker/daemon.json sets bip, and so does DOCKER_OPTS: dockerd refuses to start with both; take it out"}
	}, []string{"agent-warning"}},

	{"etcd down", func(h *host) {
		h.Etcd = api.Etcd{Endpoints: []api.EtcdEndpoint{{URL: "http://192.0.2.1:2379", Error: "connection refused"}}, Error: "connection refused"}
	}, []string{"etcd"}},
	{"no word of etcd", func(h *host) { h.Etcd = api.Etcd{Error: "deadline exceeded"} }, []string{"etcd"}},
	{"a member of etcd down", func(h *host) {
		h.Etcd.Endpoints = append(h.Etcd.Endpoints, api.EtcdEndpoint{URL: "http://192.0.2.2:2379", Error: "connection refused"})
	}, []string{"etcd"}},
	{"etcd's clock ahead", func(h *host) { h.Etcd.Endpoints[0].Clock = 90 }, []string{"clock"}},
	{"etcd's clock behind", func(h *host) { h.Etcd.Endpoints[0].Clock = -6 }, []string{"clock"}},
	{"etcd's clock nearly right", func(h *host) { h.Etcd.Endpoints[0].Clock = -5 }, nil},
	{"lease gone", func(h *host) { h.Etcd.Lease, h.Etcd.TTL = nil, 0 }, []string{"lease-lost"}},
	{"lease another's", func(h *host) { h.Etcd.Lease.Value = leaseOf("192.0.2.99", "0a:00:00:00:00:99") }, []string{"lease-lost"}},
	{"lease nearly over", func(h *host) { h.Etcd.TTL = 5 * 3600 }, []string{"lease-expiring"}},
	{"lease nearly over, and etcd away", func(h *host) {
		h.Etcd = api.Etcd{Error: "connection refused"}
		*h.Status.Lease.Expires = now.Add(5 * time.Hour)
		*h.Status.Lease.Renewed = now.Add(-19 * time.Hour)
	}, []string{"etcd", "lease-expiring"}},
	{"reservation", func(h *host) {
		h.Status.Lease.Reserved, h.Status.Lease.Expires, h.Status.Lease.Renewed = true, nil, nil
		h.Etcd.Lease.Reserved, h.Etcd.TTL = true, 0
	}, nil},
	{"two leases with a peer's address", func(h *host) { h.lease("10.5.9.0-24", leaseOf("192.0.2.12", "0a:00:00:00:00:99")) }, []string{"duplicate-public-ip"}},
	{"another lease with this host's address", func(h *host) { h.lease("10.5.9.0-24", leaseOf("192.0.2.11", "0a:00:00:00:00:99")) }, []string{"duplicate-public-ip", "left-out"}},
	{"a reservation for a peer", func(h *host) {
		h.view.Leases["10.5.9.0-24"] = api.StoredLease{Key: "10.5.9.0-24", Value: `{"PublicIP":"192.0.2.12","PublicIPv6":null}`, Reserved: true}
	}, nil},
	{"two leases with one MAC", func(h *host) { h.lease("10.5.9.0-24", leaseOf("192.0.2.99", "0a:00:00:00:00:12")) }, []string{"duplicate-mac", "left-out"}},
	{"leases left out", func(h *host) {
		h.lease("10.6.9.0-24", leaseOf("192.0.2.99", "0a:00:00:00:00:99"))
		h.lease("not \x1b[2Ja key", "{}")
	}, []string{"left-out", "left-out"}},

	{"no VXLAN", func(h *host) {
		h.Lacks = backend.KindVXLAN
		h.loseTunnel()
	}, []string{"kernel-module"}},
	{"no nexthop objects", func(h *host) { h.NoNexthops = true }, []string{"kernel-nexthops"}},
	{"flanneld runs", func(h *host) {
		h.Programs = []Program{{PID: 77, Name: "flanneld", Args: []string{"flanneld", "--ip-masq"}}}
	}, []string{"flanneld"}},
	{"flannel's device", func(h *host) {
		h.Devices = append(h.Devices, Device{Name: "flannel.7", Kind: "vxlan", VNI: 7, Port: 8472})
	}, []string{"flanneld"}},
	{"flannel's env file", func(h *host) { h.FlannelEnv = netip.MustParsePrefix("10.5.77.1/24") }, []string{"flanneld"}},
	{"flannel's env file, as ours", func(h *host) { h.FlannelEnv = netip.MustParsePrefix("10.5.1.1/24") }, nil},
	{"another VXLAN device", func(h *host) {
		h.loseTunnel()
		h.Devices = append(h.Devices, Device{Name: "other", Kind: "vxlan", VNI: 1, Port: 8472})
	}, []string{"device-clash"}},
	{"a geneve device on the port", func(h *host) { h.Devices = append(h.Devices, Device{Name: "gen", Kind: "geneve", VNI: 9, Port: 8472}) }, []string{"device-clash"}},
	{"VXLAN devices that are no harm", func(h *host) {
		h.Devices = append(h.Devices, Device{Name: "a", Kind: "vxlan", VNI: 2, Port: 8472}, Device{Name: "b", Kind: "vxlan", VNI: 1, Port: 4789})
	}, nil},
	{"a program on the port", func(h *host) {
		h.Programs = []Program{{PID: 7, Name: "nc", Args: []string{"nc", "-ulp", "8472"}, Listens: 8472}}
	}, []string{"udp-port-taken"}},
	{"device gone", func(h *host) { h.loseTunnel() }, []string{"overlay-device"}},
	{"device down", func(h *host) {
		h.dev("tulle.1").Up = false
		h.Paths[0].Inner, h.Paths[0].Overlay = byDefault, false
	}, []string{"overlay-device"}},
	{"device of another MTU", func(h *host) {
		d := h.dev("tulle.1")
		d.VNI, d.Port, d.Local, d.MTU = 1, 8472, netip.MustParseAddr("192.0.2.11"), 1400
	}, []string{"overlay-device"}},
	{"address gone from the underlay", func(h *host) { h.dev("eth0").Addrs = nil }, []string{"wrong-interface"}},
	{"public address on another device", func(h *host) {
		h.view.Underlay.Public.V4 = netip.MustParseAddr("198.51.100.7")
		h.Devices = append(h.Devices, Device{Name: "eth1", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("198.51.100.7/24")}})
	}, []string{"wrong-interface"}},
	{"public address of a NAT", func(h *host) { h.view.Underlay.Public.V4 = netip.MustParseAddr("198.51.100.7") }, nil},
	{"peers behind another device", func(h *host) {
		for i := range h.Paths {
			h.Paths[i].Outer, h.Paths[i].Overlay = routeOf("192.0.2.8/29 dev eth1 proto 2"), false
		}
	}, []string{"wrong-interface"}},
	{"two default routes", func(h *host) {
		h.Routes = append(h.Routes, Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Dev: "eth1", Via: netip.MustParseAddr("198.51.100.1"), Table: 254, Kind: "unicast"})
	}, []string{"wrong-interface"}},
	{"two default routes, and --iface", func(h *host) {
		h.Chosen = true
		h.Routes = append(h.Routes, Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Dev: "eth1", Via: netip.MustParseAddr("198.51.100.1"), Table: 254, Kind: "unicast"})
	}, nil},
	{"peers by another device, and they answer", func(h *host) { h.Paths[0].Outer = routeOf("0.0.0.0/0 dev eth1 proto 3") }, nil},
	{"a second default route of a higher metric", func(h *host) {
		h.Routes = append(h.Routes, Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Dev: "wlan0", Metric: 600, Table: 254, Kind: "unicast"})
	}, nil},
	{"a VPN in the overlay's range", func(h *host) {
		h.Routes = append(h.Routes, Route{Dst: netip.MustParsePrefix("10.5.2.128/25"), Dev: "tun0", Table: 254, Kind: "unicast"})
	}, []string{"overlapping-routes"}},
	{"a VPN around the overlay's range", func(h *host) {
		h.Routes = append(h.Routes, Route{Dst: netip.MustParsePrefix("10.0.0.0/8"), Dev: "tun0", Table: 254, Kind: "unicast"})
	}, nil},
	{"a policy rule captures", func(h *host) {
		h.Policies = append(h.Policies, Policy{100, 100, "100: to 10.5.0.0/16 lookup 100"})
		for i := range h.Paths {
			h.Paths[i].Inner, h.Paths[i].Overlay = routeOf("10.5.0.0/16 dev tun0 proto 3 table 100"), false
		}
	}, []string{"overlapping-routes"}},
	{"a VPN leads to a peer", func(h *host) {
		h.Paths[0].Outer, h.Paths[0].Underlay, h.Paths[0].Overlay = routeOf("192.0.2.12/32 dev tun0 proto 3"), false, false
	}, []string{"overlapping-routes"}},
	{"a blackhole for a peer", func(h *host) {
		h.Paths[0].Outer, h.Paths[0].Underlay, h.Paths[0].Overlay = routeOf("192.0.2.12/32 proto 3"), false, false
		h.Paths[0].Outer.Type = "blackhole"
	}, []string{"overlapping-routes"}},
	{"a route missing", func(h *host) { h.Paths[0].Inner, h.Paths[0].Overlay = byDefault, false }, []string{"not-programmed"}},
	{"an FDB entry altered", func(h *host) {
		h.silent(nil)
		h.Paths[0].Entry = wrong("0a:00:00:00:00:12 dev tulle.1 dst 192.0.2.66", "its lease says 192.0.2.12", "start the agent")
	}, []string{"not-programmed"}},

	{"bridge of another address", func(h *host) { h.dev("docker0").Addrs = []netip.Prefix{netip.MustParsePrefix("172.17.0.1/16")} }, []string{"bridge-address"}},
	{"an old address beside", func(h *host) {
		d := h.dev("docker0")
		d.Addrs = append(d.Addrs, netip.MustParsePrefix("10.5.250.1/24"), netip.MustParsePrefix("fe80::1/64"))
	}, []string{"live-restore"}},
	{"an old address though dockerd knows better", func(h *host) {
		h.dev("docker0").Addrs = []netip.Prefix{netip.MustParsePrefix("10.5.250.1/24")}
		h.Programs = []Program{{Name: "dockerd", Args: []string{"dockerd", "--bip=10.5.1.1/24", "--mtu", "1450"}}}
	}, []string{"live-restore"}},
	{"dockerd without options", func(h *host) { h.Programs = []Program{{Name: "dockerd", Args: []string{"dockerd"}}} }, []string{"docker-options"}},
	{"dockerd with others", func(h *host) {
		h.Programs = []Program{{Name: "dockerd", Args: []string{"dockerd", "--bip=10.5.9.1/24", "--mtu=1450"}}}
	}, []string{"docker-options"}},
	{"dockerd with a daemon.json", func(h *host) {
		h.Programs = []Program{{Name: "dockerd", Args: []string{"dockerd"}}}
		h.DockerConfig = docker.Config{"mtu": []byte("1450"), "bip": []byte(`"10.5.1.1/24"`)}
	}, nil},

	{"forwarding off", func(h *host) { h.Sysctls[ipForward], h.Sysctls[conf("tulle.1", "forwarding")] = "0", "0" }, []string{"ip-forward"}},
	{"forwarding off on the tunnel", func(h *host) { h.Sysctls[conf("tulle.1", "forwarding")] = "0" }, []string{"ip-forward"}},
	{"nothing accepts", func(h *host) { h.rules = strings.ReplaceAll(h.rules, "-A FORWARD -j TULLE-FORWARD\n", "") }, []string{"forward-drop"}},
	{"nothing accepts, as told", func(h *host) {
		h.rules = strings.ReplaceAll(h.rules, "-A FORWARD -j TULLE-FORWARD\n", "")
		h.view.Options.Forward = false
	}, []string{"forward-drop"}},
	{"Docker's chain drops", func(h *host) {
		h.rules = strings.ReplaceAll(h.rules, "-A FORWARD -j TULLE-FORWARD\n", ":DOCKER - [0:0]\n-A FORWARD -o docker0 -j DOCKER\n-A FORWARD -i docker0 -j ACCEPT\n-A DOCKER ! -i docker0 -o docker0 -j DROP\n")
	}, []string{"forward-drop"}},
	{"a rule before ours", func(h *host) { h.rule("filter", "-A FORWARD -i tulle.1 -j REJECT --reject-with icmp-port-unreachable") }, []string{"forward-shadowed"}},
	{"a rule for all", func(h *host) { h.rule("filter", "-A FORWARD -s 10.5.0.0/16 -j DROP") }, []string{"forward-shadowed"}},
	{"Docker's raw drop", func(h *host) { h.rule("raw", "-A PREROUTING -d 10.5.1.7/32 ! -i docker0 -j DROP") }, []string{"docker-raw-drop"}},
	{"Docker's raw drop behind ours", func(h *host) {
		h.rules = strings.Replace(h.rules, "-A PREROUTING -j TULLE-PREROUTING\n", "-A PREROUTING -j TULLE-PREROUTING\n-A PREROUTING -d 10.5.1.7/32 ! -i docker0 -j DROP\n", 1)
	}, nil},
	{"bridged packets dropped", func(h *host) {
		h.rule("filter", "-A FORWARD -i docker0 -o docker0 -j REJECT --reject-with icmp-port-unreachable")
	}, []string{"br-netfilter"}},
	{"bridged packets not asked", func(h *host) {
		h.rule("filter", "-A FORWARD -i docker0 -o docker0 -j REJECT --reject-with icmp-port-unreachable")
		h.Sysctls[bridgeCall] = "0"
	}, nil},
	{"Docker's --icc=false", func(h *host) { h.rule("filter", "-A FORWARD -i docker0 -o docker0 -j DROP") }, nil},
	{"strict filter, masqueraded", func(h *host) { h.Sysctls[conf("all", "rp_filter")] = "1" }, nil},
	{"strict filter, not masqueraded", func(h *host) {
		h.Sysctls[conf("all", "rp_filter")] = "1"
		h.rules = strings.ReplaceAll(h.rules, "-A POSTROUTING -j TULLE-POSTROUTING\n", "")
	}, []string{"rp-filter"}},
	{"loose filter, not masqueraded", func(h *host) {
		h.Sysctls[conf("all", "rp_filter")], h.Sysctls[conf("eth0", "rp_filter")] = "1", "2"
		h.rules = strings.ReplaceAll(h.rules, "-A POSTROUTING -j TULLE-POSTROUTING\n", "")
	}, nil},
	{"strict filter, another way back", func(h *host) {
		h.Sysctls[conf("eth0", "rp_filter")] = "1"
		h.Paths[0].Outer, h.Paths[0].Overlay = routeOf("192.0.2.12/32 dev eth1 proto 3"), false
	}, []string{"overlapping-routes", "rp-filter"}},
	{"UDP dropped coming in", func(h *host) { h.rule("filter", "-A INPUT -p udp -m udp --dport 8472 -j DROP"); h.silent(nil) }, []string{"overlay-filtered"}},
	{"UDP dropped by a policy", func(h *host) { h.rules = strings.ReplaceAll(h.rules, ":INPUT ACCEPT", ":INPUT DROP") }, []string{"overlay-filtered"}},
	{"UDP dropped, unless a set lets it in", func(h *host) {
		h.rules = strings.ReplaceAll(h.rules, ":INPUT ACCEPT", ":INPUT DROP")
		h.rule("filter", "-A INPUT -m set --match-set peers src -j ACCEPT")
	}, nil},
	{"forwarding dropped, unless a set lets it in", func(h *host) {
		h.rules = strings.ReplaceAll(h.rules, "-A FORWARD -j TULLE-FORWARD\n", "-A FORWARD -m set --match-set peers src -j ACCEPT\n")
	}, nil},
	{"UDP dropped going out", func(h *host) {
		h.rule("filter", "-A OUTPUT -d 192.0.2.12/32 -p udp -j REJECT --reject-with icmp-port-unreachable")
		h.silent(nil)
	}, []string{"overlay-filtered"}},

	{"a container's cable too wide", func(h *host) { h.dev("veth1").MTU = 1500 }, []string{"mtu-containers"}},
	{"the bridge too wide", func(h *host) { h.dev("docker0").MTU = 1500 }, []string{"mtu-containers"}},
	{"an empty bridge of Docker's", func(h *host) {
		h.dev("docker0").MTU, h.dev("veth1").Master = 1500, ""
		h.Programs = []Program{{Name: "dockerd", Args: []string{"dockerd", "--bip=10.5.1.1/24", "--mtu=1450"}}}
	}, nil},
	{"the underlay too narrow", func(h *host) { h.dev("eth0").MTU = 1400; h.Paths[0].Longest = 1350 }, []string{"mtu-underlay"}},
	{"the path too narrow", func(h *host) { h.Paths[0].Longest = 1372 }, []string{"mtu-path"}},
	{"checksums broken", func(h *host) { h.Paths[0].Checksum, h.Paths[1].Checksum = probe.ChecksumBroken, probe.ChecksumBroken }, []string{"checksum-offload"}},
	{"blocked, to the peer", func(h *host) { h.silent(heardAgo(60*time.Second, 59*time.Second, time.Second)) }, []string{"overlay-blocked"}},
	{"blocked, from the peer", func(h *host) { h.silent(heardAgo(60*time.Second, 2*time.Second, 61*time.Second)) }, []string{"overlay-blocked"}},
	{"blocked, both ways", func(h *host) { h.silent(heardAgo(60*time.Second, 60*time.Second, 58*time.Second)) }, []string{"overlay-blocked"}},
	{"blocked, just now", func(h *host) { h.silent(heardAgo(4*time.Second, 2*time.Second, 3*time.Second)) }, []string{"overlay-blocked"}},
	{"blocked, to the peer, since a while of both", func(h *host) { h.silent(heardAgo(90*time.Second, 65*time.Second, 2*time.Second)) }, []string{"overlay-blocked"}},
	{"blocked, a flannel host", func(h *host) { p := heardAgo(time.Minute, 0, time.Minute); p.HeardUs = time.Time{}; h.silent(p) }, []string{"overlay-blocked"}},
	{"blocked since ever", func(h *host) { h.silent(&api.Probe{HeardUs: now}) }, []string{"overlay-blocked"}},
	{"blocked, nobody knows which way", func(h *host) { h.silent(nil) }, []string{"overlay-blocked"}},
	{"blocked, and a rule that may be why", func(h *host) {
		h.rule("filter", "-A INPUT -p udp -m set ! --match-set peers src -j DROP")
		h.silent(nil)
	}, []string{"overlay-blocked"}},
	{"a peer down", func(h *host) { h.silent(nil); h.Paths[0].Underlay = false }, []string{"peer-down"}},
	{"all peers down", func(h *host) {
		for i := range h.Paths {
			h.Paths[i].Underlay, h.Paths[i].Overlay = false, false
		}
	}, []string{"peer-down"}},
	{"many peers down", func(h *host) {
		for i := range h.Paths {
			h.Paths[i].Underlay, h.Paths[i].Overlay = false, false
		}
		h.Status.Peers = api.PeerCount{Total: 100, Reachable: 60, Unreachable: 40}
	}, []string{"peer-down"}},
	{"a direct peer does not answer", func(h *host) {
		h.view.Config = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`
		for i := range h.Paths {
			h.Paths[i].Carrier, h.Paths[i].Inner.Dev, h.Paths[i].Inner.Via = backend.Outer{}, "eth0", h.Paths[i].Public
		}
		h.silent(nil)
	}, []string{"overlay-blocked"}},

	{"host-gw", carried(hostGW, nothing), nil},
	{"host-gw: a route missing", carried(hostGW, unrouted), []string{"not-programmed"}},
	{"host-gw: a peer is silent", carried(hostGW, func(h *host) { h.silent(nil) }), []string{"overlay-blocked"}},
	{"host-gw: a peer is down", carried(hostGW, func(h *host) { h.silent(nil); h.Paths[0].Underlay = false }), []string{"peer-down"}},
	{"host-gw: a peer on another segment", carried(hostGW, func(h *host) { h.lease("10.5.9.0-24", leased("198.51.100.9", "host-gw")) }), []string{"left-out"}},
	{"host-gw: hosts that still have vxlan", carried(hostGW, func(h *host) {
		h.lease("10.5.8.0-24", leaseOf("192.0.2.98", "0a:00:00:00:00:98"))
		h.lease("10.5.9.0-24", leaseOf("192.0.2.99", "0a:00:00:00:00:99"))
	}), []string{"left-out"}},
	{"host-gw: the path too narrow", carried(hostGW, func(h *host) { h.Paths[0].Longest = 1400 }), []string{"mtu-path"}},
	{"host-gw: strict filter, not masqueraded", carried(hostGW, func(h *host) {
		h.Sysctls[conf("all", "rp_filter")] = "1"
		h.rules = strings.ReplaceAll(h.rules, "-A POSTROUTING -j TULLE-POSTROUTING\n", "")
	}), nil},
	{"host-gw: without a bridge", carried(hostGW, func(h *host) {
		h.view.Options.Bridge = ""
		for i := range h.Paths {
			h.Paths[i].Inside, h.Paths[i].Overlay, h.Paths[i].Longest = netip.Addr{}, false, 0
		}
	}), nil},
	{"ipip", carried(overIPIP, nothing), nil},
	{"ipip: no module", carried(overIPIP, func(h *host) { h.Lacks = backend.KindIPIP; h.Devices = h.Devices[:len(h.Devices)-1]; unrouted(h) }), []string{"kernel-module"}},
	{"ipip: another device has its addresses", carried(overIPIP, func(h *host) {
		h.Devices[len(h.Devices)-1].Name = "other"
		unrouted(h)
	}), []string{"device-clash"}},
	{"ipip: devices that are no harm", carried(overIPIP, func(h *host) {
		h.Devices = append(h.Devices, Device{Name: "tunl0", Kind: "ipip"}, Device{Name: "to-one", Kind: "ipip", Local: netip.MustParseAddr("192.0.2.11"), Remote: netip.MustParseAddr("192.0.2.12")})
	}), nil},
	{"ipip: dropped coming in", carried(overIPIP, func(h *host) { h.rule("filter", "-A INPUT -p ipencap -j DROP"); h.silent(nil) }), []string{"overlay-filtered"}},
	{"ipip: dropped by a policy that lets UDP in", carried(overIPIP, func(h *host) {
		h.rules = strings.ReplaceAll(h.rules, ":INPUT ACCEPT", ":INPUT DROP")
		h.rule("filter", "-A INPUT -p udp -j ACCEPT")
	}), []string{"overlay-filtered"}},
	{"ipip: let in by its number", carried(overIPIP, func(h *host) {
		h.rules = strings.ReplaceAll(h.rules, ":INPUT ACCEPT", ":INPUT DROP")
		h.rule("filter", "-A INPUT -p 4 -j ACCEPT")
	}), nil},
	{"ipip: blocked", carried(overIPIP, func(h *host) { h.silent(heardAgo(60*time.Second, 59*time.Second, time.Second)) }), []string{"overlay-blocked"}},
	{"udp", carried(overUDP, nothing), nil},
	{"udp: no TUN", carried(overUDP, func(h *host) { h.Lacks = backend.KindTUN; h.Devices = h.Devices[:len(h.Devices)-1]; unrouted(h) }), []string{"kernel-module"}},
	{"udp: no agent", carried(overUDP, func(h *host) {
		h.Absent, h.Unseen[PartAgent] = "no agent answers: there is no /run/tulle/agent.sock", "no agent answers"
		h.Status = api.Status{}
		h.silent(nil)
	}), []string{"agent", "overlay-device"}},
	{"udp: a peer's agent stopped", carried(overUDP, func(h *host) { h.silent(nil) }), []string{"overlay-blocked"}},
	{"udp: a VXLAN device has the port", carried(overUDP, func(h *host) { h.Devices = append(h.Devices, Device{Name: "other", Kind: "vxlan", VNI: 9, Port: 8285}) }), []string{"device-clash"}},
	{"udp: a program on the port", carried(overUDP, func(h *host) {
		h.Programs = []Program{{PID: 7, Name: "flanneld.old", Listens: 8285}}
	}), []string{"udp-port-taken"}},
	{"udp: the path too narrow", carried(overUDP, func(h *host) { h.Paths[0].Longest = 1372 }), []string{"mtu-path"}},
	{"wireguard", carried(overWG, nothing), nil},
	{"wireguard: in a process", func(h *host) { h.view.Userspace = true; h.carry(overWG) }, nil},
	{"wireguard: no module", carried(overWG, func(h *host) { h.Lacks = backend.KindWireGuard; h.Devices = h.Devices[:len(h.Devices)-1]; unrouted(h) }), []string{"kernel-module"}},
	{"wireguard: a peer is silent", carried(overWG, func(h *host) { h.silent(nil) }), []string{"overlay-blocked"}},
	{"wireguard: no handshake", carried(overWG, func(h *host) { h.silent(nil); h.Paths[0].Shaken = &time.Time{} }), []string{"no-handshake"}},
	{"wireguard: none any more", carried(overWG, func(h *host) { at := now.Add(-10 * time.Minute); h.silent(nil); h.Paths[0].Shaken = &at }), []string{"no-handshake"}},
	{"wireguard: a handshake, and then silence", carried(overWG, func(h *host) { at := now.Add(-time.Minute); h.silent(nil); h.Paths[0].Shaken = &at }), []string{"overlay-blocked"}},
	{"wireguard: two leases with one key", carried(overWG, func(h *host) {
		h.lease("10.5.9.0-24", strings.ReplaceAll(leased("192.0.2.13", "wireguard"), `"PublicIP":"192.0.2.13"`, `"PublicIP":"192.0.2.99"`))
	}), []string{"duplicate-key", "left-out"}},
	{"l2", carried(oneL2, nothing), nil},
	{"l2: a flooding entry missing", carried(oneL2, func(h *host) {
		h.silent(nil)
		h.Paths[0].Entry = wrong("no entry 00:00:00:00:00:00 dev tulle.1 dst 192.0.2.12", "no broadcast gets there, nor what asks for a container's MAC", "start the agent")
	}), []string{"not-programmed"}},
	{"l2: the device is no port of the bridge", carried(oneL2, func(h *host) { h.Devices[len(h.Devices)-1].Master = ""; h.silent(nil) }), []string{"overlay-device"}},
	{"l2: bridged packets dropped", carried(oneL2, func(h *host) { h.rule("filter", "-A FORWARD -i docker0 -o docker0 -j REJECT") }), []string{"forward-shadowed"}},
	{"l2: bridged packets not asked", carried(oneL2, func(h *host) {
		h.rule("filter", "-A FORWARD -j DROP")
		h.Sysctls[bridgeCall] = "0"
	}), nil},
	{"l2: Docker's raw drop", carried(oneL2, func(h *host) { h.rule("raw", "-A PREROUTING -d 10.5.1.7/32 ! -i docker0 -j DROP") }), nil},
	{"alloc", carried(leaseOnly, nothing), nil},
	{"alloc: a peer down", carried(leaseOnly, func(h *host) { h.Paths[0].Underlay = false }), []string{"peer-down"}},
	{"alloc: the operator's route", carried(leaseOnly, func(h *host) {
		h.Routes = append(h.Routes, Route{Dst: netip.MustParsePrefix("10.5.2.0/24"), Dev: "eth0", Via: netip.MustParseAddr("192.0.2.12"), Table: 254, Kind: "unicast"})
		h.Paths[0].Inner = routeOf("10.5.2.0/24 dev eth0 proto 3")
	}), nil},
	{"extension", carried(commands, func(h *host) {
		h.Routes = append(h.Routes, Route{Dst: netip.MustParsePrefix("10.5.2.0/24"), Dev: "eth0", Via: netip.MustParseAddr("192.0.2.12"), Table: 254, Kind: "unicast"})
		h.Paths[0].Inner = routeOf("10.5.2.0/24 dev eth0 proto 3")
	}), nil},
	{"extension: a peer is silent", carried(commands, func(h *host) { h.silent(nil) }), []string{"overlay-blocked"}},
	{"both families", with(dualStack, nothing), nil},
	{"IPv6 over IPv4", with(onlyIPv6, nothing), nil},
	{"IPv4 over IPv6", with(overIPv6, nothing), nil},
	{"both families, by host-gw", with(dualGW, nothing), nil},
	{"both families: IPv6 is not forwarded", with(dualStack, func(h *host) { h.Sysctls[forwards.V6] = "0" }), []string{"ip-forward"}},
	{"both families: IPv6 is off on the bridge", with(dualStack, func(h *host) {
		h.Sysctls[confOf(subnet.IPv6, "docker0", "disable_ipv6")] = "1"
		h.dev("docker0").Addrs = []netip.Prefix{netip.MustParsePrefix("10.5.1.1/24")}
	}), []string{"ipv6-off"}},
	{"both families: the bridge has IPv4 only", with(dualStack, func(h *host) {
		h.dev("docker0").Addrs = []netip.Prefix{netip.MustParsePrefix("10.5.1.1/24"), netip.MustParsePrefix("fe80::1/64")}
	}), []string{"bridge-address"}},
	{"both families: an old IPv6 address", with(dualStack, func(h *host) {
		h.dev("docker0").Addrs = append(h.dev("docker0").Addrs, netip.MustParsePrefix("fd12:3456:0:99::1/64"))
	}), []string{"live-restore"}},
	{"both families: another device has the bridge's address", with(dualStack, func(h *host) {
		h.dev("docker0").Duplicate = []netip.Prefix{netip.MustParsePrefix("fd12:3456:0:1::1/64")}
	}), []string{"overlay-address"}},
	{"both families: another host has the underlay's address", with(dualStack, func(h *host) {
		h.dev("eth0").Duplicate = []netip.Prefix{netip.MustParsePrefix("2001:db8::1/64")}
	}), []string{"overlay-address"}},
	{"both families: a tunnel without its IPv6 address", with(dualStack, func(h *host) {
		h.dev("tulle-v6.1").Addrs = []netip.Prefix{netip.MustParsePrefix("10.5.1.0/32")}
	}), []string{"overlay-address"}},
	{"both families: the router is not heard", with(dualStack, func(h *host) {
		h.dev("eth0").Lent = []netip.Prefix{netip.MustParsePrefix("2001:db8::1/64")}
	}), []string{"router-advertisements"}},
	{"both families: no router, and none needed", with(dualStack, func(h *host) {
		h.dev("eth0").Lent = []netip.Prefix{netip.MustParsePrefix("fe80::1/64")}
	}), nil},
	{"both families: the device over IPv6 is gone", with(dualStack, func(h *host) {
		h.Devices = slices.DeleteFunc(h.Devices, func(d Device) bool { return d.Name == "tulle-v6.1" })
		h.cut(subnet.IPv6).Inner = kernel.Way{}
	}), []string{"overlay-device"}},
	{"both families: another device has the VNI, over IPv6", with(dualStack, func(h *host) {
		h.Devices = slices.DeleteFunc(h.Devices, func(d Device) bool { return d.Name == "tulle-v6.1" })
		h.Devices = append(h.Devices, Device{Name: "other", Kind: "vxlan", VNI: 1, Port: 8472, Local: netip.MustParseAddr("2001:db8::1")})
		h.cut(subnet.IPv6).Inner = kernel.Way{}
	}), []string{"device-clash"}},
	{"both families: an IPv6 route is missing", with(dualStack, func(h *host) { h.cut(subnet.IPv6).Inner = routeOf("::/0 dev eth0 proto 9") }), []string{"not-programmed"}},
	{"both families: a VPN in the overlay's IPv6 range", with(dualStack, func(h *host) {
		h.Routes = append(h.Routes, Route{Dst: netip.MustParsePrefix("fd12:3456:0:2::/72"), Dev: "tun0", Table: 254, Kind: "unicast"})
	}), []string{"overlapping-routes"}},
	{"both families: UDP over IPv6 is blocked", with(dualStack, func(h *host) { h.cut(subnet.IPv6).Heard = heardAgo(60*time.Second, 59*time.Second, time.Second) }), []string{"overlay-blocked"}},
	{"both families: UDP over both is blocked", with(dualStack, func(h *host) { h.cut(subnet.IPv4); h.cut(subnet.IPv6) }), []string{"overlay-blocked", "overlay-blocked"}},
	{"both families: UDP dropped coming in over IPv4", with(dualStack, func(h *host) {
		h.rule("filter", "-A INPUT -p udp -m udp --dport 8472 -j DROP")
		h.cut(subnet.IPv4)
	}), []string{"overlay-filtered"}},
	{"both families: UDP dropped coming in over IPv6", with(dualStack, func(h *host) {
		h.rules6 = strings.ReplaceAll(h.rules6, ":INPUT ACCEPT", ":INPUT DROP")
		h.cut(subnet.IPv6)
	}), []string{"overlay-filtered"}},
	{"both families: nothing accepts IPv6", with(dualStack, func(h *host) {
		h.rules6 = strings.ReplaceAll(h.rules6, "-A FORWARD -j TULLE-FORWARD\n", "")
	}), []string{"forward-drop"}},
	{"both families: a rule for one of the devices, before ours", with(dualStack, func(h *host) {
		h.rules6 = strings.Replace(h.rules6, "-A FORWARD -j", "-A FORWARD -i tulle-v6.1 -j DROP\n-A FORWARD -j", 1)
	}), []string{"forward-shadowed"}},
	{"both families: the underlay carries no IPv6", with(dualStack, func(h *host) { h.cut(subnet.IPv6).Underlay = false }), []string{"peer-down"}},
	{"both families: a peer is down", with(dualStack, func(h *host) { h.cut(subnet.IPv4).Underlay = false; h.cut(subnet.IPv6).Underlay = false }), []string{"peer-down"}},
	{"IPv6 over IPv4: a peer is down", with(onlyIPv6, func(h *host) { h.cut(subnet.IPv6).Underlay = false }), []string{"peer-down"}},
	{"both families over IPv4: one of them does not get through", with(bothOverIPv4, func(h *host) { h.cut(subnet.IPv6) }), []string{"overlay-blocked"}},
	{"IPv4 over IPv6: the path too narrow", with(overIPv6, func(h *host) { h.Paths[0].Longest = 1300 }), []string{"mtu-path"}},
	{"IPv4 over IPv6: the underlay too narrow", with(overIPv6, func(h *host) { h.dev("eth0").MTU = 1480 }), []string{"mtu-underlay"}},
	{"a peer of another family", with(onlyIPv6, func(h *host) {
		h.lease("10.5.9.0-24", leaseOf("192.0.2.9", "0a:00:00:00:00:09"))
		h.lease("fd12:3456:0:8::-64", `{"PublicIP":null,"PublicIPv6":"2001:db8::8","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"0a:00:00:00:00:08"}}`)
	}), []string{"left-out"}},
	{"both families: two leases with one IPv6 address", with(dualStack, func(h *host) {
		h.lease("10.5.9.0-24", `{"PublicIP":"192.0.2.9","PublicIPv6":"2001:db8::2","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:09"}}`)
	}), []string{"duplicate-public-ip"}},
	{"nothing known but the host", func(h *host) {
		h.Unseen = map[Part]string{PartAgent: "no agent answers", PartNetwork: "etcd is out of reach", PartPaths: "no peer is known", PartLong: "no peer is known", PartChecksum: "no peer is known"}
		h.Absent, h.Etcd = "no agent answers: there is no socket", api.Etcd{Error: "etcd is out of reach"}
		h.Sysctls[ipForward] = "0"
	}, []string{"agent", "etcd", "ip-forward"}},
}

// TestChecks makes a host ill in every way that is known of. What must be found is, and nothing else; how it is told is in
// testdata/findings.txt.
func TestChecks(t *testing.T) {
	var told strings.Builder
	seen := map[string]bool{}
	for _, ill := range illnesses {
		h := well()
		ill.make(h)
		r := Examine(h.facts(t))
		var names []string
		fmt.Fprintf(&told, "== %s\n", ill.name)
		for _, u := range r.Unchecked {
			if h.Unseen[PartNetwork] == "" && u.Why != "no agent answers" {
				fmt.Fprintf(&told, "%s could not be checked: %s\n", u.Check, u.Why)
			}
		}
		for _, f := range r.Findings {
			names, seen[f.Check] = append(names, f.Check), true
			fmt.Fprintf(&told, "%s: %s\n\t%s\n\tfix: %s\n", f.Check, f.What, strings.ReplaceAll(f.Evidence, "\n", "\n\t"), f.Fix)
			if f.What == "" || f.Evidence == "" || f.Fix == "" {
				t.Errorf("%s: a finding that does not say all: %+v", ill.name, f)
			}
		}
		if !slices.Equal(names, ill.found) {
			t.Errorf("%s: found %q, want %q", ill.name, names, ill.found)
		}
	}
	for _, c := range Checks() {
		if !seen[c.Name] {
			t.Errorf("no test has %s find anything", c.Name)
		}
	}
	const path = "testdata/findings.txt"
	if *update {
		if err := os.WriteFile(path, []byte(told.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := told.String(); got != string(want) {
		t.Errorf("findings are told differently than in %s (-update writes it anew):\n%s", path, got)
	}
}

// TestUnchecked takes a part of the facts away at a time. Checks that need it can't be made, and no other is in the way.
func TestUnchecked(t *testing.T) {
	for _, part := range []Part{PartAgent, PartNetwork, PartEtcd, PartHost, PartKernel, PartFilter, PartPrograms, PartEnv, PartPaths, PartLong, PartChecksum, PartForward, PartRaw, PartBridged, PartOuter} {
		h := well()
		h.Unseen[part] = "it is hidden"
		r := Examine(h.facts(t))
		if len(r.Findings) > 0 || len(r.Unchecked) == 0 || r.Code() != 2 {
			t.Errorf("without %s: %+v, code %d", part, r, r.Code())
		}
		if n := len(r.Clean) + len(r.Unchecked); n != len(Checks()) {
			t.Errorf("without %s: %d of %d checks are told of", part, n, len(Checks()))
		}
	}
}

func TestCode(t *testing.T) {
	for _, test := range []struct {
		report Report
		want   int
	}{
		{Report{Clean: []string{"a"}}, 0},
		{Report{Unchecked: []Unchecked{{}}}, 2},
		{Report{Findings: []Finding{{}}, Unchecked: []Unchecked{{}}}, 1},
	} {
		if got := test.report.Code(); got != test.want {
			t.Errorf("%+v: code %d, want %d", test.report, got, test.want)
		}
	}
}

// TestDocumented holds docs/troubleshooting.md to the table of checks.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, c := range Checks() {
		if names[c.Name] || c.Name == "" || c.Title == "" || c.Find == nil {
			t.Errorf("check %q: its name is another's, or something is missing", c.Name)
		}
		names[c.Name] = true
		if n := strings.Count(string(text), "| `"+c.Name+"` |"); n != 1 {
			t.Errorf("docs/troubleshooting.md has %d rows for %s, want one", n, c.Name)
		}
	}
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(line, "|"); len(cells) > 3 && strings.Contains(cells[3], "`") && !names[strings.Trim(cells[3], " `")] {
			t.Errorf("docs/troubleshooting.md has a row for %s, which is no check", cells[3])
		}
	}
}

func TestOption(t *testing.T) {
	for line, want := range map[string]string{"dockerd --mtu=1450": "1450", "dockerd --mtu 1450 -D": "1450", "dockerd --mtu=1 --mtu=2": "2", "dockerd": "", "dockerd --mtu": "", "dockerd --mtus=1": ""} {
		if got := option(strings.Fields(line), "--mtu"); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

func TestSpread(t *testing.T) {
	list := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}
	for n, want := range map[int][]int{0: nil, 1: {0}, 2: {0, 5}, 4: {0, 2, 5, 7}, 20: list} {
		if got := spread(list, n); !slices.Equal(got, want) {
			t.Errorf("%d of ten: %v, want %v", n, got, want)
		}
	}
}
