package probe

import (
	"net/netip"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// icmpHeader is an echo's header in bytes (RFC 792, RFC 4443): type, code, checksum, identifier, sequence number.
const icmpHeader = 8

// family is what differs between IPv4 and IPv6.
type family struct {
	domain         int    // of a socket
	network        string // as package net calls its raw ICMP sockets
	protocol       int    // ICMP's number
	header         int    // of an IP packet without options, bytes
	request, reply byte   // types of echo messages
	floors         []int  // IP packets that any path should carry, bytes, the largest first (RFC 791, RFC 8200)
	level          int    // of the socket options below
	discover       int    // what sets the path MTU's treatment
	errors         int    // what asks for ICMP errors
}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return family{unix.AF_INET, "ip4:icmp", unix.IPPROTO_ICMP, 20, byte(ipv4.ICMPTypeEcho), byte(ipv4.ICMPTypeEchoReply), []int{576, 68},
			unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_RECVERR}
	}
	return family{unix.AF_INET6, "ip6:ipv6-icmp", unix.IPPROTO_ICMPV6, 40, byte(ipv6.ICMPTypeEchoRequest), byte(ipv6.ICMPTypeEchoReply), []int{1280, 68},
		unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_RECVERR}
}

// inIP returns what an IP packet carries that a raw socket hands over: IPv4's do it with the IP header, IPv6's without.
func (f family) inIP(packet []byte) []byte {
	if f.domain == unix.AF_INET6 {
		return packet
	}
	if len(packet) < f.header || len(packet) < int(packet[0]&15)*4 {
		return nil
	}
	return packet[int(packet[0]&15)*4:]
}

// echo makes an echo request.
func (f family) echo(id, seq int, data []byte) ([]byte, error) {
	m := icmp.Message{Type: icmpType(f.request, f), Body: &icmp.Echo{ID: id, Seq: seq, Data: data}}
	return m.Marshal(nil) // IPv6's checksum is the kernel's work
}

// icmpType names the type that a message's first byte has.
func icmpType(b byte, f family) icmp.Type {
	if f.domain == unix.AF_INET6 {
		return ipv6.ICMPType(b)
	}
	return ipv4.ICMPType(b)
}
