package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

// patience is how long a flanneld may take for what it does in a second, most of it iptables.
var patience = unhurried(30 * time.Second)

// mixed is a lab whose first host has an agent of ours, and the others a flanneld.
type mixed struct {
	*testing.T
	*lab.Lab
	flanneld string
}

// newMixed makes a lab with so many flannel hosts, all of whose containers talk.
func newMixed(t *testing.T, flannels int, o lab.Options) *mixed {
	t.Helper()
	flanneld, err := filepath.Abs("../bin/flanneld")
	must(t, err)
	if _, err := os.Stat(flanneld); err != nil {
		t.Fatalf("no flanneld (e2e/prepare test builds it): %v", err)
	}
	o.Hosts = 1
	m := &mixed{t, newLab(t, o), flanneld}
	for range flannels {
		h, err := m.NewHost()
		must(t, err)
		m.launchFlannel(h)
		m.docker(h)
	}
	m.talk()
	return m
}

// launchFlannel starts a flanneld, and waits until it knows its peers.
func (m *mixed) launchFlannel(h *lab.Host) {
	m.Helper()
	if err := os.Remove(h.FlannelEnv()); err != nil && !os.IsNotExist(err) {
		m.Fatal(err)
	}
	said := len(m.flannelLog(h))
	must(m.T, m.LaunchFlannel(h, m.flanneld))
	eventually(m.T, patience, h.Name+"'s flanneld knows its peers", func() error {
		if _, err := os.Stat(h.FlannelEnv()); err != nil {
			return fmt.Errorf("%w: %s", err, m.flannelLog(h)[said:])
		}
		for _, other := range m.Nodes {
			if other == h || other.Container == nil {
				continue
			}
			if !strings.Contains(m.flannelLog(h)[said:], other.Address.String()) && !m.udp() { // which logs nothing of peers
				return fmt.Errorf("not %s", other.Name)
			}
		}
		return nil
	})
}

func (m *mixed) udp() bool { return strings.Contains(m.Config, `"udp"`) }

func (m *mixed) wireguard() bool { return strings.Contains(m.Config, `"wireguard"`) }

func (m *mixed) flannelLog(h *lab.Host) string {
	text, _ := os.ReadFile(filepath.Join(m.Dir(), h.Name+"-flannel.log"))
	return string(text)
}

// docker makes a bridge and a container, as Docker does with what flannel's env file says.
func (m *mixed) docker(h *lab.Host) {
	m.Helper()
	env, err := h.Env()
	must(m.T, err)
	in(m.T, h.Namespace, "sh", "-c", `sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		ip link add docker0 type bridge && ip link set docker0 mtu $1 up && ip addr add $2 dev docker0 && { [ -z "$3" ] || ip addr add $3 dev docker0 nodad; }`,
		"sh", env["FLANNEL_MTU"], env["FLANNEL_SUBNET"], env["FLANNEL_IPV6_SUBNET"])
	must(m.T, m.NewContainer(h))
}

// pairs yields all ordered pairs of hosts.
func (m *mixed) pairs(f func(from, to *lab.Host)) {
	for _, from := range m.Nodes {
		for _, to := range m.Nodes {
			if from != to {
				f(from, to)
			}
		}
	}
}

// talk waits until each container reaches each other one, with packets as long as its MTU.
func (m *mixed) talk() {
	m.Helper()
	m.pairs(func(from, to *lab.Host) {
		for _, address := range to.Container.Addresses {
			eventually(m.T, patience, from.Name+"'s container reaches "+to.Name+"'s at "+address.String(), func() error {
				r, err := lab.Ping(m.Context(), from.Container.Namespace, address, 1, m.Nodes[0].Container.MTU) // of IPv6, flannel's is 20 too much
				if err == nil && r.Lost() > 0 {
					err = fmt.Errorf("ping lost, %v", r.Refused)
				}
				return err
			})
		}
	})
}

// flows pings between all pairs, in each of the families, until losses is called.
func (m *mixed) flows() (losses func() map[string]time.Duration) {
	m.Helper()
	const every = 10 * time.Millisecond
	flows := map[string]*lab.Flow{}
	m.pairs(func(from, to *lab.Host) {
		for _, address := range to.Container.Addresses {
			flow, err := lab.StartFlow(from.Container.Namespace, address, unhurried(every))
			must(m.T, err)
			flows[fmt.Sprintf("%s to %s at %s", from.Name, to.Name, address)] = flow
		}
	})
	return func() map[string]time.Duration {
		lost := map[string]time.Duration{}
		sent := 0
		for way, flow := range flows {
			r := flow.Stop(m.Context())
			if sent += r.Sent; r.Lost() > 0 {
				lost[way] = time.Duration(r.Lost()) * unhurried(every)
				m.Logf("%s: %d of %d packets lost, %v", way, r.Lost(), r.Sent, r.Refused)
			}
		}
		m.Logf("%d packets on %d ways", sent, len(flows))
		return lost
	}
}

