package udp

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// plainSum is the checksum as RFC 1071 describes it.
func plainSum(b []byte) uint16 {
	var s uint32
	for n := range b {
		s += uint32(b[n]) << (8 * (1 - n%2))
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{}, []byte{1})
	f.Add(bytes.Repeat([]byte{0xff}, 200), bytes.Repeat([]byte{0xff, 0xfe, 3}, 99))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		a = a[:len(a)&^1]
		if got, want := fold(sum(b, sum(a, 0))), plainSum(slices.Concat(a, b)); got != want {
			t.Errorf("%#x, want %#x", got, want)
		}
	})
}

// TestNoChecksum has a checksum of 0, which UDP has another meaning for.
func TestNoChecksum(t *testing.T) {
	for protocol, want := range map[byte]uint16{unix.IPPROTO_TCP: 0, unix.IPPROTO_UDP: 0xffff} {
		b := make([]byte, 20)
		at := checksumAt(protocol)
		finish(b, at, 0xffff)
		if got := binary.BigEndian.Uint16(b[at:]); got != want {
			t.Errorf("protocol %d: %#x, want %#x", protocol, got, want)
		}
	}
}

// stream is a flow that is cut into packets.
type stream struct {
	protocol byte
	from, to string
	options  []byte // TCP's
	size     int    // payload of a packet, bytes
	payload  []byte
}

// super makes the super-packet that the kernel would hand over.
func (s stream) super() (vnetHeader, []byte) {
	p := datagram(s.from, s.to, "")
	l := layoutOf(p)
	t, kind := make([]byte, udpHeader), uint8(unix.VIRTIO_NET_HDR_GSO_UDP_L4)
	if s.protocol == unix.IPPROTO_TCP {
		t, kind = append(make([]byte, tcpHeader), s.options...), l.tcp
		t[12], t[13] = byte(len(t)/4<<4), ack|push
		binary.BigEndian.PutUint32(t[4:], 0xfffffff0) // it wraps around
	}
	p = p[:l.size]
	if p[l.protocol] = s.protocol; l == &ipv4Layout {
		p[6] = 0x40
	}
	binary.BigEndian.PutUint16(t, 1234)
	p = slices.Concat(p, t, s.payload)
	l.setLength(p[:l.size], len(p), 65535-7)
	at := checksumAt(s.protocol)
	if s.protocol == unix.IPPROTO_UDP {
		binary.BigEndian.PutUint16(p[l.size+4:], uint16(len(p)-l.size))
	}
	binary.BigEndian.PutUint16(p[l.size+at:], fold(l.pseudo(p, s.protocol, len(p)-l.size)))
	return vnetHeader{unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, kind, 9999, uint16(s.size), uint16(l.size), uint16(at)}, p
}

var streams = map[string]stream{
	"TCP":              {protocol: unix.IPPROTO_TCP, from: "10.5.2.2", to: "10.5.1.2", size: 1420, payload: random(1420*43 + 1)},
	"TCP with options": {protocol: unix.IPPROTO_TCP, from: "10.5.2.2", to: "10.5.1.2", size: 99, payload: random(99 * 64), options: random(12)},
	"UDP":              {protocol: unix.IPPROTO_UDP, from: "10.5.2.2", to: "10.5.1.2", size: 33, payload: random(33*9 + 30)},

	"TCP over IPv6":              {protocol: unix.IPPROTO_TCP, from: "fd00:5:0:2::2", to: "fd00:5:0:1::2", size: 1420, payload: random(1420*43 + 1)},
	"TCP over IPv6 with options": {protocol: unix.IPPROTO_TCP, from: "fd00:5:0:2::2", to: "fd00:5:0:1::2", size: 99, payload: random(99 * 64), options: random(12)},
	"UDP over IPv6":              {protocol: unix.IPPROTO_UDP, from: "fd00:5:0:2::2", to: "fd00:5:0:1::2", size: 33, payload: random(33*9 + 30)},
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	return b
}

// cut returns the packets that the datapath makes of one of the kernel's.
func cut(t *testing.T, h vnetHeader, p []byte) (packets [][]byte, groups int) {
	t.Helper()
	var b batch
	if err := b.split(h, layoutOf(p), p, &endpoint{}); err != nil {
		t.Fatal(err)
	}
	for _, g := range b.groups {
		packets = slices.AppendSeq(packets, slices.Chunk(b.data[g.start:g.end], g.size))
	}
	return packets, len(b.groups)
}

// write is what a merger wrote.
type write struct {
	vnetHeader
	packet []byte
	count  int
}

