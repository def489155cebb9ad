package e2e

import (
	"bytes"
	"context"
	bits "encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/doctor"
	"github.com/tulle-net/tulle/e2e/lab"
)

// clinic is a lab with a host, the first, that is made ill.
type clinic struct {
	*lab.Lab
	h *lab.Host
}

// illness is something that keeps containers from each other, or soon will. Its commands run in the namespace of the first host,
// or of the underlay, and find what heal_test's do in their environment, and CABLE, the host's end of its container's.
type illness struct {
	what       string
	underlay   bool
	agentless  bool // the agent is killed before, and started again after: it would repair this
	make, mend string
	found      []string // names of the checks that must find something, and nobody else
	says, fix  string   // in what one of them says, and in its fix
}

// Pieces of commands.
const (
	tunDevice   = "ip link add vpn0 type veth peer name vpn1 && ip link set vpn0 up && ip link set vpn1 up"
	takenBridge = "ip link set docker0 alias ''; ip addr flush dev docker0; ip addr add " // it is no longer the agent's, and gets no address from it
	givenBridge = "ip link set docker0 alias tulle; ip addr add $OWN dev docker0 2>/dev/null; ip addr del "
)

var illnesses = []illness{
	{what: "ip_forward off", agentless: true, make: "sysctl -qw net.ipv4.ip_forward=0", mend: "sysctl -qw net.ipv4.ip_forward=1",
		found: []string{"agent", "ip-forward"}, says: "does not forward", fix: "sysctl -w net.ipv4.ip_forward=1"},
	{what: "forwarding off on the tunnel", make: "sysctl -qw net.ipv4.conf.tulle/1.forwarding=0", mend: "sysctl -qw net.ipv4.conf.tulle/1.forwarding=1",
		found: []string{"ip-forward"}, says: "does not forward", fix: "sysctl -w net.ipv4.conf.tulle/1.forwarding=1"},
	{what: "rule before ours", make: "iptables -w -I FORWARD -s 10.5.0.0/16 -j DROP", mend: "iptables -w -D FORWARD -s 10.5.0.0/16 -j DROP",
		found: []string{"forward-shadowed"}, says: "before they are accepted", fix: "iptables -t filter -D FORWARD -s 10.5.0.0/16 -j DROP"},
	{what: "accept missing", agentless: true, make: "iptables -w -D FORWARD -j TULLE-FORWARD", mend: "iptables -w -A FORWARD -j TULLE-FORWARD",
		found: []string{"agent", "forward-drop"}, says: "nothing accepts them", fix: "TULLE-FORWARD"},
	{what: "Docker's raw drop first", agentless: true, make: "iptables -w -t raw -I PREROUTING -d $C ! -i docker0 -j DROP", mend: "iptables -w -t raw -D PREROUTING -d $C ! -i docker0 -j DROP",
		found: []string{"agent", "docker-raw-drop"}, says: "table raw", fix: "TULLE-PREROUTING"},
	{what: "bridged packets rejected", make: "iptables -w -I FORWARD -i docker0 -o docker0 -j REJECT", mend: "iptables -w -D FORWARD -i docker0 -o docker0 -j REJECT",
		found: []string{"br-netfilter"}, says: "of this host don't reach each other", fix: "iptables -I FORWARD -i docker0 -o docker0 -j ACCEPT"},
	{what: "strict reverse path filter that does no harm", make: "sysctl -qw net.ipv4.conf.all.rp_filter=1", mend: "sysctl -qw net.ipv4.conf.all.rp_filter=0"},
	{what: "strict reverse path filter, and another way back", make: tunDevice + " && sysctl -qw net.ipv4.conf.eth0.rp_filter=1 && ip route add $DST dev vpn0", mend: "ip link del vpn0; sysctl -qw net.ipv4.conf.eth0.rp_filter=0",
		found: []string{"overlapping-routes", "rp-filter"}, says: "drops what peers send", fix: "sysctl -w net.ipv4.conf.eth0.rp_filter=2"},

	{what: "container's MTU too large", make: "ip link set $CABLE mtu 1500", mend: "ip link set $CABLE mtu 1450",
		found: []string{"mtu-containers"}, says: "1450 bytes", fix: "--mtu=1450"},
	{what: "underlay's MTU too small", agentless: true, make: "ip link set eth0 mtu 1400", mend: "ip link set eth0 mtu 1500", found: []string{"agent", "mtu-containers", "mtu-underlay"}, says: "eth0 takes packets of 1400 bytes", fix: "ip link set eth0 mtu 1500"},
	{what: "path that drops long packets", underlay: true, make: "iptables -w -I FORWARD -p udp --dport 8472 -m length --length 1401: -j DROP", mend: "iptables -w -D FORWARD -p udp --dport 8472 -m length --length 1401: -j DROP",
		found: []string{"mtu-path"}, says: "longer than 1350 bytes are lost", fix: `"MTU": 1400`},

	{what: "UDP dropped by the host, coming in", make: "iptables -w -I INPUT -p udp --dport 8472 -j DROP", mend: "iptables -w -D INPUT -p udp --dport 8472 -j DROP",
		found: []string{"overlay-filtered"}, says: "from peers", fix: "-D INPUT -p udp -m udp --dport 8472 -j DROP"},
	{what: "UDP dropped by the host, going out", make: "iptables -w -I OUTPUT -p udp --dport 8472 -j DROP", mend: "iptables -w -D OUTPUT -p udp --dport 8472 -j DROP",
		found: []string{"overlay-filtered"}, says: "to peers", fix: "-D OUTPUT -p udp -m udp --dport 8472 -j DROP"},
	{what: "UDP blocked to the peers", underlay: true, make: "iptables -w -I FORWARD -s $SELF -p udp --dport 8472 -j DROP", mend: "iptables -w -D FORWARD -s $SELF -p udp --dport 8472 -j DROP",
		found: []string{"overlay-blocked"}, says: "UDP port 8472 is blocked from here to 192.0.2.1", fix: "let UDP port 8472 pass"},
	{what: "UDP blocked from the peers", underlay: true, make: "iptables -w -I FORWARD -d $SELF -p udp --dport 8472 -j DROP", mend: "iptables -w -D FORWARD -d $SELF -p udp --dport 8472 -j DROP",
		found: []string{"overlay-blocked"}, says: "to here", fix: "let UDP port 8472 pass"},
	{what: "UDP blocked both ways", underlay: true, make: "iptables -w -I FORWARD -p udp --dport 8472 -j DROP", mend: "iptables -w -D FORWARD -p udp --dport 8472 -j DROP",
		found: []string{"overlay-blocked"}, says: "both ways", fix: "let UDP port 8472 pass"},
	{what: "peer down", underlay: true, make: "ip link set host3 down", mend: "ip link set host3 up",
		found: []string{"peer-down"}, says: "1 peer down", fix: "start the host"},

	{what: "device down", agentless: true, make: "ip link set tulle.1 down", mend: "ip link set tulle.1 up", found: []string{"agent", "overlay-device"}, says: "tulle.1 is down", fix: "ip link set tulle.1 up"},
	{what: "route missing", agentless: true, make: "ip route del $PEER", mend: "true", found: []string{"agent", "not-programmed"}, says: "not in the kernel", fix: "systemctl restart tulle"},
	{what: "FDB entry altered", agentless: true, make: "bridge fdb replace $MAC dev tulle.1 dst 192.0.2.66 self permanent", mend: "true", found: []string{"agent", "not-programmed"}, says: "altered", fix: "bridge fdb replace"},
	{what: "another device with our VNI", agentless: true, make: "ip link del tulle.1; ip link add other type vxlan id 1 dstport 8472 local $SELF dev eth0", mend: "ip link del other",
		found: []string{"agent", "device-clash"}, says: "other has the overlay's VNI", fix: "ip link del other"},
	{what: "two default routes", make: tunDevice + " && ip addr add 203.0.113.2/24 dev vpn0 && ip route append default via 203.0.113.1 dev vpn0", mend: "ip link del vpn0",
		found: []string{"wrong-interface"}, says: "equally good", fix: "--iface eth0"},
	{what: "the underlay's address on another device", make: "ip addr del $SELF/24 dev eth0; ip addr add $SELF/32 dev lo; ip route add 192.0.2.0/24 dev eth0 src $SELF; ip route add default via 192.0.2.1",
		mend: "ip addr del $SELF/32 dev lo; ip addr add $SELF/24 dev eth0; ip route replace default via 192.0.2.1", found: []string{"agent-not-ready", "wrong-interface"}, says: "does not have its address", fix: "--iface"},
	{what: "VPN in the overlay's range", make: tunDevice + " && ip route add ${VTEP%.0}.128/25 dev vpn0", mend: "ip link del vpn0",
		found: []string{"overlapping-routes"}, says: "10.5.0.0/16", fix: "take the route"},
	{what: "somebody else's route for a peer", make: "ip route replace $PEER via 192.0.2.1", mend: "ip route del $PEER via 192.0.2.1 || true",
		found: []string{"agent-not-ready", "overlapping-routes"}, says: "10.5.0.0/16", fix: "take the route"},
	{what: "VPN that leads to a peer", make: tunDevice + " && ip route add $DST dev vpn0", mend: "ip link del vpn0",
		found: []string{"overlapping-routes"}, says: "by vpn0", fix: "take that route away"},
	{what: "policy rule that captures", make: tunDevice + " && ip route add 10.5.0.0/16 dev vpn0 table 100 && ip rule add to 10.5.0.0/16 lookup 100", mend: "ip rule del to 10.5.0.0/16 lookup 100; ip link del vpn0",
		found: []string{"overlapping-routes"}, says: "10.5.0.0/16", fix: "route or rule"},

	{what: "old address beside", make: "ip addr add 10.5.250.1/24 dev docker0", mend: "ip addr del 10.5.250.1/24 dev docker0",
		found: []string{"live-restore"}, says: "10.5.250.1/24", fix: "systemctl restart docker"},
	{what: "bridge of another address", make: takenBridge + "10.99.0.1/24 dev docker0", mend: givenBridge + "10.99.0.1/24 dev docker0",
		found: []string{"bridge-address"}, says: "10.99.0.1/24", fix: "ip link del docker0"},
	{what: "flannel's device", make: "ip link add cni0 type bridge", mend: "ip link del cni0", found: []string{"flanneld"}, says: "flanneld", fix: "systemctl disable --now flanneld"},
}

