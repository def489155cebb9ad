package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Docker is a real dockerd of a host's own, with a containerd of its own.
type Docker struct {
	Host    *Host
	Process *Process

	dir  string // of the dockerd to run; "" for the one in PATH
	lab  *Lab
	data string
}

// Image is the one image that the lab's dockerds have: busybox.
const Image = "busybox"

// dockerd starts a dockerd in the network namespace that it is called in. It takes a view of /sys of its own, or dockerd would
// find the root namespace's devices there, and no cgroups.
const dockerd = `
	mkdir -p "$DATA/cgroup"
	mount --rbind /sys/fs/cgroup "$DATA/cgroup"
	mount -t sysfs sysfs /sys
	mount --rbind "$DATA/cgroup" /sys/fs/cgroup
	rm -f "$DATA/docker.pid"
	exec dockerd --config-file "$DATA/daemon.json" --data-root "$DATA/data" --exec-root "$DATA/exec" \
		-H "unix://$DATA/docker.sock" --pidfile "$DATA/docker.pid" $DOCKER_OPTS`

// NewDocker makes a dockerd for a host, to be started with what its agent's env file says. dir has the programs to run, if not
// PATH.
func (l *Lab) NewDocker(h *Host, dir string) (*Docker, error) {
	d := &Docker{Host: h, dir: dir, lab: l, data: l.dockerDir(h)}
	if err := os.MkdirAll(d.data, 0o755); err != nil {
		return nil, err
	}
	return d, os.WriteFile(filepath.Join(d.data, "daemon.json"), []byte("{}"), 0o644)
}

func (l *Lab) dockerDir(h *Host) string { return filepath.Join(h.RunDir, "docker") }

// Start starts dockerd and waits until it answers. options are added to those of the env file.
func (d *Docker) Start(ctx context.Context, options ...string) error {
	env, err := d.Host.Env()
	if err != nil {
		return err
	}
	return d.StartAlone(ctx, append([]string{env["DOCKER_OPTS"]}, options...)...)
}

// DaemonJSON is the path of dockerd's own config.
func (d *Docker) DaemonJSON() string { return filepath.Join(d.data, "daemon.json") }

// StartAlone starts dockerd with these options and those in its own config, whatever an env file says, and waits until it answers.
func (d *Docker) StartAlone(ctx context.Context, options ...string) (err error) {
	path := os.Getenv("PATH")
	if d.dir != "" {
		path = d.dir + ":" + path
	}
	opts := strings.Join(options, " ")
	d.Process, err = startProcess(d.Host.Namespace, filepath.Join(d.lab.Dir(), d.Host.Name+"-docker.log"),
		"env", "PATH="+path, "DATA="+d.data, "DOCKER_OPTS="+opts, "unshare", "-m", "--propagation", "private", "sh", "-c", dockerd)
	if err != nil {
		return err
	}
	return Wait(ctx, readyWait, d.Host.Name+"'s dockerd answers", d.Process.alive(func() error {
		_, err := d.Do(ctx, "version")
		return err
	}))
}

// Address is where dockerd listens, as DOCKER_HOST has it.
func (d *Docker) Address() string { return "unix://" + filepath.Join(d.data, "docker.sock") }

// URL is where dockerd listens.
func (d *Docker) URL() string { return "unix://" + filepath.Join(d.data, "docker.sock") }

// Do runs a docker command and returns what it prints.
func (d *Docker) Do(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", append([]string{"-H", d.Address()}, args...)...)
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		err = fmt.Errorf("docker %s on %s: %w: %s", strings.Join(args, " "), d.Host.Name, err, text)
	}
	return text, err
}

// MakeImage is a script that makes the image from the machine's own static busybox, for the dockerd that $DOCKER_HOST names.
const MakeImage = `dir=$(mktemp -d) && mkdir "$dir/bin" "$dir/etc" "$dir/tmp" && cp "$(command -v busybox)" "$dir/bin/busybox" &&
	for applet in $("$dir/bin/busybox" --list); do [ "$applet" = busybox ] || ln "$dir/bin/busybox" "$dir/bin/$applet"; done &&
	tar -C "$dir" -c . | docker import -c 'ENV PATH=/bin' - ` + Image + ` && rm -r "$dir"`

// Load makes the image.
func (d *Docker) Load(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "sh", "-c", MakeImage)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+filepath.Join(d.data, "docker.sock"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("load the image on %s: %w: %s", d.Host.Name, err, out)
	}
	return nil
}

// Run starts a container that does nothing, with more arguments for `docker run`, and makes its network namespace known.
func (d *Docker) Run(ctx context.Context, name string, args ...string) (*Container, error) {
	args = append(append([]string{"run", "-d", "--init", "--name", name}, args...), Image, "sleep", "100000")
	if _, err := d.Do(ctx, args...); err != nil {
		return nil, err
	}
	return d.Inspect(ctx, name)
}

// Inspect returns a running container as the lab's other functions take it.
func (d *Docker) Inspect(ctx context.Context, name string) (*Container, error) {
	text, err := d.Do(ctx, "inspect", "--type", "container", name)
	if err != nil {
		return nil, err
	}
	var list []struct {
		State           struct{ Pid int }
		NetworkSettings struct {
			IPAddress netip.Addr
			Networks  map[string]struct{ IPAddress, GlobalIPv6Address string }
		}
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list) != 1 {
		return nil, fmt.Errorf("docker inspect %s: %v: %s", name, err, text)
	}
	c := &Container{Name: name, Namespace: d.lab.namespace(d.Host.Name + "-" + name)}
	for _, network := range list[0].NetworkSettings.Networks {
		for _, text := range []string{network.IPAddress, network.GlobalIPv6Address} {
			if a, err := netip.ParseAddr(text); err == nil { // none for --net=host and the like
				c.Addresses = append(c.Addresses, a)
			}
		}
	}
	if len(c.Addresses) > 0 {
		c.Address = c.Addresses[0]
	}
	if err := deleteNamespace(c.Namespace); err != nil {
		return nil, err
	}
	return c, nameNamespace(c.Namespace, fmt.Sprintf("/proc/%d/ns/net", list[0].State.Pid))
}

// nameNamespace gives a name to a network namespace that a process is in.
func nameNamespace(name, path string) error {
	target := filepath.Join(namespaceDir, name)
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(path, target, "none", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("name the network namespace %s: %w", name, err), os.Remove(target))
	}
	return nil
}

// Kill ends dockerd the hard way, and its containerd, which outlives it.
func (d *Docker) Kill() error {
	if err := d.Process.Stop(unix.SIGKILL); err != nil {
		return err
	}
	pidFile := filepath.Join(d.data, "exec/containerd/containerd.pid")
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	containerd := &Process{PID: pid, Args: strings.Split(cmdline(pid), "\x00")}
	if err := containerd.Stop(unix.SIGKILL); err != nil {
		return err
	}
	return os.Remove(pidFile) // or the next dockerd waits for it: it may be a zombie that nobody waits for
}

// Stop removes all containers and ends dockerd.
func (d *Docker) Stop(ctx context.Context) error {
	if !d.Process.running() {
		return nil
	}
	var errs []error
	if ids, err := d.Do(ctx, "ps", "-aq"); err != nil {
		errs = append(errs, err)
	} else if ids != "" {
		_, err := d.Do(ctx, append([]string{"rm", "-f"}, strings.Fields(ids)...)...)
		errs = append(errs, err)
	}
	return errors.Join(append(errs, d.Process.Stop(unix.SIGTERM))...)
}
