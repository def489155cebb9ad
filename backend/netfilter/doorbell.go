package netfilter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"time"
	"unsafe"

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
	legacy  int    // a raw socket, which legacy tables are asked by; -1 if that is not permitted
	names   string // the file that names the legacy tables in use
	last    map[string]extent
}

func newBell() (*bell, error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, nftablesGroup)
	if err != nil {
		return nil, fmt.Errorf("subscribe to nftables' notifications: %w", err)
	}
	legacy, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		legacy = -1 // without CAP_NET_RAW the slow resync has to do
	}
	questions, err := queries()
	if err != nil {
		return nil, fmt.Errorf("ask nftables: %w", err)
	}
	b := &bell{c: make(chan struct{}, 1), nft: s, queries: questions, legacy: legacy, names: "/proc/self/net/ip_tables_names"}
	b.last = b.legacyTables()
	return b, nil
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
	if b.legacy < 0 {
		return
	}
	defer unix.Close(b.legacy)
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
		if now := b.legacyTables(); !maps.Equal(now, b.last) {
			b.last = now
			b.ring()
		}
	}
}

// extent is how much a legacy table holds.
type extent struct{ entries, bytes uint32 }

// legacyTables looks at the legacy tables in use, of which there are none where iptables is the nftables one.
func (b *bell) legacyTables() map[string]extent {
	names, _ := os.ReadFile(b.names) // no file, no tables
	tables := map[string]extent{}
	for _, name := range strings.Fields(string(names)) {
		if e, err := legacyTable(b.legacy, name); err == nil {
			tables[name] = e
		}
	}
	return tables
}

// legacyTable asks for a table's struct ipt_getinfo (linux/netfilter_ipv4/ip_tables.h): name, valid_hooks, hook_entry[5],
// underflow[5], num_entries, size.
func legacyTable(socket int, name string) (extent, error) {
	const getInfo = 64 // IPT_SO_GET_INFO
	var info [84]byte
	copy(info[:31], name)
	length := uint32(len(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(socket), unix.IPPROTO_IP, getInfo,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return extent{}, errno
	}
	return extent{binary.NativeEndian.Uint32(info[76:]), binary.NativeEndian.Uint32(info[80:])}, nil
}
