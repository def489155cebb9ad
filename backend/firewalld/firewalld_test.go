package firewalld

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/e2e/lab"
	"github.com/tulle-net/tulle/e2e/netnstest"
	"github.com/tulle-net/tulle/subnet"
)

// host has a firewalld, and what an agent has of this.
type host struct {
	*testing.T
	daemon  *lab.Firewalld
	carrier *Carrier
}

func newHost(t *testing.T) *host {
	t.Helper()
	netnstest.NeedRoot(t)
	l, err := lab.Up(t.Context(), lab.Options{Name: fmt.Sprintf("fw%d-%d", os.Getpid(), time.Now().UnixNano()%100000), Hosts: 1, Bare: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	root, err := filepath.Abs("../../bin/firewalld")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{T: t}
	if h.daemon, err = l.NewFirewalld(t.Context(), l.Nodes[0], root, "nftables"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.daemon.Close(); err != nil {
			t.Error(err)
		}
	})
	h.start(h.daemon.Bus())
	return h
}

// start begins a life of an agent.
func (h *host) start(bus string) {
	h.startWith(func() (*dbus.Conn, error) { return dbus.Connect(bus) })
}

func (h *host) startWith(dial func() (*dbus.Conn, error)) {
	ctx, cancel := context.WithCancel(context.Background())
	c := New(slog.New(slog.DiscardHandler))
	c.dial = dial
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	h.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			h.Error(err)
		}
	})
	h.carrier = c
}

// rung waits for the doorbell.
func (h *host) rung() {
	h.Helper()
	select {
	case <-h.carrier.Doorbell():
	case <-time.After(10 * time.Second):
		h.Fatal("no ring")
	}
}

func (h *host) apply(s backend.State) {
	h.Helper()
	if changes, err := h.carrier.Apply(h.Context(), s); err != nil || len(changes.Count()) > 0 {
		h.Fatalf("%v, %v", changes.Count(), err)
	}
}