// TestDoctor makes a host ill in many ways. Each is named, with its fix, and nothing else; and when it is mended the host is well
// again.
func TestDoctor(t *testing.T) {
	const wards = 3 // each illness takes some seconds to show, and as many to pass
	for ward := range wards {
		t.Run(fmt.Sprint("ward ", ward+1), func(t *testing.T) {
			t.Parallel()
			c := newClinic(t, lab.Options{Hosts: 3})
			for i, ill := range illnesses {
				if i%wards == ward {
					t.Run(ill.what, func(t *testing.T) { c.test(t, ill) })
				}
			}
		})
	}
	t.Run("last ward", func(t *testing.T) {
		t.Parallel()
		c := newClinic(t, lab.Options{Hosts: 3})
		t.Run("MTU in the config", c.testConfig)
		t.Run("leases", c.testLeases)
		t.Run("own lease", c.testOwnLease)
		t.Run("daemon.json", c.testDaemonJSON)
		t.Run("programs", c.testPrograms)
		t.Run("checksum offload", c.testChecksum)
		t.Run("etcd", c.testEtcd)
		t.Run("output", c.testOutput)
	})
}

// newClinic makes a lab in which all is well.
func newClinic(t *testing.T, o lab.Options) clinic {
	l := newLab(t, o)
	c := clinic{l, l.Nodes[0]}
	c.well(t)
	return c
}