// takeOver has an agent of ours take over a host from flanneld. It is started too early: it waits, and touches nothing.
func (m *mixed) takeOver(h *lab.Host) {
	m.Helper()
	before := m.leases()
	must(m.T, m.LaunchAgent(h))
	eventually(m.T, patience, "the agent says that flanneld runs", func() error {
		return logs(m.T, m.Lab, h, fmt.Sprintf("flanneld runs on this host (process %d)", h.Flannel.PID))
	})
	if now := m.leases(); !maps.Equal(now, before) {
		m.Errorf("leases are\n%v\nand were\n%v", now, before)
	}
	must(m.T, h.Flannel.Stop(unix.SIGTERM))
	must(m.T, h.WaitReady(m.Context()))
}

// takeOverAtOnce is takeOver by an agent that knows from flanneld's env file that the lease is its own, and is told by flanneld's variables
// where etcd is.
func (m *mixed) takeOverAtOnce(h *lab.Host) {
	m.Helper()
	must(m.T, h.Flannel.Stop(unix.SIGTERM))
	must(m.T, m.LaunchWith(h, []string{"FLANNELD_ETCD_ENDPOINTS=" + m.Endpoints(), "FLANNELD_SUBNET_FILE=" + h.FlannelEnv()}, "--from-flannel"))
	must(m.T, h.WaitReady(m.Context()))
}

// giveBack has flanneld take a host over from ours, as docs/migrating-from-flannel.md says.
func (m *mixed) giveBack(h *lab.Host) {
	m.Helper()
	must(m.T, h.Agent.Stop(unix.SIGTERM))
	if m.wireguard() { // there is nothing to hand over
		in(m.T, h.Namespace, binary, "cleanup", "--run-dir", h.RunDir)
		m.launchFlannel(h)
		return
	}
	m.fromDocs(h, "back")
	m.launchFlannel(h)
	m.fromDocs(h, "back-after")
}

// fromDocs runs the block of commands of this name in docs/migrating-from-flannel.md on a host.
func (m *mixed) fromDocs(h *lab.Host, block string) {
	m.Helper()
	text, err := os.ReadFile("../docs/migrating-from-flannel.md")
	must(m.T, err)
	_, commands, found := strings.Cut(string(text), "```sh "+block+"\n")
	commands, _, _ = strings.Cut(commands, "```")
	if !found {
		m.Fatalf("no block %s in the document", block)
	}
	in(m.T, h.Namespace, "env", "PATH="+filepath.Dir(binary)+":"+os.Getenv("PATH"), "TULLE_RUN_DIR="+h.RunDir, "sh", "-ec", commands)
}

// documented takes flannel's chains away, as the document says, and looks whether anything is missing then, or left.
func (m *mixed) documented(h *lab.Host) {
	m.Helper()
	m.fromDocs(h, "rules")
	for _, save := range []string{"iptables-save", "ip6tables-save"} {
		if left := in(m.T, h.Namespace, save); strings.Contains(strings.ToLower(left), "flannel") {
			m.Errorf("flannel's rules are left:\n%s", left)
		}
	}
	for _, command := range []string{"ip -br link", "ip route", "ip -6 route"} {
		if left := in(m.T, h.Namespace, strings.Fields(command)...); strings.Contains(left, "flannel") || strings.Contains(left, "proto boot") && !strings.Contains(command, "link") {
			m.Errorf("%s:\n%s", command, left)
		}
	}
	findings, _ := lab.Output(m.Context(), h.Namespace, binary, "doctor", "--run-dir", h.RunDir)
	if strings.Contains(findings, "flannel") {
		m.Errorf("doctor says\n%s", findings)
	}
	m.Logf("doctor: %s", findings)
}

// leases are all that is stored, by key: two hosts' are the same before and after only if each has its subnet, address and MAC.
func (m *mixed) leases() map[string]string {
	m.Helper()
	values := map[string]string{}
	must(m.T, asEtcd(m.T, m.Lab, func(ctx context.Context, c *clientv3.Client) error {
		got, err := c.Get(ctx, m.Prefix+"/subnets/", clientv3.WithPrefix())
		if err != nil {
			return err
		}
		for _, kv := range got.Kvs {
			values[string(kv.Key)] = string(kv.Value)
		}
		return nil
	}))
	return values
}

