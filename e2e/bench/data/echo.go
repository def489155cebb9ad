package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

// exchanges is how many round trips are measured at a time.
const exchanges = 5000

// echo measures round trips of one small datagram between two programs, which wait for it in the kernel.
func echo(ctx context.Context, p path, _ int) ([]figure, error) {
	here, err := socket(p.from, netip.IPv4Unspecified())
	if err != nil {
		return nil, err
	}
	defer unix.Close(here)
	there, err := socket(p.to, p.address)
	if err != nil {
		return nil, err
	}
	bound, err := unix.Getsockname(there)
	if err != nil {
		return nil, errors.Join(err, unix.Close(there))
	}
	serving, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		answer(serving, there)
	}()
	defer func() { stop(); <-ended; unix.Close(there) }()
	trips, err := trips(ctx, here, bound)
	if err != nil {
		return nil, fmt.Errorf("round trip: %w", err)
	}
	slices.Sort(trips)
	at := func(percent int) float64 { return float64(trips[len(trips)*percent/100].Nanoseconds()) / 1000 }
	return []figure{{"round trip, median", "µs", at(50)}, {"round trip, 99th percentile", "µs", at(99)}}, nil
}

// socket opens a UDP socket in a namespace. Reading from it gives up after a while.
func socket(namespace string, address netip.Addr) (fd int, err error) {
	err = lab.In(namespace, func() error {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return fd, err
	}
	limit := unix.NsecToTimeval((200 * time.Millisecond).Nanoseconds())
	return fd, errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: address.As4()}))
}

// answer sends back what comes in, until ctx ends.
func answer(ctx context.Context, fd int) {
	buffer := make([]byte, 64)
	for ctx.Err() == nil {
		if n, from, err := unix.Recvfrom(fd, buffer, 0); err == nil {
			_ = unix.Sendto(fd, buffer[:n], 0, from) // a lost one fails the measurement, at the other end
		}
	}
}

func trips(ctx context.Context, fd int, to unix.Sockaddr) ([]time.Duration, error) {
	const warmUp = exchanges / 10
	var list []time.Duration
	buffer := make([]byte, 64)
	for n := range warmUp + exchanges {
		started := time.Now()
		if err := unix.Sendto(fd, buffer, 0, to); err != nil {
			return nil, err
		}
		_, _, err := unix.Recvfrom(fd, buffer, 0)
		for errors.Is(err, unix.EINTR) { // by a signal of Go's own scheduler
			_, _, err = unix.Recvfrom(fd, buffer, 0)
		}
		if err != nil {
			return nil, err
		}
		if n >= warmUp {
			list = append(list, time.Since(started))
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return list, nil
}