func (c clinic) testConfig(t *testing.T) {
	setConfig(t, c.Lab, `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":1600}}`)
	defer setConfig(t, c.Lab, plain)
	c.finds(t, illness{found: []string{"agent-not-ready", "mtu-underlay"}, says: "eth0 takes packets of 1500 bytes", fix: "ip link set eth0 mtu 1600"}) // the kernel does not take such a device
	setConfig(t, c.Lab, plain)
	c.well(t)
}

// TestDoctorWithoutRules has agents that make no rules for packets that are forwarded, nor any that masquerade.
func TestDoctorWithoutRules(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 2, Agent: []string{"--forward-rules=false", "--ip-masq=false"}})
	c := clinic{l, l.Nodes[0]}
	c.finds(t, illness{found: []string{"forward-drop"}, says: "nothing accepts", fix: "without --forward-rules=false"})
	in(t, c.h.Namespace, "iptables", "-w", "-P", "FORWARD", "ACCEPT")
	c.well(t)
	for _, ill := range []illness{
		{what: "Docker's raw drop", make: "iptables -w -t raw -I PREROUTING -d $C ! -i docker0 -j DROP", mend: "iptables -w -t raw -D PREROUTING -d $C ! -i docker0 -j DROP",
			found: []string{"docker-raw-drop"}, says: "table raw", fix: "iptables -t raw -I PREROUTING"},
		{what: "strict reverse path filter", make: "sysctl -qw net.ipv4.conf.eth0.rp_filter=1", mend: "sysctl -qw net.ipv4.conf.eth0.rp_filter=0",
			found: []string{"rp-filter"}, says: "not masqueraded", fix: "sysctl -w net.ipv4.conf.eth0.rp_filter=2"},
		{what: "policy", make: "iptables -w -P FORWARD DROP", mend: "iptables -w -P FORWARD ACCEPT", found: []string{"forward-drop"}, says: "drops packets to containers and from", fix: "iptables -I FORWARD"},
	} {
		t.Run(ill.what, func(t *testing.T) { c.test(t, ill) })
	}
}