func merge(packets ...[]byte) (writes []write) {
	m := newMerger(func(b []byte, count int) {
		writes = append(writes, write{parseVnet(b), slices.Clone(b[vnetSize:]), count})
	}, true)
	for _, p := range packets {
		m.add(layoutOf(p), slices.Clone(p))
	}
	m.flush()
	return writes
}

// TestCutAndMerge cuts super-packets up, looks at the pieces, and puts them together again.
func TestCutAndMerge(t *testing.T) {
	for name, s := range streams {
		t.Run(name, func(t *testing.T) {
			h, p := s.super()
			l := layoutOf(p)
			packets, groups := cut(t, h, p)
			if want := (len(s.payload) + s.size - 1) / s.size; len(packets) != want || groups != 1 {
				t.Fatalf("%d packets in %d messages, want %d in 1", len(packets), groups, want)
			}
			var payload []byte
			headers := len(p) - len(s.payload)
			for n, piece := range packets {
				if !sound(piece) {
					t.Errorf("packet %d: wrong checksums: %x", n, piece)
				}
				if id := binary.BigEndian.Uint16(piece[4:]); l == &ipv4Layout && id != 65535+uint16(n) {
					t.Errorf("packet %d has identification %d", n, id)
				}
				if s.protocol == unix.IPPROTO_TCP {
					last := n == len(packets)-1
					if seq := binary.BigEndian.Uint32(piece[l.size+4:]); seq != 0xfffffff0+uint32(n*s.size) || (piece[l.size+13] == ack|push) != last {
						t.Errorf("packet %d has sequence number %#x and flags %#x", n, seq, piece[l.size+13])
					}
				}
				payload = append(payload, piece[headers:]...)
			}
			if !bytes.Equal(payload, s.payload) {
				t.Error("the payload is another")
			}
			writes := merge(packets...)
			if len(writes) != 1 || !bytes.Equal(writes[0].packet, p) || writes[0].count != len(packets) {
				t.Fatalf("%d writes", len(writes))
			}
			if h.headers = uint16(headers); writes[0].vnetHeader != h {
				t.Errorf("header %+v, want %+v", writes[0].vnetHeader, h)
			}
		})
	}
}

// sound reports whether all checksums are right.
func sound(p []byte) bool {
	l := layoutOf(p)
	return l.whole(p) && fold(sum(p[l.size:], l.pseudo(p, p[l.protocol], len(p)-l.size))) == 0xffff
}

// remake mends a packet's checksums after a change.
func remake(p []byte) []byte {
	l := layoutOf(p)
	l.setLength(p[:l.size], len(p), 0)
	t, at := p[l.size:], checksumAt(p[l.protocol])
	t[at], t[at+1] = 0, 0
	finish(t, at, l.pseudo(p, p[l.protocol], len(t)))
	return p
}

