package docker

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"
)

// probeTimeout bounds each question to a dockerd, which answers within 0.1 s.
const probeTimeout = 5 * time.Second

// Daemon is an installed dockerd.
type Daemon struct {
	Path    string // empty: none was found
	Version Version
}

// Installed finds dockerd and asks its version. An empty path searches PATH, and then where Debian's and docker.com's packages
// put it. On error the Version is unknown, and the Path is set if there was something to ask.
func Installed(ctx context.Context, path string) (Daemon, error) {
	path, err := find(path)
	if err != nil {
		return Daemon{}, err
	}
	d := Daemon{Path: path}
	text, err := d.run(ctx, "--version")
	if err != nil {
		return d, err
	}
	if d.Version, err = ParseVersion(text); err != nil {
		return d, fmt.Errorf("%s --version: %w", path, err)
	}
	return d, nil
}

func find(path string) (string, error) {
	if path != "" {
		return exec.LookPath(path)
	}
	for _, candidate := range []string{"dockerd", "/usr/sbin/dockerd", "/usr/bin/dockerd"} {
		if found, err := exec.LookPath(candidate); err == nil {
			return found, nil
		}
	}
	return "", errors.New("there is no dockerd in PATH, /usr/sbin or /usr/bin")
}

// Knows says whether the dockerd starts with the option. One of a version that nothing is known about is asked itself.
func (d Daemon) Knows(ctx context.Context, o Option) (bool, error) {
	everyVersion := Version{}.Knows(o)
	if everyVersion || d.Version.Tested() || d.Path == "" {
		return d.Version.Knows(o), nil
	}
	// --version comes first: an option that takes a value and has none would else swallow it, and a daemon would start.
	_, err := d.run(ctx, "--version", string(o))
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 1 {
		return false, nil
	}
	return err == nil, err
}

// run returns what dockerd prints. One that hangs is killed with all of its children.
func (d Daemon) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.Path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // a child that left the group may hold the pipe
	text, err := cmd.Output()
	if ctx.Err() != nil {
		return "", fmt.Errorf("%s gives no answer: %w", cmd, ctx.Err())
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", cmd, err)
	}
	return string(text), nil
}
