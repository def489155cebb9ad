package agent

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

const (
	unreachable = "no connection to etcd"
	etcdAway    = `level=WARN msg="etcd is out of reach; the network stays as it is" error="no connection to etcd"`
)

func TestStart(t *testing.T) {
	bubble(t, func(r *rig) {
		r.settle()
		r.wantReady(false, "nothing is programmed yet")
		r.store.publish(func(u *subnet.Update) { u.Err = errors.New(unreachable) })
		r.settle()
		r.wantReady(false, "waiting for etcd")
		r.wantLog(etcdAway)
		r.store.publish(func(u *subnet.Update) { u.Err = nil })
		r.list("")
		r.wantReady(false, "waiting for a network config in etcd")
		r.wantLog(`level=INFO msg="etcd is in reach again"`, `level=WARN msg="no network config in etcd: waiting for one" store-one-with="echo '{\"Network\":\"10.5.0.0/16\"}' | tulle config set -"`,
			`level=INFO msg="leases listed" count=0 revision=1`)
		r.pass(time.Minute)
		r.wantLog()
		r.setConfig(`{"Network":"10.5.0.0"}`)
		r.wantReady(false, `waiting for a valid network config: Network: "10.5.0.0" is not a range like 10.5.0.0/16`)
		r.wantLog(`level=ERROR msg="the network's config is not valid" error="Network: \"10.5.0.0\" is not a range like 10.5.0.0/16"`)
		if n := len(r.store.asked()); n != 0 {
			r.Errorf("asks for a lease %d times without a config", n)
		}
		r.setConfig(vxlan)
		r.wantReady(false, "waiting for a lease")
		r.wantLog(`level=INFO msg="network config" network=10.5.0.0/16 subnet-length=24 backend=vxlan`,
			`level=INFO msg=underlay device=eth0 mtu=1500 address=192.0.2.1 public-ip=192.0.2.1`)
		want := r.store.lastWant()
		if want.Range != parsed(vxlan, 1).Config.Range || want.PublicIP != r.kernel.underlay.Public || want.Backend != "vxlan" || !strings.Contains(want.Data.V4, `"VNI":1`) {
			r.Errorf("wants %+v", want)
		}
		r.own(func(o *subnet.Own) { o.Err = errors.New("out of subnets") })
		r.wantReady(false, "waiting for a lease: out of subnets")
		r.wantLog(`level=WARN msg="not everything is programmed; trying again" error="waiting for a lease: out of subnets"`)
		if r.kernel.applies()+r.kernel.changes()+r.firewall.applies() != 0 {
			r.Error("programmed before there is a lease")
		}
		if _, err := os.Stat(r.agent.config.SubnetFile); err == nil {
			r.Error("env file before there is a lease")
		}
		r.hold("10.5.1.0/24")
		r.wantReady(true, "10.5.1.0-24, 0 peers")
		r.wantLog(`level=INFO msg="lease held" subnet=10.5.1.0/24 public-ip=192.0.2.1 reserved=false`,
			`level=INFO msg="packet filter" by=iptables why="it is a fake"`, `level=INFO msg="env file written" path=`+r.agent.config.SubnetFile, `level=INFO msg="everything is programmed" peers=0`)
		if r.kernel.applies() != 1 || r.firewall.applies() != 1 {
			r.Errorf("%d applies, %d of the packet filter", r.kernel.applies(), r.firewall.applies())
		}
	})
}

