package e2e

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

// ward is a network with a backend, and what ails its first host. Each illness's hop is what a trace to the second host's container
// names first; "" if it finds nothing there. Commands find in their environment what clinic.environment has.
type ward struct {
	backend   string // the Backend object
	illnesses []ailment
}

type ailment struct {
	illness
	peer      bool // the second host is made ill, not the first
	silent    bool // its agent is killed, and started again after
	process   bool // it takes a device that a process stands behind
	hop, text string
}

var wards = []ward{
	{`{"Type":"host-gw"}`, []ailment{
		{illness: illness{what: "route missing", agentless: true, make: "ip route del $PEER", mend: "true", found: []string{"agent", "not-programmed"}, says: "not in the kernel", fix: "systemctl restart tulle"},
			hop: "route", text: "ip route replace $PEER via $DST dev eth0 proto 84"},
		{illness: illness{what: "containers' addresses blocked on the way", underlay: true, make: "iptables -w -I FORWARD -s $OWNNET -j DROP", mend: "iptables -w -D FORWARD -s $OWNNET -j DROP",
			found: []string{"overlay-blocked"}, says: "packets with containers' addresses don't get to $DST", fix: "clouds check"}, hop: "overlay", text: "a cloud that checks sources"},
		{illness: illness{what: "underlay's MTU too small on the way", underlay: true, make: "iptables -w -I FORWARD -s $OWNNET -m length --length 1401: -j DROP", mend: "iptables -w -D FORWARD -s $OWNNET -m length --length 1401: -j DROP",
			found: []string{"mtu-path"}, says: "longer than 1400 bytes are lost", fix: "ip link set eth0 mtu 1400"}, hop: "path MTU", text: "carries 1400 bytes"},
	}},
	{`{"Type":"vxlan","DirectRouting":true}`, []ailment{
		{illness: illness{what: "route via another host", agentless: true, make: "ip nexthop replace id $ID via 192.0.2.1 dev eth0 proto 84", mend: "true", found: []string{"agent", "not-programmed"}, says: "altered", fix: "ip nexthop replace id $ID via $DST dev eth0 proto 84"},
			hop: "nexthop", text: "it should be via $DST dev eth0"},
	}},
	{`{"Type":"udp"}`, []ailment{
		{illness: illness{what: "the peer's agent is stopped", found: []string{"overlay-blocked"}, says: "UDP port 8285 is blocked between here and $DST", fix: "they carry the packets themselves"}, peer: true, silent: true, hop: "overlay", text: "or agent is not there"},
		{illness: illness{what: "no agent", agentless: true, make: "true", mend: "true", found: []string{"agent", "overlay-device"}, says: "tulle-udp leads nowhere", fix: "systemctl start tulle"}, hop: "device", text: "the agent itself carries its packets"},
		{illness: illness{what: "port blocked on the way", underlay: true, make: "iptables -w -I FORWARD -p udp --dport 8285 -j DROP", mend: "iptables -w -D FORWARD -p udp --dport 8285 -j DROP",
			found: []string{"overlay-blocked"}, says: "UDP port 8285 is blocked", fix: "let UDP port 8285 pass"}, hop: "overlay", text: "UDP port 8285 is blocked"},
	}},
	{`{"Type":"ipip"}`, []ailment{
		{illness: illness{what: "device down", agentless: true, make: "ip link set tulle-ipip down", mend: "true", found: []string{"agent", "overlay-device"}, says: "tulle-ipip is down", fix: "ip link set tulle-ipip up"},
			hop: "device", text: "it is down"},
		{illness: illness{what: "IPIP dropped by the host", make: "iptables -w -I INPUT -p 4 -j DROP", mend: "iptables -w -D INPUT -p 4 -j DROP",
			found: []string{"overlay-filtered"}, says: "IP protocol 4 (IPIP)", fix: "iptables -t filter -D INPUT -p"}, hop: "input", text: "-j DROP (table filter)"},
		{illness: illness{what: "IPIP blocked on the way", underlay: true, make: "iptables -w -I FORWARD -p 4 -j DROP", mend: "iptables -w -D FORWARD -p 4 -j DROP",
			found: []string{"overlay-blocked"}, says: "IP protocol 4 (IPIP) is blocked", fix: "let IP protocol 4 (IPIP) pass"}, hop: "overlay", text: "IP protocol 4 (IPIP) is blocked"},
	}},
	{`{"Type":"wireguard"}`, []ailment{
		{illness: illness{what: "the peer's agent is stopped", found: []string{"overlay-blocked"}, says: "UDP port 51820 is blocked between here and $DST", fix: "or start their agents"}, peer: true, silent: true, process: true, hop: "overlay", text: "or agent is not there"},
		{illness: illness{what: "no agent", agentless: true, make: "true", mend: "true", found: []string{"agent", "overlay-device"}, says: "tulle-wg leads nowhere", fix: "systemctl start tulle"}, process: true, hop: "device", text: "the agent itself carries its packets"},
		{illness: illness{what: "port dropped by the host", make: "iptables -w -I INPUT -p udp --dport 51820 -j DROP", mend: "iptables -w -D INPUT -p udp --dport 51820 -j DROP",
			found: []string{"overlay-filtered"}, says: "UDP port 51820", fix: "-D INPUT -p udp -m udp --dport 51820 -j DROP"}, hop: "input", text: "--dport 51820 -j DROP"},
		// A host that was started anew has no session, and the way is blocked before it can make one.
		{illness: illness{what: "no handshake", underlay: true, make: "iptables -w -I FORWARD -p udp --dport 51820 -j DROP", mend: "iptables -w -D FORWARD -p udp --dport 51820 -j DROP",
			found: []string{"no-handshake"}, says: "no WireGuard handshake with $DST", fix: "let UDP port 51820 pass"}, process: true, hop: "overlay", text: "another key or PSK"},
	}},
	{`{"Type":"l2"}`, []ailment{
		{illness: illness{what: "not a port of the bridge", agentless: true, make: "ip link set tulle.1 nomaster", mend: "true", found: []string{"agent", "overlay-device"}, says: "tulle.1 is not as", fix: "systemctl restart tulle"},
			hop: "device", text: "master docker0"},
		{illness: illness{what: "flooding entry missing", agentless: true, make: "bridge fdb del 00:00:00:00:00:00 dev tulle.1 dst $DST; bridge fdb flush dev tulle.1 nopermanent; ip neigh flush dev docker0", mend: "true",
			found: []string{"agent", "not-programmed"}, says: "not in the kernel", fix: "bridge fdb append 00:00:00:00:00:00 dev tulle.1 dst $DST self permanent"}, hop: "flood", text: "no broadcast gets there"},
		{illness: illness{what: "bridged packets dropped", make: "iptables -w -I FORWARD -i docker0 -o docker0 -j REJECT", mend: "iptables -w -D FORWARD -i docker0 -o docker0 -j REJECT",
			found: []string{"forward-shadowed"}, says: "before they are accepted", fix: "-D FORWARD -i docker0 -o docker0 -j REJECT"}, hop: "forward", text: "-i docker0 -o docker0 -j REJECT"},
	}},
	{`{"Type":"extension","SubnetAddCommand":"ip route replace $SUBNET via $PUBLIC_IP","SubnetRemoveCommand":"ip route del $SUBNET"}`, []ailment{
		{illness: illness{what: "the command's route is gone", make: "ip route del $PEER; ip route add blackhole $PEER", mend: "ip route del blackhole $PEER; ip route add $PEER via $DST",
			found: []string{"overlay-blocked"}, says: "packets with containers' addresses don't get to $DST", fix: "extension's commands"}, hop: "route", text: "SubnetAddCommand"},
	}},
	{`{"Type":"alloc"}`, []ailment{
		{illness: illness{what: "nobody made a route", make: "ip route del $PEER; ip route add blackhole $PEER", mend: "ip route del blackhole $PEER; ip route add $PEER via $DST"}, hop: "route", text: "alloc, which makes no routes"},
	}},
}

