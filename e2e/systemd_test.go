package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tulle-net/tulle/e2e/lab"
)

// debianRoot is a Debian with a systemd. Nothing is ever written to it: a machine gets a volatile layer on top.
const debianRoot = "../bin/debian-root"

// machine is a container with a systemd that runs as on a host, in a network namespace of its own with an underlay device.
type machine struct {
	namespace string
	leader    int // the process ID of its systemd
}

// TestSystemd starts the units of deploy/systemd for real: one boot, and one thing after the other.
func TestSystemd(t *testing.T) {
	t.Parallel()
	m := boot(t)
	for _, step := range []struct {
		name string
		run  func(*testing.T, *machine)
	}{
		{"Verify", systemdVerify}, {"NotEnabled", systemdNotEnabled}, {"LongStart", systemdLongStart}, {"Start", systemdStart}, {"DockerOfDebian", systemdDebian},
		{"Alive", systemdAlive}, {"Stopped", systemdStopped}, {"HangingLoop", systemdHangs}, {"Restart", systemdRestart}, {"Stop", systemdStop},
		{"Reboot", systemdReboot}, {"Rights", systemdRights}, {"PacketFilters", systemdFilters}, {"Backends", systemdBackends}, {"AfterRoot", systemdAfterRoot},
		{"Cleanup", systemdCleanup}, {"NoSubnet", systemdNoSubnet}, {"Disabled", systemdDisabled},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, m) }) {
			t.Fatalf("%s failed; what comes after it would, too", step.name)
		}
	}
}

// systemdVerify has the units checked, with Docker's as docker.com has it: nothing may be complained about, and little exposed.
func systemdVerify(t *testing.T, m *machine) {
	for from, to := range map[string]string{"": "/etc/systemd/system", "sysusers.d": "/etc/sysusers.d", "tmpfiles.d": "/etc/tmpfiles.d"} {
		if err := os.CopyFS(m.path(to), os.DirFS(filepath.Join("../deploy/systemd", from))); err != nil {
			t.Fatal(err)
		}
	}
	m.run(t, "systemd-sysusers")
	m.dockerd(t, "/usr/bin/dockerd", "-H fd:// --containerd=/run/containerd/containerd.sock")
	m.write(t, "/etc/default/tulle", "TULLE_ETCD_ENDPOINTS="+m.endpoint()+"\n")
	m.write(t, "/etc/tulle/etcd.env", "TULLE_LISTEN_CLIENT_URLS="+m.endpoint()+"\n")
	units := []string{"/etc/systemd/system/tulle.service", "/etc/systemd/system/tulle-etcd.service"}
	if out := m.run(t, append([]string{"systemd-analyze", "verify", "--man=no", "/usr/lib/systemd/system/docker.service"}, units...)...); out != "" {
		t.Error(out)
	}
	for _, unit := range units {
		const most = "20" // tenths, of 10.0
		if out, err := m.try("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold="+most, unit); err != nil {
			t.Errorf("%s exposes more than %s: %v\n%s", unit, most, err, out)
		}
	}
}

// systemdNotEnabled has all files installed, and nothing enabled: Docker starts as if they weren't there.
func systemdNotEnabled(t *testing.T, m *machine) {
	m.run(t, "systemctl", "daemon-reload")
	m.run(t, "systemctl", "start", "docker")
	m.dockerStarts(t, "/usr/bin/dockerd", "")
	if state := m.show(t, "tulle.service", "ActiveState"); state != "inactive" {
		t.Errorf("nobody enabled the agent, and it is %s", state)
	}
	m.run(t, "systemctl", "stop", "docker")
	m.run(t, "systemctl", "enable", "tulle.service")
}