// flannelNetworks are the networks that the tests have flannel hosts in.
var flannelNetworks = []struct {
	name string
	lab.Options
	kind string        // of links that the kernel must have
	gap  time.Duration // what may be lost of a flow when a host changes hands
}{
	{name: "vxlan", Options: lab.Options{Config: plain}},
	{name: "dual-stack", Options: lab.Options{Families: "both", Config: `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12:3456::/48","Backend":{"Type":"vxlan"}}`}},
	{name: "direct", Options: lab.Options{Config: `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`}},
	{name: "host-gw", Options: lab.Options{Config: `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`}},
	{name: "ipip", kind: "ipip", gap: time.Second, Options: lab.Options{Config: `{"Network":"10.5.0.0/16","Backend":{"Type":"ipip"}}`}},
	// The device ends with the process, or has its key:
	{name: "udp", gap: 5 * time.Second, Options: lab.Options{Config: `{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}`}},
	{name: "wireguard", kind: "wireguard", gap: 5 * time.Second, Options: lab.Options{Config: `{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}`}},
}

// TestFromFlannel has an agent that is told nothing but what flanneld was told. The subnet's lease is gone: that the host had it is in
// flannel's env file.
func TestFromFlannel(t *testing.T) {
	t.Parallel()
	m := newMixed(t, 1, lab.Options{})
	h := m.Nodes[1]
	must(t, h.Flannel.Stop(unix.SIGTERM))
	etcdctl(t, m.Lab, "del", "/coreos.com/network/subnets/"+key(t, h))
	must(t, m.LaunchWith(h, []string{"FLANNELD_ETCD_ENDPOINTS=" + m.Endpoints(), "FLANNELD_SUBNET_FILE=" + h.FlannelEnv(), "FLANNELD_IP_MASQ=false",
		"FLANNELD_IFACE=eth7", "TULLE_IFACE=eth0", "FLANNELD_IPTABLES_RESYNC=5", "FLANNELD_ETCD_USERNAME=nobody", "FLANNELD_ETCD_PASSWORD=geheim"}, "--from-flannel"))
	must(t, h.WaitReady(t.Context()))
	m.talk()
	env, err := h.Env()
	must(t, err)
	if env["FLANNEL_SUBNET"] != strings.Replace(h.Container.Subnet.String(), ".0/", ".1/", 1) || env["FLANNEL_IPMASQ"] != "false" {
		t.Errorf("it wrote %v", env)
	}
	for _, want := range []string{"taken=\"FLANNELD_ETCD_ENDPOINTS FLANNELD_ETCD_PASSWORD FLANNELD_ETCD_USERNAME FLANNELD_IFACE FLANNELD_IP_MASQ FLANNELD_SUBNET_FILE\"", "left=FLANNELD_IPTABLES_RESYNC"} {
		must(t, logs(t, m.Lab, h, want))
	}
	if strings.Contains(logOf(t, m.Lab, h), "geheim") {
		t.Error("the password is in the log")
	}
}

// within fails the test if more was lost than may be.
func (m *mixed) within(limit time.Duration, losses func() map[string]time.Duration, what string) {
	m.Helper()
	for way, lost := range losses() {
		if lost > limit {
			m.Errorf("%s: %v were lost from %s", what, lost, way)
		}
	}
}

// TestFlannel has flannel's own code on two hosts beside one of ours. All containers talk with all. Then tulle takes the hosts over, one
// by one, and gives one back; no packet is lost, but by udp.
func TestFlannel(t *testing.T) {
	for _, n := range flannelNetworks {
		t.Run(n.name, func(t *testing.T) {
			t.Parallel()
			if n.kind != "" && !hasKind(t, n.kind) {
				t.Skipf("this kernel has no %s: e2e/vm 'TestFlannel$/%s' has one that does", n.kind, n.name)
			}
			if virtual { // its kernel renames no device that is up, and all takes twenty times as long
				n.gap = max(10*n.gap, 10*time.Second)
			}
			m := newMixed(t, 2, n.Options)
			for _, h := range m.Nodes[:2] {
				r, err := lab.Transfer(t.Context(), m.Nodes[2].Container.Namespace, h.Container.Namespace, h.Container.Address, 8<<20)
				if err != nil || !r.Correct || r.Source != m.Nodes[2].Container.Address {
					t.Errorf("transfer from a flannel host to %s: %+v, %v", h.Name, r, err)
				}
			}
			before := m.leases()
			losses := m.flows()
			m.takeOver(m.Nodes[1])
			m.within(2*n.gap, losses, "a host was taken over")
			losses = m.flows()
			m.takeOverAtOnce(m.Nodes[2])
			m.within(n.gap, losses, "another was taken over")
			losses = m.flows()
			m.giveBack(m.Nodes[2])
			m.within(n.gap, losses, "that was given back")
			m.documented(m.Nodes[1])
			if now := m.leases(); n.name != "wireguard" && !maps.Equal(now, before) { // each has a key of its own
				t.Errorf("leases are\n%v\nand were\n%v", now, before)
			}
			m.talk()
		})
	}
}