func TestPeers(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.log.take()
		r.put(peer(2))
		r.wantReady(true, "10.5.1.0-24, 1 peers")
		if r.kernel.applies() != 1 || r.firewall.applies() != 1 || r.kernel.changes() != 1 {
			r.Fatalf("a join: %d applies, %d of the packet filter, %d changes", r.kernel.applies(), r.firewall.applies(), r.kernel.changes())
		}
		_, changes := r.kernel.told()
		c, to := changes[0], netip.MustParsePrefix("10.5.2.0/24")
		if n := c.Count(); len(n) != 3 || n["route"] != 1 || n["neighbour"] != 1 || n["fdb"] != 1 || c.Routes.Set[to] != (backend.Route{Via: to.Addr(), Dev: "tulle.1", OnLink: true}) {
			r.Errorf("a join changes %+v", c)
		}
		changed := peer(2)
		changed.Lease.PublicIP.V4 = netip.MustParseAddr("192.0.2.77")
		r.put(changed)
		r.remove("10.5.2.0-24")
		_, changes = r.kernel.told()
		if c := changes[2]; r.kernel.applies() != 1 || len(c.Routes.Del) != 1 || len(c.Neighbours.Del) != 1 || len(c.FDB.Del) != 1 {
			r.Errorf("%d applies; a leave changes %+v", r.kernel.applies(), c)
		}
		r.wantLog(`level=INFO msg="peer 10.5.2.0/24 (192.0.2.2) joined" lease=10.5.2.0-24 public-ip=192.0.2.2`,
			`level=INFO msg="peer 10.5.2.0/24 (192.0.2.77) has come from 192.0.2.2" lease=10.5.2.0-24 public-ip=192.0.2.77`,
			`level=INFO msg="peer 10.5.2.0/24 (192.0.2.77) left" lease=10.5.2.0-24 public-ip=192.0.2.77`)
		r.put(peer(2), peer(3), peer(4), peer(5), peer(6), peer(7), peer(8), peer(9), peer(10))
		r.wantReady(true, "10.5.1.0-24, 9 peers")
		r.wantLog(`level=INFO msg="leases changed" count=9 revision=12`)
	})
}

func TestDoorbells(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		ring(r.kernel.doorbell)
		r.settle()
		if r.kernel.applies() != 2 || r.firewall.applies() != 2 {
			r.Errorf("the kernel's bell: %d applies, %d of the packet filter", r.kernel.applies(), r.firewall.applies())
		}
		ring(r.firewall.doorbell)
		r.settle()
		if r.kernel.applies() != 2 || r.firewall.applies() != 3 {
			r.Errorf("the packet filter's bell: %d applies, %d of the packet filter", r.kernel.applies(), r.firewall.applies())
		}
		for range 50 { // one pass for the first, and one for all that ring before that is over
			ring(r.kernel.doorbell)
		}
		r.settle()
		if n := r.kernel.applies(); n > 4 {
			r.Errorf("fifty rings at once: %d applies", n-2)
		}
		kernel, firewall := r.kernel.applies(), r.firewall.applies()
		r.pass(resyncEvery)
		if r.kernel.applies() != kernel+1 || r.firewall.applies() != firewall+1 {
			r.Errorf("in %s: %d applies, %d of the packet filter", resyncEvery, r.kernel.applies()-kernel, r.firewall.applies()-firewall)
		}
	})
}

// What a look at everything costs grows with the peers, and how seldom it is taken with what it costs. What does not grow is
// looked at as often as ever.
func TestRestFromLooks(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.kernel.takes(40*time.Millisecond, &fakeFirewall{})
		ring(r.kernel.doorbell)
		r.settle()
		kernel, firewall := r.kernel.applies(), r.firewall.applies()
		r.pass(150 * time.Second)
		if n := r.kernel.applies() - kernel; n != 0 {
			r.Errorf("%d looks at everything within %s of one that took 40 ms", n, 150*time.Second)
		}
		if n := r.firewall.applies() - firewall; n != 5 {
			r.Errorf("%d looks at the packet filter in that time", n)
		}
		r.pass(90 * time.Second)
		if n := r.kernel.applies() - kernel; n != 1 {
			r.Errorf("%d looks at everything within four minutes", n)
		}
		if r.metric("tulle_passes_total host") < 5 {
			r.Error("looks at the host alone are not counted as such")
		}
		kernel = r.kernel.applies()
		r.log.take()
		r.kernel.finds(backend.Changes{Sysctls: backend.Delta[string, string]{Set: map[string]string{"net.ipv4.ip_forward": "1"}}})
		r.pass(resyncEvery)
		if r.kernel.applies() == kernel {
			r.Error("what differs on the host is not mended with the next look at it")
		}
		r.wantLog(`level=INFO msg="sysctl set" name=net.ipv4.ip_forward value=1`, `level=WARN msg="sysctl net.ipv4.ip_forward was deleted by someone else, restored"`)

		r.kernel.takes(time.Minute, &fakeFirewall{})
		ring(r.kernel.doorbell)
		r.pass(2 * time.Minute)
		kernel = r.kernel.applies()
		r.pass(lookAtLeast + resyncEvery)
		if r.kernel.applies() == kernel {
			r.Errorf("no look at everything in %s", lookAtLeast)
		}
	})
}

