package e2e

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// The benchmark runs, in small: that it can be trusted when it runs in large.
func TestBench(t *testing.T) {
	t.Parallel()
	bench := filepath.Join(t.TempDir(), "bench")
	if out, err := exec.Command("go", "build", "-o", bench, "./bench").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), bench, "--quick", "--binary", binary, "--json", bench+".json", "--svg", t.TempDir()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
	if out, err := exec.Command(bench, "compare", bench+".json", bench+".json").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
