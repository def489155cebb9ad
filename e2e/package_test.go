package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

// packageHost is a host of a lab with a systemd of its own, and a Debian without any tulle.
type packageHost struct {
	*machine
	*lab.Host
}

// TestPackage installs the deb as the README says, on three hosts whose containers talk then; upgrades it while they do; and removes it.
func TestPackage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := newLab(t, lab.Options{Hosts: 3, Bare: true})
	first, second := newDeb(t, dir, "1.0.0"), newDeb(t, dir, "1.0.1")
	hosts := map[string]*packageHost{}
	for _, h := range l.Nodes {
		m := &packageHost{&machine{namespace: h.Namespace}, h}
		m.start(t)
		m.prepare(t, first, second)
		hosts[h.Name] = m
	}
	readme(t, hosts)
	for _, h := range hosts {
		h.RunDir = h.path("/run/tulle")
		if err := l.NewContainer(h.Host); err != nil {
			t.Fatal(err)
		}
	}
	h := hosts["host1"]
	packageTalks(t, l.Nodes)
	packageUpgrade(t, h, hosts["host2"])
	packageRemove(t, h)
	packageTalks(t, l.Nodes[1:])
	packagePurge(t, h)
}

// newDeb makes a deb of the sources as they are, for this machine, and returns its path.
func newDeb(t *testing.T, dir, version string) string {
	t.Helper()
	dir = filepath.Join(dir, version)
	build := exec.Command("../deploy/package/release", version, dir, runtime.GOARCH)
	build.Env = append(os.Environ(), append(anyGit, "FORMATS=deb")...)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("release %s: %v\n%s", version, err, out)
	}
	return only(t, filepath.Join(dir, "*.deb"))
}

// only is the one file that has such a name.
func only(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v, %v", pattern, found, err)
	}
	return found[0]
}

// prepare gives a host what the README takes for given: Docker, which runs, and the package; and things that are none of tulle's.
func (h *packageHost) prepare(t *testing.T, first, second string) {
	t.Helper()
	h.dockerd(t, "/usr/sbin/dockerd", "-H fd:// --containerd=/run/containerd/containerd.sock $DOCKER_OPTS")
	h.write(t, "/usr/lib/systemd/system/docker.socket", "[Socket]\nListenStream=/run/docker.sock\n")
	h.run(t, "systemctl", "daemon-reload")
	h.run(t, "systemctl", "start", "docker")
	h.run(t, "sh", "-ec", `ip link add docker0 type bridge
		ip addr add 172.17.0.1/16 dev docker0
		ip link set docker0 up
		ip route add 203.0.113.0/24 dev eth0
		iptables -A FORWARD -s 203.0.113.0/24 -j ACCEPT`)
	h.copy(t, first, "/root/"+filepath.Base(first))
	h.copy(t, second, "/var/tmp/new.deb")
}

func (m *machine) copy(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	m.write(t, to, string(content))
}

// readme runs the README's commands, as they stand there.
func readme(t *testing.T, hosts map[string]*packageHost) {
	t.Helper()
	run, _ := steps(t, "../README.md")
	if len(run) != 4 {
		t.Fatalf("the README has %d blocks of commands for hosts, and not one for each of four steps", len(run))
	}
	for i, s := range run {
		for _, name := range s.machines {
			h := hosts[name]
			h.run(t, "sh", "-ec", "cd /root\n"+strings.ReplaceAll(s.Text, "amd64", runtime.GOARCH))
			if i == 0 {
				h.inert(t)
			}
		}
	}
}

// inert fails unless the package that is now installed changes nothing by that: no agent runs, and Docker starts as it did.
func (h *packageHost) inert(t *testing.T) {
	t.Helper()
	if state, _ := h.try("systemctl", "is-enabled", "tulle"); state != "disabled" {
		t.Errorf("%s: the installed unit is %s", h.Name, state)
	}
	if state, _ := h.try("systemctl", "is-active", "tulle"); state != "inactive" {
		t.Errorf("%s: the installed unit is %s", h.Name, state)
	}
	h.run(t, "systemctl", "restart", "docker")
	eventually(t, 10*time.Second, "dockerd notes how it was started", func() error {
		if text := h.read(t, "/run/dockerd"); strings.Contains(text, "--bip") || !strings.HasPrefix(text, "/usr/sbin/dockerd -H fd://") {
			return fmt.Errorf("dockerd was started otherwise than it is without tulle: %s", text)
		}
		return nil
	})
}

