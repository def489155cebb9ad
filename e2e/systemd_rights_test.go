package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// systemdRights looks at what the agent's process may do, and who may ask it: its user is nobody else's, and has two capabilities.
func systemdRights(t *testing.T, m *machine) {
	m.besideFlanneld(t)
	pid := m.show(t, "tulle.service", "MainPID")
	status := m.read(t, "/proc/"+pid+"/status")
	user := m.run(t, "id", "-u", "tulle")
	const both = "0000000000003000" // CAP_NET_ADMIN is 12, CAP_NET_RAW 13
	for _, want := range []string{"Uid:\t" + user + "\t" + user + "\t", "CapEff:\t" + both, "CapBnd:\t" + both, "CapAmb:\t" + both, "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status, want) || user == "0" {
			t.Errorf("%q is missing:\n%s", want, status)
		}
	}
	if out := m.asAgent(t, "echo ran", `touch /var/lib/tulle/x && rm /var/lib/tulle/x && echo wrote its own`,
		`touch /etc/x || touch /run/x || touch /usr/x || touch /var/x || touch /root/x || touch /home/x && echo wrote where it has no business`,
		`echo 1 >/proc/sys/kernel/sysrq || echo 0 >/proc/sys/vm/swappiness && echo wrote sysctls that are not the network\'s`,
		`unshare --user true || unshare --net true && echo made a namespace`, `mount -t tmpfs none /tmp && echo mounted`,
		`test -e /dev/fuse || test -e /dev/kmsg && echo saw devices`,
		`su -c true root && echo became root`,
	); out != "ran\nwrote its own" {
		t.Errorf("with the agent's rights:\n%s", out)
	}
	if out := m.run(t, "stat", "-c", "%n %U %a", "/run/tulle", "/run/tulle/subnet.env", "/run/tulle/agent.sock", "/var/lib/tulle/subnet.env"); out !=
		"/run/tulle tulle 755\n/run/tulle/subnet.env tulle 644\n/run/tulle/agent.sock tulle 666\n/var/lib/tulle/subnet.env tulle 644" {
		t.Errorf("files:\n%s", out)
	}
	if out := m.run(t, "setpriv", "--reuid=nobody", "--clear-groups", "tulle", "status"); !strings.Contains(out, "10.5.77.0/24") {
		t.Errorf("tulle status of an ordinary user:\n%s", out)
	}
	out, err := m.try("tulle", "doctor", "--etcd-endpoints="+m.endpoint())
	if strings.Contains(out, "can't be looked at") || err != nil && !strings.Contains(err.Error(), "exit status 1") { // the peer is none
		t.Errorf("doctor, by root: %v\n%s", err, out)
	}
	for _, command := range [][]string{{"tulle", "cleanup"}, {"tulle", "agent", "--run-dir=/run/second", "--listen=", "--etcd-endpoints=" + m.endpoint()}} {
		if out, err := m.try(append([]string{"timeout", "5"}, command...)...); err == nil || !strings.Contains(out, "another agent runs on this host already: process "+pid) {
			t.Errorf("%s beside the agent: %v\n%s", command, err, out)
		}
	}
}

// besideFlanneld starts the agent beside something that root runs and that is called flanneld: it waits until that has ended.
func (m *machine) besideFlanneld(t *testing.T) {
	t.Helper()
	m.run(t, "sh", "-c", "systemctl stop tulle && cp /bin/sleep /run/flanneld && systemd-run --quiet --collect --unit=flanneld /run/flanneld infinity")
	m.run(t, "systemctl", "start", "--no-block", "tulle")
	m.says(t, "flanneld runs on this host (process "+m.show(t, "flanneld.service", "MainPID")+")")
	m.run(t, "sh", "-c", "systemctl stop flanneld && rm /run/flanneld && systemctl start tulle")
	m.programmed(t)
}

// asAgent runs commands as the unit runs its agent, and returns what they print.
func (m *machine) asAgent(t *testing.T, commands ...string) string {
	t.Helper()
	unit := m.run(t, "sh", "-c", `sed '/^\[Install]/,$d; s/^Type=.*/Type=oneshot/; s/^ExecStart=.*/ExecStart=sh \/etc\/tulle\/as-agent/; `+
		`/^\(Watchdog\|Restart\|Before\|After\|Wants\|Environment\|RuntimeDir\)/d' /etc/systemd/system/tulle.service`)
	m.write(t, "/run/systemd/system/as-agent.service", unit+"\n")
	m.write(t, "/etc/tulle/as-agent", "exec >/var/lib/tulle/as-agent 2>/dev/null\n"+strings.Join(commands, "\n")+"\ntrue\n")
	m.run(t, "sh", "-c", "systemctl daemon-reload && systemctl start as-agent")
	return m.run(t, "sh", "-c", "cat /var/lib/tulle/as-agent && rm /var/lib/tulle/as-agent")
}

