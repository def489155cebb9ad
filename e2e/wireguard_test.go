package e2e

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	wg "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/e2e/lab"
)

const psk = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="

const encrypted = `{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard","PSK":"` + psk + `"}}`

// TestWireGuard is what is WireGuard's own about a network, be it the kernel's or, where that has none, the agents' own.
func TestWireGuard(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3, Config: encrypted, Agent: []string{"--log-level", "debug"}})
	t.Logf("in userspace: %t", userspace(t, l.Nodes[0]))
	t.Run("keys", func(t *testing.T) { testKeys(t, l) })
	t.Run("rotation", func(t *testing.T) { testRotation(t, l) })
	t.Run("restarts", func(t *testing.T) { testWireGuardRestarts(t, l) })
	t.Run("device deleted", func(t *testing.T) { testDeviceDeleted(t, l) })
	t.Run("closed", func(t *testing.T) { testClosed(t, l) })
	t.Run("secrets", func(t *testing.T) { testSecrets(t, l) })
}

// userspace reports whether a host's WireGuard is its agent's.
func userspace(t *testing.T, h *lab.Host) bool {
	t.Helper()
	return status(t, h).Network.Userspace
}

func status(t *testing.T, h *lab.Host) api.Status {
	t.Helper()
	s, err := h.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// privateKey is what a host's key file has.
func privateKey(t *testing.T, h *lab.Host) wgtypes.Key {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(h.RunDir, "wireguard.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := wgtypes.ParseKey(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// announced is the public key in a host's lease.
func announced(t *testing.T, h *lab.Host) string {
	t.Helper()
	var view api.View
	if err := json.Unmarshal([]byte(get(t, h, api.PathView)), &view); err != nil {
		t.Fatal(err)
	}
	var lease struct{ BackendData struct{ PublicKey string } }
	if err := json.Unmarshal([]byte(view.Self.Value), &lease); err != nil {
		t.Fatal(err)
	}
	return lease.BackendData.PublicKey
}

// testKeys checks that the private key is its owner's alone, and that the public one is in the lease and in the status.
func testKeys(t *testing.T, l *lab.Lab) {
	for _, h := range l.Nodes {
		info, err := os.Stat(filepath.Join(h.RunDir, "wireguard.key"))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o600 {
			t.Errorf("%s: the key file's mode is %v", h.Name, info.Mode())
		}
		public := privateKey(t, h).PublicKey().String()
		if lease, status := announced(t, h), status(t, h).Network.PublicKey; lease != public || status != public {
			t.Errorf("%s: public key %s; its lease says %s, its status %s", h.Name, public, lease, status)
		}
	}
}

// pace is how often flows ping. No more than 128 packets wait for each peer's handshake, which is what three hosts send each other in a
// third of a second at the fastest pace. An emulated processor needs longer for a rotation, and so may agents with the race detector.
func pace() time.Duration {
	switch {
	case virtual:
		return 200 * time.Millisecond
	case raceEnabled:
		return 15 * time.Millisecond
	}
	return 5 * time.Millisecond
}

// meets waits until a packet that fills the MTU is answered. Where both hosts begin a handshake at the same time, on a slow machine, it
// takes WireGuard up to 15 seconds to begin another.
func meets(t *testing.T, from, to *lab.Container) {
	t.Helper()
	eventually(t, 40*time.Second, from.Name+" reaches "+to.Name, func() error {
		r, err := lab.Ping(t.Context(), from.Namespace, to.Address, 1, 1420)
		if err == nil && r.Lost() > 0 {
			err = fmt.Errorf("no answer (%v)", r.Refused)
		}
		return err
	})
}

// flows pings between all containers, in both directions.
func flows(t *testing.T, l *lab.Lab) map[string]*lab.Flow {
	t.Helper()
	flows := map[string]*lab.Flow{}
	for _, from := range l.Nodes {
		for _, to := range l.Nodes {
			if from == to {
				continue
			}
			meets(t, from.Container, to.Container)
			f, err := lab.StartFlow(from.Container.Namespace, to.Container.Address, pace())
			if err != nil {
				t.Fatal(err)
			}
			flows[from.Name+" to "+to.Name] = f
		}
	}
	return flows
}

// testRotation gives one host after another a new key, under running pings between all of their containers. Not one may be lost.
func testRotation(t *testing.T, l *lab.Lab) {
	flows := flows(t, l)
	for _, h := range l.Nodes {
		before := announced(t, h)
		started := time.Now()
		out := in(t, h.Namespace, binary, "wireguard", "rotate-key", "--run-dir", h.RunDir)
		took := time.Since(started)
		now := announced(t, h)
		if now == before || !strings.Contains(out, before) || !strings.Contains(out, now) || now != privateKey(t, h).PublicKey().String() {
			t.Errorf("%s: rotated from %s to %s: %s", h.Name, before, now, out)
		}
		t.Logf("%s: rotated in %v", h.Name, took)
		for _, other := range l.Nodes {
			if other == h {
				continue
			}
			eventually(t, 5*time.Second, other.Name+" has the new key", func() error {
				if !strings.Contains(logOf(t, l, other), fmt.Sprintf("(%s) has another key", h.Address)) {
					return fmt.Errorf("%s", logOf(t, l, other))
				}
				return nil
			})
		}
		more(t, flows, 30)
		for _, other := range l.Nodes { // or a peer's next key would come while packets wait for this one's handshake
			if other != h {
				meets(t, h.Container, other.Container)
			}
		}
	}
	for name, r := range stopAll(t, flows) {
		if r.Lost() > 0 {
			t.Errorf("%s: %d of %d packets lost (%v)", name, r.Lost(), r.Sent, r.Refused)
		}
		t.Logf("%s: %d sent, round trip %v", name, r.Sent, r.RoundTrip)
	}
}

// kept is what no restart may change: the device with its number, its address, and the routes.
func kept(t *testing.T, h *lab.Host) string {
	t.Helper()
	device, _, _ := strings.Cut(in(t, h.Namespace, "ip", "-o", "link", "show", "tulle-wg"), "<")
	return device + in(t, h.Namespace, "ip", "-o", "addr", "show", "tulle-wg") + in(t, h.Namespace, "ip", "route")
}

// testWireGuardRestarts restarts agents under running pings. Where the kernel holds the device nothing is lost; else it is as much as
// is on its way for less than a second, unless the machine is too busy to start a process in that time: the best of the restarts counts.
func testWireGuardRestarts(t *testing.T, l *lab.Lab) {
	var outages []time.Duration
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		for _, h := range l.Nodes[:2] {
			flows, before := flows(t, l), kept(t, h)
			if err := h.Agent.Stop(signal); err != nil {
				t.Fatal(err)
			}
			if err := l.StartAgent(t.Context(), h); err != nil {
				t.Fatal(err)
			}
			if after := kept(t, h); after != before {
				t.Errorf("%s: restart after %v changed the device:\n%s\n%s", h.Name, signal, before, after)
			}
			more(t, flows, 20)
			worst := 0
			for name, r := range stopAll(t, flows) {
				if worst = max(worst, r.Lost()); r.Lost() > 0 && !strings.Contains(name, h.Name) {
					t.Errorf("restart of %s after %v: %s: %d of %d packets lost", h.Name, signal, name, r.Lost(), r.Sent)
				}
			}
			outages = append(outages, time.Duration(worst)*pace())
			t.Logf("restart of %s after %v: %v without a packet at most", h.Name, signal, time.Duration(worst)*pace())
		}
	}
	if slices.Min(outages) >= time.Second || slices.Max(outages) > 5*time.Second || slices.Max(outages) > 0 && !userspace(t, l.Nodes[0]) {
		t.Errorf("restarts cost %v", outages)
	}
}

// testDeviceDeleted deletes a device: it comes back, and its peers with it.
func testDeviceDeleted(t *testing.T, l *lab.Lab) {
	h := l.Nodes[0]
	in(t, h.Namespace, "ip", "link", "del", "tulle-wg")
	for _, other := range l.Nodes[1:] {
		for _, pair := range [][2]*lab.Container{{other.Container, h.Container}, {h.Container, other.Container}} {
			meets(t, pair[0], pair[1])
		}
	}
}

// testClosed takes the device away from a host whose agent does not run, and has a default route that would take its packets: none
// leaves, whether for a peer or for nobody.
func testClosed(t *testing.T, l *lab.Lab) {
	h, other := l.Nodes[0], l.Nodes[1]
	if err := h.Agent.Stop(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	in(t, h.Namespace, "ip", "link", "del", "tulle-wg")
	for _, to := range []string{other.Container.Address.String(), "10.5.0.77"} {
		out, err := lab.Output(t.Context(), h.Namespace, "ip", "route", "get", to, "from", h.Container.Address.String(), "iif", "docker0")
		if err == nil || !strings.Contains(err.Error(), "No route to host") {
			t.Errorf("packets to %s go %s, %v:\n%s", to, out, err, in(t, h.Namespace, "ip", "route"))
		}
	}
	if err := l.StartAgent(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	meets(t, h.Container, other.Container)
	meets(t, other.Container, h.Container)
}

// testSecrets looks for all private keys that hosts have, and for the preshared key, wherever something is told.
func testSecrets(t *testing.T, l *lab.Lab) {
	secrets := map[string]wgtypes.Key{}
	for _, h := range l.Nodes {
		secrets[h.Name+"'s private key"] = privateKey(t, h)
	}
	shared, err := wgtypes.ParseKey(psk)
	if err != nil {
		t.Fatal(err)
	}
	secrets["the preshared key"] = shared
	if _, err := l.Tulle(t.Context(), `{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard","PSK":"`+psk+`","MTU":1}}`, "config", "validate", "-"); err == nil {
		t.Error("an MTU of 1 is valid")
	} else {
		tellsNone(t, secrets, "config validate", err.Error())
	}
	for _, command := range []string{"config get", "lease ls", "lease ls --json"} {
		out, err := l.Tulle(t.Context(), "", strings.Fields(command)...)
		if err != nil {
			t.Fatal(err)
		}
		tellsNone(t, secrets, command, out)
	}
	if out, err := l.Tulle(t.Context(), "", "config", "get", "--secrets"); err != nil || !strings.Contains(out, psk) {
		t.Errorf("config get --secrets: %s, %v", out, err)
	}
	for _, h := range l.Nodes {
		for _, path := range []string{"/", "/metrics", "/readyz", api.PathStatus, api.PathPeers, api.PathEvents, api.PathView, api.PathMesh, api.PathEtcd} {
			tellsNone(t, secrets, h.Name+path, get(t, h, path))
		}
		for _, command := range []string{"status", "status --json", "events", "events --json", "wireguard rotate-key"} {
			args := append([]string{binary}, strings.Fields(command)...)
			secrets[h.Name+"'s private key"] = privateKey(t, h)
			tellsNone(t, secrets, h.Name+": "+command, in(t, h.Namespace, append(args, "--run-dir", h.RunDir)...))
		}
		secrets[h.Name+"'s rotated key"] = privateKey(t, h)
		out, _ := lab.Output(t.Context(), h.Namespace, binary, "doctor", "--json", "--run-dir", h.RunDir) // its exit code is none of our business
		tellsNone(t, secrets, h.Name+": doctor", out)
		tellsNone(t, secrets, h.Name+"'s log", logOf(t, l, h))
	}
}

// tellsNone checks that text has none of these keys in it, in any notation that somebody may print one in.
func tellsNone(t *testing.T, secrets map[string]wgtypes.Key, where, text string) {
	t.Helper()
	if text == "" {
		t.Errorf("%s is empty", where)
	}
	for name, key := range secrets {
		for _, notation := range []string{key.String(), hex.EncodeToString(key[:]), strings.Trim(fmt.Sprint(key[:]), "[]"), fmt.Sprintf("%#v", [32]byte(key))} {
			if strings.Contains(text, notation) {
				t.Errorf("%s tells %s", where, name)
			}
		}
	}
}

// TestWireGuardFlannel has a peer that was set up by hand the way flanneld does it, in the kernel or, where that has no WireGuard, by a
// device of this process. Its container and ours must talk, also after ours got another key, of which flanneld learns from the lease.
func TestWireGuardFlannel(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 2, Config: encrypted})
	ours, flannel := l.Nodes[0], l.Nodes[1]
	kernel := !userspace(t, flannel)
	stop(t, flannel)
	subnet := strings.TrimSuffix(key(t, flannel), "-24")
	in(t, flannel.Namespace, "sh", "-c", `$1 cleanup --run-dir $2 >/dev/null
		ip link add docker0 type bridge && ip addr add ${3%.0}.1/24 dev docker0 && ip link set docker0 up && ip link set $4 master docker0
		iptables -P FORWARD ACCEPT`, "sh", binary, flannel.RunDir, subnet, flannel.Container.Name)
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	set := flannelDevice(t, flannel, kernel)
	set(fmt.Sprintf("private_key=%x\nlisten_port=51820\n", private[:]), wgtypes.Config{PrivateKey: &private, ListenPort: new(51820)})
	addPeer := func() {
		t.Helper()
		text, config := flannelPeer(t, ours)
		set(text, config)
	}
	addPeer()
	in(t, flannel.Namespace, "sh", "-c", `ip addr add $1/32 dev flannel-wg && ip link set flannel-wg mtu 1420 up && ip route add 10.5.0.0/16 dev flannel-wg`, "sh", subnet)
	etcdctl(t, l, "put", "/coreos.com/network/subnets/"+subnet+"-24", fmt.Sprintf(
		`{"PublicIP":"%s","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"%s","Port":51820}}`, flannel.Address, private.PublicKey()))
	talk := func() {
		t.Helper()
		for _, pair := range [][2]*lab.Container{{ours.Container, flannel.Container}, {flannel.Container, ours.Container}} {
			meets(t, pair[0], pair[1])
		}
		r, err := lab.Transfer(t.Context(), flannel.Container.Namespace, ours.Container.Namespace, ours.Container.Address, 8<<20)
		if err != nil || !r.Correct || r.Source != flannel.Container.Address {
			t.Errorf("transfer from the flannel host: %+v, %v", r, err)
		}
	}
	talk()
	in(t, ours.Namespace, binary, "wireguard", "rotate-key", "--run-dir", ours.RunDir)
	addPeer() // beside the one with the key before, which flanneld leaves there
	talk()
}

// flannelDevice makes a device called flannel-wg, and returns what configures it: in the language of userspace, or in the kernel's.
func flannelDevice(t *testing.T, h *lab.Host, kernel bool) func(text string, config wgtypes.Config) {
	t.Helper()
	inside := func(f func() error) {
		t.Helper()
		if err := lab.In(h.Namespace, f); err != nil {
			t.Fatal(err)
		}
	}
	if kernel {
		in(t, h.Namespace, "ip", "link", "add", "flannel-wg", "type", "wireguard")
		return func(_ string, config wgtypes.Config) {
			t.Helper()
			inside(func() error {
				client, err := wgctrl.New()
				if err != nil {
					return err
				}
				defer client.Close()
				return client.ConfigureDevice("flannel-wg", config)
			})
		}
	}
	var d *wg.Device
	inside(func() error {
		link, err := tun.CreateTUN("flannel-wg", 1420)
		if err != nil {
			return err
		}
		d = wg.NewDevice(link, conn.NewDefaultBind(), wg.NewLogger(wg.LogLevelSilent, ""))
		return nil
	})
	t.Cleanup(d.Close)
	return func(text string, _ wgtypes.Config) {
		t.Helper()
		inside(func() error { return errors.Join(d.IpcSet(text), d.Up()) }) // the port is opened by this thread
	}
}

// flannelPeer is what flanneld makes of a host's lease.
func flannelPeer(t *testing.T, h *lab.Host) (string, wgtypes.Config) {
	t.Helper()
	public, err := wgtypes.ParseKey(announced(t, h))
	if err != nil {
		t.Fatal(err)
	}
	shared, err := wgtypes.ParseKey(psk)
	if err != nil {
		t.Fatal(err)
	}
	endpoint := netip.AddrPortFrom(h.Address, 51820)
	p := h.Container.Subnet
	return fmt.Sprintf("public_key=%x\npreshared_key=%x\nendpoint=%s\nallowed_ip=%s\n", public[:], shared[:], endpoint, p),
		wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: public, PresharedKey: &shared, Endpoint: net.UDPAddrFromAddrPort(endpoint),
			AllowedIPs: []net.IPNet{{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}}}}}
}
