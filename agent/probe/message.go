package probe

import (
	"encoding/binary"
	"math"
	"net/netip"
	"time"
)

// magic and version open the data of our echo requests; a message of another version is not read.
const (
	magic   = 0x74756c50 // "tulP"
	version = 1
)

const (
	messageHeader = 32             // bytes
	messageMost   = 400            // bytes; with the headers it fits every link without fragments
	never         = math.MaxUint32 // as an age
	noAnswer      = math.MaxUint32 // as a trip
)

// message is the data of an echo request. The addressee's kernel only sends it back; its Prober, if it runs one, reads it. The
// format, big-endian: magic (4 bytes), version (1), path (1), entries (1), bytes of an address in them (1: 4 or 16), token (4), age in
// ms (4), the sender's overlay address (16, IPv4 mapped), then the entries: an address, and a trip in µs (4).
//
// The age goes by both paths: who gets nothing over the overlay must hear by the underlay that its own packets do arrive. The
// entries go over the overlay alone: it may be encrypted, and then the underlay is not to know who there is.
type message struct {
	path   Path
	token  uint32        // which makes it hard to answer for who has not seen the request
	age    time.Duration // since the sender last got a packet of the addressee's over the overlay, to a ms; negative: it never did
	sender netip.Addr    // on the overlay
	row    []entry       // how long it takes from the sender to others; some of them, and the addressee
}

// entry is a host by its overlay address, and the trip there and back in µs, or noAnswer.
type entry struct {
	to   netip.Addr
	trip uint32
}

// entriesMost is how many entries fit beside a sender with this overlay address.
func entriesMost(sender netip.Addr) int {
	return (messageMost - messageHeader) / (sender.BitLen()/8 + 4)
}

// append appends the message to b. Entries of another family than the sender's are left out, as are those too many.
func (m message) append(b []byte) []byte {
	start, size := len(b), m.sender.BitLen()/8
	b = binary.BigEndian.AppendUint32(b, magic)
	b = append(b, version, byte(m.path), 0, byte(size))
	b = binary.BigEndian.AppendUint32(b, m.token)
	age := uint32(never)
	if m.age >= 0 {
		age = uint32(min(m.age.Milliseconds(), never-1))
	}
	b = binary.BigEndian.AppendUint32(b, age)
	sender := m.sender.As16()
	b = append(b, sender[:]...)
	for _, e := range m.row {
		if e.to.BitLen()/8 == size && len(b)-start+size+4 <= messageMost {
			b = binary.BigEndian.AppendUint32(append(b, e.to.AsSlice()...), e.trip)
			b[start+6]++
		}
	}
	return b
}

// tokenOf is the token of a message that comes back.
func tokenOf(b []byte) (token uint32, ok bool) {
	if len(b) < messageHeader {
		return 0, false
	}
	return binary.BigEndian.Uint32(b[8:]), true
}

// parseMessage reads what may come from anybody.
func parseMessage(b []byte) (m message, ok bool) {
	if len(b) < messageHeader || len(b) > messageMost || binary.BigEndian.Uint32(b) != magic || b[4] != version || b[5] >= byte(paths) {
		return m, false
	}
	entries, size := int(b[6]), int(b[7])
	m = message{path: Path(b[5]), token: binary.BigEndian.Uint32(b[8:]), age: -1, sender: netip.AddrFrom16([16]byte(b[16:32])).Unmap()}
	if size != m.sender.BitLen()/8 || len(b) != messageHeader+entries*(size+4) {
		return m, false
	}
	if age := binary.BigEndian.Uint32(b[12:]); age != never {
		m.age = time.Duration(age) * time.Millisecond
	}
	if entries > 0 {
		m.row = make([]entry, 0, entries)
	}
	for b = b[messageHeader:]; len(b) > 0; b = b[size+4:] {
		to, _ := netip.AddrFromSlice(b[:size])
		m.row = append(m.row, entry{to, binary.BigEndian.Uint32(b[size:])})
	}
	return m, true
}