// systemdLongStart has an agent that waits for longer than a start may take, which is no fault of its own, and then hangs.
func systemdLongStart(t *testing.T, m *machine) {
	const limit = 4 * time.Second
	m.write(t, "/etc/systemd/system/tulle.service.d/test.conf", "[Service]\nTimeoutStartSec=4\nWatchdogSec=2\nTimeoutStopSec=1\n")
	m.run(t, "systemctl", "daemon-reload")
	m.run(t, "systemctl", "start", "--no-block", "tulle")
	m.eventually(t, "tulle.service", "MainPID", func(v string) bool { return v != "0" })
	pid := m.show(t, "tulle.service", "MainPID")
	for began := time.Now(); time.Since(began) < 3*limit; {
		if state, now := m.show(t, "tulle.service", "ActiveState"), m.show(t, "tulle.service", "MainPID"); state != "activating" || now != pid {
			t.Fatalf("after %s without etcd the agent is %s, process %s, which was %s", time.Since(began), state, now, pid)
		}
	}
	m.run(t, "systemctl", "kill", "--kill-who=main", "--signal=STOP", "tulle")
	m.eventually(t, "tulle.service", "MainPID", func(v string) bool { return v != pid && v != "0" })
	m.run(t, "systemctl", "stop", "tulle")
	if err := os.RemoveAll(m.path("/etc/systemd/system/tulle.service.d")); err != nil {
		t.Fatal(err)
	}
	m.run(t, "systemctl", "daemon-reload")
}

// systemdStart starts Docker, which needs the agent, which needs a config. Neither start is over before its time.
func systemdStart(t *testing.T, m *machine) {
	m.startEtcd(t)
	started := make(chan error, 1)
	go func() {
		_, err := m.try("systemctl", "start", "docker")
		started <- err
	}()
	m.eventually(t, "tulle.service", "StatusText", func(v string) bool { return v == "waiting for a network config in etcd" })
	if state := m.show(t, "tulle.service", "ActiveState"); state != "activating" {
		t.Errorf("the agent has no config, and is %s", state)
	}
	if state := m.show(t, "docker.service", "ActiveState"); state != "inactive" {
		t.Errorf("the agent has not started, and Docker is %s", state)
	}
	select {
	case err := <-started:
		t.Fatalf("systemctl start returned before the agent was ready: %v", err)
	default:
	}
	m.put(t, "subnets/10.5.77.0-24", lease("192.0.2.11", "", 1)) // a reservation: not the subnet that it would choose
	m.put(t, "subnets/10.5.88.0-24", lease("192.0.2.88", "02:00:00:00:00:88", 1))
	m.put(t, "config", plain)
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	for _, unit := range []string{"tulle.service", "docker.service"} {
		if state := m.show(t, unit, "ActiveState"); state != "active" {
			t.Errorf("%s is %s", unit, state)
		}
	}
	m.dockerRuns(t, "/usr/bin/dockerd", "--bip=10.5.77.1/24 ")
}

// systemdDebian has Docker where and as Debian's package has it. What both say, the last says.
func systemdDebian(t *testing.T, m *machine) {
	if err := os.Remove(m.path("/usr/bin/dockerd")); err != nil {
		t.Fatal(err)
	}
	m.dockerd(t, "/usr/sbin/dockerd", "-H fd:// --containerd=/run/containerd/containerd.sock $DOCKER_OPTS")
	m.write(t, "/etc/default/docker", "DOCKER_OPTS=\"--debug --bip=172.17.0.1/16\"\n")
	m.run(t, "systemctl", "daemon-reload")
	for range 2 { // what a start had does not come again with the next
		m.run(t, "systemctl", "restart", "docker")
		m.dockerRuns(t, "/usr/sbin/dockerd", "--debug --bip=172.17.0.1/16 --bip=10.5.77.1/24 --ip-masq=false --mtu=1450\n")
	}
}

// systemdAlive gives the agent little time to be heard from, and hears from it.
func systemdAlive(t *testing.T, m *machine) {
	if limit := m.show(t, "tulle.service", "WatchdogUSec"); limit != "1min" {
		t.Errorf("the watchdog waits %s", limit)
	}
	m.write(t, "/etc/systemd/system/tulle.service.d/test.conf", "[Service]\nWatchdogSec=2\n")
	m.run(t, "systemctl", "daemon-reload")
	m.run(t, "systemctl", "restart", "tulle")
	pid := m.show(t, "tulle.service", "MainPID")
	for range 3 {
		last := m.show(t, "tulle.service", "WatchdogTimestampMonotonic")
		m.eventually(t, "tulle.service", "WatchdogTimestampMonotonic", func(v string) bool { return v != last })
	}
	if now := m.show(t, "tulle.service", "MainPID"); now != pid {
		t.Errorf("the agent was process %s and is process %s", pid, now)
	}
}

