package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Encapsulated is a packet of the overlay as it was seen on the underlay (RFC 7348).
type Encapsulated struct {
	Source, Target           netip.AddrPort // outer
	VNI                      uint32
	TargetMAC                net.HardwareAddr // inner
	InnerSource, InnerTarget netip.Addr
	Length                   int // of the frame on the underlay, bytes
}

// Capture returns the first VXLAN packet between two inner addresses that passes a device while f runs. port is the UDP
// port that VXLAN uses.
func Capture(namespace, device string, port uint16, from, to netip.Addr, f func() error) (Encapsulated, error) {
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
		return Encapsulated{}, fmt.Errorf("capture on %s in %s: %w", device, namespace, err)
	}
	defer unix.Close(fd)
	if err := f(); err != nil {
		return Encapsulated{}, err
	}
	limit := unix.NsecToTimeval((2 * time.Second).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return Encapsulated{}, err
	}
	buffer := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		if err != nil {
			return Encapsulated{}, fmt.Errorf("no VXLAN packet from %s to %s on %s: %w", from, to, device, err)
		}
		if e, ok := decode(buffer[:n], port); ok && e.InnerSource == from && e.InnerTarget == to {
			return e, nil
		}
	}
}

// decode reads Ethernet, IPv4, UDP, VXLAN, Ethernet and IPv4 headers, none of them with options.
func decode(frame []byte, port uint16) (Encapsulated, bool) {
	const ethernet, ip, udp, vxlan = 14, 20, 8, 8
	if len(frame) < ethernet+ip+udp+vxlan+ethernet+ip || frame[ethernet+9] != unix.IPPROTO_UDP {
		return Encapsulated{}, false
	}
	outer := frame[ethernet:]
	ports := outer[ip:]
	header := ports[udp:]
	inner := header[vxlan:]
	e := Encapsulated{
		Source:    netip.AddrPortFrom(addr4(outer[12:]), binary.BigEndian.Uint16(ports)),
		Target:    netip.AddrPortFrom(addr4(outer[16:]), binary.BigEndian.Uint16(ports[2:])),
		VNI:       binary.BigEndian.Uint32(header[4:]) >> 8,
		TargetMAC: append(net.HardwareAddr{}, inner[:6]...), Length: len(frame),
		InnerSource: addr4(inner[ethernet+12:]), InnerTarget: addr4(inner[ethernet+16:]),
	}
	return e, e.Target.Port() == port
}

func addr4(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b[:4])) }