func TestFailure(t *testing.T) {
	const failing = `level=WARN msg="not everything is programmed; trying again" error="no buffer space"`
	bubble(t, func(r *rig) {
		r.ready()
		r.log.take()
		r.kernel.fail(errors.New("no buffer space"))
		r.put(peer(2))
		r.wantReady(false, "no buffer space")
		before := r.kernel.applies()
		r.pass(time.Second)
		if n := r.kernel.applies() - before; n < 2 || n > 5 {
			r.Errorf("%d tries in the first second", n)
		}
		r.pass(5 * time.Minute)
		before = r.kernel.applies()
		r.pass(time.Minute)
		if n := r.kernel.applies() - before; n < 4 || n > 10 {
			r.Errorf("%d tries a minute after five minutes", n)
		}
		r.wantReady(false, "no buffer space")
		r.wantLog(failing, `level=INFO msg="peer 10.5.2.0/24 (192.0.2.2) joined" lease=10.5.2.0-24 public-ip=192.0.2.2`)
		r.kernel.fail(nil)
		r.pass(retryMax)
		r.wantReady(true, "10.5.1.0-24, 1 peers")
		r.wantLog(`level=INFO msg="everything is programmed" peers=1`)
		if text := r.kernel.state(); !strings.Contains(text, "route 10.5.2.0/24") {
			r.Errorf("applied\n%s", text)
		}
		if n := r.metric("tulle_pass_errors_total"); n < 10 {
			r.Errorf("%v errors counted", n)
		}
		before = r.kernel.applies()
		r.pass(resyncEvery - time.Second)
		if n := r.kernel.applies() - before; n > 1 {
			r.Errorf("%d more tries after the success", n)
		}
	})
}

func TestFirewallFails(t *testing.T) {
	bubble(t, func(r *rig) {
		r.firewall.err = errors.New("iptables: command not found") // nothing has asked it yet
		r.list(vxlan)
		r.hold("10.5.1.0/24")
		r.wantReady(false, "iptables: command not found")
		if text := r.kernel.state(); !strings.Contains(text, "link tulle.1 ") {
			r.Errorf("the kernel has not got its part:\n%s", text)
		}
		if _, err := os.Stat(r.agent.config.SubnetFile); err != nil {
			r.Error(err)
		}
	})
}

func TestConfigChanges(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.log.take()
		r.setConfig(`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7},"Shape":"round"}`)
		if text := r.kernel.state(); !strings.Contains(text, "link tulle.7 ") || strings.Contains(text, "tulle.1 ") {
			r.Errorf("applied\n%s", text)
		}
		if want := r.store.lastWant(); !strings.Contains(want.Data.V4, `"VNI":7`) || want.Previous.V4.String() != "10.5.1.0/24" {
			r.Errorf("wants %+v", want)
		}
		r.wantLog(`level=INFO msg="the network's config has changed" before="{\"Network\":\"10.5.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}" now="{\"Network\":\"10.5.0.0/16\",\"Backend\":{\"Type\":\"vxlan\",\"VNI\":7},\"Shape\":\"round\"}"`,
			`level=WARN msg="the network's config has keys that mean nothing here" keys=Shape`)
		r.setConfig(`{"Network":"10.6.0.0/16"}`)
		r.wantReady(false, "waiting for a lease in the network's new range 10.6.0.0/16; 10.5.1.0/24 is outside it")
		if text := r.kernel.state(); !strings.Contains(text, "link tulle.7 ") || !strings.Contains(text, "address 10.5.1.1/24 dev docker0") {
			r.Errorf("while the lease is missing, applied\n%s", text)
		}
		r.log.take()
		r.hold("10.6.9.0/24")
		r.wantReady(true, "10.6.9.0-24, 0 peers")
		r.wantLog(`level=ERROR msg="this host has another subnet now: restart Docker, or its containers stay cut off" subnet=10.6.9.0/24 before=10.5.1.0/24`,
			`level=INFO msg="env file written" path=`+r.agent.config.SubnetFile, `level=INFO msg="everything is programmed" peers=0`)
	})
}