// TestDoctorDocker has real dockerds, which are well; then one that is started anew with another MTU.
func TestDoctorDocker(t *testing.T) {
	t.Parallel()
	l := newDockers(t, 2, "")
	c := clinic{l.Lab, l.Nodes[0]}
	c.well(t)
	must(t, l.daemons[0].Stop(t.Context()))
	must(t, l.daemons[0].Start(t.Context(), "--mtu=1500"))
	_, err := l.daemons[0].Run(t.Context(), "wide")
	must(t, err)
	c.finds(t, illness{found: []string{"docker-options", "mtu-containers"}, says: "longer than the overlay takes", fix: "--mtu=1450"})
}

func (c clinic) test(t *testing.T, ill illness) {
	if ill.agentless {
		must(t, c.h.Agent.Stop(unix.SIGKILL))
	}
	namespace := c.h.Namespace
	if ill.underlay {
		namespace = c.Underlay()
	}
	environment := append([]string{"env", "SELF=" + c.h.Address.String(), "C=" + c.h.Container.Address.String(), "CABLE=" + c.h.Container.Name}, facts(t, c.Lab)...)
	mended := false
	mend := func() {
		if !mended {
			mended = true
			in(t, namespace, append(environment, "sh", "-c", ill.mend)...)
			c.revive(t)
		}
	}
	defer mend() // a test that fails does not take those after it along
	in(t, namespace, append(environment, "sh", "-ec", ill.make)...)
	c.finds(t, ill)
	mend()
	c.well(t)
}

// revive starts the agent if it doesn't run.
func (c clinic) revive(t *testing.T) {
	t.Helper()
	if c.h.Ready(t.Context()) == nil {
		return
	}
	if _, _, err := c.h.Get(t.Context(), "/healthz"); err != nil {
		launch(t, c.Lab, c.h)
	}
	must(t, c.h.WaitReady(t.Context()))
}

