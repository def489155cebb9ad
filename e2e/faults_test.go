package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

// TestNoConfig starts an agent before there is a config. It says so once, and starts when one appears.
func TestNoConfig(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 1})
	h := l.Nodes[0]
	stop(t, h)
	etcdctl(t, l, "del", "/coreos.com/network/", "--prefix")
	launch(t, l, h)
	eventually(t, 10*time.Second, "the agent says that it waits", func() error { return logs(t, l, h, "no network config in etcd") })
	if status, reason, err := h.Get(t.Context(), "/readyz"); err != nil || status == 200 {
		t.Errorf("readyz: %d %q, %v; want it not ready", status, reason, err)
	}
	command := `echo '{"Network":"10.5.0.0/16"}' | tulle config set --etcd-endpoints=` + l.Endpoint() + ` --etcd-prefix=/coreos.com/network -`
	if log := strings.ReplaceAll(logOf(t, l, h), `\"`, `"`); !strings.Contains(log, command) {
		t.Errorf("the log does not say which command sets one:\n%s", log)
	}
	setConfig(t, l, plain)
	eventually(t, 10*time.Second, "the agent is ready", func() error { return h.Ready(t.Context()) })
	if n := strings.Count(tail(t, l, h), "no network config in etcd"); n != 1 {
		t.Errorf("it said %d times that there is no config, want once", n)
	}
}

// TestInvalidConfig stores invalid configs, past and through `config set`.
func TestInvalidConfig(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 1})
	for config, reason := range map[string]string{
		`{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.2.0"}`: "SubnetMin",
		`{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.1"}`:                        "boundary",
		`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}`:     "Backend.VNI",
		`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","Port":70000}}`:       "Backend.Port",
		`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":100}}`:          "Backend.MTU",
		`{"Network":"10.5.0.0/16","Backend":{"Type":"carrier-pigeon"}}`:           "Backend.Type",
		`{"Netwrok":"10.5.0.0/16"}`:                                               "Network: missing",
		`{"Network":"10.5.0.0/16","SubnetLne":24}`:                                "SubnetLne",
		`10.5.0.0/16`: "JSON",
	} {
		if _, err := l.Tulle(t.Context(), config, "config", "set", "-"); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("config set %s: %v; want an error that names %s", config, err, reason)
		}
	}
	h := l.Nodes[0]
	before := in(t, h.Namespace, "ip", "-d", "link", "show", "tulle.1")
	etcdctl(t, l, "put", "/coreos.com/network/config", `{"Network":"10.5.0.0/16","SubnetLen":31}`)
	eventually(t, 10*time.Second, "the agent refuses the config", func() error { return logs(t, l, h, "SubnetLen: 31 is not within") })
	if err := h.Ready(t.Context()); err != nil {
		t.Errorf("an invalid config made an agent with a valid one unready: %v", err)
	}
	if after := in(t, h.Namespace, "ip", "-d", "link", "show", "tulle.1"); after != before {
		t.Errorf("an invalid config changed the device:\n%s\n%s", before, after)
	}
	etcdctl(t, l, "put", "/coreos.com/network/config", `{"Network":"10.5.0.0/16","Colour":"blue"}`)
	eventually(t, 10*time.Second, "the agent warns of an unknown key", func() error { return logs(t, l, h, "Colour") })
}

