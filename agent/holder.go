package agent

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mayBeAgent reports whether a process could be one: root's, this one's user's, or another's that may change the network, as an agent
// has it from its unit. A process in a user namespace of its own is none: there anybody has all capabilities.
func mayBeAgent(holder *unix.Ucred) bool {
	if holder.Uid == 0 || int(holder.Uid) == os.Geteuid() {
		return true
	}
	theirs, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", holder.Pid))
	ours, ourErr := os.ReadFile("/proc/self/uid_map")
	return err == nil && ourErr == nil && bytes.Equal(theirs, ours) && slices.Contains(capabilities(holder.Pid), unix.CAP_NET_ADMIN)
}

// capabilities are those in force for a process (proc_pid_status(5)); none if it has ended.
func capabilities(pid int32) (list []int) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "CapEff:"); ok {
			set, _ := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			for c := range 64 {
				if set&(1<<c) != 0 {
					list = append(list, c)
				}
			}
		}
	}
	return list
}