// systemdStopped stops the agent's process.
func systemdStopped(t *testing.T, m *machine) {
	m.aborted(t, func() { m.run(t, "systemctl", "kill", "--kill-who=main", "--signal=STOP", "tulle") })
}

// systemdHangs makes the loop hang, and nothing else of the process: iptables-save does not return.
func systemdHangs(t *testing.T, m *machine) {
	m.aborted(t, func() {
		m.script(t, "/usr/local/lib/hang", "mkdir /run/tulle/hung 2>/dev/null && exec sleep infinity\nexec /etc/alternatives/iptables-save \"$@\"\n")
		m.run(t, "ln", "-sf", "/usr/local/lib/hang", "/usr/sbin/iptables-save")
		m.run(t, "iptables", "-w", "-F", "TULLE-FORWARD")
	})
	m.run(t, "ln", "-sf", "/etc/alternatives/iptables-save", "/usr/sbin/iptables-save")
	m.run(t, "rmdir", "/run/tulle/hung")
	if err := os.RemoveAll(m.path("/etc/systemd/system/tulle.service.d")); err != nil {
		t.Fatal(err)
	}
	m.run(t, "systemctl", "daemon-reload")
}

// systemdRestart restarts the agent: it comes back to what it left, and Docker goes on.
func systemdRestart(t *testing.T, m *machine) {
	pid, docker, link, env := m.show(t, "tulle.service", "MainPID"), m.show(t, "docker.service", "MainPID"), m.link(t), m.stat(t, "/run/tulle/subnet.env")
	m.run(t, "systemctl", "restart", "tulle")
	if now := m.show(t, "tulle.service", "MainPID"); now == pid {
		t.Errorf("the agent is still process %s", pid)
	}
	if now := m.show(t, "docker.service", "MainPID"); now != docker {
		t.Errorf("dockerd was process %s and is process %s", docker, now)
	}
	if now := m.link(t); now != link {
		t.Errorf("tulle.1 was made anew:\n%s\n%s", link, now)
	}
	if !os.SameFile(env, m.stat(t, "/run/tulle/subnet.env")) {
		t.Error("the env file was written anew")
	}
}

// systemdStop stops the agent: the network and its files stay, and Docker goes on.
func systemdStop(t *testing.T, m *machine) {
	docker, link := m.show(t, "docker.service", "MainPID"), m.link(t)
	m.run(t, "systemctl", "stop", "tulle")
	if result, state := m.show(t, "tulle.service", "Result"), m.show(t, "tulle.service", "ActiveState"); result != "success" || state != "inactive" {
		t.Errorf("the stopped agent is %s: %s", state, result)
	}
	if now := m.link(t); now != link {
		t.Errorf("tulle.1 was changed:\n%s\n%s", link, now)
	}
	m.programmed(t)
	m.stat(t, "/run/tulle/subnet.env")
	if now := m.show(t, "docker.service", "MainPID"); now != docker {
		t.Errorf("dockerd was process %s and is process %s", docker, now)
	}
}

// systemdReboot takes away what a reboot takes, and all that etcd knew besides: the host has its subnet again, and Docker
// starts when it has.
func systemdReboot(t *testing.T, m *machine) {
	m.run(t, "systemctl", "stop", "docker")
	m.wipeEtcd(t)
	m.run(t, "sh", "-c", "rm -r /run/tulle /run/tulle-docker.env && ip link del tulle.1 && ip link del docker0")
	m.run(t, "systemctl", "start", "--no-block", "docker")
	eventually(t, 20*time.Second, "the agent runs", func() error {
		_, err := os.Stat(m.path("/run/tulle/lock"))
		return err
	})
	m.startEtcd(t)
	m.put(t, "subnets/10.5.88.0-24", lease("192.0.2.88", "02:00:00:00:00:88", 1))
	m.put(t, "config", plain)
	m.eventually(t, "docker.service", "ActiveState", func(v string) bool { return v == "active" })
	m.dockerRuns(t, "/usr/sbin/dockerd", "--debug --bip=172.17.0.1/16 --bip=10.5.77.1/24 ")
}