// TestConfigChange moves the network to another range.
func TestConfigChange(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 2})
	moved := `{"Network":"10.77.0.0/16","Backend":{"Type":"vxlan"}}`
	if _, err := l.Tulle(t.Context(), moved, "config", "set", "-"); err == nil || !strings.Contains(err.Error(), "orphan") || !strings.Contains(err.Error(), "--force") {
		t.Fatalf("config set: %v; want it refused because it orphans leases", err)
	}
	if _, err := l.Tulle(t.Context(), moved, "config", "set", "--force", "-"); err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Nodes {
		eventually(t, 10*time.Second, h.Name+" has moved", func() error {
			env, err := h.Env()
			if err == nil && !strings.HasPrefix(env["FLANNEL_SUBNET"], "10.77.") {
				err = fmt.Errorf("it has %s", env["FLANNEL_SUBNET"])
			}
			if err != nil {
				return err
			}
			return h.Ready(t.Context())
		})
	}
	if err := l.Converge(t.Context()); err != nil {
		t.Fatal(err)
	}
	routes := in(t, l.Nodes[0].Namespace, "ip", "route")
	if strings.Contains(routes, "10.5.") || !strings.Contains(routes, "10.77.") {
		t.Errorf("routes after the move:\n%s", routes)
	}
	if log := logOf(t, l, l.Nodes[0]); !strings.Contains(log, "restart Docker") {
		t.Errorf("the log does not say that Docker must be restarted:\n%s", log)
	}
	if status := in(t, l.Nodes[0].Namespace, binary, "status", "--run-dir", l.Nodes[0].RunDir); !strings.Contains(status, "restart it") {
		t.Errorf("tulle status does not say that Docker must be restarted:\n%s", status)
	}
}

// TestBackendChange changes how packets are carried while the agents run. None is restarted, and subnets stay.
func TestBackendChange(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 2})
	a, b := l.Nodes[0], l.Nodes[1]
	for _, change := range []struct{ backend, device string }{ // the device as `ip -d link` then has it
		{`{"Type":"vxlan","VNI":4096}`, "tulle.4096: vxlan id 4096 dstport 8472 mtu 1450"},
		{`{"Type":"vxlan","VNI":4096,"Port":4789}`, "tulle.4096: vxlan id 4096 dstport 4789 mtu 1450"},
		{`{"Type":"vxlan","VNI":4096,"Port":4789,"MTU":1400}`, "tulle.4096: vxlan id 4096 dstport 4789 mtu 1350"},
		{`{"Type":"VXLAN","DirectRouting":true}`, "tulle.1: vxlan id 1 dstport 8472 mtu 1450"},
	} {
		setConfig(t, l, `{"Network":"10.5.0.0/16","Backend":`+change.backend+`}`)
		eventually(t, 10*time.Second, "both hosts carry packets by "+change.backend, func() error {
			for _, h := range []*lab.Host{a, b} {
				if got := vxlanText(t, h); got != change.device {
					return fmt.Errorf("%s has %q, want %q", h.Name, got, change.device)
				}
			}
			r, err := lab.Ping(t.Context(), a.Container.Namespace, b.Container.Address, 1, 84)
			if err == nil && r.Lost() > 0 {
				err = fmt.Errorf("ping lost")
			}
			return err
		})
	}
	etcdctl(t, l, "put", "/coreos.com/network/config", `{"Network":"10.5.0.0/16","Backend":{"Type":"carrier-pigeon"}}`)
	for _, h := range []*lab.Host{a, b} {
		eventually(t, 10*time.Second, h.Name+" refuses a backend that it does not know", func() error { return logs(t, l, h, "carrier-pigeon") })
		if err := h.Ready(t.Context()); err != nil {
			t.Errorf("%s: %v", h.Name, err)
		}
		if got := vxlanText(t, h); !strings.HasPrefix(got, "tulle.1: ") {
			t.Errorf("%s has %q", h.Name, got)
		}
	}
	ping(t, a.Container, b.Container, 84)
}

// vxlanText is what a host has by way of VXLAN devices.
func vxlanText(t *testing.T, h *lab.Host) string {
	t.Helper()
	var devices []string
	for line := range strings.Lines(in(t, h.Namespace, "ip", "-o", "-d", "link", "show", "type", "vxlan")) {
		words := strings.Fields(line)
		after := func(word string) string { return words[slices.Index(words, word)+1] }
		devices = append(devices, fmt.Sprintf("%s vxlan id %s dstport %s mtu %s", words[1], after("id"), after("dstport"), after("mtu")))
	}
	return strings.Join(devices, "; ")
}

