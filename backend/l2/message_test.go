package l2

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/tulle-net/tulle/backend"
)

var (
	macA = backend.MAC{2, 0, 0, 0, 0, 0xa}
	macB = backend.MAC{2, 0, 0, 0, 0, 0xb}
	ipA  = netip.MustParseAddr("10.5.2.2")
	ipB  = netip.MustParseAddr("10.5.1.2")
	ip6A = netip.MustParseAddr("fd12:3456:0:2::1:2")
	ip6B = netip.MustParseAddr("fd12:3456:0:1::1:3")
)

// What is written is what the RFCs say, byte by byte.
func TestFrame(t *testing.T) {
	const addressA, addressB = "\xfd\x12\x34\x56\x00\x00\x00\x02\x00\x00\x00\x00\x00\x01\x00\x02", "\xfd\x12\x34\x56\x00\x00\x00\x01\x00\x00\x00\x00\x00\x01\x00\x03"
	const mA, mB, head = "\x02\x00\x00\x00\x00\x0a", "\x02\x00\x00\x00\x00\x0b", "\x86\xdd" + "\x60\x00\x00\x00" + "\x00\x20" + "\x3a\xff"
	for name, test := range map[string]struct {
		m    message
		to   backend.MAC
		want string
	}{
		"ARP request": {message{asks: true, mac: macA, ip: ipA, target: ipB}, broadcast, "\xff\xff\xff\xff\xff\xff" + mB + "\x08\x06" +
			"\x00\x01" + "\x08\x00" + "\x06\x04" + "\x00\x01" + mA + "\x0a\x05\x02\x02" + "\x00\x00\x00\x00\x00\x00" + "\x0a\x05\x01\x02"},
		"solicitation of all": {message{asks: true, mac: macA, ip: ip6A, target: ip6B}, broadcast, "\x33\x33\xff\x01\x00\x03" + mB + head +
			addressA + "\xff\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\xff\x01\x00\x03" + "\x87\x00\x14\xb5" + "\x00\x00\x00\x00" + addressB + "\x01\x01" + mA},
		"solicitation of one": {message{asks: true, mac: macA, ip: ip6A, target: ip6B}, macA, mA + mB + head +
			addressA + addressB + "\x87\x00\xe1\x4f" + "\x00\x00\x00\x00" + addressB + "\x01\x01" + mA},
		"announcement": {announcement(ip6A, macA), broadcast, "\x33\x33\x00\x00\x00\x01" + mB + head +
			addressA + "\xff\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" + "\x88\x00\xf1\xb9" + "\x20\x00\x00\x00" + addressA + "\x02\x01" + mA},
	} {
		if got := test.m.frame(macB, test.to); string(got) != test.want {
			t.Errorf("%s:\n%x, want\n%x", name, got, test.want)
		}
	}
	if !announcement(ipA, macA).gratuitous() || !announcement(ip6A, macA).gratuitous() || (message{ip: ipA, target: ipB}).gratuitous() {
		t.Error("an announcement is gratuitous, a question is not")
	}
}

// FuzzParse takes frames as they come: what is no message of a host with an address is nothing, and what is says all that it said.
func FuzzParse(f *testing.F) {
	for _, m := range []message{{mac: macA, ip: ipA, target: ipB}, {mac: macA, ip: ip6A, target: ip6B}, {asks: true, mac: macA, ip: ip6A, target: ip6B}, announcement(ip6A, macA)} {
		good := m.frame(macA, macB)
		f.Add(good)
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 1
			f.Add(bad)
			f.Add(good[:i])
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		m, ok := parse(frame)
		if !ok {
			return
		}
		if !m.mac.Unicast() || m.ip.IsUnspecified() || m.ip.IsMulticast() && m.ip.Is6() {
			t.Errorf("took %+v", m)
		}
		again, ok := parse(m.frame(backend.MAC(frame[6:12]), backend.MAC(frame[:6])))
		if again.asks = m.asks; !ok || again != m {
			t.Errorf("%x is read as %+v, and that as %+v", frame, m, again)
		}
	})
}