// finds waits until the doctor finds what it must, and nothing else: what the agent knows of peers is some seconds old.
func (c clinic) finds(t *testing.T, ill illness) {
	t.Helper()
	limit, want := 30*time.Second, 1
	if len(ill.found) == 0 {
		want = 0
	}
	eventually(t, limit, fmt.Sprintf("doctor finds %q", ill.found), func() error {
		r, code := c.examine(t)
		var names []string
		for _, f := range r.Findings {
			names = append(names, f.Check)
		}
		if !slices.Equal(names, ill.found) || code != want || len(r.Unchecked) > 0 && !ill.agentless {
			return fmt.Errorf("code %d, %+v, not checked %+v", code, r.Findings, r.Unchecked)
		}
		if len(names) > 0 && !slices.ContainsFunc(r.Findings, func(f doctor.Finding) bool {
			return strings.Contains(f.What, ill.says) && strings.Contains(f.Fix, ill.fix)
		}) {
			return fmt.Errorf("%+v; want %q, to be mended by %q", r.Findings, ill.says, ill.fix)
		}
		return nil
	})
}

// well waits until the doctor finds nothing, and could check everything.
func (c clinic) well(t *testing.T) {
	t.Helper()
	c.finds(t, illness{})
}

// examine has the doctor look at the host.
func (c clinic) examine(t *testing.T) (r doctor.Report, code int) {
	t.Helper()
	out, code := c.doctor(t, "--json")
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return r, code
}