func (h *host) do(args ...string) string {
	h.Helper()
	out, err := h.daemon.Do(h.Context(), args...)
	if err != nil {
		h.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// wantZone checks what is in the zone.
func (h *host) wantZone(zone, interfaces, sources string) {
	h.Helper()
	for list, want := range map[string]string{"--list-interfaces": interfaces, "--list-sources": sources} {
		got := strings.Fields(h.do("--zone="+zone, list))
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			h.Errorf("zone %s: %s is %q, want %q", zone, list, got, want)
		}
	}
}

// state has packets come in on devices.
func state(bridge string, from ...string) backend.State {
	s := backend.NewState()
	s.Underlay = "eth0"
	s.Firewall = backend.Firewall{Forward: true, Bridge: bridge, Network: subnet.Pair[netip.Prefix]{V4: netip.MustParsePrefix("10.5.0.0/16"), V6: netip.MustParsePrefix("fd00::/48")}}
	copy(s.Firewall.From[:], from)
	return s
}

func TestMembers(t *testing.T) {
	silent := state("docker0", "tulle.1", "eth0")
	silent.Firewall.Forward = false
	for want, s := range map[string]backend.State{
		"tulle-v6.1 tulle.1":            state("docker0", "tulle.1", "tulle-v6.1"), // docker0 is Docker's
		"10.5.0.0/16 fd00::/48":         state("docker0", "eth0"),
		"10.5.0.0/16 fd00::/48 tulle.1": state("docker0", "tulle.1", "eth0"),
		"br0 tulle-wg":                  state("br0", "tulle-wg"),
		"br0":                           state("br0", "br0"), // one segment
		"":                              silent,
	} {
		var names []string
		for m := range membersOf(s) {
			names = append(names, m.name)
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%v: %s, want %s", s.Firewall.From, got, want)
		}
	}
}

// TestZone puts members into firewalld's zone and takes them out, and leaves alone what is somebody else's.
func TestZone(t *testing.T) {
	h := newHost(t)
	h.rung()
	h.do("--zone=home", "--add-interface=tulle-v6.1") // an operator's choice
	h.do("--zone=trusted", "--add-interface=eth9")
	h.apply(state("br0", "tulle.1", "tulle-v6.1", "eth0"))
	h.wantZone("trusted", "br0 eth9 tulle.1", "10.5.0.0/16 fd00::/48")
	h.wantZone("home", "tulle-v6.1", "")

	t.Run("another type", func(t *testing.T) {
		h.apply(state("docker0", "tulle-wg"))
		h.wantZone("trusted", "eth9 tulle-wg", "")
	})
	t.Run("another life", func(t *testing.T) {
		h.apply(state("docker0", "tulle-wg", "eth0"))
		h.start(h.daemon.Bus())
		h.rung()
		h.apply(state("docker0", "tulle.1"))
		h.wantZone("trusted", "eth9 tulle.1", "")
	})
	t.Run("taken out", func(t *testing.T) {
		h.do("--zone=trusted", "--remove-interface=tulle.1")
		h.rung()
		h.apply(state("docker0", "tulle.1"))
		h.wantZone("trusted", "eth9 tulle.1", "")
	})
	t.Run("reload", func(t *testing.T) {
		h.do("--reload")
		h.rung()
		h.apply(state("docker0", "tulle.1", "eth0"))
		h.wantZone("trusted", "tulle.1", "10.5.0.0/16 fd00::/48")
	})
	t.Run("an operator's own", func(t *testing.T) {
		h.do("--permanent", "--zone=trusted", "--add-source=10.5.0.0/16")
		h.apply(state("docker0", "tulle.1"))
		h.wantZone("trusted", "tulle.1", "10.5.0.0/16")
		h.do("--permanent", "--zone=trusted", "--remove-source=10.5.0.0/16")
	})
	t.Run("restart", func(t *testing.T) {
		if err := h.daemon.Stop(); err != nil {
			t.Fatal(err)
		}
		h.apply(state("docker0", "tulle.2")) // there is nobody to tell, which the bus may not have said yet
		if err := h.daemon.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.rung()
		h.apply(state("docker0", "tulle.1", "eth0"))
		h.wantZone("trusted", "tulle.1", "10.5.0.0/16 fd00::/48")
	})
	t.Run("cleanup", h.testCleanup)
}

func (h *host) testCleanup(t *testing.T) {
	conn, err := dbus.Connect(h.daemon.Bus())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	network := state("").Firewall.Network
	removed, err := cleanup(t.Context(), conn, network)
	if slices.Sort(removed); err != nil || len(removed) != 3 || removed[2] != "tulle.1 from firewalld's zone trusted" {
		t.Errorf("%q, %v", removed, err)
	}
	h.wantZone("trusted", "", "")
	if removed, err := cleanup(t.Context(), conn, network); removed != nil || err != nil {
		t.Errorf("a second time: %q, %v", removed, err)
	}
	if err := h.daemon.Stop(); err != nil {
		t.Fatal(err)
	}
	if removed, err := cleanup(t.Context(), conn, network); removed != nil || err != nil {
		t.Errorf("without firewalld: %q, %v", removed, err)
	}
}

// TestNone has no firewalld: not even a bus, or one that goes away.
func TestNone(t *testing.T) {
	h := &host{T: t}
	h.start("unix:path=" + filepath.Join(t.TempDir(), "none"))
	h.apply(state("docker0", "tulle.1"))
}

// TestAsksOnce has nobody change anything: firewalld, which would take its time to answer, isn't asked.
func TestAsksOnce(t *testing.T) {
	h := newHost(t)
	h.rung()
	h.apply(state("docker0", "tulle.1"))
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := h.carrier.Apply(ctx, state("docker0", "tulle.1")); err != nil {
			t.Error(err)
		}
	}
	select {
	case <-h.carrier.Doorbell():
		t.Error("what was put in rings the bell")
	default:
	}
}
