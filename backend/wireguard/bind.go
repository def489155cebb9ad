package wireguard

import (
	"errors"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	wg "golang.zx2c4.com/wireguard/device"
)

// bind is wireguard-go's own, but for two things. It can be kept from beginning handshakes. And it sends from whatever address the
// kernel chooses if the one that a peer last sent to is gone; wireguard-go, which has a goroutine look after that for its own, would ask
// the kernel for the way to each peer whenever any route changes, as ours do.
type bind struct {
	conn.Bind
	hushed atomic.Bool // the first message of a handshake is taken for sent, and not sent
}

// Send sends packets to one peer.
func (b *bind) Send(packets [][]byte, to conn.Endpoint) error {
	if b.begins(packets) && b.hushed.Load() {
		return nil
	}
	err := b.Bind.Send(packets, to)
	errno := unix.Errno(0)
	if !errors.As(err, &errno) || !slices.Contains([]unix.Errno{unix.EINVAL, unix.EADDRNOTAVAIL, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.ENODEV}, errno) {
		return err
	}
	anew, parseErr := b.ParseEndpoint(to.DstToString())
	if parseErr != nil {
		return err
	}
	return b.Bind.Send(packets, anew)
}

// begins reports whether packets are a handshake's first message (WireGuard's paper, 5.4.2).
func (b *bind) begins(packets [][]byte) bool {
	return len(packets) == 1 && len(packets[0]) == wg.MessageInitiationSize && packets[0][0] == wg.MessageInitiationType
}
