package main

import (
	"os/exec"
	"strings"
	"testing"
)

// What is started has none of the variables that flags were read from.
func TestKeepPrivate(t *testing.T) {
	t.Setenv("TULLE_PLANTED", "planted-secret")
	t.Setenv("FLANNELD_ETCD_PASSWORD", "planted-secret")
	t.Setenv("PLAIN", "needed")
	if err := keepPrivate(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-c", "env; ulimit -c").Output()
	if text := string(out); err != nil || strings.Contains(text, "planted-secret") || !strings.Contains(text, "PLAIN=needed") || !strings.HasSuffix(text, "\n0\n") {
		t.Errorf("a child has %s, %v", text, err)
	}
}