// A config that can't be used must not cost the network that there is: the one before stays in force, and peers come and go.
func TestUnusableConfig(t *testing.T) {
	for name, c := range map[string]struct{ config, text string }{
		"the network's part": {`{"Network":"10.5.0.0"}`, `Network: \"10.5.0.0\" is not a range like 10.5.0.0/16`},
		"the backend's part": {`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":-1}}`, `Backend.VNI: -1 is not within 1 and 16777215`},
		"an unknown backend": {`{"Network":"10.5.0.0/16","Backend":{"Type":"pigeon"}}`, `\"pigeon\" is not a type`},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(r *rig) {
				r.ready()
				r.log.take()
				before, asked := r.kernel.state(), r.store.lastWant()
				r.setConfig(c.config)
				r.put(peer(2))
				r.wantReady(true, "10.5.1.0-24, 1 peers")
				if r.kernel.state() != before || r.kernel.changes() != 2 {
					r.Errorf("%d changes, applied\n%s", r.kernel.changes(), r.kernel.state())
				}
				r.pass(time.Minute)
				if want := r.store.lastWant(); want.Range != asked.Range || want.Data != asked.Data {
					r.Errorf("asks for %+v, before for %+v", want, asked)
				}
				log := r.log.take()
				if strings.Count(log, "\n") != 2 || !strings.HasPrefix(log, `level=ERROR msg="the network's config is not valid`) || !strings.Contains(log, c.text) || !strings.Contains(log, ") joined") {
					r.Errorf("logged:\n%s", log)
				}
				r.setConfig(vxlan)
				r.wantReady(true, "10.5.1.0-24, 1 peers")
				r.wantLog(`level=INFO msg="network config" network=10.5.0.0/16 subnet-length=24 backend=vxlan`)
			})
		})
	}
}

func TestConfigDeleted(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.log.take()
		r.setConfig("")
		r.pass(time.Minute)
		r.wantReady(true, "10.5.1.0-24, 0 peers")
		r.wantLog(`level=WARN msg="the network's config was deleted from etcd: going on with the one before" store-it-with="echo '{\"Network\":\"10.5.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}' | tulle config set -"`)
	})
}

func TestLeaseLost(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.put(peer(2))
		r.log.take()
		r.own(func(o *subnet.Own) { *o = subnet.Own{Err: errors.New("out of subnets")} })
		r.wantReady(false, "lease lost: out of subnets")
		r.pass(time.Minute)
		r.put(peer(3))
		r.wantLog(`level=WARN msg="the lease is lost; the network stays as it is" error="out of subnets"`, `level=INFO msg="peer 10.5.3.0/24 (192.0.2.3) joined" lease=10.5.3.0-24 public-ip=192.0.2.3`)
		applied, _ := r.kernel.told()
		for _, text := range applied[1:] {
			if !strings.Contains(text, "address 10.5.1.1/24 dev docker0") || !strings.Contains(text, "route 10.5.2.0/24 ") {
				r.Errorf("without the lease, applied\n%s", text)
			}
		}
		if previous := r.store.lastWant().Previous.V4.String(); previous != "10.5.1.0/24" {
			r.Errorf("wants %s back", previous)
		}
		r.hold("10.5.1.0/24")
		r.wantReady(true, "10.5.1.0-24, 2 peers")
		r.wantLog(`level=INFO msg="lease held" subnet=10.5.1.0/24 public-ip=192.0.2.1 reserved=false`)
	})
}

// A lease that could not be renewed or changed is held all the same.
func TestLeaseNotRenewed(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.log.take()
		r.own(func(o *subnet.Own) { o.Err = errors.New("no answer") })
		r.own(func(o *subnet.Own) { o.Err = errors.New("no answer") })
		r.wantReady(true, "10.5.1.0-24, 0 peers")
		r.wantLog(`level=WARN msg="the lease is held, but can't be looked after" error="no answer"`)
	})
}