// systemdCleanup leaves nothing to the next agent: it gets another subnet when etcd has forgotten the first.
func systemdCleanup(t *testing.T, m *machine) {
	m.run(t, "systemctl", "stop", "docker", "tulle")
	out := m.run(t, "tulle", "cleanup")
	for _, path := range []string{"/run/tulle/subnet.env", "/var/lib/tulle/subnet.env"} {
		if !strings.Contains(out, "removed "+path) {
			t.Errorf("cleanup does not name %s:\n%s", path, out)
		}
		if _, err := os.Stat(m.path(filepath.Dir(path))); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s after cleanup: %v", filepath.Dir(path), err)
		}
	}
	m.wipeEtcd(t)
	m.startEtcd(t)
	m.put(t, "config", plain)
	m.run(t, "systemctl", "start", "tulle")
	if env := m.read(t, "/run/tulle/subnet.env"); strings.Contains(env, "10.5.77.") {
		t.Errorf("an agent that knows nothing has the same subnet: this test can't tell whether it is remembered\n%s", env)
	}
}

// boot starts a machine that goes away with the test.
func boot(t *testing.T) *machine {
	t.Helper()
	m := &machine{namespace: fmt.Sprintf("tulle-t%d-%d-systemd", os.Getpid(), labNumber.Add(1))}
	host(t, "ip", "netns", "add", m.namespace)
	t.Cleanup(func() { host(t, "ip", "netns", "del", m.namespace) })
	in(t, m.namespace, "sh", "-c", `ip link set lo up && ip link add eth0 type veth peer name underlay && ip link set underlay up &&
		ip link set eth0 up && ip addr add 192.0.2.11/24 dev eth0 && ip route add default via 192.0.2.1`)
	tulle := filepath.Join(t.TempDir(), "tulle")
	build := exec.Command("go", "build", "-o", tulle, "../cmd/tulle")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is delivered: the machine need not have our libc
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build tulle: %v\n%s", err, out)
	}
	m.start(t, "--bind-ro="+tulle+":/usr/local/bin/tulle")
	return m
}

// nspawn starts a systemd in the network namespace $1, in a cgroup of that name, from the root $2, by way of the file $3, with what
// follows as options of systemd-nspawn's. That asks for a /run with a systemd's directory; what is mounted here goes away with
// the mount namespace.
const nspawn = `set -e
for cgroup in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
	if [ -e "$cgroup/cgroup.procs" ]; then
		mkdir "$cgroup/$1"
		echo 0 >"$cgroup/$1/cgroup.procs"
	fi
done
touch "$3"
mount --bind "/run/netns/$1" "$3"
root=$2 netns=$3
shift 3
mount -t tmpfs tmpfs /run
mkdir /run/systemd
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network
exec systemd-nspawn --quiet --directory "$root" --volatile=overlay --boot --register=no --keep-unit \
	--network-namespace-path="$netns" --capability=CAP_NET_ADMIN --console=pipe "$@"`

// start starts the machine's systemd, and waits until it has booted. Whatever becomes of this process, the machine does not live
// for more than five minutes; and it does not outlive unshare, since it is in a PID namespace of unshare's.
func (m *machine) start(t *testing.T, options ...string) {
	t.Helper()
	root, err := filepath.Abs(debianRoot)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root); err != nil {
		t.Fatalf("%v: e2e/prepare test makes it", err)
	}
	t.Cleanup(func() { removeCgroups(t, m.namespace) })
	var console bytes.Buffer
	cmd := exec.Command("timeout", append([]string{"--signal=KILL", "300", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
		"sh", "-c", nspawn, "sh", m.namespace, root, filepath.Join(t.TempDir(), "netns")}, options...)...)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = &console, &console, &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		if t.Failed() && m.leader > 0 {
			log, err := m.try("journalctl", "--boot", "--no-pager", "--output=short-precise", "--lines=300")
			t.Logf("the machine's journal (%v):\n%s", err, log)
		}
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // it may have ended by itself
		<-ended
		if t.Failed() {
			t.Logf("the machine's console:\n%s", &console)
		}
	})
	eventually(t, 30*time.Second, "a machine boots", func() (err error) {
		if m.leader, err = descendant(cmd.Process.Pid, "systemd"); err != nil {
			return err
		}
		state, err := m.try("systemctl", "is-system-running")
		if state == "running" || state == "degraded" {
			return nil
		}
		return errors.Join(err, errors.New(state))
	})
}