// TestMergeNot changes the second of two packets so that it must stay by itself.
func TestMergeNot(t *testing.T) {
	for _, c := range []struct {
		name, stream string
		change       func(p []byte) []byte
	}{
		{"wrong payload", "TCP", func(p []byte) []byte { p[len(p)-1]++; return p }},
		{"wrong IP header", "TCP", func(p []byte) []byte { p[10]++; return p }},
		{"a hole", "TCP", func(p []byte) []byte { p[ip4Header+7]++; return remake(p) }},
		{"another acknowledgement", "TCP", func(p []byte) []byte { p[ip4Header+11]++; return remake(p) }},
		{"another window", "TCP", func(p []byte) []byte { p[ip4Header+15]++; return remake(p) }},
		{"FIN", "TCP", func(p []byte) []byte { p[ip4Header+13] |= 1; return remake(p) }},
		{"urgent", "TCP", func(p []byte) []byte { p[ip4Header+13] |= 32; return remake(p) }},
		{"other options", "TCP with options", func(p []byte) []byte { p[ip4Header+tcpHeader]++; return remake(p) }},
		{"larger", "TCP", func(p []byte) []byte { return remake(append(p, 1)) }},
		{"another port", "UDP", func(p []byte) []byte { p[ip4Header]++; return remake(p) }},
		{"another source", "UDP", func(p []byte) []byte { p[15]++; return remake(p) }},
		{"another time to live", "UDP", func(p []byte) []byte { p[8]--; return remake(p) }},
		{"congestion", "UDP", func(p []byte) []byte { p[1] |= 3; return remake(p) }},
		{"may be fragmented", "UDP", func(p []byte) []byte { p[6] = 0; return remake(p) }},
		{"a fragment", "UDP", func(p []byte) []byte { p[6] = 0x20; return remake(p) }},
		{"padded", "UDP", func(p []byte) []byte { return append(p, 0) }},
		{"no checksum", "UDP", func(p []byte) []byte { p[ip4Header+6], p[ip4Header+7] = 0, 0; return p }},
		{"IP options", "UDP", func(p []byte) []byte {
			p = slices.Insert(p, ip4Header, 1, 1, 1, 1)
			p[0]++
			ipv4Layout.setLength(p[:ip4Header+4], len(p), 1)
			return p
		}},
		{"IPv6, wrong payload", "TCP over IPv6", func(p []byte) []byte { p[len(p)-1]++; return p }},
		{"IPv6, a hole", "TCP over IPv6", func(p []byte) []byte { p[ip6Header+7]++; return remake(p) }},
		{"IPv6, FIN", "TCP over IPv6", func(p []byte) []byte { p[ip6Header+13] |= 1; return remake(p) }},
		{"IPv6, other options", "TCP over IPv6 with options", func(p []byte) []byte { p[ip6Header+tcpHeader]++; return remake(p) }},
		{"IPv6, another port", "UDP over IPv6", func(p []byte) []byte { p[ip6Header]++; return remake(p) }},
		{"IPv6, another source", "UDP over IPv6", func(p []byte) []byte { p[23]++; return remake(p) }},
		{"IPv6, another destination", "UDP over IPv6", func(p []byte) []byte { p[39]++; return remake(p) }},
		{"IPv6, another hop limit", "UDP over IPv6", func(p []byte) []byte { p[7]--; return remake(p) }},
		{"IPv6, another flow label", "UDP over IPv6", func(p []byte) []byte { p[3]++; return remake(p) }},
		{"IPv6, congestion", "UDP over IPv6", func(p []byte) []byte { p[1] |= 0x30; return remake(p) }},
		{"IPv6, a fragment", "UDP over IPv6", func(p []byte) []byte { p[6] = unix.IPPROTO_FRAGMENT; return p }},
		{"IPv6, padded", "UDP over IPv6", func(p []byte) []byte { return append(p, 0) }},
		{"IPv6, no checksum", "UDP over IPv6", func(p []byte) []byte { p[ip6Header+6], p[ip6Header+7] = 0, 0; return p }},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, super := streams[c.stream].super()
			packets, _ := cut(t, h, super)
			if writes := merge(packets[0], packets[1]); len(writes) != 1 {
				t.Fatalf("unchanged, they make %d writes", len(writes))
			}
			if writes := merge(packets[0]); writes[0].vnetHeader != (vnetHeader{flags: unix.VIRTIO_NET_HDR_F_DATA_VALID}) {
				t.Errorf("alone, it is written as %+v", writes[0].vnetHeader)
			}
			second := c.change(slices.Clone(packets[1]))
			writes := merge(packets[0], second)
			if len(writes) != 2 || writes[0].kind|writes[1].kind != 0 || !bytes.Equal(writes[0].packet, packets[0]) || !bytes.Equal(writes[1].packet, second) {
				t.Errorf("%d writes", len(writes))
			}
		})
	}
}

// TestSplitGarbage hands over what no kernel does.
func TestSplitGarbage(t *testing.T) {
	h, p := streams["TCP"].super()
	for name, change := range map[string]func(h *vnetHeader, p *[]byte){
		"no size":         func(h *vnetHeader, _ *[]byte) { h.segment = 0 },
		"another kind":    func(h *vnetHeader, _ *[]byte) { h.kind = unix.VIRTIO_NET_HDR_GSO_TCPV6 },
		"not IPv6's kind": func(h *vnetHeader, p *[]byte) { _, *p = streams["TCP over IPv6"].super() },
		"another's kind":  func(h *vnetHeader, _ *[]byte) { h.kind = unix.VIRTIO_NET_HDR_GSO_UDP_L4 },
		"half a header":   func(_ *vnetHeader, p *[]byte) { *p = (*p)[:ip4Header+10] },
		"long header":     func(_ *vnetHeader, p *[]byte) { *p = (*p)[:ip4Header+tcpHeader]; (*p)[ip4Header+12] = 0xf0 },
		"short IP header": func(_ *vnetHeader, p *[]byte) { (*p)[0] = 0x41 },
		"checksum beyond": func(h *vnetHeader, _ *[]byte) { h.kind, h.sumStart = 0, 65535 },
	} {
		h, p := h, slices.Clone(p)
		change(&h, &p)
		var b batch
		if err := b.split(h, layoutOf(p), p, &endpoint{}); err == nil || len(b.data) != 0 {
			t.Errorf("%s: %v, %d bytes", name, err, len(b.data))
		}
	}
}