// TestUnderlayInNetwork has a network whose range contains the underlay's. Its subnet is never leased, and never routed.
func TestUnderlayInNetwork(t *testing.T) {
	// Three subnets, and the underlay's is one of them.
	l := newLab(t, lab.Options{Hosts: 2, Config: `{"Network":"192.0.0.0/16","SubnetMin":"192.0.1.0","SubnetMax":"192.0.3.0"}`})
	for _, h := range l.Nodes {
		env, err := h.Env()
		if err != nil {
			t.Fatal(err)
		}
		if env["FLANNEL_SUBNET"] == "192.0.2.1/24" {
			t.Errorf("%s leased the underlay's own subnet", h.Name)
		}
		if err := logs(t, l, h, "contains the underlay's own"); err != nil {
			t.Error(err)
		}
	}
	ping(t, l.Nodes[0].Container, l.Nodes[1].Container, 84)
	etcdctl(t, l, "put", "/coreos.com/network/subnets/192.0.2.0-24", lease("192.0.2.77", "0a:00:00:00:00:77", 1))
	eventually(t, 10*time.Second, "the lease over the underlay is left out", func() error { return logs(t, l, l.Nodes[0], "reason=covers-underlay") })
	ping(t, l.Nodes[0].Container, l.Nodes[1].Container, 84)
}

// TestFull has a network of three subnets and four hosts.
func TestFull(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 3, Config: `{"Network":"10.6.0.0/22"}`})
	late, err := l.NewHost()
	if err != nil {
		t.Fatal(err)
	}
	launch(t, l, late)
	eventually(t, 20*time.Second, "the fourth host says that there is no subnet left", func() error {
		return logs(t, l, late, "out of subnets: of 3 for IPv4, 3 are leased and 0 reserved")
	})
	stop(t, l.Nodes[0])
	env, err := l.Nodes[0].Env()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Tulle(t.Context(), "", "lease", "release", strings.Replace(env["FLANNEL_SUBNET"], ".1/", ".0/", 1)); err != nil {
		t.Fatal(err)
	}
	if err := late.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.NewContainer(late); err != nil {
		t.Fatal(err)
	}
	if err := l.Converge(t.Context()); err != nil {
		t.Fatal(err)
	}
	ping(t, late.Container, l.Nodes[1].Container, 84)
}