// systemdFilters has the agent make its rules with each of the packet filters, as a user who isn't root. The legacy iptables' lock
// is root's, and Docker's, too: it is waited for. What root does beside an agent works with its files.
func systemdFilters(t *testing.T, m *machine) {
	m.write(t, "/etc/docker/daemon.json", "{}")
	m.run(t, "sh", "-c", "chmod 600 /etc/docker/daemon.json && printf 'TULLE_FIREWALL=nftables\nTULLE_ATTACH_ADDRESSES=10\n' >/etc/tulle/agent.env && systemctl restart tulle")
	m.says(t, "by=nftables")
	m.says(t, "permission denied: let the agent's user read it (chmod o+r /etc/docker/daemon.json)")
	m.run(t, "rm", "/etc/docker/daemon.json")
	m.run(t, "sh", "-c", "ip netns add container && tulle attach --netns container && tulle detach --netns container && ip netns del container")
	m.run(t, "sh", "-c", "rm /etc/tulle/agent.env && systemctl stop tulle && iptables-save | grep -v -e TULLE | iptables-restore")
	for _, tool := range []string{"iptables", "ip6tables"} {
		m.run(t, "update-alternatives", "--set", tool, "/usr/sbin/"+tool+"-legacy")
	}
	m.run(t, "sh", "-c", "rm -f /run/xtables.lock && iptables -S")
	if mode := m.run(t, "stat", "-c", "%U %a", "/run/xtables.lock"); mode != "root 600" {
		t.Errorf("iptables makes its lock %s: this test shows nothing", mode)
	}
	m.run(t, "systemctl", "start", "tulle")
	m.says(t, "by=iptables-legacy")
	m.programmed(t)

	const waiting = "cat $(find /sys/fs/cgroup -path '*/tulle.service/cgroup.procs') | sed 's|.*|/proc/&/comm|' | xargs grep -q iptables-restor" // 15 bytes
	const rules = "iptables-save -t filter | grep -- '-A TULLE-FORWARD'"
	m.run(t, "systemd-run", "--quiet", "--collect", "--unit=holder", "flock", "/run/xtables.lock", "sleep", "infinity")
	m.waitFor(t, "the lock is held", "! flock -n /run/xtables.lock true")
	m.run(t, "sh", "-c", "XTABLES_LOCKFILE=/run/another.lock iptables -F TULLE-FORWARD")
	m.waitFor(t, "the agent's iptables waits", waiting)
	if out, err := m.try("sh", "-c", rules); err == nil {
		t.Errorf("somebody holds the lock, and the agent has not waited:\n%s", out)
	}
	m.run(t, "systemctl", "stop", "holder")
	m.waitFor(t, "the rules are back", rules)
	m.run(t, "systemctl", "stop", "tulle")
	m.run(t, "sh", "-c", "iptables-save | grep -v -e TULLE | iptables-restore")
	for _, tool := range []string{"iptables", "ip6tables"} {
		m.run(t, "update-alternatives", "--auto", tool)
	}
	m.run(t, "systemctl", "start", "tulle")
	m.programmed(t)
}

// systemdBackends has the network carried in each way, and forwarding switched on for it.
func systemdBackends(t *testing.T, m *machine) {
	m.run(t, "sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward")
	m.waitFor(t, "IPv4 is forwarded", "grep -qx 1 /proc/sys/net/ipv4/ip_forward")
	m.run(t, "chmod", "666", "/dev/net/tun") // as udev does; nspawn doesn't
	for _, test := range []struct{ name, more, options, holds string }{
		{"udp", "", "", "ip link show tulle-udp"},
		{"wireguard", "", "", "ip link show tulle-wg && test \"$(stat -c '%U %a' /var/lib/tulle/wireguard.key)\" = 'tulle 600'"},
		{"l2", "", "", "ip -d link show tulle.1 | grep -q bridge_slave"},
		{"extension", "", `, "PreStartupCommand": "touch /run/tulle/extended"`, "test \"$(stat -c '%U %a' /run/tulle/extended)\" = 'tulle 600'"},
		{"host-gw", "", "", "! ip link show tulle.1"},
		{"vxlan", `"IPv6Network": "fd00:5::/48", "EnableIPv6": true,`, "",
			"grep -qx 1 /proc/sys/net/ipv6/conf/all/forwarding && ip -6 addr show docker0 | grep -q fd00:5: && ip link show tulle.1"},
	} {
		m.put(t, "config", fmt.Sprintf(`{"Network": "10.5.0.0/16", %s "Backend": {"Type": "%s"%s}}`, test.more, test.name, test.options))
		m.waitFor(t, test.name+" carries it", "tulle status | grep -q ' ready' && tulle status | grep -q 'by "+test.name+"' && "+test.holds)
	}
	m.run(t, "rm", "/run/tulle/extended")
	m.put(t, "config", plain)
	m.waitFor(t, "all is as before", "tulle status | grep -q \" ready\"")
	m.programmed(t)
}

