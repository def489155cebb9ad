package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/e2e/lab"
)

// told runs a tulle command on a host, and returns what it prints and its exit code.
func told(t *testing.T, h *lab.Host, args ...string) (out, errOut string, code int) {
	t.Helper()
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(t.Context(), binary, append(args, "--run-dir", h.RunDir)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := lab.In(h.Namespace, cmd.Run)
	if exited := (*exec.ExitError)(nil); errors.As(err, &exited) {
		code = exited.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return stdout.String(), stderr.String(), code
}

// peerOf is what a host's agent says of another.
func peerOf(t *testing.T, h, of *lab.Host) api.Peer {
	t.Helper()
	peers, err := api.NewClient(h.RunDir).Peers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range peers.Peers {
		if p.PublicIPs[0] == of.Address {
			return p
		}
	}
	t.Fatalf("%s knows no %s", h.Name, of.Name)
	return api.Peer{}
}

// wantPeer waits until a host's agent says so of another.
func wantPeer(t *testing.T, h, of *lab.Host, state api.State, why string) {
	t.Helper()
	eventually(t, 30*time.Second, fmt.Sprintf("%s says that %s is %s", h.Name, of.Name, state), func() error {
		if p := peerOf(t, h, of); p.State != state || !strings.Contains(p.Why, why) {
			return fmt.Errorf("it is %s: %s", p.State, p.Why)
		}
		return nil
	})
}

// Who can be reached is seen by each host, and why not is named.
func TestReach(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3})
	h1, h2, h3 := l.Nodes[0], l.Nodes[1], l.Nodes[2]
	wantPeer(t, h1, h2, api.Reachable, "")
	wantPeer(t, h1, h3, api.Reachable, "")
	p := peerOf(t, h1, h2)
	if p.Overlay == nil || p.Underlay == nil || p.Overlay.RTT <= 0 || p.Overlay.RTT > 1 || p.Underlay.RTT <= 0 || p.Overlay.Loss > 0.5 {
		t.Errorf("%+v: overlay %+v, underlay %+v", p, p.Overlay, p.Underlay)
	}
	eventually(t, 30*time.Second, "host1 knows the round trips between the others", func() error {
		mesh, err := api.NewClient(h1.RunDir).Mesh(t.Context())
		if err != nil {
			return err
		}
		for i := range mesh.RTT {
			for j, trip := range mesh.RTT[i] {
				if i != j && (trip == nil || *trip <= 0) || len(mesh.Hosts) != 3 {
					return fmt.Errorf("%d hosts; from %d to %d not known", len(mesh.Hosts), i, j)
				}
			}
		}
		return nil
	})

	port := "-p udp --dport 8472 -j DROP"
	t.Run("blocked towards us", func(t *testing.T) {
		in(t, h1.Namespace, "sh", "-c", "iptables -I INPUT -s "+h2.Address.String()+" "+port)
		wantPeer(t, h1, h2, api.Unreachable, "blocked from there to here")
		wantPeer(t, h2, h1, api.Unreachable, "blocked from here to there")
		if p := peerOf(t, h1, h3); p.State != api.Reachable {
			t.Errorf("host3 is %s, too", p.State)
		}
		out, _, code := told(t, h1, "status")
		if code != 0 || !strings.Contains(out, "ready, but 1 unreachable peer of 2: see tulle doctor\n") {
			t.Errorf("tulle status: %d\n%s", code, out)
		}
		in(t, h1.Namespace, "sh", "-c", "iptables -D INPUT -s "+h2.Address.String()+" "+port)
		wantPeer(t, h1, h2, api.Reachable, "")
		wantPeer(t, h2, h1, api.Reachable, "")
	})
	t.Run("blocked both ways", func(t *testing.T) {
		for _, chain := range []string{"INPUT", "OUTPUT"} {
			in(t, h1.Namespace, "sh", "-c", "iptables -I "+chain+" "+port)
		}
		wantPeer(t, h1, h2, api.Unreachable, "but not over the overlay")
		for _, chain := range []string{"INPUT", "OUTPUT"} {
			in(t, h1.Namespace, "sh", "-c", "iptables -D "+chain+" "+port)
		}
		wantPeer(t, h1, h2, api.Reachable, "")
	})
	t.Run("the host is down", func(t *testing.T) {
		wantPeer(t, h1, h3, api.Reachable, "")
		in(t, l.Underlay(), "ip", "link", "set", "host3", "down")
		wantPeer(t, h1, h3, api.Unreachable, "is its host down?")
		in(t, l.Underlay(), "ip", "link", "set", "host3", "up")
		wantPeer(t, h1, h3, api.Reachable, "")
		if out, _, _ := told(t, h1, "events"); !strings.Contains(out, "("+h3.Address.String()+") is unreachable: it answers neither") || !strings.Contains(out, "is reachable again") {
			t.Errorf("tulle events:\n%s", out)
		}
	})
}

