package udp

import "encoding/binary"

// vnetHeader precedes each packet that is read from the device or written to it: what is left to do of checksum and segmentation
// (struct virtio_net_hdr, include/uapi/linux/virtio_net.h).
type vnetHeader struct {
	flags, kind         uint8
	headers, segment    uint16 // length of all headers, of the payload of each segment, bytes
	sumStart, sumOffset uint16 // where what is summed begins, and where in that the checksum is, bytes
}

const vnetSize = 10 // bytes

func parseVnet(b []byte) vnetHeader {
	n := binary.NativeEndian
	return vnetHeader{b[0], b[1], n.Uint16(b[2:]), n.Uint16(b[4:]), n.Uint16(b[6:]), n.Uint16(b[8:])}
}

func (h vnetHeader) put(b []byte) {
	n := binary.NativeEndian
	b[0], b[1] = h.flags, h.kind
	n.PutUint16(b[2:], h.headers)
	n.PutUint16(b[4:], h.segment)
	n.PutUint16(b[6:], h.sumStart)
	n.PutUint16(b[8:], h.sumOffset)
}