// TestBatch checks which packets share a message.
func TestBatch(t *testing.T) {
	here, there := &endpoint{}, &endpoint{AddrPort: netip.MustParseAddrPort("192.0.2.1:1")}
	for _, c := range []struct {
		name   string
		sizes  []int
		to     []*endpoint
		groups []int // packets in each
	}{
		{"equal", []int{50, 50, 50}, nil, []int{3}},
		{"a smaller one is the last", []int{50, 49, 49}, nil, []int{2, 1}},
		{"a larger one", []int{50, 51, 50}, nil, []int{1, 2}},
		{"two endpoints", []int{50, 50, 50}, []*endpoint{here, there, here}, []int{1, 1, 1}},
		{"too many", slices.Repeat([]int{20}, 65), nil, []int{64, 1}},
		{"too much", slices.Repeat([]int{32000}, 3), nil, []int{2, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b batch
			for n, size := range c.sizes {
				to := here
				if c.to != nil {
					to = c.to[n]
				}
				b.add(to, make([]byte, size), nil)
			}
			var groups []int
			for _, g := range b.groups {
				groups = append(groups, g.count)
			}
			if !slices.Equal(groups, c.groups) {
				t.Errorf("%v, want %v", groups, c.groups)
			}
		})
	}
}

// FuzzReceive takes what may come from the wire. What is written is what came, whatever was put together.
func FuzzReceive(f *testing.F) {
	for _, s := range streams {
		var b batch
		h, p := s.super()
		_ = b.split(h, layoutOf(p), p, &endpoint{})
		f.Add(b.data, b.groups[0].size, uint16(ip4Header+13), byte(0))
	}
	f.Add(datagram("10.5.2.2", "10.5.1.2", "x"), 0, uint16(0), byte(9))
	f.Add(datagram("fd00:5:0:2::2", "fd00:5:0:1::2", "x"), 0, uint16(0), byte(0x60))
	f.Fuzz(func(t *testing.T, data []byte, size int, at uint16, value byte) {
		if len(data) > packetMax {
			return
		}
		if int(at) < len(data) { // mutations by themselves hardly ever get past the checksums
			data[at] = value
			for p := range slices.Chunk(data, max(size, ip4Header+udpHeader)) {
				l := layoutOf(p)
				if l != nil && len(p) > l.size+tcpHeader && (p[l.protocol] == unix.IPPROTO_TCP || p[l.protocol] == unix.IPPROTO_UDP) {
					remake(p)
				}
			}
		}
		d := &datapath{table: newTable(), count: &counters{}}
		peer := netip.MustParseAddrPort("192.0.2.2:8285")
		d.table.change(endpoints{Set: map[backend.EndpointKey]netip.AddrPort{
			{Prefix: netip.MustParsePrefix("10.5.2.0/24")}: peer, {Prefix: netip.MustParsePrefix("fd00:5:0:2::/64")}: peer,
		}})
		var got [][]byte
		r := &receiver{datapath: d}
		r.merger = newMerger(func(b []byte, count int) {
			before := len(got)
			if h := parseVnet(b); h.kind == 0 {
				got = append(got, slices.Clone(b[vnetSize:]))
			} else {
				packets, _ := cut(t, h, slices.Clone(b[vnetSize:]))
				got = append(got, packets...)
			}
			if len(got)-before != count {
				t.Errorf("%d packets, said to be %d", len(got)-before, count)
			}
		}, true)
		r.take(peer.Addr(), slices.Clone(data), size)
		r.merger.flush()
		var want [][]byte
		if size <= 0 {
			size = max(1, len(data))
		}
		for p := range slices.Chunk(data, size) {
			if l := layoutOf(p); l != nil && d.table.lookup(l.from(p)) != nil {
				want = append(want, p)
			}
		}
		if !slices.EqualFunc(got, want, same) {
			t.Errorf("written: %x\nwant: %x", got, want)
		}
	})
}

// same compares packets but for their identification.
func same(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	a, b = slices.Clone(a), slices.Clone(b)
	for _, p := range [][]byte{a, b} {
		if layoutOf(p) != &ipv4Layout {
			continue
		}
		copy(p[4:6], "\x00\x00")
		copy(p[10:12], "\x00\x00")
	}
	return bytes.Equal(a, b)
}
