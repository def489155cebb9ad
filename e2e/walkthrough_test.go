package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/document"
	"github.com/tulle-net/tulle/e2e/lab"
)

// shellHost is a lab's host whose commands have the paths of a real one for themselves: /run, /var/lib, /var/log, /etc/docker.
type shellHost struct {
	*lab.Host
	mounts string // the mount namespace, as a file
}

// private makes the paths a machine's own. dockerd also needs a /sys that shows the host's devices, and cgroups in it.
const private = `
	mkdir -p "$DIR/cgroup" && mount --rbind /sys/fs/cgroup "$DIR/cgroup"
	mount -t sysfs sysfs /sys && mount --rbind "$DIR/cgroup" /sys/fs/cgroup
	for path in /var/lib /var/log /etc/docker; do [ ! -d "$path" ] || mount -t tmpfs tmpfs "$path"; done
	mkdir "$DIR/run" && mount --bind "$DIR/run" /run`

func newShellHost(t *testing.T, l *lab.Lab, h *lab.Host) *shellHost {
	t.Helper()
	dir := filepath.Join(l.Dir(), h.Name+"-shellHost")
	m := &shellHost{h, filepath.Join(dir, "mnt")}
	script := `mkdir "$DIR" && mount --bind "$DIR" "$DIR" && mount --make-private "$DIR" && touch "$DIR/mnt" && unshare --mount="$DIR/mnt" --propagation private true`
	if out, err := exec.Command("env", "DIR="+dir, "sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("a mount namespace for %s: %v: %s", h.Name, err, out)
	}
	t.Cleanup(func() {
		m.killAll(t)
		for _, path := range []string{m.mounts, dir} {
			if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", path, err)
			}
		}
	})
	m.sh(t, "DIR="+dir+"\n"+private)
	return m
}

// sh runs a script on the machine and returns what it prints.
func (m *shellHost) sh(t *testing.T, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "--mount="+m.mounts, "--net=/run/netns/"+m.Namespace, "sh", "-ec", script)
	cmd.Env = []string{"PATH=" + filepath.Dir(binary) + ":" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("on %s: %v\n%s\n%s", m.Name, err, script, out)
	}
	return string(out)
}

// killAll ends what runs in the machine's network namespace, all of it started here.
func (m *shellHost) killAll(t *testing.T) {
	own, err := os.Stat("/run/netns/" + m.Namespace)
	if err != nil {
		t.Error(err)
		return
	}
	spaces, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, path := range spaces {
		var pid int
		if other, err := os.Stat(path); err != nil || !os.SameFile(own, other) {
			continue // ended, or elsewhere
		}
		if _, err := fmt.Sscanf(path, "/proc/%d/", &pid); err == nil && pid != os.Getpid() { // a thread of ours may have stayed there
			_ = unix.Kill(pid, unix.SIGKILL) // gone meanwhile: as wanted
		}
	}
}

// step is a fenced block of commands, and the machines that it is for.
type step struct {
	document.Code
	machines []string
}

// steps are a document's: its blocks with machines behind the language. The commands of those without are not for a test to run.
func steps(t *testing.T, path string) (run []step, others []document.Code) {
	t.Helper()
	all, err := document.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, code := range all {
		switch words := strings.Fields(code.Info); {
		case code.Span:
		case len(words) > 1 && words[0] == "sh":
			run = append(run, step{code, words[1:]})
		default:
			others = append(others, code)
		}
	}
	if len(run) == 0 {
		t.Fatalf("%s has nothing to run", path)
	}
	return run, others
}

// TestWalkthrough runs docs/walkthrough-docker.md, command by command as they stand there, but for the one address that node2
// prints.
func TestWalkthrough(t *testing.T) {
	t.Parallel()
	run, _ := steps(t, "../docs/walkthrough-docker.md")
	l := newLab(t, lab.Options{Hosts: 3, Bare: true})
	machines := map[string]*shellHost{}
	for i, h := range l.Nodes {
		machines[fmt.Sprintf("node%d", i+1)] = newShellHost(t, l, h)
	}
	web, pinged := "", false
	for _, step := range run {
		for _, node := range step.machines {
			m := machines[node]
			script := regexp.MustCompile(`(?m)^WEB=.*$`).ReplaceAllString(step.Text, "WEB="+web)
			if strings.Contains(script, "docker run -d") {
				m.load(t)
				t.Cleanup(func() { m.sh(t, "docker rm -f web") })
			}
			if strings.Contains(script, "docker run --rm") {
				m.load(t)
			}
			out := m.sh(t, script)
			if lines := strings.Fields(out); strings.Contains(script, "docker inspect") {
				web = lines[len(lines)-1]
			}
			pinged = pinged || strings.Contains(out, "3 packets received") && strings.HasPrefix(web, "172.18.")
		}
	}
	if !pinged {
		t.Errorf("no container has pinged %q", web)
	}
	list := machines["node1"].sh(t, "tulle lease ls --etcd-endpoints=http://192.0.2.11:2379 --etcd-prefix=/network")
	for _, node := range []string{"node2", "node3"} {
		if !strings.Contains(list, machines[node].Address.String()) {
			t.Errorf("%s holds no lease:\n%s", node, list)
		}
	}
	if slices.Contains(strings.Fields(list), machines["node1"].Address.String()) {
		t.Errorf("node1 runs no agent, and has a lease:\n%s", list)
	}
}

// load makes the image that the walkthrough takes for given.
func (m *shellHost) load(t *testing.T) {
	t.Helper()
	m.sh(t, lab.MakeImage)
}