// TestDoctorBackends has a network by each backend that any kernel has: doctor and trace find nothing, and name what is broken.
func TestDoctorBackends(t *testing.T) {
	for _, w := range wards {
		kind, _, _ := strings.Cut(strings.TrimPrefix(w.backend, `{"Type":"`), `"`)
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			if kind == "ipip" {
				needKind(t, kind)
			}
			c := clinic{Lab: newLab(t, lab.Options{Hosts: 2, Config: `{"Network":"10.5.0.0/16","Backend":` + w.backend + `}`, Empty: kind == "alloc"})}
			c.h = c.Nodes[0]
			if kind == "alloc" {
				wayOf(t, kind).finish(t, c.Lab)
			}
			c.well(t)
			from, to := c.h.Container, c.Nodes[1].Container
			tracesClean(t, c.Lab, c.h, to.Address.String())
			tracesClean(t, c.Lab, c.h, "--from", "netns:"+from.Namespace, to.Address.String())
			status, err := c.h.Status(t.Context())
			must(t, err)
			for _, a := range w.illnesses {
				if !a.process || status.Network.Kind == "tun" {
					t.Run(a.what, func(t *testing.T) { c.ails(t, a) })
				}
			}
			if kind == "host-gw" {
				t.Run("hosts left out", c.testLeftOut)
			}
		})
	}
}