// Commands that ask an agent: what they print, and what they say when there is none.
func TestAsk(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 2})
	h, other := l.Nodes[0], l.Nodes[1]
	wantPeer(t, h, other, api.Reachable, "")
	out, _, code := told(t, h, "status")
	subnet := peerOf(t, h, other).Subnets[0].String()
	if code != 0 || !strings.Contains(out, "  ready, 1 peer, all reachable\n") || !strings.Contains(out, "\n"+subnet) || strings.Contains(out, "\x1b") || strings.Contains(out, "WARNING") {
		t.Errorf("tulle status: %d\n%s", code, out)
	}
	out, _, _ = told(t, h, "status", "--json")
	var both struct {
		api.Status
		PeerList []api.Peer `json:"peer_list"`
	}
	if err := json.Unmarshal([]byte(out), &both); err != nil || !both.Ready || len(both.PeerList) != 1 || both.Peers.Reachable != 1 || both.API != api.Version {
		t.Errorf("tulle status --json: %v\n%s", err, out)
	}
	in(t, h.Namespace, "ip", "route", "del", subnet)
	eventually(t, 5*time.Second, "the event is told", func() error {
		if out, _, _ := told(t, h, "events", "-n", "1"); !strings.Contains(out, "WARN   route to "+subnet+" was deleted by someone else, restored\n") {
			return errors.New(out)
		}
		return nil
	})
	if out, _, _ := told(t, h, "events"); !strings.Contains(out, "peer "+subnet+" ("+other.Address.String()+") joined") && !strings.Contains(out, "everything is programmed  peers: 1") {
		t.Errorf("tulle events:\n%s", out)
	}
	now, err := api.NewClient(h.RunDir).Etcd(t.Context(), strings.Replace(subnet, "/", "-", 1))
	if err != nil || now.Error != "" || now.Lease == nil || now.TTL < 23*3600 || len(now.Endpoints) != 1 || now.Endpoints[0].Version == "" || now.Endpoints[0].Clock > 3 || now.Endpoints[0].Clock < -3 {
		t.Errorf("etcd at this moment: %v, %+v", err, now)
	}

	fails := func(what, want string) {
		t.Helper()
		for _, command := range []string{"status", "events"} {
			out, errOut, code := told(t, h, command)
			if code != 1 || out != "" || !strings.Contains(errOut, want) || strings.Count(errOut, "\n") != 1 {
				t.Errorf("%s: tulle %s: %d, %q, %q", what, command, code, out, errOut)
			}
		}
	}
	if err := unix.Kill(h.Agent.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	fails("it is stopped", "it hangs, or is stopped")
	if err := unix.Kill(h.Agent.PID, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := h.Agent.Stop(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	fails("it was killed", "it has ended. Start it")
	if err := l.StartAgent(t.Context(), h); err != nil { // over the socket that was left behind
		t.Fatal(err)
	}
	if _, _, code := told(t, h, "status"); code != 0 {
		t.Errorf("tulle status of an agent that was killed and started again: %d", code)
	}
	if err := h.Agent.Stop(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	fails("it has stopped", "Is it running")
}
