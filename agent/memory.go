package agent

import (
	"runtime/debug"
	runtime "runtime/metrics"
)

// spare is how much memory an agent at rest may keep beside what it uses, in bytes.
const spare = 4 << 20

// releaseMemory gives back to the kernel what a start or a burst of joins needed, and nothing needs any more. The runtime would
// keep most of it: it counts on it being needed again soon, and an agent is at rest nearly all of the time.
func releaseMemory() {
	samples := []runtime.Sample{{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}}
	runtime.Read(samples)
	free, objects, live := samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64()
	if free+objects > live+spare {
		debug.FreeOSMemory()
	}
}
