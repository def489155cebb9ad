package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/e2e/document"
	"github.com/tulle-net/tulle/e2e/lab"
)

// notAsked are the commands of docs/troubleshooting.md's table that a lab's host can't run: for want of systemd, of a dockerd in its
// namespace or of the program, because they go on for ever, or because a module is the machine's.
var notAsked = []string{"systemctl status tulle", "modprobe vxlan", "systemctl status flanneld", "ps -C dockerd -o args", "tcpdump -vvn -i tulle.1",
	"tcpdump -n -i eth0 udp port 8472", "ping PUBLIC-IP"}

// TestTroubleshooting runs what docs/troubleshooting.md says to ask, on a host that is well: each command works, and complains of
// nothing.
func TestTroubleshooting(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t, lab.Options{Hosts: 2})
	h, peer := l.Nodes[0], l.Nodes[1]
	place := strings.NewReplacer("PUBLIC-IP", peer.Address.String(), "ADDRESS", peer.Container.Address.String())
	var asked, left []string
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, " | ")
		if len(cells) < 4 {
			continue
		}
		codes, err := document.Parse("the column", []byte(cells[1]))
		if err != nil {
			t.Fatal(err)
		}
		for _, code := range codes {
			switch {
			case !strings.Contains(code.Text, " ") || slices.Contains(asked, code.Text): // a name; asked before
			case slices.Contains(notAsked, code.Text):
				left = append(left, code.Text)
			default:
				asked = append(asked, code.Text)
				in(t, h.Namespace, "env", "TULLE_RUN_DIR="+h.RunDir, "TULLE_ETCD_ENDPOINTS="+l.Endpoint(),
					"PATH="+filepath.Dir(binary)+":"+os.Getenv("PATH"), "sh", "-ec", place.Replace(code.Text))
			}
		}
	}
	if len(asked) < 20 {
		t.Errorf("only %q were asked: the search is broken", asked)
	}
	if !slices.Equal(left, notAsked) {
		t.Errorf("left out are %q, and not %q", left, notAsked)
	}
}