// testLeftOut has hosts that run another backend, or are on another segment: each is named.
func (c clinic) testLeftOut(t *testing.T) {
	for _, test := range []struct{ key, value, says, fix string }{
		{"10.5.201.0-24", lease("192.0.2.77", "0a:00:00:00:02:01", 1), "1 host still on another backend than the network's, which is host-gw", "restart flanneld"},
		{"10.5.202.0-24", `{"PublicIP":"198.51.100.77","PublicIPv6":null,"BackendType":"host-gw"}`, "1 lease left out (not-on-link)", "vxlan with DirectRouting"},
	} {
		etcdctl(t, c.Lab, "put", subnets+test.key, test.value)
		c.finds(t, illness{found: []string{"left-out"}, says: test.says, fix: test.fix})
		etcdctl(t, c.Lab, "del", subnets+test.key)
		c.well(t)
	}
}

// environment is what commands find: SELF and DST, the two hosts' public addresses, OWNNET and PEER, their subnets, ID, the nexthop
// object's.
func (c clinic) environment() []string {
	peer := c.Nodes[1]
	b := peer.Container.Subnet.Addr().As4()
	return []string{"SELF=" + c.h.Address.String(), "DST=" + peer.Address.String(), "OWNNET=" + c.h.Container.Subnet.String(), "PEER=" + peer.Container.Subnet.String(),
		fmt.Sprintf("ID=%d", uint32(b[0])<<24|uint32(b[1])<<16|uint32(b[2])<<8|uint32(b[3]))}
}

func (c clinic) ails(t *testing.T, a ailment) {
	ill, host := c.h, c.Nodes[1]
	if a.peer {
		ill, host = host, ill
	}
	if a.agentless || a.silent {
		must(t, ill.Agent.Stop(unix.SIGKILL))
	}
	namespace := ill.Namespace
	if a.underlay {
		namespace = c.Underlay()
	}
	environment := c.environment()
	expand := strings.NewReplacer(pairs(environment)...).Replace
	run := func(command string) {
		if command != "" {
			in(t, namespace, append(append([]string{"env"}, environment...), "sh", "-ec", command)...)
		}
	}
	defer func() {
		run(a.mend)
		if a.agentless || a.silent {
			must(t, c.StartAgent(t.Context(), ill))
		}
		c.well(t)
	}()
	run(a.make)
	if a.what == "no handshake" {
		must(t, c.h.Agent.Stop(unix.SIGKILL))
		must(t, c.StartAgent(t.Context(), c.h))
	}
	a.says, a.fix = expand(a.says), expand(a.fix)
	c.finds(t, a.illness)
	r, _ := traceJSON(t, c.Lab, c.h, c.Nodes[1].Container.Address.String())
	if hop, text := r.first(); hop != a.hop || !strings.Contains(text, expand(a.text)) {
		t.Errorf("the trace names %q and says\n%s\nwant %s and %q", hop, text, a.hop, expand(a.text))
	}
}

// pairs are the variables of an environment and their values, as strings.NewReplacer takes them.
func pairs(environment []string) (list []string) {
	for _, variable := range environment {
		name, value, _ := strings.Cut(variable, "=")
		list = append(list, "$"+name, value)
	}
	return list
}