// descendant finds the process of a name in a line of only children.
func descendant(pid int, name string) (int, error) {
	for {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil {
			return 0, err
		}
		if strings.TrimSpace(string(comm)) == name {
			return pid, nil
		}
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			return 0, err
		}
		only, _, _ := strings.Cut(string(children), " ")
		if pid, err = strconv.Atoi(only); err != nil {
			return 0, fmt.Errorf("%s has no child yet", strings.TrimSpace(string(comm)))
		}
	}
}

// removeCgroups removes the cgroups that a machine left, the inner ones first. They are busy until its last process is gone.
func removeCgroups(t *testing.T, name string) {
	for _, cgroup := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"} {
		top := filepath.Join(cgroup, name)
		err := lab.Wait(context.Background(), 10*time.Second, top+" is gone", func() error {
			var dirs []string
			err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append([]string{path}, dirs...)
				}
				return err
			})
			for _, dir := range dirs {
				err = errors.Join(err, unix.Rmdir(dir))
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// host runs a command on this machine.
func host(t *testing.T, command ...string) {
	t.Helper()
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(command, " "), err, out)
	}
}

// try runs a command in the machine and returns what it prints.
func (m *machine) try(command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--all", "--target", strconv.Itoa(m.leader), "--"}, command...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, bytes.TrimSpace(out))
	}
	return string(bytes.TrimSpace(out)), err
}

