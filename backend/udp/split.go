package udp

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// split adds to a batch the packets that an IP packet of the kernel's stands for.
func (b *batch) split(h vnetHeader, l *layout, p []byte, to *endpoint) error {
	if h.kind != unix.VIRTIO_NET_HDR_GSO_NONE {
		return b.segment(h, l, p, to)
	}
	if h.flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
		if int(h.sumStart)+int(h.sumOffset)+2 > len(p) {
			return fmt.Errorf("a checksum beyond the end of a packet of %d bytes", len(p))
		}
		finish(p[h.sumStart:], int(h.sumOffset), 0) // of the pseudo-header, what is in its place is the sum
	}
	b.add(to, p, nil)
	return nil
}

// segment cuts a super-packet up as the kernel would (tcp_gso_segment and __udp_gso_segment in net/ipv4).
func (b *batch) segment(h vnetHeader, l *layout, p []byte, to *endpoint) error {
	protocol, ip, all, err := headers(h, l, p)
	if err != nil {
		return err
	}
	payload, size := p[all:], int(h.segment)
	for at := 0; at < len(payload); at += size {
		chunk := payload[at:min(at+size, len(payload))]
		head := b.add(to, p[:all], chunk)[:all]
		l.setLength(head[:ip], all+len(chunk), uint16(at/size))
		setTransport(head[ip:], protocol, at, at+size >= len(payload), len(chunk))
		finish(head[ip:], checksumAt(protocol), sum(chunk, l.pseudo(head, protocol, all-ip+len(chunk))))
	}
	return nil
}

// headers returns a super-packet's protocol, and how long its IP header and all its headers are. What h says of the latter is nothing
// to rely on: it may be all of the super-packet that lies in one piece (virtio_net_hdr_from_skb, include/linux/virtio_net.h).
func headers(h vnetHeader, l *layout, p []byte) (protocol byte, ip, all int, err error) {
	protocol, ip = p[l.protocol], l.header(p)
	switch {
	case h.segment == 0:
	case h.kind == unix.VIRTIO_NET_HDR_GSO_UDP_L4 && protocol == unix.IPPROTO_UDP:
		all = ip + udpHeader
	case h.kind == l.tcp && protocol == unix.IPPROTO_TCP && len(p) >= ip+tcpHeader:
		all = ip + max(tcpHeader, int(p[ip+12]>>4)*4)
	}
	if ip < l.size || all == 0 || all > len(p) {
		return 0, 0, 0, fmt.Errorf("what is no super-packet: kind %d, segments of %d bytes, protocol %d, %d bytes", h.kind, h.segment, protocol, len(p))
	}
	return protocol, ip, all, nil
}

// setTransport gives a segment's TCP or UDP header t what is its own: at is where in the super-packet's payload its own begins.
func setTransport(t []byte, protocol byte, at int, last bool, length int) {
	const fin, cwr = 1, 128
	check := t[checksumAt(protocol):]
	check[0], check[1] = 0, 0
	if protocol == unix.IPPROTO_UDP {
		binary.BigEndian.PutUint16(t[4:], uint16(udpHeader+length))
		return
	}
	binary.BigEndian.PutUint32(t[4:], binary.BigEndian.Uint32(t[4:])+uint32(at))
	if !last {
		t[13] &^= fin | push
	}
	if at > 0 {
		t[13] &^= cwr
	}
}

// finish puts the checksum of t, and of what s is the sum of, where it belongs.
func finish(t []byte, offset int, s uint64) {
	check := ^fold(sum(t, s))
	if check == 0 && offset == checksumAt(unix.IPPROTO_UDP) {
		check = 0xffff // 0 says that there is none (RFC 768)
	}
	binary.BigEndian.PutUint16(t[offset:], check)
}
