package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine is what the figures depend on.
type machine struct {
	CPU    string
	Cores  int
	Kernel string
	Iperf  string
	Tulle  string
	Date   string
	Load   string // average number of programs that wanted to run in the minute before: what else there was to do
}

func describe(ctx context.Context, binary string) (machine, error) {
	m := machine{Cores: runtime.NumCPU(), Date: time.Now().UTC().Format(time.DateOnly)}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return m, err
	}
	m.Kernel = unix.ByteSliceToString(name.Release[:])
	load, _ := os.ReadFile("/proc/loadavg")
	m.Load, _, _ = strings.Cut(string(load), " ")
	cpu, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(cpu)) {
		if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
			m.CPU = strings.TrimSpace(value)
		}
	}
	for _, program := range []struct {
		version *string
		command []string
	}{{&m.Iperf, []string{"iperf3", "--version"}}, {&m.Tulle, []string{binary, "version"}}} {
		out, err := exec.CommandContext(ctx, program.command[0], program.command[1:]...).Output()
		if err != nil {
			return m, fmt.Errorf("%s: %w", strings.Join(program.command, " "), err)
		}
		*program.version, _, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
	}
	return m, nil
}

func (m machine) String() string {
	return fmt.Sprintf("%s: %d cores of %s, Linux %s, %s, %s; both hosts on this machine, whose load was %s before. TCP is %s. Medians.",
		m.Date, m.Cores, m.CPU, m.Kernel, m.Iperf, m.Tulle, m.Load, congestion)
}