// doctor runs the command, and returns what it prints and its exit code.
func (c clinic) doctor(t *testing.T, args ...string) (string, int) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(t.Context(), binary, append([]string{"doctor", "--run-dir", c.h.RunDir, "--etcd-endpoints", c.Endpoints(), "--etcd-prefix", c.Prefix}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := lab.In(c.h.Namespace, cmd.Run)
	if failed := (*exec.ExitError)(nil); err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	if errOut.Len() > 0 {
		t.Fatalf("tulle doctor complains, where no terminal is: %s", errOut.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// testLeases has leases in etcd that compete, or are of no use.
func (c clinic) testLeases(t *testing.T) {
	peer := c.Nodes[1]
	for _, test := range []struct {
		key, value string
		illness
	}{
		{"10.5.201.0-24", lease(peer.Address.String(), "0a:00:00:00:02:01", 1), illness{found: []string{"duplicate-public-ip"}, says: peer.Address.String(), fix: "--public-ip"}},
		{"10.5.202.0-24", lease("192.0.2.77", vtepMAC(t, peer), 1), illness{found: []string{"duplicate-mac", "left-out"}, says: vtepMAC(t, peer), fix: "tulle lease release 10.5.202.0/24"}},
		{"10.5.203.0-24", lease("192.0.2.77", "0a:00:00:00:02:03", 2), illness{found: []string{"left-out"}, says: "wrong-vni", fix: "restart its host's agent"}},
		{"10.5.204.0-24", lease("192.0.2.77", "0a:00:00:00:02:04", 1), illness{found: []string{"peer-down"}, says: "1 peer down", fix: "start the host"}},
	} {
		etcdctl(t, c.Lab, "put", subnets+test.key, test.value)
		c.finds(t, test.illness)
		etcdctl(t, c.Lab, "del", subnets+test.key)
		c.well(t)
	}
}

// testOwnLease takes the lease away, and has it run out, behind the back of an agent that is gone.
func (c clinic) testOwnLease(t *testing.T) {
	defer c.revive(t)
	must(t, c.h.Agent.Stop(unix.SIGKILL))
	c.finds(t, illness{found: []string{"agent"}, says: "no agent answers", fix: "systemctl start tulle", agentless: true})
	own := subnets + key(t, c.h)
	value, _ := stored(t, c.Lab, key(t, c.h))
	must(t, asEtcd(t, c.Lab, func(ctx context.Context, etcd *clientv3.Client) error {
		short, err := etcd.Grant(ctx, 600)
		if err == nil {
			_, err = etcd.Put(ctx, own, value, clientv3.WithLease(short.ID))
		}
		return err
	}))
	c.finds(t, illness{found: []string{"agent", "lease-expiring"}, says: "expires in", fix: "systemctl status tulle", agentless: true})
	etcdctl(t, c.Lab, "del", own)
	c.finds(t, illness{found: []string{"agent", "lease-lost"}, says: "is gone from etcd", fix: "systemctl restart tulle", agentless: true})
	c.revive(t)
	c.well(t)
}

// testPrograms has programs that are in the way.
// testDaemonJSON has what the agent warns of, and no check of doctor's own names.
func (c clinic) testDaemonJSON(t *testing.T) {
	path := filepath.Join(c.h.RunDir, "docker", "daemon.json")
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(`{"mtu":1400}`), 0o644))
	again := func() {
		t.Helper()
		stop(t, c.h) // or it would be up to 30 s until the agent looks
		must(t, c.StartAgent(t.Context(), c.h))
	}
	again()
	c.finds(t, illness{found: []string{"agent-warning"}, says: "daemon.json sets mtu", fix: "take it out of " + path})
	must(t, os.Remove(path))
	again()
	c.well(t)
}

func (c clinic) testPrograms(t *testing.T) {
	env, err := c.h.Env()
	must(t, err)
	bridge := env["FLANNEL_SUBNET"]
	for _, test := range []struct {
		name string
		args []string
		illness
	}{
		{"flanneld", []string{"--ip-masq"}, illness{found: []string{"flanneld"}, says: "flanneld runs", fix: "systemctl disable --now flanneld"}},
		{"dockerd", []string{"--bip=" + bridge}, illness{found: []string{"docker-options"}, says: "env file", fix: "DOCKER_OPTS"}},
		{"dockerd", []string{"--bip=" + bridge, "--mtu=1450", "--ip-masq=false"}, illness{}},
	} {
		stop := c.program(t, test.name, test.args...)
		c.finds(t, test.illness)
		stop()
		c.well(t)
	}
	t.Run("live-restore", func(t *testing.T) { // a dockerd that was told the right address and keeps another
		defer c.program(t, "dockerd", "--bip="+bridge, "--mtu=1450")()
		c.test(t, illness{make: takenBridge + "10.5.250.1/24 dev docker0", mend: givenBridge + "10.5.250.1/24 dev docker0",
			found: []string{"live-restore"}, says: "10.5.250.1/24", fix: "docker stop"})
	})
	t.Run("UDP port taken", func(t *testing.T) {
		must(t, c.h.Agent.Stop(unix.SIGKILL))
		in(t, c.h.Namespace, "ip", "link", "del", "tulle.1")
		cmd := exec.Command("perl", "-MSocket", "-e", "socket(S, PF_INET, SOCK_DGRAM, 17); bind(S, sockaddr_in(8472, INADDR_ANY)) or die; sleep")
		must(t, lab.In(c.h.Namespace, cmd.Start))
		c.finds(t, illness{found: []string{"agent", "udp-port-taken"}, says: "perl listens", fix: "stop perl", agentless: true})
		launch(t, c.Lab, c.h)
		c.finds(t, illness{found: []string{"agent-not-ready", "udp-port-taken"}, says: "perl listens", fix: "stop perl"})
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		must(t, c.h.WaitReady(t.Context()))
		c.well(t)
	})
}

// program runs something that looks like a daemon until it is stopped.
func (c clinic) program(t *testing.T, name string, args ...string) (stop func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, []byte("#!/bin/sh\nread line\n"), 0o755))
	cmd := exec.Command(path, args...)
	input, err := cmd.StdinPipe()
	must(t, err)
	must(t, lab.In(c.h.Namespace, cmd.Start))
	return func() {
		input.Close()
		_ = cmd.Wait() // it ends with an error, having read nothing
	}
}

