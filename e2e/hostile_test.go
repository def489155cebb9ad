package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/net/html"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/e2e/lab"
)

// nasty is text that acts upon who shows it: a terminal, a browser, a shell, a log, a metric's label.
const nasty = "\x1b[2J\x1b]0;title\x07\u009b31m\u202etxt.exe\u2066<script>alert(1)</script>\"' onload='alert(1)'><img src=x onerror=alert(1)>$(touch /tmp/tulle-hostile)`reboot`\\\",evil=\"1\"} 7 # level=ERROR msg=forged"

// TestHostileText has somebody write such text wherever he can, in a line of its own: keys, values, the config. Nothing that shows it acts
// by it. (TestJunk sees what becomes of a thousand such leases.)
func TestHostileText(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 1, Agent: []string{"--log-format", "json", "--log-level", "debug", "--peer-metrics"}})
	h := l.Nodes[0]
	quoted, err := json.Marshal(nasty)
	if err != nil {
		t.Fatal(err)
	}
	leases := map[string]string{
		nasty:             `{"PublicIP":"198.18.0.1"}`,
		"10.5.201.0-24":   fmt.Sprintf(`{"PublicIP":"198.18.0.2","BackendType":%s}`, quoted),
		"10.5.202.0-24":   fmt.Sprintf(`{"PublicIP":"198.18.0.3","BackendType":"vxlan","BackendData":%s}`, quoted),
		"10.5.203.0-24":   fmt.Sprintf(`{"PublicIP":"198.18.0.4","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%s}}`, quoted),
		"10.5.204.0-24":   fmt.Sprintf(`{"PublicIP":%s}`, quoted),
		"10.5.205.0-24":   fmt.Sprintf(`{"PublicIP":"198.18.0.6","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:02:05","x":%s}}`, quoted), // a sound one, for all its words
		"10.5.206.0-24\n": nasty,
	}
	err = asEtcd(t, l, func(ctx context.Context, c *clientv3.Client) error {
		for key, value := range leases {
			if _, err := c.Put(ctx, subnets+key, value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "what makes no sense is left out, and what does is a peer", func() error {
		s, err := h.Status(t.Context())
		if n := 0; err == nil {
			for _, count := range s.LeftOut {
				n += count
			}
			if n != len(leases)-1 || s.Peers.Total != 1 {
				err = fmt.Errorf("left out are %v, peers are %d", s.LeftOut, s.Peers.Total)
			}
		}
		return err
	})
	t.Run("leases", func(t *testing.T) { testHostileOutputs(t, l, h) })
	etcdctl(t, l, "put", "/coreos.com/network/config", fmt.Sprintf(`{"Network":"10.5.0.0/16",%[1]s:1,"Backend":{"Type":%[1]s}}`, quoted))
	eventually(t, 20*time.Second, "the agent complains about the config", func() error {
		if !strings.Contains(logOf(t, l, h), "config is not valid") {
			return errors.New("it does not")
		}
		return nil
	})
	t.Run("config", func(t *testing.T) { testHostileOutputs(t, l, h) })
	etcdctl(t, l, "put", "/coreos.com/network/config", "{"+nasty) // not JSON
	t.Run("no JSON", func(t *testing.T) { testHostileOutputs(t, l, h) })
}

func testHostileOutputs(t *testing.T, l *lab.Lab, h *lab.Host) {
	run, etcd := " --run-dir "+h.RunDir, " --etcd-endpoints "+l.Endpoints()
	commands := []string{"status" + run, "status --wide" + run, "status --json" + run, "events" + run, "events --json" + run, "doctor" + run + etcd, "doctor --json" + run + etcd,
		"trace 10.5.205.7" + run + etcd, "trace 10.5.205.7 --json" + run + etcd, "trace 10.5.202.7" + run + etcd, "lease ls" + etcd, "lease ls --json" + etcd,
		"config get" + etcd, "config get --secrets" + etcd}
	outputs := make([]string, len(commands))
	var all sync.WaitGroup
	for i, command := range commands {
		all.Go(func() { // its exit code is none of our business, what it complains of is
			outputs[i], _ = lab.Output(t.Context(), h.Namespace, append([]string{"sh", "-c", `"$0" "$@" 2>&1; true`, binary}, strings.Fields(command)...)...)
		})
	}
	all.Wait()
	for i, command := range commands {
		if tame(t, command, outputs[i]); outputs[i] == "" {
			t.Errorf("%s prints nothing", command)
		}
	}
	tame(t, "the log", logOf(t, l, h))
	for line := range strings.Lines(logOf(t, l, h)) {
		if !json.Valid([]byte(line)) {
			t.Errorf("the log has a line of its own: %.200s", line)
		}
	}
	for line := range strings.Lines(get(t, h, "/metrics")) {
		if strings.Contains(line, "evil") || strings.Contains(line, "<") || strings.ContainsFunc(strings.TrimRight(line, "\n"), func(r rune) bool { return !unicode.IsGraphic(r) }) {
			t.Errorf("a metric says %q", line)
		}
	}
	for _, path := range []string{api.PathStatus, api.PathPeers, api.PathEvents, api.PathView, api.PathMesh, api.PathEtcd} {
		if text := get(t, h, path); !json.Valid([]byte(text)) || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' && r != '\n' }) {
			t.Errorf("%s answers %.300q", path, text)
		}
	}
	testHostilePage(t, get(t, h, "/"))
}

// testHostilePage fails if what others wrote is anything but text in an agent's page.
func testHostilePage(t *testing.T, page string) {
	root, err := html.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	for n := range root.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		if n.Data == "script" || n.Data == "img" || n.Data == "iframe" {
			t.Errorf("the page has a %s", n.Data)
		}
		for _, a := range n.Attr {
			if strings.HasPrefix(a.Key, "on") || strings.Contains(strings.ToLower(a.Val), "javascript:") {
				t.Errorf("the page has %s=%q", a.Key, a.Val)
			}
		}
	}
	if i := strings.IndexFunc(page, func(r rune) bool { return !unicode.IsGraphic(r) && !unicode.IsSpace(r) }); i >= 0 {
		t.Errorf("the page has characters that nobody sees: %.80q", page[i:])
	}
}
