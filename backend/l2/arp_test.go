package l2

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/tulle-net/tulle/backend"
)

var (
	macA = backend.MAC{2, 0, 0, 0, 0, 0xa}
	macB = backend.MAC{2, 0, 0, 0, 0, 0xb}
	ipA  = netip.MustParseAddr("10.5.2.2")
	ipB  = netip.MustParseAddr("10.5.1.2")
)

func TestFrame(t *testing.T) {
	a := arp{operation: request, mac: macA, ip: ipA, target: ipB}
	want := "\xff\xff\xff\xff\xff\xff" + "\x02\x00\x00\x00\x00\x0b" + "\x08\x06" +
		"\x00\x01" + "\x08\x00" + "\x06\x04" + "\x00\x01" +
		"\x02\x00\x00\x00\x00\x0a" + "\x0a\x05\x02\x02" + "\x00\x00\x00\x00\x00\x00" + "\x0a\x05\x01\x02"
	if got := a.frame(macB, broadcast); string(got) != want {
		t.Errorf("%x, want %x", got, want)
	}
	if announcement(ipA, macA).gratuitous() != true || a.gratuitous() {
		t.Error("an announcement is gratuitous, a question is not")
	}
}

// FuzzParse takes frames as they come: what is no ARP of a host with an address is nothing, and what is says all that it said.
func FuzzParse(f *testing.F) {
	good := arp{operation: reply, mac: macA, ip: ipA, targetMAC: macB, target: ipB}.frame(macA, macB)
	f.Add(good)
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		f.Add(bad)
		f.Add(good[:i])
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		a, ok := parse(frame)
		if !ok {
			return
		}
		if !a.mac.Unicast() || !a.ip.Is4() || a.ip.IsUnspecified() || a.operation != request && a.operation != reply {
			t.Errorf("took %+v", a)
		}
		again := a.frame(backend.MAC(frame[6:12]), backend.MAC(frame[:6]))
		if !bytes.Equal(again, frame[:len(again)]) {
			t.Errorf("%x is read as %+v", frame, a)
		}
	})
}

func TestParse(t *testing.T) {
	good := arp{operation: reply, mac: macA, ip: ipA, targetMAC: macB, target: ipB}
	if got, ok := parse(append(good.frame(macA, macB), make([]byte, 18)...)); !ok || got != good { // padded, as on a wire
		t.Errorf("%+v, %t", got, ok)
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
		frame := good.frame(macA, macB)
		change(frame)
		if a, ok := parse(frame); ok {
			t.Errorf("%s: %+v", name, a)
		}
	}
}
