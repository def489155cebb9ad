package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
	"github.com/tulle-net/tulle/subnet"
)

// agent is the program that is measured, on the lab's one host.
type agent struct {
	lab  *lab.Lab
	host *lab.Host
	runs bool
}

// launch starts the agent, and returns the time of just before.
func (a *agent) launch() (time.Time, error) {
	started := time.Now()
	a.runs = true
	return started, a.lab.LaunchAgent(a.host)
}

func (a *agent) kill() error {
	a.runs = false
	return a.host.Agent.Stop(unix.SIGKILL)
}

// cleanup removes all that the agent made, its files included.
func (a *agent) cleanup(ctx context.Context) error {
	_, err := lab.Output(ctx, a.host.Namespace, a.lab.Binary, "cleanup", "--run-dir", a.host.RunDir)
	return err
}

// subnet is what the agent last leased.
func (a *agent) subnet() (netip.Prefix, error) {
	env, err := a.host.Env()
	if err != nil {
		return netip.Prefix{}, err
	}
	bridge, err := netip.ParsePrefix(env["FLANNEL_SUBNET"])
	return bridge.Masked(), err
}

// check compares the routes in the kernel with the peers that there are.
func (a *agent) check(live []subnet.Lease) error {
	have, err := routes(a.host.Namespace)
	if err != nil {
		return err
	}
	for _, l := range live {
		if !have[l.Subnet.V4] {
			return fmt.Errorf("no route to %s", l.Subnet.V4)
		}
	}
	if len(have) != len(live) {
		return fmt.Errorf("%d routes for %d peers", len(have), len(live))
	}
	return nil
}

// cpu is the time that the agent has computed for so far: its CPU-time clock, in nanoseconds (clock_getcpuclockid(3)).
func (a *agent) cpu() (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED, linux/posix-timers_types.h
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^a.host.Agent.PID<<3|scheduled), &t); err != nil {
		return 0, fmt.Errorf("CPU time of the agent: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// memory is a field of the agent's /proc/PID/status, as VmRSS, in MB of 10⁶ bytes.
func (a *agent) memory(field string) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.host.Agent.PID))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); words[0] == field+":" {
			kibibytes, err := strconv.ParseFloat(words[1], 64)
			return kibibytes * 1024 / 1e6, err
		}
	}
	return 0, fmt.Errorf("no %s in /proc/%d/status", field, a.host.Agent.PID)
}

// children is what the processes have used that the agent started and waited for, page faults and CPU time (proc_pid_stat(5):
// cminflt, cmajflt, cutime, cstime). None can run without a page fault.
func (a *agent) children() (used [4]string, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.host.Agent.PID))
	if err != nil {
		return used, err
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name may have spaces
	f := strings.Fields(rest)                     // from the third on, state
	return [4]string{f[11-3], f[13-3], f[16-3], f[17-3]}, nil
}

// metric sums the agent's counters that begin with name.
func (a *agent) metric(ctx context.Context, name string) (sum float64, err error) {
	_, body, err := a.host.Get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	if !strings.Contains(body, "\ntulle_build_info") {
		return 0, errors.New("/metrics has no tulle_build_info: what else may it lack?")
	}
	return sumOf(body, name)
}

// sumOf sums the samples of a Prometheus text whose name, labels included, begins so.
func sumOf(body, name string) (sum float64, err error) {
	for line := range strings.Lines(body) {
		if !strings.HasPrefix(line, name) {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndex(line, " "):]), 64)
		if err != nil {
			return 0, fmt.Errorf("metric %s: %w", line, err)
		}
		sum += value
	}
	return sum, nil
}

// lastWords is the end of the agent's log.
func (a *agent) lastWords() string {
	text, _ := os.ReadFile(a.host.Agent.Log)
	lines := strings.SplitAfter(string(text), "\n")
	return strings.Join(lines[max(0, len(lines)-6):], "")
}

// logWatch sees what the agent writes to its log.
type logWatch struct{ changes, log *os.File }

// watchLog sees from now on what is written.
func (a *agent) watchLog() (*logWatch, error) {
	path := a.host.Agent.Log
	log, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	w := &logWatch{os.NewFile(uintptr(fd), "inotify"), log}
	_, watchErr := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY)
	_, seekErr := log.Seek(0, io.SeekEnd)
	if err := errors.Join(watchErr, seekErr); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *logWatch) close() {
	w.changes.Close()
	w.log.Close()
}

// wait returns when text has been written.
func (w *logWatch) wait(ctx context.Context, text string) (time.Time, error) {
	defer context.AfterFunc(ctx, func() { _ = w.changes.SetReadDeadline(time.Now()) })() // it fails if w is closed
	if err := w.changes.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return time.Time{}, err
	}
	var written bytes.Buffer
	for event := make([]byte, 4096); ; {
		at := time.Now()
		if _, err := written.ReadFrom(w.log); err != nil {
			return at, err
		}
		if strings.Contains(written.String(), text) {
			return at, nil
		}
		if _, err := w.changes.Read(event); err != nil {
			return at, fmt.Errorf("waiting for %q in the log: %w; it has %s", text, err, written.String())
		}
	}
}