// packageTalks pings between all containers.
func packageTalks(t *testing.T, hosts []*lab.Host) {
	t.Helper()
	for _, from := range hosts {
		for _, to := range hosts {
			if from != to {
				ping(t, from.Container, to.Container, 1400)
			}
		}
	}
}

// packageUpgrade installs the newer version while containers talk: none notices, and what the operator has written stays.
func packageUpgrade(t *testing.T, h, peer *packageHost) {
	t.Helper()
	link, docker, agent, env := h.link(t), h.show(t, "docker.service", "MainPID"), h.show(t, "tulle.service", "MainPID"), h.read(t, "/etc/tulle/agent.env")
	flows := []*lab.Flow{startFlow(t, h.Container.Namespace, peer.Container.Address), startFlow(t, peer.Container.Namespace, h.Container.Address)}
	if out := h.run(t, "dpkg", "-i", "/var/tmp/new.deb"); !strings.Contains(out, "(1.0.1-1) over (1.0.0-1)") {
		t.Errorf("dpkg says otherwise than that it upgrades:\n%s", out)
	}
	h.eventually(t, "tulle.service", "MainPID", func(v string) bool { return v != agent && v != "0" })
	h.eventually(t, "tulle.service", "ActiveState", func(v string) bool { return v == "active" })
	after := flows[0].Sent() + 100
	eventually(t, 20*time.Second, "a while passes after the upgrade", func() error {
		if flows[0].Sent() < after {
			return fmt.Errorf("%d packets sent", flows[0].Sent())
		}
		return nil
	})
	for _, f := range flows {
		if r := f.Stop(t.Context()); r.Lost() > 0 || r.Refused != nil {
			t.Errorf("an upgrade cost %d of %d packets (%v)", r.Lost(), r.Sent, r.Refused)
		}
	}
	if log := h.log(t); !strings.Contains(log, "version=1.0.1 ") {
		t.Errorf("the agent that runs is not the new one:\n%s", log)
	}
	if now := h.link(t); now != link {
		t.Errorf("tulle.1 was made anew:\n%s\n%s", link, now)
	}
	if now := h.show(t, "docker.service", "MainPID"); now != docker {
		t.Errorf("dockerd was process %s and is process %s", docker, now)
	}
	if now := h.read(t, "/etc/tulle/agent.env"); now != env || !strings.Contains(env, "TULLE_ETCD_ENDPOINTS=http://192.0.2.11:2379") {
		t.Errorf("agent.env was\n%s\nand is\n%s", env, now)
	}
}

