package agent

import (
	"fmt"
	"os"
	"runtime/debug"
	runtime "runtime/metrics"
	"strings"

	"golang.org/x/sys/unix"
)

// spare is how much memory an agent at rest may keep beside what it uses, in bytes.
const spare = 4 << 20

// releaseMemory gives back to the kernel what a start or a burst of joins needed, and nothing needs any more. The runtime would
// keep most of it: it counts on it being needed again soon, and an agent is at rest nearly all of the time. It does nothing for
// the sake of less than room, in bytes.
func releaseMemory(room uint64) {
	samples := []runtime.Sample{{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}}
	runtime.Read(samples)
	free, objects, live := samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64()
	if free+objects > live+room {
		debug.FreeOSMemory()
		releaseProgram()
	}
}

// releaseProgram unmaps the program's own code and constants. The kernel maps again what is used: a start uses much that is never
// used again, and of the program around the agent, with its etcd server and its lab, the kernel maps what lies beside.
func releaseProgram() {
	maps, err := os.ReadFile("/proc/self/smaps") // proc_pid_smaps(5)
	program, linkErr := os.Readlink("/proc/self/exe")
	if err != nil || linkErr != nil {
		return
	}
	var from, to uintptr
	ours := false
	for line := range strings.Lines(string(maps)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) >= 6 && strings.Contains(fields[0], "-"):
			_, err := fmt.Sscanf(fields[0], "%x-%x", &from, &to)
			ours = err == nil && fields[1][1] != 'w' && strings.Join(fields[5:], " ") == program
		case ours && len(fields) > 1 && fields[0] == "Anonymous:" && fields[1] == "0": // else the file does not have what is there
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED) // a kernel that won't keeps it mapped
		}
	}
}
