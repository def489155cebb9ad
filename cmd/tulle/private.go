package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// keepPrivate keeps what the process knows, keys and passwords, from its children and from files that are left of a crash.
func keepPrivate() error {
	for _, variable := range os.Environ() { // flags are read: iptables, and what else is started, has no use for them
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "TULLE_") || strings.HasPrefix(name, "FLANNELD_") {
			if err := os.Unsetenv(name); err != nil {
				return fmt.Errorf("forget %s: %w", name, err)
			}
		}
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("core dumps: %w", err)
	}
	// One byte is too little for a file, and the only limit that the kernel heeds where a program takes dumps (fs/coredump.c).
	limit.Max = min(limit.Max, 1)
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("core dumps: %w", err)
	}
	return nil
}