// TestEtcdAway stops etcd, before agents start and while they run.
func TestEtcdAway(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 2})
	h := l.Nodes[0]
	flow, err := lab.StartFlow(h.Container.Namespace, l.Nodes[1].Container.Address, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Server.Stop(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the agent says that etcd is out of reach", func() error { return logs(t, l, h, "etcd is out of reach") })
	if err := h.Ready(t.Context()); err != nil {
		t.Errorf("an agent that lost etcd is unready: %v", err)
	}
	stop(t, h)
	launch(t, l, h)
	eventually(t, 20*time.Second, "the restarted agent waits for etcd", func() error {
		if !strings.Contains(tail(t, l, h), "etcd is out of reach") {
			return fmt.Errorf("it does not say so")
		}
		return nil
	})
	if err := l.StartEtcd(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Converge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := flow.Stop(t.Context()); r.Lost() > 0 {
		t.Errorf("%d of %d packets lost while etcd was away", r.Lost(), r.Sent)
	}
	if n := strings.Count(tail(t, l, h), "etcd is out of reach"); n > 2 {
		t.Errorf("the restarted agent said %d times that etcd is out of reach", n)
	}
}

// TestHostileLeases puts everything into etcd that a lease must not be.
func TestHostileLeases(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 2})
	h, peer := l.Nodes[0], l.Nodes[1]
	flow, err := lab.StartFlow(h.Container.Namespace, peer.Container.Address, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	routes := in(t, h.Namespace, "ip", "route")
	own, other := key(t, h), key(t, peer)
	good := "0a:00:00:00:00:01"
	for _, bad := range []struct{ key, value, reason string }{
		{"not-a-subnet", lease("192.0.2.70", good, 1), "bad-key"},
		{"10.5.200.7-24", lease("192.0.2.70", good, 1), "bad-key"},
		{"10.5.201.0-24", "not JSON", "bad-value"},
		{"10.5.202.0-24", `{"PublicIP":null,"PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"` + good + `"}}`, "bad-address"},
		{"10.9.0.0-24", lease("192.0.2.70", good, 1), "outside-network"},
		{"0.0.0.0-1", lease("192.0.2.70", good, 1), "outside-network"},
		{"10.5.128.0-17", lease("192.0.2.70", good, 1), "outside-network"},
		{strings.Replace(own, "-24", "-25", 1), lease("192.0.2.70", good, 1), "overlap"},
		{strings.Replace(other, "-24", "-26", 1), lease("192.0.2.70", good, 1), "overlap"},
		{"192.0.2.0-24", lease("192.0.2.70", good, 1), "outside-network"},
		{"10.5.203.0-24", lease("192.0.2.70", "01:00:5e:00:00:01", 1), "bad-mac"},
		{"10.5.204.0-24", lease("192.0.2.70", "nonsense", 1), "bad-mac"},
		{"10.5.205.0-24", lease("192.0.2.70", good, 2), "wrong-vni"},
		{"10.5.206.0-24", lease(h.Address.String(), good, 1), "own-address"},
		{"10.5.207.0-24", lease("192.0.2.71", vtepMAC(t, peer), 1), "conflict"},
		{"10.5.208.0-24", `{"PublicIP":"192.0.2.70","PublicIPv6":null,"BackendType":"host-gw"}`, "wrong-backend"},
	} {
		etcdctl(t, l, "put", "/coreos.com/network/subnets/"+bad.key, bad.value)
		eventually(t, 10*time.Second, fmt.Sprintf("%s is left out as %s", bad.key, bad.reason), func() error {
			return logs(t, l, h, fmt.Sprintf("lease=%s reason=%s", bad.key, bad.reason))
		})
		if n := strings.Count(logOf(t, l, h), "lease="+bad.key+" reason="); n != 1 {
			t.Errorf("%s was logged %d times, want once", bad.key, n)
		}
	}
	if after := in(t, h.Namespace, "ip", "route"); after != routes {
		t.Errorf("hostile leases changed the routes:\n%s\n%s", routes, after)
	}
	for _, series := range []string{`{reason="overlap"} 2`, `{reason="outside-network"} 4`, `{reason="bad-mac"} 2`} {
		if metrics := get(t, h, "/metrics"); !strings.Contains(metrics, "tulle_leases_rejected"+series) {
			t.Errorf("metrics lack %s:\n%s", series, grep(metrics, "rejected"))
		}
	}
	late, err := l.NewHost()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	if err := l.NewContainer(late); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "a host that joins in spite of it all is reached", func() error {
		r, err := lab.Ping(t.Context(), h.Container.Namespace, late.Container.Address, 1, 84)
		if err == nil && r.Lost() > 0 {
			err = fmt.Errorf("ping lost")
		}
		return err
	})
	if r := flow.Stop(t.Context()); r.Lost() > 0 {
		t.Errorf("%d of %d packets lost", r.Lost(), r.Sent)
	}
}

// TestReservation reserves a subnet for a host that has not come yet, and for one that is there.
func TestReservation(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 1})
	if _, err := l.Tulle(t.Context(), "", "lease", "reserve", "10.5.99.0/24", "192.0.2.12"); err != nil {
		t.Fatal(err)
	}
	h, err := l.AddHost(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := h.Container.Address; got != netip.MustParseAddr("10.5.99.2") {
		t.Errorf("the host with a reservation has a container at %s, want 10.5.99.2", got)
	}
	ping(t, l.Nodes[0].Container, h.Container, 84)
	stop(t, h)
	launch(t, l, h)
	if err := l.Converge(t.Context()); err != nil {
		t.Fatal(err)
	}
	list, err := l.Tulle(t.Context(), "", "lease", "ls")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(list, "reserved  never") {
		t.Errorf("lease ls shows no reservation after a restart:\n%s", list)
	}
	taken := strings.Replace(strings.Replace(key(t, l.Nodes[0]), "-", "/", 1), ".1/", ".0/", 1)
	if _, err := l.Tulle(t.Context(), "", "lease", "reserve", taken, "192.0.2.99"); err == nil || !strings.Contains(err.Error(), "is held by 192.0.2.11") {
		t.Errorf("reserve what another holds: %v", err)
	}
	if _, err := l.Tulle(t.Context(), "", "lease", "release", "10.5.150.0/24"); err == nil || !strings.Contains(err.Error(), "nobody holds it") {
		t.Errorf("release what nobody holds: %v", err)
	}
}

