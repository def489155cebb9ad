package netfilter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// nftablesGroup is NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h): every change of a ruleset, whoever makes it.
const nftablesGroup = 7

// How often the legacy iptables' tables are looked at, which tell of nothing: one system call for each. Where there are none,
// somebody has to load them first.
const (
	legacyPoll     = time.Second
	legacyPollNone = 10 * time.Second
)

// bell rings when the packet filter changed.
type bell struct {
	c       chan struct{} // capacity one: rings in a row are one ring
	nft     *nl.NetlinkSocket
	queries map[int]*nl.SocketHandle
	legacy  *legacy                // nil if that is not permitted
	last    map[legacyTable]extent // of the legacy tables
}

func newBell() (*bell, error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, nftablesGroup)
	if err != nil {
		return nil, fmt.Errorf("subscribe to nftables' notifications: %w", err)
	}
	questions, err := queries()
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("ask nftables: %w", err)
	}
	b := &bell{c: make(chan struct{}, 1), nft: s, queries: questions}
	if b.legacy, err = openLegacy(); err == nil { // without CAP_NET_RAW the slow resync has to do
		b.last = b.legacy.tables()
	}
	return b, nil
}

func (b *bell) close() {
	b.nft.Close()
	b.queries[unix.NETLINK_NETFILTER].Close()
	if b.legacy != nil {
		b.legacy.close()
	}
}

func (b *bell) ring() {
	select {
	case b.c <- struct{}{}:
	default:
	}
}

// listen rings until ctx ends. It fails only if the nftables socket does.
func (b *bell) listen(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return b.listenNFT(ctx) })
	tasks.Go(func() error { b.pollLegacy(ctx); return nil })
	return tasks.Wait()
}

func (b *bell) listenNFT(ctx context.Context) error {
	stop := context.AfterFunc(ctx, b.nft.Close)
	defer stop()
	for {
		_, _, err := b.nft.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil && !errors.Is(err, unix.ENOBUFS): // of that many, some were lost
			return fmt.Errorf("receive nftables' notifications: %w", err)
		}
		b.ring()
	}
}

// pollLegacy rings when a legacy table has another number of rules, or rules of another size, than when it last looked. What
// changes neither is left to the slow resync.
func (b *bell) pollLegacy(ctx context.Context) {
	if b.legacy == nil {
		return
	}
	for {
		wait := legacyPoll
		if len(b.last) == 0 {
			wait = legacyPollNone
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if now := b.legacy.tables(); !maps.Equal(now, b.last) {
			b.last = now
			b.ring()
		}
	}
}
