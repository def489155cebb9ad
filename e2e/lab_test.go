package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/tulle-net/tulle/e2e/lab"
)

// A lab that is taken down takes nothing of another with it, though that one's name begins with its own.
func TestLabsSideBySide(t *testing.T) {
	t.Parallel()
	name := fmt.Sprintf("side%d", os.Getpid())
	var labs []*lab.Lab
	for _, name := range []string{name, name + "-b"} {
		l, err := lab.Up(t.Context(), lab.Options{Name: name, Hosts: 1, Bare: true}, t.Logf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Down() })
		labs = append(labs, l)
	}
	if err := labs[0].Down(); err != nil {
		t.Fatal(err)
	}
	in(t, labs[1].Nodes[0].Namespace, "ip", "link", "show", "eth0")
	if err := labs[1].Down(); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob("/run/netns/tulle-" + name + "*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}
