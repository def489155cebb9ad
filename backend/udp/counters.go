package udp

import "sync/atomic"

// Counters are what was carried since the Carrier was made, and what was not, in packets of the overlay.
type Counters struct {
	Sent, Received Traffic
	Strayed        uint64 // to be sent to where no peer is
	Spoofed        uint64 // received from a host that has not got the packet's source address
	Foreign        uint64 // neither IPv4 nor IPv6, in either direction
	Refused        uint64 // by the kernel, in either direction
}

// Traffic is what passed in one direction.
type Traffic struct{ Packets, Bytes uint64 }

// counters are Counters that several goroutines count.
type counters struct {
	sent, received                     traffic
	strayed, spoofed, foreign, refused atomic.Uint64
}

type traffic struct{ packets, bytes atomic.Uint64 }

func (t *Traffic) add(o Traffic) { t.Packets, t.Bytes = t.Packets+o.Packets, t.Bytes+o.Bytes }

func (t *traffic) add(o Traffic) {
	t.packets.Add(o.Packets)
	t.bytes.Add(o.Bytes)
}

func (t *traffic) now() Traffic { return Traffic{t.packets.Load(), t.bytes.Load()} }

func (c *counters) now() Counters {
	return Counters{c.sent.now(), c.received.now(), c.strayed.Load(), c.spoofed.Load(), c.foreign.Load(), c.refused.Load()}
}
