package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

// protocol marks the agent's routes (backend/kernel).
const protocol = 84

// errLost says that the kernel told more than the socket could hold: nobody knows when what happened.
var errLost = errors.New("route notifications were lost")

// routeWatch sees the agent's routes come and go.
type routeWatch struct {
	socket *os.File
	ended  chan error // receives why no more is seen

	mu     sync.Mutex
	have   map[netip.Prefix]bool
	target int            // number of routes that is waited for
	hit    chan time.Time // receives when there are so many
}

// watchRoutes sees from now on what happens in a namespace.
func watchRoutes(namespace string) (*routeWatch, error) {
	w := &routeWatch{ended: make(chan error, 1), target: -1}
	err := lab.In(namespace, func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		w.socket = os.NewFile(uintptr(fd), "rtnetlink")
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_IPV4_ROUTE - 1)})
	})
	if err != nil {
		return nil, fmt.Errorf("watch routes in %s: %w", namespace, err)
	}
	if w.have, err = routes(namespace); err != nil {
		w.socket.Close()
		return nil, err
	}
	go w.follow()
	return w, nil
}

func (w *routeWatch) close() { w.socket.Close() }

func (w *routeWatch) follow() {
	buffer := make([]byte, 1<<16)
	for {
		n, err := w.socket.Read(buffer)
		at := time.Now()
		if errors.Is(err, unix.ENOBUFS) {
			err = errLost
		}
		var messages []syscall.NetlinkMessage
		if err == nil {
			messages, err = syscall.ParseNetlinkMessage(buffer[:n])
		}
		if err != nil {
			w.ended <- err
			return
		}
		w.take(messages, at)
	}
}

func (w *routeWatch) take(messages []syscall.NetlinkMessage, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range messages {
		dst, ok := destination(m)
		switch {
		case !ok:
			continue
		case m.Header.Type == unix.RTM_NEWROUTE:
			w.have[dst] = true
		default:
			delete(w.have, dst)
		}
		if len(w.have) == w.target {
			w.hit <- at
			w.target = -1
		}
	}
}

// destination is where a route of the agent's leads.
func destination(m syscall.NetlinkMessage) (netip.Prefix, bool) {
	if len(m.Data) < unix.SizeofRtMsg || m.Data[5] != protocol {
		return netip.Prefix{}, false
	}
	attributes, err := syscall.ParseNetlinkRouteAttr(&m)
	if err != nil {
		return netip.Prefix{}, false
	}
	for _, a := range attributes {
		if a.Attr.Type == unix.RTA_DST {
			addr, ok := netip.AddrFromSlice(a.Value)
			return netip.PrefixFrom(addr, int(m.Data[1])), ok
		}
	}
	return netip.Prefix{}, false
}

// reach says that n routes are waited for. The time when there are so many is told by wait.
func (w *routeWatch) reach(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hit, w.target = make(chan time.Time, 1), n
	if len(w.have) == n {
		w.hit <- time.Now()
		w.target = -1
	}
}

// wait returns when what reach says has come true.
func (w *routeWatch) wait(ctx context.Context) (time.Time, error) {
	select {
	case at := <-w.hit:
		return at, nil
	case err := <-w.ended:
		return time.Time{}, err
	case <-ctx.Done():
		return time.Time{}, ctx.Err()
	case <-time.After(patience):
		w.mu.Lock()
		defer w.mu.Unlock()
		return time.Time{}, fmt.Errorf("after %s there are %d routes, not %d", patience, len(w.have), w.target)
	}
}

// routes are those of the agent's in a namespace, as the kernel lists them.
func routes(namespace string) (have map[netip.Prefix]bool, err error) {
	err = lab.In(namespace, func() error {
		have, err = routesHere()
		return err
	})
	return have, err
}

// routesHere is routes of the namespace that the thread is in.
func routesHere() (map[netip.Prefix]bool, error) {
	list, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: protocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	have := map[netip.Prefix]bool{}
	for _, r := range list {
		addr, _ := netip.AddrFromSlice(r.Dst.IP.To4())
		bits, _ := r.Dst.Mask.Size()
		have[netip.PrefixFrom(addr, bits)] = true
	}
	return have, nil
}
