package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

// TestAgentContainer has an agent run as deploy/docker has it: in a container of the dockerd whose containers are to be reached.
func TestAgentContainer(t *testing.T) {
	t.Parallel()
	built := staticBinary(t)
	docker28, err := filepath.Abs("../bin/docker28/usr/sbin")
	if err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"20.10": "", "28.5": docker28} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testAgentContainer(t, built, dir)
		})
	}
}

// staticBinary builds a tulle that needs nothing of an image, in a directory of its own.
func staticBinary(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-o", dir+"/tulle", "../cmd/tulle")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}

// dockerRun returns the arguments of `docker run` in deploy/docker/README.md, with a host's own directories and an etcd.
func dockerRun(t *testing.T, h *lab.Host, endpoint string) []string {
	t.Helper()
	page, err := os.ReadFile("../deploy/docker/README.md")
	if err != nil {
		t.Fatal(err)
	}
	command := regexp.MustCompile(`(?m)^    docker (run -d(?:.* \\\n)+.*\n)`).FindSubmatch(page)
	if command == nil {
		t.Fatal("deploy/docker/README.md has no docker run")
	}
	text := strings.ReplaceAll(string(command[1]), " \\\n", "\n")
	for old, changed := range map[string]string{"http://192.0.2.1:2379": endpoint, "-v /run/tulle:": "-v " + h.RunDir + ":", "-v /var/lib/tulle:": "-v " + h.RunDir + "-state:"} {
		if strings.Count(text, old) != 1 {
			t.Fatalf("docker run has no %s:\n%s", old, text)
		}
		text = strings.Replace(text, old, changed, 1)
	}
	return append([]string{"run", "--health-interval=1s"}, strings.Fields(text)[1:]...) // Docker 25 would not wait for the first look
}

func testAgentContainer(t *testing.T, built, dir string) {
	l := newLab(t, lab.Options{Hosts: 1})
	far := l.Nodes[0].Container
	h, err := l.NewHost()
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.NewDocker(h, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	do := func(args ...string) string {
		t.Helper()
		out, err := d.Do(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	must(t, d.StartAlone(t.Context()))
	must(t, d.Load(t.Context()))
	in(t, h.Namespace, "sysctl", "-w", "net.ipv4.ip_forward=1")
	do("build", "-t", "tulle", "-f", "../deploy/docker/Dockerfile", built)
	do(dockerRun(t, h, l.Endpoint())...)
	healthy := func() error {
		out, err := d.Do(t.Context(), "inspect", "-f", "{{.State.Health.Status}}", "tulle")
		if err == nil && out != "healthy" {
			log, _ := d.Do(t.Context(), "logs", "--tail", "5", "tulle")
			err = fmt.Errorf("it is %s: %s", out, log)
		}
		return err
	}
	eventually(t, 90*time.Second, "the agent's container is healthy", healthy)

	options := do("exec", "tulle", "/tulle", "docker-opts", "--format", "json")
	must(t, os.WriteFile(d.DaemonJSON(), []byte(options), 0o644))
	must(t, d.Process.Stop(unix.SIGTERM))
	must(t, d.StartAlone(t.Context()))
	eventually(t, 90*time.Second, "the agent's container is healthy after dockerd's restart", healthy)
	web, err := d.Run(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	env, err := h.Env()
	if err != nil {
		t.Fatal(err)
	}
	if subnet, _, _ := strings.Cut(env["FLANNEL_SUBNET"], ".1/"); !strings.HasPrefix(web.Address.String(), subnet+".") {
		t.Errorf("a container has %s, and the lease is %s", web.Address, env["FLANNEL_SUBNET"])
	}
	for _, pair := range [][2]*lab.Container{{web, far}, {far, web}} {
		eventually(t, 20*time.Second, pair[0].Name+" is answered by "+pair[1].Name, func() error { return answers(t, pair[0], pair[1]) })
		ping(t, pair[0], pair[1], 1450)
	}
	if out := do("exec", "tulle", "/tulle", "status"); strings.Contains(out, "WARNING") {
		t.Errorf("not all is well:\n%s", out)
	}
}