// TestSecondAgent starts an agent where one runs already, also with a run directory of its own.
func TestSecondAgent(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 1})
	h := l.Nodes[0]
	for _, dir := range []string{h.RunDir, t.TempDir()} {
		out, err := lab.Output(t.Context(), h.Namespace, binary, "agent", "--etcd-endpoints", l.Endpoint(), "--run-dir", dir, "--listen=")
		if err == nil || !strings.Contains(out, fmt.Sprintf("another agent runs on this host already: process %d", h.Agent.PID)) {
			t.Errorf("a second agent: %v; want it to name the first, %d", err, h.Agent.PID)
		}
	}
	if err := h.Ready(t.Context()); err != nil {
		t.Errorf("the first agent suffered: %v", err)
	}
}

// TestNotRoot starts an agent without the right to change the network.
func TestNotRoot(t *testing.T) {
	public := filepath.Join(t.TempDir(), "tulle")
	text, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(public, text, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(public); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(public, "agent")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "needs CAP_NET_ADMIN: run it as root") {
		t.Errorf("as nobody: %v: %s", err, out)
	}
}

// TestCleanup removes all that an agent made, and nothing else.
func TestCleanup(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 2})
	h := l.Nodes[0]
	in(t, h.Namespace, "ip", "route", "add", "10.5.250.0/24", "via", "192.0.2.1")
	in(t, h.Namespace, "iptables", "-A", "FORWARD", "-s", "203.0.113.0/24", "-j", "DROP")
	if out, err := lab.Output(t.Context(), h.Namespace, binary, "cleanup", "--run-dir", h.RunDir); err == nil || !strings.Contains(out, "stop it first") {
		t.Errorf("cleanup beside a running agent: %v", err)
	}
	stop(t, h)
	out := in(t, h.Namespace, binary, "cleanup", "--run-dir", h.RunDir)
	for _, what := range []string{"link tulle.1", "link docker0", "route " + strings.Replace(key(t, l.Nodes[1]), "-", "/", 1), "TULLE-FORWARD", "TULLE-POSTROUTING", "subnet.env"} {
		if !strings.Contains(out, what) {
			t.Errorf("cleanup does not name %s:\n%s", what, out)
		}
	}
	left := in(t, h.Namespace, "sh", "-c", "ip link; ip addr; ip route; ip nexthop; ip neigh; iptables-save")
	for _, ours := range []string{"tulle.", "alias tulle", "TULLE", "docker0", "proto 84", "10.5.0.0/16"} {
		if strings.Contains(left, ours) {
			t.Errorf("%s is left after cleanup:\n%s", ours, left)
		}
	}
	for _, foreign := range []string{"10.5.250.0/24 via 192.0.2.1", "-A FORWARD -s 203.0.113.0/24 -j DROP"} {
		if !strings.Contains(left, foreign) {
			t.Errorf("cleanup removed what is not ours, %s:\n%s", foreign, left)
		}
	}
	if out := in(t, h.Namespace, binary, "cleanup", "--run-dir", h.RunDir); !strings.Contains(out, "nothing of tulle's") {
		t.Errorf("a second cleanup says %q", out)
	}
}