// testEtcd has members of etcd that are gone or whose clock is off, and then no etcd.
func (c clinic) testEtcd(t *testing.T) {
	ordinary := c.Agent
	restart := func(endpoints ...string) {
		t.Helper()
		stop(t, c.h)
		c.Agent = slices.Clone(ordinary)
		for _, e := range endpoints {
			c.Agent = append(c.Agent, "--etcd-endpoints", e)
		}
		launch(t, c.Lab, c.h)
		must(t, c.h.WaitReady(t.Context()))
	}
	defer restart()
	for _, ahead := range []time.Duration{time.Minute, -10 * time.Second} {
		restart(c.shiftedEtcd(t, ahead))
		way := "ahead of"
		if ahead < 0 {
			way = "behind"
		}
		c.finds(t, illness{found: []string{"clock"}, says: way, fix: "set-ntp"})
	}
	restart("http://192.0.2.1:2399")
	c.finds(t, illness{found: []string{"etcd"}, says: "1 of etcd's 2 members", fix: "http://192.0.2.1:2399"})
	restart()
	c.well(t)
	must(t, c.Server.Stop(unix.SIGTERM))
	c.finds(t, illness{found: []string{"etcd"}, says: "etcd does not answer", fix: "start etcd"})
	must(t, c.StartEtcd(t.Context()))
	eventually(t, 30*time.Second, "the agent is in touch with etcd", func() error { return connected(t, c.h) })
	c.well(t)
}

// shiftedEtcd is etcd with a clock that is ahead by some time, as far as it tells: at another URL.
func (c clinic) shiftedEtcd(t *testing.T, ahead time.Duration) (url string) {
	t.Helper()
	var listener net.Listener
	must(t, lab.In(c.Underlay(), func() (err error) {
		listener, err = net.Listen("tcp4", c.Server.Address.String()+":0")
		return err
	}))
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed
			}
			go c.shift(conn, ahead)
		}
	}()
	return "http://" + listener.Addr().String()
}

func (c clinic) shift(conn net.Conn, ahead time.Duration) {
	defer conn.Close()
	first := make([]byte, 4)
	if _, err := io.ReadFull(conn, first); err != nil {
		return
	}
	if string(first) == "GET " { // what follows the request's first bytes is of no interest
		_, _ = conn.Read(make([]byte, 1<<12))
		body := `{"etcdserver":"3.6.0","etcdcluster":"3.6.0"}`
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Length: %d\r\n\r\n%s", time.Now().Add(ahead).UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"), len(body), body)
		return
	}
	var onward net.Conn
	err := lab.In(c.Underlay(), func() (err error) {
		onward, err = net.Dial("tcp4", c.Server.Address.String()+":2379")
		return err
	})
	if err != nil {
		return
	}
	defer onward.Close()
	if _, err := onward.Write(first); err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(conn, onward)
		conn.Close()
	}()
	_, _ = io.Copy(onward, conn)
}

// testOutput looks at what people read.
func (c clinic) testOutput(t *testing.T) {
	if out, code := c.doctor(t); code != 0 || !strings.HasPrefix(out, "nothing found: ") || strings.Count(out, "\n") != 1 {
		t.Errorf("code %d:\n%s", code, out)
	}
	in(t, c.h.Namespace, "sysctl", "-qw", "net.ipv4.conf.docker0.forwarding=0")
	out, code := c.doctor(t)
	in(t, c.h.Namespace, "sysctl", "-qw", "net.ipv4.conf.docker0.forwarding=1")
	for _, line := range []string{"ip-forward  the kernel does not forward", "\n  evidence  sysctl: net.ipv4.conf.docker0.forwarding = 0\n", "\n  fix       sysctl -w net.ipv4.conf.docker0.forwarding=1", "\n\n1 finding: "} {
		if code != 1 || !strings.Contains(out, line) || strings.Contains(out, "\x1b") {
			t.Errorf("code %d, want 1 and %q in:\n%s", code, line, out)
		}
	}
}

// testChecksum puts a NIC into the way that fills in only the outer checksums, as some do.
func (c clinic) testChecksum(t *testing.T) {
	in(t, c.h.Namespace, "ip", "link", "set", "eth0", "gso_max_segs", "1")
	unplug := c.faultyNIC(t)
	c.finds(t, illness{found: []string{"checksum-offload"}, says: "2 peers", fix: "ethtool -K tulle.1 tx-checksum-ip-generic off"})
	c.checksumByDevice(t, "tulle.1", false) // the fix
	c.well(t)
	c.checksumByDevice(t, "tulle.1", true)
	c.finds(t, illness{found: []string{"checksum-offload"}, says: "2 peers"})
	unplug()
	in(t, c.h.Namespace, "ip", "link", "set", "eth0", "gso_max_segs", "65535")
	c.well(t)
}

