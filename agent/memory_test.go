package agent

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

// What was needed once is given back; at rest nothing is collected for its own sake.
func TestReleaseMemory(t *testing.T) {
	stats := func() (m debug.GCStats, kept uint64) {
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		debug.ReadGCStats(&m)
		return m, s.Sys - s.HeapReleased
	}
	_, before := stats()
	blocks := make([][]byte, 64)
	for i := range blocks {
		blocks[i] = make([]byte, 1<<20)
	}
	runtime.KeepAlive(blocks)
	releaseMemory(spare)
	collected, after := stats()
	if after > before+spare {
		t.Errorf("of 64 MiB that are needed no more %d KiB are kept", (after-before)>>10)
	}
	releaseMemory(spare)
	if again, _ := stats(); again.NumGC != collected.NumGC {
		t.Error("it collects though there is nothing to give back")
	}
}

// The program goes on without what was mapped of it.
func TestReleaseProgram(t *testing.T) {
	mapped := func() (kB int) {
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, text, _ := strings.Cut(string(status), "RssFile:")
		if _, err := fmt.Sscan(text, &kB); err != nil {
			t.Fatal(err)
		}
		return kB
	}
	before := mapped()
	releaseProgram()
	if after := mapped(); after >= before {
		t.Errorf("%d kB of files are mapped, before %d", after, before)
	}
}
