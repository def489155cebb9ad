package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/agent/api"
)

// Process is a daemon of the lab. It outlives the process that started it.
type Process struct {
	PID  int
	Args []string // by which it is known again: a PID alone may be another's by now
	Log  string

	ended chan struct{} // closed when it has ended, if this process started it
	err   error
}

// errEnded says that a process ended that should not have.
var errEnded = errors.New("process ended")

// startProcess starts a daemon in a namespace, its output appended to a log file.
func startProcess(namespace, log, path string, args ...string) (*Process, error) {
	out, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C meant for us is none of its business
	start := func() error {
		return errors.Join(nameHost(namespace[strings.LastIndex(namespace, "-")+1:]), cmd.Start())
	}
	if err := In(namespace, start); err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", path, namespace, err)
	}
	p := &Process{PID: cmd.Process.Pid, Args: cmd.Args, Log: log, ended: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// nameHost gives this thread, and what it starts, a name of its own for the machine.
func nameHost(name string) error {
	if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("a host name of its own: %w", err)
	}
	return unix.Sethostname([]byte(name))
}

// alive wraps a condition so that it need not be waited for once the process has ended.
func (p *Process) alive(condition func() error) func() error {
	return func() error {
		select {
		case <-p.ended:
			return fmt.Errorf("%w (%v); its last words: %s", errEnded, p.err, p.tail())
		default:
			return condition()
		}
	}
}

// tail is the end of the process's log.
func (p *Process) tail() string {
	text, _ := os.ReadFile(p.Log)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}

// Stop sends a signal and waits until the process has ended. A process that isn't there any more is no error.
func (p *Process) Stop(signal unix.Signal) error {
	if !p.running() {
		return nil
	}
	if err := unix.Kill(p.PID, signal); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return Wait(context.Background(), 10*time.Second, fmt.Sprintf("process %d ends", p.PID), func() error {
		if p.running() {
			return errors.New("it runs")
		}
		return nil
	})
}

func (p *Process) running() bool {
	if p == nil {
		return false
	}
	if p.ended != nil {
		select {
		case <-p.ended:
			return false
		default:
			return true
		}
	}
	now := cmdline(p.PID)
	return now != "" && now == strings.Join(p.Args, "\x00")
}

// cmdline is what a process was started with, NUL between the arguments; "" if there is no such process.
func cmdline(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return string(bytes.TrimRight(text, "\x00"))
}

// Dial connects to an address as it is seen on the host.
func (h *Host) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = In(h.Namespace, func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// dialAgent connects to where the host's agent answers without further ado: one that was told --listen may want TLS or a token
// there, but not at its unix socket.
func (h *Host) dialAgent(ctx context.Context, network, address string) (net.Conn, error) {
	if h.Agent != nil && slices.Contains(h.Agent.Args, "--listen") {
		return (&net.Dialer{}).DialContext(ctx, "unix", api.Socket(h.RunDir))
	}
	return h.Dial(ctx, network, address)
}

// Get asks the host's status server for a path.
func (h *Host) Get(ctx context.Context, path string) (status int, body string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: h.dialAgent}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:9494"+path, nil)
	if err != nil {
		return 0, "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), err
}

// output is Output with something on standard input, and standard error only in the error.
func output(ctx context.Context, namespace, stdin string, command ...string) (string, error) {
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	if err := In(namespace, cmd.Run); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(errOut.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// environment makes a tulle that runs on a host find the agent and etcd.
func (l *Lab) environment(name string) (env []string) {
	for _, h := range l.Nodes {
		if h.Name == name {
			env = append(env, "TULLE_RUN_DIR="+h.RunDir)
		}
	}
	if !l.Bare {
		env = append(env, "TULLE_ETCD_ENDPOINTS="+l.Endpoints(), "TULLE_ETCD_PREFIX="+l.Prefix)
	}
	return env
}

// Exec runs a command in a host or container, its input and output being ours, and returns its exit code. A tulle is the lab's.
func (l *Lab) Exec(ctx context.Context, name string, command []string) (int, error) {
	namespace, err := l.Find(name)
	if err != nil {
		return 0, err
	}
	path := command[0]
	if path == "tulle" {
		path = l.Binary
	}
	cmd := exec.CommandContext(ctx, path, command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), l.environment(name)...)
	err = In(namespace, cmd.Run)
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		return failed.ExitCode(), nil
	}
	return 0, err
}