func TestParse(t *testing.T) {
	for _, good := range []message{{mac: macA, ip: ipA, target: ipB}, {asks: true, mac: macA, ip: ipA, target: ipB},
		{mac: macA, ip: ip6A, target: ip6B}, {asks: true, mac: macA, ip: ip6A, target: ip6B}} {
		if got, ok := parse(append(good.frame(macA, macB), make([]byte, 18)...)); !ok || got != good { // padded, as on a wire
			t.Errorf("%+v, %t, want %+v", got, ok, good)
		}
	}
	for name, change := range map[string]func(b []byte){
		"another protocol":     func(b []byte) { b[13] = 0 },
		"not Ethernet":         func(b []byte) { b[15] = 6 },
		"not IPv4":             func(b []byte) { b[16] = 0x86 },
		"another operation":    func(b []byte) { b[21] = 3 },
		"a group's MAC":        func(b []byte) { b[22] = 1 },
		"no MAC":               func(b []byte) { clear(b[22:28]) },
		"no address (a probe)": func(b []byte) { clear(b[28:32]) },
	} {
		frame := message{mac: macA, ip: ipA, target: ipB}.frame(macA, macB)
		change(frame)
		if m, ok := parse(frame); ok {
			t.Errorf("ARP, %s: %+v", name, m)
		}
	}
	const body = ethernet + ipv6Size
	for name, change := range map[string]func(b []byte){
		"another protocol":         func(b []byte) { b[13] = 0 },
		"not IPv6":                 func(b []byte) { b[ethernet] = 0x40 },
		"not ICMP":                 func(b []byte) { b[ethernet+6] = 17 },
		"through a router":         func(b []byte) { b[ethernet+7] = 254 },
		"longer than it is":        func(b []byte) { b[ethernet+5]++ },
		"shorter than it must be":  func(b []byte) { b[ethernet+5] = ndSize - 1 },
		"another message":          func(b []byte) { b[body] = 134 },
		"another code":             func(b []byte) { b[body+1] = 1 },
		"about a group":            func(b []byte) { b[body+8] = 0xff },
		"an option without length": func(b []byte) { b[body+ndSize+1] = 0 },
		"an option too long":       func(b []byte) { b[body+ndSize+1] = 2 },
		"a group's MAC":            func(b []byte) { b[body+ndSize+2] = 1 },
		"no address (a probe)":     func(b []byte) { clear(b[ethernet+8 : ethernet+24]) },
	} {
		frame := message{asks: true, mac: macA, ip: ip6A, target: ip6B}.frame(macA, macB)
		change(frame)
		mend(frame)
		if m, ok := parse(frame); ok {
			t.Errorf("neighbour discovery, %s: %+v", name, m)
		}
	}
	frame := message{asks: true, mac: macA, ip: ip6A, target: ip6B}.frame(macA, macB)
	frame[body+2]++
	if m, ok := parse(frame); ok {
		t.Errorf("a wrong checksum: %+v", m)
	}
}

// mend gives a message the checksum that it should have.
func mend(frame []byte) {
	p := frame[ethernet:]
	if end := ipv6Size + int(binary.BigEndian.Uint16(p[4:])); end <= len(p) {
		clear(p[ipv6Size+2 : ipv6Size+4])
		binary.BigEndian.PutUint16(p[ipv6Size+2:], ndChecksum(p[:end]))
	}
}

// An answer to one alone need not say the MAC that the frame has; other options are skipped.
func TestParseOptions(t *testing.T) {
	frame := message{mac: macA, ip: ip6A, target: ip6B}.frame(macB, macB)
	frame[ethernet+ipv6Size+ndSize] = 14 // a nonce (RFC 3971)
	mend(frame)
	if m, ok := parse(frame); !ok || m.mac != macB || m.ip != ip6A {
		t.Errorf("%+v, %t", m, ok)
	}
}