func startFlow(t *testing.T, namespace string, to netip.Addr) *lab.Flow {
	t.Helper()
	f, err := lab.StartFlow(namespace, to, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// packageRemove removes the package: what its agent made is gone, what somebody else made is not, nor is what the operator wrote.
func packageRemove(t *testing.T, h *packageHost) {
	t.Helper()
	h.write(t, "/etc/tulle/password", "the operator's own\n")
	docker := h.show(t, "docker.service", "MainPID")
	out := h.run(t, "dpkg", "--remove", "tulle")
	for _, what := range []string{"removed link tulle.1", "systemctl restart docker"} {
		if !strings.Contains(out, what) {
			t.Errorf("the removal does not say %q:\n%s", what, out)
		}
	}
	now := h.run(t, "sh", "-c", "ip -o link; ip route; ip rule; iptables-save; ip6tables-save; ls /run /var/lib; systemctl list-unit-files")
	for _, what := range []string{"tulle.1", "docker0", "proto 84", "TULLE", "10.5.", "tulle.service", "\ntulle\n"} {
		if strings.Contains(now, what) {
			t.Errorf("%q is still there:\n%s", what, now)
		}
	}
	h.others(t)
	if text := h.read(t, "/etc/tulle/agent.env"); !strings.Contains(text, "TULLE_ETCD_ENDPOINTS=http") {
		t.Errorf("agent.env is\n%s", text)
	}
	if now := h.show(t, "docker.service", "MainPID"); now != docker {
		t.Errorf("dockerd was process %s and is process %s", docker, now)
	}
	h.run(t, "systemctl", "restart", "docker")
}

// others fails unless all is there that prepare and others made.
func (h *packageHost) others(t *testing.T) {
	t.Helper()
	now := h.run(t, "sh", "-c", "ip route; iptables-save")
	for _, what := range []string{"203.0.113.0/24 dev eth0", "-A FORWARD -s 203.0.113.0/24 -j ACCEPT"} {
		if !strings.Contains(now, what) {
			t.Errorf("%q is gone:\n%s", what, now)
		}
	}
	h.stat(t, "/etc/tulle/password")
}

// packagePurge purges what is left: all of the package's, and the user alone remains.
func packagePurge(t *testing.T, h *packageHost) {
	t.Helper()
	h.write(t, "/var/lib/tulle/left", "as by an agent that was killed\n")
	h.run(t, "dpkg", "--purge", "tulle")
	left := h.run(t, "find", "/", "-xdev", "-iname", "*tulle*", "-not", "-path", "/proc/*", "-not", "-path", "/sys/*", "-not", "-path", "/var/lib/*tulle-etcd*",
		"-not", "-name", "tulle_1.0.0-1_*.deb")
	if left != "/etc/tulle" {
		t.Errorf("files are left, besides the operator's:\n%s", left)
	}
	if out := h.run(t, "ls", "/etc/tulle"); out != "etcd.env\npassword" {
		t.Errorf("/etc/tulle has, besides the operator's:\n%s", out)
	}
	h.others(t)
}

// unmanaged is what an operator types on a machine where no systemd runs, in a root of its own: $DIR/root, of the Debian $DEBIAN.
const unmanaged = `
mkdir "$DIR"
mount -t tmpfs tmpfs "$DIR"
mkdir "$DIR/upper" "$DIR/work" "$DIR/root"
mount -t overlay -o "lowerdir=$DEBIAN,upperdir=$DIR/upper,workdir=$DIR/work" overlay "$DIR/root"
mount -t proc proc "$DIR/root/proc"
mount -t sysfs sysfs "$DIR/root/sys"
mount --bind /dev "$DIR/root/dev"
cp "$DEB" "$DIR/root/root/tulle.deb"
chroot "$DIR/root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -ec '
	dpkg -i /root/tulle.deb
	echo "TULLE_ETCD_ENDPOINTS=$0" >>/etc/tulle/agent.env
	(
		set -a
		. /etc/tulle/agent.env
		exec tulle agent
	) &
	until [ -e /root/remove ]; do sleep 0.1; done
	kill $!
	wait $!
	dpkg --purge tulle
	[ ! -e /etc/tulle ]
' "$ENDPOINT"`

// TestPackageByHand installs the deb where no systemd runs, and starts the agent as a command. Removed there, in a chroot, the package
// keeps its hands off the kernel: that is not the chroot's.
func TestPackageByHand(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	debian, err := filepath.Abs(debianRoot)
	if err != nil {
		t.Fatal(err)
	}
	deb := newDeb(t, dir, "1.0.0")
	l := newLab(t, lab.Options{Hosts: 1})
	h, err := l.NewHost()
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(l.Dir(), "by-hand.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child",
		"nsenter", "--net=/run/netns/"+h.Namespace, "sh", "-ec", unmanaged)
	cmd.Env = append(os.Environ(), "DIR="+filepath.Join(dir, "machine"), "DEBIAN="+debian, "DEB="+deb, "ENDPOINT="+l.Endpoint())
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) })
	eventually(t, time.Minute, "the agent is ready that was started by hand", func() error {
		select {
		case err := <-ended:
			t.Fatalf("it ended: %v", err)
		default:
		}
		return h.Ready(t.Context())
	})
	shell, err := descendant(cmd.Process.Pid, "sh")
	if err != nil {
		t.Fatal(err)
	}
	root := fmt.Sprintf("/proc/%d/root%s/machine/root", shell, dir)
	h.RunDir = root + "/run/tulle"
	if err := l.NewContainer(h); err != nil {
		t.Fatal(err)
	}
	packageTalks(t, l.Nodes)
	if err := os.WriteFile(root+"/root/remove", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	packageTalks(t, l.Nodes)
}