// TestForeignBridge has a docker0 that somebody else made: it is left alone.
func TestForeignBridge(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 1})
	h := l.Nodes[0]
	stop(t, h)
	in(t, h.Namespace, binary, "cleanup", "--run-dir", h.RunDir)
	in(t, h.Namespace, "sh", "-c", "ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up")
	before := in(t, h.Namespace, "ip", "-4", "-o", "addr", "show", "docker0")
	launch(t, l, h)
	eventually(t, 10*time.Second, "the agent is ready", func() error { return h.Ready(t.Context()) })
	if after := in(t, h.Namespace, "ip", "-4", "-o", "addr", "show", "docker0"); after != before {
		t.Errorf("the agent changed a bridge that is not its own:\n%s\n%s", before, after)
	}
	if status := in(t, h.Namespace, binary, "status", "--run-dir", h.RunDir); !strings.Contains(status, "docker0 has 172.17.0.1/16, not this host's") || !strings.Contains(status, "ip link del docker0") {
		t.Errorf("tulle status does not say what to do about docker0:\n%s", status)
	}
	if err := logs(t, l, h, "docker0 has 172.17.0.1/16"); err != nil {
		t.Error(err)
	}
}

// lease is a vxlan lease's value.
func lease(publicIP, mac string, vni int) string {
	return fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":%d,"VtepMAC":%q}}`, publicIP, vni, mac)
}

// key is the key of a host's lease, as in 10.5.1.0-24.
func key(t *testing.T, h *lab.Host) string {
	t.Helper()
	return netip.PrefixFrom(h.Container.Address, 24).Masked().Addr().String() + "-24"
}

// vtepMAC is the MAC of a host's VXLAN device.
func vtepMAC(t *testing.T, h *lab.Host) string {
	t.Helper()
	return strings.Fields(in(t, h.Namespace, "ip", "-br", "link", "show", "tulle.1"))[2]
}

func stop(t *testing.T, h *lab.Host) {
	t.Helper()
	if err := h.Agent.Stop(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

// launch starts a host's agent, and marks the place in its log.
func launch(t *testing.T, l *lab.Lab, h *lab.Host) {
	t.Helper()
	if err := l.LaunchAgent(h); err != nil {
		t.Fatal(err)
	}
}

// logs fails unless the host's agent has logged text.
func logs(t *testing.T, l *lab.Lab, h *lab.Host, text string) error {
	t.Helper()
	if !strings.Contains(logOf(t, l, h), text) {
		return fmt.Errorf("%s's log does not say %q", h.Name, text)
	}
	return nil
}

// tail is what the host's agent has logged since it was last started.
func tail(t *testing.T, l *lab.Lab, h *lab.Host) string {
	t.Helper()
	log := logOf(t, l, h)
	return log[max(0, strings.LastIndex(log, `msg="tulle agent"`)):]
}

func setConfig(t *testing.T, l *lab.Lab, config string) {
	t.Helper()
	if _, err := l.Tulle(t.Context(), config, "config", "set", "-"); err != nil {
		t.Fatal(err)
	}
}

// TestDaemonJSON has a daemon.json with an option that DOCKER_OPTS has, too: dockerd would refuse to start.
func TestDaemonJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.json")
	if err := os.WriteFile(path, []byte(`{"bip":"10.0.0.1/24"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	l := newLab(t, lab.Options{Hosts: 1, Agent: []string{"--daemon-json", path}})
	status := in(t, l.Nodes[0].Namespace, binary, "status", "--run-dir", l.Nodes[0].RunDir)
	if want := path + " sets bip, and so does DOCKER_OPTS"; !strings.Contains(status, want) {
		t.Errorf("tulle status does not say %q:\n%s", want, status)
	}
}

// TestOldBridgeAddress has a Docker that keeps an earlier --bip on the bridge.
func TestOldBridgeAddress(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 1})
	h := l.Nodes[0]
	in(t, h.Namespace, "ip", "addr", "add", "10.5.250.1/24", "dev", "docker0")
	says := func() bool {
		return strings.Contains(in(t, h.Namespace, binary, "status", "--run-dir", h.RunDir), "docker0 has 10.5.250.1/24 beside this host's")
	}
	eventually(t, 5*time.Second, "tulle status names the address", func() error {
		if !says() {
			return fmt.Errorf("it does not")
		}
		return nil
	})
	in(t, h.Namespace, "ip", "addr", "del", "10.5.250.1/24", "dev", "docker0")
	eventually(t, 5*time.Second, "tulle status names it no more", func() error {
		if says() {
			return fmt.Errorf("it does")
		}
		return nil
	})
}
