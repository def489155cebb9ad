package wireguard

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	wg "golang.zx2c4.com/wireguard/device"

	"github.com/tulle-net/tulle/backend"
)

// userspace is a device that this process stands behind, by way of a TUN device.
type userspace struct {
	name  string
	index int // of the TUN device
	plug  *plug
	bind  *bind
	wg    *wg.Device
}

// openUserspace opens a device in the calling thread's network namespace. It is told of its key and its peers later.
func openUserspace(links *netlink.Handle, name string, mtu int, log *slog.Logger) (*userspace, error) {
	fd, index, err := openTUN(links, name)
	if err != nil {
		return nil, err
	}
	p, err := newPlug(fd, mtu)
	if err != nil {
		return nil, err
	}
	quiet := &wg.Logger{Verbosef: wg.DiscardLogf, Errorf: func(format string, args ...any) {
		if log.Enabled(context.Background(), slog.LevelDebug) {
			log.Debug("WireGuard", "device", name, "event", fmt.Sprintf(format, args...))
		}
	}}
	b := &bind{Bind: conn.NewDefaultBind()}
	return &userspace{name, index, p, b, wg.NewDevice(p, b, quiet)}, nil
}

// dead reports whether the device is closed: because its link was deleted, if not by us.
func (u *userspace) dead() bool {
	select {
	case <-u.wg.Wait():
		return true
	default:
		return false
	}
}

func (u *userspace) close() { u.wg.Close() }

// setTunnel's port is opened by the calling thread, in its namespace.
func (u *userspace) setTunnel(have, want backend.Tunnel) error {
	var b strings.Builder
	if have.Key != want.Key {
		fmt.Fprintf(&b, "private_key=%x\n", want.Key[:])
	}
	if have.Port != want.Port {
		fmt.Fprintf(&b, "listen_port=%d\n", want.Port)
	}
	err := u.set(b.String())
	if err == nil {
		err = u.wg.Up()
	}
	return explainPort(err, want.Port)
}

// explainPort says whose fault it is that a port can't be opened.
func explainPort(err error, port uint16) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("UDP port %d is in use: end what uses it (ss -lunp sport = :%d), or give the network another ListenPort: %w", port, port, err)
	}
	return err
}

// set makes a change in WireGuard's own language (www.wireguard.com/xplatform). What goes wrong tells no secret.
func (u *userspace) set(text string) error {
	if text == "" {
		return nil
	}
	if u.dead() {
		return fmt.Errorf("device %s: %w", u.name, unix.ENODEV)
	}
	return u.wg.IpcSet(text)
}

// setPeers names each peer twice: it takes packets, as an inner address may bring it at once, only when another has been named after it.
func (u *userspace) setPeers(peers []peer) error {
	var b strings.Builder
	for _, p := range peers {
		fmt.Fprintf(&b, "public_key=%x\npreshared_key=%x\nendpoint=%s\npersistent_keepalive_interval=%d\n", p.key[:], p.PSK[:], p.Endpoint, p.Keepalive)
		fmt.Fprintf(&b, "public_key=%x\nreplace_allowed_ips=true\n", p.key[:])
		for _, prefix := range p.Allowed.All() {
			fmt.Fprintf(&b, "allowed_ip=%s\n", prefix)
		}
	}
	return u.set(b.String())
}

func (u *userspace) deletePeers(keys []backend.Key) error {
	var b strings.Builder
	for _, key := range keys {
		fmt.Fprintf(&b, "public_key=%x\nremove=true\n", key[:])
	}
	return u.set(b.String())
}

func (u *userspace) greet(keys []backend.Key) error {
	for _, key := range keys {
		if p := u.wg.LookupPeer(wg.NoisePublicKey(key)); p != nil {
			_ = p.SendHandshakeInitiation(false) // that it can't be sent now is no failure: it is tried again
		}
	}
	return nil
}

func (u *userspace) look() (h held, err error) {
	if u.dead() {
		return h, fmt.Errorf("device %s: %w", u.name, unix.ENODEV)
	}
	text, err := u.wg.IpcGet()
	if err != nil {
		return h, err
	}
	return parseHeld(text)
}

// parseHeld reads what a device tells of itself, the device first, then each peer from its public key on.
func parseHeld(text string) (h held, err error) {
	h.peers = slices.Grow(h.peers, strings.Count(text, "public_key="))
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), "=")
		if name == "public_key" {
			h.peers = append(h.peers, heldPeer{})
		}
		if n := len(h.peers); n > 0 {
			err = h.peers[n-1].read(name, value)
		} else {
			err = h.read(name, value)
		}
		if err != nil {
			return held{}, fmt.Errorf("%s of a device: %w", name, err) // not the value, which may be a key
		}
	}
	return h, nil
}

var errGarbled = errors.New("garbled")

func (h *held) read(name, value string) error {
	switch name {
	case "private_key":
		return readHex(h.Key[:], value)
	case "listen_port":
		port, err := strconv.ParseUint(value, 10, 16)
		h.Port = uint16(port)
		return err
	}
	return nil
}

func (p *heldPeer) read(name, value string) (err error) {
	switch name {
	case "public_key":
		return readHex(p.key[:], value)
	case "preshared_key":
		return readHex(p.PSK[:], value)
	case "endpoint":
		p.Endpoint, err = netip.ParseAddrPort(value)
	case "persistent_keepalive_interval":
		p.Keepalive, err = strconv.Atoi(value)
	case "last_handshake_time_sec":
		var s int64
		if s, err = strconv.ParseInt(value, 10, 64); s != 0 {
			p.handshake = time.Unix(s, 0)
		}
	case "last_handshake_time_nsec": // after the seconds
		var ns int64
		if ns, err = strconv.ParseInt(value, 10, 64); !p.handshake.IsZero() {
			p.handshake = p.handshake.Add(time.Duration(ns))
		}
	case "allowed_ip":
		var prefix netip.Prefix
		if prefix, err = netip.ParsePrefix(value); err == nil {
			p.allow(prefix)
		}
	}
	return err
}

func readHex(key []byte, value string) error {
	if len(value) != hex.EncodedLen(len(key)) {
		return errGarbled
	}
	_, err := hex.Decode(key, []byte(value))
	return err
}
