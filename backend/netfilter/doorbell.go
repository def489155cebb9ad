package netfilter

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// nftablesGroup is NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h): every change of a ruleset, whoever makes it. The legacy
// iptables has no notifications; there a slow resync has to do.
const nftablesGroup = 7

// bell rings when the packet filter changed.
type bell struct {
	c      chan struct{} // capacity one: rings in a row are one ring
	socket *nl.NetlinkSocket
}

func newBell() (*bell, error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, nftablesGroup)
	if err != nil {
		return nil, fmt.Errorf("subscribe to nftables' notifications: %w", err)
	}
	return &bell{make(chan struct{}, 1), s}, nil
}

// listen rings until ctx ends. It fails only if the socket does.
func (b *bell) listen(ctx context.Context) error {
	stop := context.AfterFunc(ctx, b.socket.Close)
	defer stop()
	for {
		_, _, err := b.socket.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil && !errors.Is(err, unix.ENOBUFS): // of that many, some were lost
			return fmt.Errorf("receive nftables' notifications: %w", err)
		}
		select {
		case b.c <- struct{}{}:
		default:
		}
	}
}