func (m *machine) run(t *testing.T, command ...string) string {
	t.Helper()
	out, err := m.try(command...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// show is a property of a unit.
func (m *machine) show(t *testing.T, unit, property string) string {
	t.Helper()
	return m.run(t, "systemctl", "show", "--value", "--property", property, unit)
}

// eventually waits until a property of a unit is as it should be.
func (m *machine) eventually(t *testing.T, unit, property string, good func(string) bool) {
	t.Helper()
	eventually(t, 20*time.Second, unit+"'s "+property+" changes", func() error {
		value, err := m.try("systemctl", "show", "--value", "--property", property, unit)
		if err == nil && !good(value) {
			err = fmt.Errorf("it is %q", value)
		}
		return err
	})
}

// path is where a file of the machine is found from outside.
func (m *machine) path(path string) string { return fmt.Sprintf("/proc/%d/root%s", m.leader, path) }

func (m *machine) write(t *testing.T, path, text string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(m.path(path)), 0o755)
	if err := errors.Join(err, os.WriteFile(m.path(path), []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) script(t *testing.T, path, text string) {
	t.Helper()
	m.write(t, path, "#!/bin/sh\n"+text)
	if err := os.Chmod(m.path(path), 0o755); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(m.path(path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (m *machine) stat(t *testing.T, path string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(m.path(path))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// dockerd installs what stands for Docker: a unit like Docker's, and a dockerd that notes how it was started, and what of the
// network was there by then.
func (m *machine) dockerd(t *testing.T, path, args string) {
	t.Helper()
	m.script(t, path, "[ \"$1\" != --version ] || exec echo Docker version 20.10.24+dfsg1, build 297e128\n"+
		"{ echo \"$0 $*\"; ip route; } >/run/dockerd.new\nmv /run/dockerd.new /run/dockerd\nexec sleep infinity\n")
	m.write(t, "/usr/lib/systemd/system/docker.service", "[Unit]\nAfter=network-online.target\nWants=network-online.target\n"+
		"[Service]\nEnvironmentFile=-/etc/default/docker\nExecStart="+path+" "+args+"\nRestart=on-failure\nKillMode=process\n")
}

// dockerRuns fails unless dockerd was started with options that begin so, after everything was programmed.
func (m *machine) dockerRuns(t *testing.T, path, options string) {
	t.Helper()
	if text := m.dockerStarts(t, path, " "+options); !strings.Contains(text, "\n10.5.88.0/24 ") {
		t.Errorf("dockerd was started before the route to the peer was there:\n%s", text)
	}
	m.programmed(t)
}

// dockerStarts fails unless dockerd was started, since this was last asked, with options that begin so, and returns what it noted. No
// options are none at all.
func (m *machine) dockerStarts(t *testing.T, path, options string) (text string) {
	t.Helper()
	want := path + " -H fd:// --containerd=/run/containerd/containerd.sock" + cmp.Or(options, "\n")
	eventually(t, 5*time.Second, "dockerd notes how it was started", func() error {
		noted, err := os.ReadFile(m.path("/run/dockerd"))
		if text = string(noted); err == nil && !strings.HasPrefix(text, want) {
			err = fmt.Errorf("want %q: %s", want, text)
		}
		return err
	})
	m.run(t, "rm", "/run/dockerd")
	return text
}

// programmed fails unless the network is in force.
func (m *machine) programmed(t *testing.T) {
	t.Helper()
	now := m.run(t, "sh", "-c", "ip -br addr; ip route; iptables-save")
	for _, what := range []string{"\ndocker0 ", " 10.5.77.1/24", "\ntulle.1 ", "\n10.5.88.0/24 ", "-A TULLE-FORWARD", "-A TULLE-POSTROUTING"} {
		if !strings.Contains(now, what) {
			t.Errorf("%q is missing:\n%s", what, now)
		}
	}
}

// aborted does something to the agent, after which systemd must abort and restart it. Docker goes on.
func (m *machine) aborted(t *testing.T, harm func()) {
	t.Helper()
	pid, docker, log := m.show(t, "tulle.service", "MainPID"), m.show(t, "docker.service", "MainPID"), m.log(t)
	harm()
	m.eventually(t, "tulle.service", "MainPID", func(v string) bool { return v != pid && v != "0" })
	m.eventually(t, "tulle.service", "ActiveState", func(v string) bool { return v == "active" })
	said := strings.TrimPrefix(m.log(t), log)
	for _, what := range []string{"Watchdog timeout", "SIGABRT: abort", "goroutine "} {
		if !strings.Contains(said, what) {
			t.Errorf("the journal does not say %q:\n%s", what, said)
		}
	}
	if now := m.show(t, "docker.service", "MainPID"); now != docker {
		t.Errorf("dockerd was process %s and is process %s", docker, now)
	}
	m.programmed(t)
}

// log is what the agent, and systemd about it, have logged.
func (m *machine) log(t *testing.T) string {
	t.Helper()
	return m.run(t, "journalctl", "--no-pager", "--output=cat", "--unit=tulle")
}

// link is what tells tulle.1 from another that has its name.
func (m *machine) link(t *testing.T) string {
	t.Helper()
	return m.run(t, "sh", "-c", "ip -o link show tulle.1")
}

func (m *machine) endpoint() string { return "http://192.0.2.11:2379" }

func (m *machine) startEtcd(t *testing.T) {
	t.Helper()
	m.run(t, "systemctl", "start", "tulle-etcd")
}

// wipeEtcd stops etcd and removes all that it knew.
func (m *machine) wipeEtcd(t *testing.T) {
	t.Helper()
	m.run(t, "systemctl", "stop", "tulle-etcd")
	m.run(t, "systemctl", "clean", "--what=state", "tulle-etcd")
}

// put stores one of the network's keys.
func (m *machine) put(t *testing.T, key, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	dial := func(ctx context.Context, address string) (conn net.Conn, err error) {
		err = lab.In(m.namespace, func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
			return err
		})
		return conn, err
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{m.endpoint()}, Context: ctx,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials())}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Put(ctx, "/coreos.com/network/"+key, value); err != nil {
		t.Fatal(err)
	}
}
