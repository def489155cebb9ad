package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/agent/api"
)

// Captured is a packet of the overlay as it was seen on the underlay.
type Captured struct {
	Outer     []string         // its layers but the last, as a network engineer writes them
	Inner     string           // the last: what containers send, as far as it can be read
	TargetMAC net.HardwareAddr // of the inner frame, if it is one
	Length    int              // of the frame on the underlay, bytes
}

func (c Captured) String() string {
	text := c.Inner
	if len(c.Outer) > 0 {
		text = strings.Join(c.Outer, ", ") + ": " + text
	}
	return fmt.Sprintf("%s, %d bytes", text, c.Length)
}

// Capture returns the first packet between two containers that passes a device while f runs; n is how the overlay carries it. What is
// encrypted is taken for one by its port.
func Capture(namespace, device string, n api.Network, from, to netip.Addr, f func() error) (Captured, error) {
	fd := -1
	err := In(namespace, func() error {
		link, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		// All protocols, because a bridge takes packets of its ports before a socket for one protocol sees them; in network
		// order, whichever order this machine has.
		protocol := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link.Index})
	})
	if err != nil {
		return Captured{}, fmt.Errorf("capture on %s in %s: %w", device, namespace, err)
	}
	defer unix.Close(fd)
	if err := f(); err != nil {
		return Captured{}, err
	}
	limit := unix.NsecToTimeval((2 * time.Second).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return Captured{}, err
	}
	want, buffer := fmt.Sprintf("%s > %s", from, to), make([]byte, 1<<16)
	for {
		size, _, err := unix.Recvfrom(fd, buffer, 0)
		if err != nil {
			return Captured{}, fmt.Errorf("no packet %s by %s on %s: %w", want, n.Backend, device, err)
		}
		if c, ok := decode(buffer[:size], n); ok && (c.Inner == want || c.Inner == encrypted) {
			return c, nil
		}
	}
}

const encrypted = "encrypted"

// decode reads a frame's headers, none of them with options, down to the containers' own.
func decode(frame []byte, n api.Network) (Captured, bool) {
	c := Captured{Length: len(frame)}
	p, ok := ipv4In(frame)
	if !ok || n.Kind == "" {
		c.Inner = p.String()
		return c, ok
	}
	if n.Kind == "ipip" && p.protocol == unix.IPPROTO_IPIP {
		c.Outer = []string{"IPIP " + p.String()}
		p, ok = ipv4Of(p.data)
		c.Inner = p.String()
		return c, ok
	}
	if p.protocol != unix.IPPROTO_UDP || len(p.data) < 8 || binary.BigEndian.Uint16(p.data[2:]) != n.Port {
		return c, false
	}
	c.Outer = []string{fmt.Sprintf("UDP %s:%d > %s:%d", p.source, binary.BigEndian.Uint16(p.data), p.target, n.Port)}
	payload := p.data[8:]
	switch {
	case n.Backend == "wireguard":
		c.Inner = encrypted
		return c, len(payload) > 0 && payload[0] == 4 // transport data
	case n.Kind == "vxlan" && len(payload) > 8+14: // RFC 7348
		c.TargetMAC = append(net.HardwareAddr{}, payload[8:14]...)
		c.Outer = append(c.Outer, fmt.Sprintf("VXLAN VNI %d", binary.BigEndian.Uint32(payload[4:])>>8), "to MAC "+c.TargetMAC.String())
		p, ok = ipv4In(payload[8:])
	default:
		p, ok = ipv4Of(payload)
	}
	c.Inner = p.String()
	return c, ok
}

// packet is an IPv4 packet.
type packet struct {
	source, target netip.Addr
	protocol       byte
	data           []byte
}

func (p packet) String() string { return fmt.Sprintf("%s > %s", p.source, p.target) }

// ipv4In reads the packet in an Ethernet frame.
func ipv4In(frame []byte) (packet, bool) {
	const ethernet = 14
	if len(frame) < ethernet || binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_IP {
		return packet{}, false
	}
	return ipv4Of(frame[ethernet:])
}

func ipv4Of(b []byte) (packet, bool) {
	const header = 20
	if len(b) < header || b[0] != 0x45 {
		return packet{}, false
	}
	return packet{netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[9], b[header:]}, true
}
