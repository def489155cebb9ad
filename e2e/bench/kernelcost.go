package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/kernel"
	"github.com/tulle-net/tulle/subnet"
)

// kernel measures the kernel's part alone, with nexthop objects and without.
func (b *bench) kernel(ctx context.Context) error {
	if err := b.agent.kill(); err != nil {
		return err
	}
	const objects, plain = "nexthop objects", "plain routes"
	c := b.curve("kernel", "All of a host's kernel state, into an empty kernel", "peers", "s")
	if err := b.series(ctx, c, objects, b.sizes, b.floorRuns, func(n int) (float64, error) { return applyOnce(ctx, n) }); err != nil {
		return err
	}
	if err := b.series(ctx, c, plain, b.sizes, b.floorRuns, func(n int) (float64, error) { return applyOnce(ctx, n, kernel.WithoutNexthops) }); err != nil {
		return err
	}
	if err := b.floor(ctx, c); err != nil {
		return err
	}
	last := c.last(objects)
	b.add(figure{Name: fmt.Sprintf("kernel alone, %s peers", thousands(last.N)), Unit: "s", Value: last.Value, Floor: last.Value / c.last(floor).Value, Samples: last.Samples})
	b.add(figure{Name: fmt.Sprintf("kernel alone, %s peers, plain routes", thousands(last.N)), Unit: "s", Value: c.last(plain).Value, Floor: c.last(plain).Value / c.last(floor).Value})
	b.add(figure{Name: "kernel alone, " + c.spanned(objects), Unit: ": 1", Value: c.growth(objects), Bar: b.unlessQuick(12)})
	b.add(figure{Name: "kernel alone, plain routes, " + c.spanned(plain), Unit: ": 1", Value: c.growth(plain)})
	return nil
}

// underlay is a host's own, in sandbox.
func underlay() backend.Underlay {
	address := netip.MustParsePrefix("192.0.2.1/24")
	own := subnet.PairOf(subnet.IPv4, address.Addr())
	return backend.Underlay{Device: "eth0", MTU: 1500, Local: own, Public: own, OnLink: []netip.Prefix{address.Masked()}}
}

// state is what a host with n peers needs.
func state(n int) (backend.State, error) {
	parsed, _, err := subnet.ParseConfig([]byte(config))
	if err != nil {
		return backend.State{}, err
	}
	vxlan, err := backend.New(parsed)
	if err != nil {
		return backend.State{}, err
	}
	entries := map[string]subnet.Entry{}
	for i := range n {
		l := nth(i)
		entries[l.Key()] = subnet.Entry{Lease: l, Created: int64(i + 1)}
	}
	self := subnet.Lease{Subnet: subnet.PairOf(subnet.IPv4, netip.MustParsePrefix("10.255.255.0/24")), PublicIP: underlay().Public}
	p, err := backend.NewPlan(vxlan, backend.Host{Config: parsed, Self: self, Underlay: underlay()}, entries)
	if err != nil {
		return backend.State{}, err
	}
	return p.State(), nil
}

func applyOnce(ctx context.Context, n int, options ...kernel.Option) (took float64, err error) {
	want, err := state(n)
	if err != nil {
		return 0, err
	}
	err = sandbox(n, func() error {
		k, err := kernel.Open(options...)
		if err != nil {
			return err
		}
		defer k.Close()
		started := time.Now()
		_, err = k.Apply(ctx, want)
		took = time.Since(started).Seconds()
		return err
	})
	return took, err
}

// floor is the line of what `ip -batch` and `bridge -batch` take for the same.
const floor = "ip -batch"

// floor adds that line to c. It is measured once.
func (b *bench) floor(ctx context.Context, c *curve) error {
	if len(b.floors) == 0 {
		measured := curve{Name: c.Name, X: c.X}
		err := b.series(ctx, &measured, floor, b.sizes, b.floorRuns, func(n int) (float64, error) { return batchOnce(ctx, n) })
		if err != nil {
			return err
		}
		b.floors = measured.points(floor)
	}
	for _, p := range b.floors {
		c.point(floor, p.N, p.Value, p.Samples)
	}
	return nil
}

func batchOnce(ctx context.Context, n int) (took float64, err error) {
	var ip, bridge strings.Builder
	ip.WriteString("link add tulle.1 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning\n" +
		"addr add 10.255.255.0/32 dev tulle.1\nlink set tulle.1 up\n")
	for i := range n {
		l := nth(i)
		mac := l.Data.V4[strings.Index(l.Data.V4, "02:be"):][:17]
		fmt.Fprintf(&bridge, "fdb add %s dev tulle.1 dst %s\n", mac, l.PublicIP.V4)
		fmt.Fprintf(&ip, "neigh add %s lladdr %s dev tulle.1 nud permanent\n", l.Subnet.V4.Addr(), mac)
		fmt.Fprintf(&ip, "nexthop add id %d via %s dev tulle.1 onlink protocol %d\n", i+1, l.Subnet.V4.Addr(), protocol)
		fmt.Fprintf(&ip, "route add %s nhid %d protocol %d\n", l.Subnet.V4, i+1, protocol)
	}
	err = sandbox(n, func() error {
		started := time.Now()
		err := errors.Join(batch(ctx, "ip", ip.String()), batch(ctx, "bridge", bridge.String()))
		took = time.Since(started).Seconds()
		return err
	})
	return took, err
}

func batch(ctx context.Context, program, commands string) error {
	cmd := exec.CommandContext(ctx, program, "-batch", "-")
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s -batch: %w: %s", program, err, out[:min(len(out), 300)])
	}
	return nil
}

// sandbox runs f in a network namespace that has an underlay and nothing else, and checks that it leaves n routes. The
// namespace ends with its thread; what the kernel would do later, while something else is measured, is done before.
func sandbox(n int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- inSandbox(n, f)
	}()
	return <-done
}

func inSandbox(n int, f func() error) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	eth0 := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "wire"}
	if err := netlink.LinkAdd(eth0); err != nil {
		return fmt.Errorf("make an underlay: %w", err)
	}
	address, err := netlink.ParseAddr("192.0.2.1/24")
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.AddrAdd(eth0, address), netlink.LinkSetUp(eth0), f()); err != nil {
		return err
	}
	have, err := routesHere()
	if err == nil && len(have) != n {
		err = fmt.Errorf("%d routes for %d peers", len(have), n)
	}
	if vxlan, found := netlink.LinkByName("tulle.1"); found == nil {
		err = errors.Join(err, netlink.LinkDel(vxlan))
	}
	return err
}