// systemdAfterRoot has root run an agent in the same directories, and change its key: what that leaves does not stop the unit's.
func systemdAfterRoot(t *testing.T, m *machine) {
	m.put(t, "config", `{"Network": "10.5.0.0/16", "Backend": {"Type": "wireguard"}}`)
	m.waitFor(t, "wireguard carries it", "tulle status | grep -q \" ready\" && ip link show tulle-wg")
	if out := m.run(t, "tulle", "wireguard", "rotate-key"); !strings.Contains(out, "announced") {
		t.Error(out)
	}
	m.run(t, "systemctl", "stop", "tulle")
	m.run(t, "rm", "/var/lib/tulle/wireguard.key", "/run/tulle/lock")
	m.run(t, "systemd-run", "--quiet", "--collect", "--unit=roots", "--property=Type=notify", "tulle", "agent", "--etcd-endpoints="+m.endpoint())
	m.run(t, "systemctl", "stop", "roots")
	const owners = "stat -c %U /run/tulle /run/tulle/lock /var/lib/tulle/wireguard.key"
	if out := m.run(t, "sh", "-c", owners); out != "tulle\nroot\nroot" {
		t.Errorf("root's agent has left files of %q: this test shows nothing", out)
	}
	key := m.read(t, "/var/lib/tulle/wireguard.key")
	m.run(t, "systemctl", "start", "tulle")
	if out := m.run(t, "sh", "-c", owners); out != "tulle\ntulle\ntulle" {
		t.Errorf("files are of %q", out)
	}
	if m.read(t, "/var/lib/tulle/wireguard.key") != key {
		t.Error("root's key was not used")
	}
	m.put(t, "config", plain)
	m.waitFor(t, "all is as before", "tulle status | grep -q \" ready\" && ip link show tulle.1")

	// A host of which the unit ran as root: its directories are root's.
	m.run(t, "sh", "-c", "systemctl stop tulle && chown -R root: /run/tulle /var/lib/tulle && systemctl start tulle")
	if out := m.run(t, "sh", "-c", "find /run/tulle /var/lib/tulle ! -user tulle"); out != "" {
		t.Errorf("not the agent's:\n%s", out)
	}
	m.programmed(t)
}

// systemdNoSubnet has an agent that can't start, and so no subnet: Docker does not start, and says why.
func systemdNoSubnet(t *testing.T, m *machine) {
	m.run(t, "sh", "-c", "systemctl stop tulle docker && rm -r /run/tulle && echo TULLE_LOG_LEVEL=loud >/etc/tulle/agent.env")
	if out, err := m.try("systemctl", "start", "docker"); err == nil {
		t.Errorf("Docker has started without a subnet: %s", out)
	}
	m.run(t, "systemctl", "stop", "docker")
	log := m.run(t, "journalctl", "--no-pager", "--output=cat", "--unit=docker")
	if why := "env file /run/tulle/subnet.env is missing: the agent writes it once it has a subnet, so start tulle agent first"; !strings.Contains(log, why) {
		t.Errorf("Docker's log does not say %q:\n%s", why, log)
	}
	m.run(t, "sh", "-c", "rm /etc/tulle/agent.env && systemctl reset-failed docker && systemctl restart tulle && systemctl start docker")
	m.dockerStarts(t, "/usr/sbin/dockerd", " --debug --bip=172.17.0.1/16 --bip=10.5.")
}

// systemdDisabled has the agent disabled, whose env file is still there: Docker starts as if it had never been.
func systemdDisabled(t *testing.T, m *machine) {
	m.stat(t, "/run/tulle/subnet.env")
	m.run(t, "systemctl", "disable", "--now", "tulle")
	m.run(t, "systemctl", "restart", "docker")
	m.dockerStarts(t, "/usr/sbin/dockerd", " --debug --bip=172.17.0.1/16\n")
	m.run(t, "systemctl", "start", "tulle") // by hand: Docker is to have its subnet then, too
	m.run(t, "systemctl", "restart", "docker")
	m.dockerStarts(t, "/usr/sbin/dockerd", " --debug --bip=172.17.0.1/16 --bip=10.5.")
}

// says waits until the agent has logged a text.
func (m *machine) says(t *testing.T, text string) {
	t.Helper()
	eventually(t, 20*time.Second, "the agent says "+text, func() error {
		if !strings.Contains(m.log(t), text) {
			return fmt.Errorf("it does not")
		}
		return nil
	})
}

// waitFor waits until a shell in the machine agrees.
func (m *machine) waitFor(t *testing.T, what, condition string) {
	t.Helper()
	eventually(t, 20*time.Second, what, func() error {
		_, err := m.try("sh", "-c", condition)
		return err
	})
}