func TestEtcdAway(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.log.take()
		for range 3 {
			r.store.publish(func(u *subnet.Update) { u.Err = errors.New(unreachable) })
			r.settle()
		}
		r.wantReady(true, "10.5.1.0-24, 0 peers; etcd out of reach, the network stays as it is: no connection to etcd")
		if r.metric("tulle_etcd_connected") != 0 || r.agent.Status().Etcd.Error != unreachable {
			r.Errorf("status is %+v", r.agent.Status())
		}
		ring(r.kernel.doorbell) // the host heals itself meanwhile
		r.settle()
		if r.kernel.applies() != 2 {
			r.Errorf("%d applies", r.kernel.applies())
		}
		for range 2 {
			r.store.publish(func(u *subnet.Update) { u.Err = nil })
			r.settle()
		}
		r.wantReady(true, "10.5.1.0-24, 0 peers")
		r.wantLog(etcdAway, `level=INFO msg="etcd is in reach again"`)
	})
}

func TestDrift(t *testing.T) {
	bubble(t, func(r *rig) {
		r.kernel.finds(routes(1)) // what an earlier life left behind is no drift
		r.ready()
		r.put(peer(2))
		r.log.take()
		r.kernel.finds(routes(2))
		r.firewall.finds(1)
		ring(r.kernel.doorbell)
		r.settle()
		r.firewall.finds(1)
		ring(r.firewall.doorbell)
		r.settle()
		if d := r.agent.Status().Repaired; len(d) != 2 || d["route"] != 2 || d["firewall"] != 2 {
			r.Errorf("drift is %v", d)
		}
		if n := r.metric("tulle_drift_repaired_total route"); n != 2 {
			r.Errorf("%v routes counted as drift", n)
		}
		if n := r.metric("tulle_changes_total route"); n != 4 {
			r.Errorf("%v routes counted as changes", n)
		}
		if log := r.log.take(); log != `level=WARN msg="route to 10.5.0.0/24 was deleted by someone else, restored"
level=WARN msg="route to 10.5.1.0/24 was deleted by someone else, restored"
level=WARN msg="the packet filter's rules were changed by someone else, restored (chains: 1)"
level=WARN msg="the packet filter's rules were changed by someone else, restored (chains: 1)"
` {
			r.Errorf("logged:\n%s", log)
		}
		r.kernel.finds(routes(2))
		r.setConfig(`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}`)
		if n := r.agent.Status().Repaired["route"]; n != 2 {
			r.Errorf("our own change counts as drift: %d", n)
		}
	})
}

func routes(n byte) backend.Changes {
	d := backend.Delta[netip.Prefix, backend.Route]{Set: map[netip.Prefix]backend.Route{}}
	for i := range n {
		d.Set[netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, i, 0}), 24)] = backend.Route{Dev: "tulle.1"}
	}
	return backend.Changes{Routes: d}
}

func TestRejected(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.log.take()
		bad := peer(2)
		bad.Lease.Data.V4 = `{"VNI":1,"VtepMAC":"x"}`
		r.put(bad)
		unreadable := subnet.Entry{Err: subnet.Rejectf(subnet.BadKey, "not a subnet")}
		r.store.publish(func(u *subnet.Update) { u.Leases["nonsense"] = unreadable })
		r.pass(time.Minute)
		r.wantLog(`level=WARN msg="lease left out" lease=10.5.2.0-24 reason=bad-mac detail="VtepMAC \"x\" is not a unicast Ethernet address"`,
			`level=WARN msg="lease left out" lease=nonsense reason=bad-key detail="not a subnet"`)
		r.wantReady(true, "10.5.1.0-24, 0 peers")
		if n := r.agent.Status().LeftOut; len(n) != 2 || n["bad-mac"] != 1 || n["bad-key"] != 1 || r.metric("tulle_leases_rejected bad-mac") != 1 {
			r.Errorf("rejected are %v", n)
		}
		r.remove("nonsense")
		r.put(peer(2))
		r.wantReady(true, "10.5.1.0-24, 1 peers")
		r.put(bad)
		if log := r.log.take(); strings.Count(log, "lease left out") != 1 {
			r.Errorf("logged:\n%s", log)
		}
	})
}

// The list of a new session replaces what was known.
func TestListedAnew(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.put(peer(2), peer(3))
		r.store.publish(func(u *subnet.Update) { u.Reset, u.Leases = true, map[string]subnet.Entry{"10.5.3.0-24": peer(3)} })
		r.settle()
		r.wantReady(true, "10.5.1.0-24, 1 peers")
		if text := r.kernel.state(); strings.Contains(text, "route 10.5.2.0/24") || !strings.Contains(text, "route 10.5.3.0/24") {
			r.Errorf("applied\n%s", text)
		}
	})
}

func TestPreviousSubnetIsWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "")
		if err := os.MkdirAll(r.agent.config.RunDir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(r.agent.config.SubnetFile, []byte("FLANNEL_SUBNET=10.5.65.1/24\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		defer r.run()()
		r.list(vxlan)
		if previous := r.store.lastWant().Previous.V4.String(); previous != "10.5.65.0/24" {
			r.Errorf("wants %s", previous)
		}
	})
}

// supervisor is a NOTIFY_SOCKET.
type supervisor struct{ *net.UnixConn }

func supervise(t *testing.T) supervisor {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return supervisor{c}
}

// told is what has been sent until now; it does not wait for more.
func (s supervisor) told() (messages []string) {
	raw, err := s.SyscallConn()
	if err != nil {
		panic(err)
	}
	err = raw.Control(func(fd uintptr) {
		for buffer := make([]byte, 4096); ; {
			n, _, err := unix.Recvfrom(int(fd), buffer, unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			messages = append(messages, string(buffer[:n]))
		}
	})
	if err != nil {
		panic(err)
	}
	return messages
}

func TestNotify(t *testing.T) {
	s := supervise(t)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "")
		stop := r.run()
		want := func(messages ...string) {
			t.Helper()
			if got := strings.Join(s.told(), "|"); got != strings.Join(messages, "|") {
				t.Errorf("told %q, want %q", got, messages)
			}
		}
		r.list(vxlan)
		want("STATUS=waiting for a lease")
		r.kernel.fail(errors.Join(errors.New("no buffer space"), errors.New("READY=1")))
		r.hold("10.5.1.0/24")
		r.pass(time.Minute)
		want("STATUS=no buffer space; READY=1")
		r.kernel.fail(nil)
		r.pass(time.Minute)
		want("READY=1", "STATUS=10.5.1.0-24, 0 peers")
		r.kernel.fail(errors.New("no buffer space"))
		r.pass(time.Minute)
		r.kernel.fail(nil)
		r.pass(time.Minute)
		want("STATUS=no buffer space", "STATUS=10.5.1.0-24, 0 peers")
		stop()
		want("STOPPING=1")
	})
}

func TestWatchdog(t *testing.T) {
	s := supervise(t)
	t.Setenv("WATCHDOG_USEC", "10000000")
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "")
		defer r.run()()
		r.list("")
		s.told()
		for range 12 { // the socket holds ten
			r.pass(5 * time.Second)
			if pings := s.told(); len(pings) != 1 || pings[0] != "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=20000000" {
				t.Errorf("half of the watchdog's 10 s: %q", pings)
			}
		}
		r.list(vxlan)
		r.hold("10.5.1.0/24")
		s.told()
		r.kernel.takes(9*time.Second, r.firewall) // each step is in time, both together are not
		ring(r.kernel.doorbell)
		r.pass(10 * time.Second)
		if pings := s.told(); !slices.Contains(pings, "WATCHDOG=1") {
			t.Errorf("after one of two long steps: %q", pings)
		}
		r.pass(10 * time.Second)
	})
}

// A look at everything without news plans nothing anew, and what comes with it is in the plan.
func TestPlanIsKept(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.put(peer(2))
		plan := r.agent.state.plan
		ring(r.kernel.doorbell)
		r.settle()
		r.store.publish(func(u *subnet.Update) { u.Leases["10.5.3.0-24"] = peer(3) })
		ring(r.kernel.doorbell)
		r.settle()
		r.pass(time.Minute)
		if r.agent.state.plan != plan {
			r.Error("planned anew")
		}
		if state := r.kernel.state(); !strings.Contains(state, "route 10.5.2.0/24") || !strings.Contains(state, "route 10.5.3.0/24") {
			r.Errorf("the state is\n%s", state)
		}
		r.kernel.setMTU(1400)
		ring(r.kernel.doorbell)
		r.settle()
		if r.agent.state.plan == plan || !strings.Contains(r.kernel.state(), "mtu 1350") || !strings.Contains(r.kernel.state(), "route 10.5.3.0/24") {
			r.Errorf("the state is\n%s", r.kernel.state())
		}
	})
}