// checksumByDevice does what ethtool -K DEVICE tx on or off does (ETHTOOL_STXCSUM, linux/ethtool.h).
func (c clinic) checksumByDevice(t *testing.T, device string, on bool) {
	t.Helper()
	must(t, lab.In(c.h.Namespace, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		value := struct{ command, data uint32 }{command: 0x17}
		if on {
			value.data = 1
		}
		var request struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}
		copy(request.name[:], device)
		request.data = unsafe.Pointer(&value)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return errno
		}
		return nil
	}))
}

// faultyNIC puts a relay between the host and the underlay.
func (c clinic) faultyNIC(t *testing.T) (unplug func()) {
	t.Helper()
	in(t, c.Underlay(), "sh", "-ec", "ip link add relay0 type veth peer name relay1; ip link set relay0 up; ip link set relay1 up; ip link set relay1 master underlay; ip link set "+c.h.Name+" nomaster")
	fds := map[string]int{}
	must(t, lab.In(c.Underlay(), func() error {
		for _, device := range []string{c.h.Name, "relay0"} {
			fd, err := rawSocket(device)
			if err != nil {
				return err
			}
			fds[device] = fd
		}
		return nil
	}))
	stop, ended := make(chan struct{}), make(chan struct{}, 2)
	for from, to := range map[string]string{c.h.Name: "relay0", "relay0": c.h.Name} {
		go func() {
			relayFrames(fds[from], fds[to], stop)
			ended <- struct{}{}
		}()
	}
	done := false
	unplug = func() {
		if done {
			return
		}
		done = true
		close(stop)
		<-ended
		<-ended
		unix.Close(fds[c.h.Name])
		unix.Close(fds["relay0"])
		in(t, c.Underlay(), "sh", "-ec", "ip link del relay0; ip link set "+c.h.Name+" master underlay")
	}
	t.Cleanup(unplug)
	return unplug
}

func rawSocket(device string) (int, error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return 0, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	all := bits.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
	limit := unix.NsecToTimeval((20 * time.Millisecond).Nanoseconds())
	return fd, errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
}

// relayFrames passes frames on, and fills in only what checksums a simple NIC would: not those inside a tunnel.
func relayFrames(from, to int, stop chan struct{}) {
	frame := make([]byte, 1<<16)
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, sender, err := unix.Recvfrom(from, frame, 0)
		if s, ok := sender.(*unix.SockaddrLinklayer); err == nil && ok && s.Pkttype != unix.PACKET_OUTGOING {
			fillOuter(frame[:n])
			_, _ = unix.Write(to, frame[:n])
		}
	}
}

// fillOuter computes the checksum of TCP in IPv4, and takes away UDP's.
func fillOuter(frame []byte) {
	const ethernet = 14
	if len(frame) < ethernet+20 || bits.BigEndian.Uint16(frame[12:]) != unix.ETH_P_IP {
		return
	}
	ip := frame[ethernet:]
	header, length := int(ip[0]&15)*4, int(bits.BigEndian.Uint16(ip[2:]))
	if length > len(ip) || length < header+20 && ip[9] == unix.IPPROTO_TCP || length < header+8 {
		return
	}
	switch segment := ip[header:length]; ip[9] {
	case unix.IPPROTO_UDP:
		segment[6], segment[7] = 0, 0
	case unix.IPPROTO_TCP:
		segment[16], segment[17] = 0, 0
		sum := uint32(unix.IPPROTO_TCP) + uint32(len(segment))
		for _, part := range [][]byte{ip[12:20], segment} {
			for i := 0; i < len(part); i += 2 {
				sum += uint32(part[i]) << 8
				if i+1 < len(part) {
					sum += uint32(part[i+1])
				}
			}
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		bits.BigEndian.PutUint16(segment[16:], ^uint16(sum))
	}
}
