package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/tulle-net/tulle/e2e/lab"
)

// Features of devices, as `ethtool -k` has them.
const (
	checksum       = "tx-checksumming"
	tso            = "tcp-segmentation-offload"
	gso            = "generic-segmentation-offload"
	gro            = "generic-receive-offload"
	tunnel         = "tx-udp_tnl-segmentation"
	tunnelChecksum = "tx-udp_tnl-csum-segmentation"
)

// device is a device in a namespace.
type device struct{ namespace, name string }

// changes are features that were changed.
type changes []change

type change struct {
	device  device
	feature string
	on      bool
}

// turn switches features of a device on or off: those that are not so already. It fails if the kernel keeps one as it is.
func turn(ctx context.Context, on bool, d device, features ...string) (done changes, err error) {
	now, err := read(ctx, d)
	if err != nil {
		return nil, err
	}
	for _, feature := range features {
		if now[feature] == on {
			continue
		}
		c := change{d, feature, on}
		if err := c.apply(ctx); err != nil {
			return done, err
		}
		done = append(done, c)
	}
	now, err = read(ctx, d)
	for _, c := range done {
		if err == nil && now[c.feature] != on {
			err = fmt.Errorf("%s of %s in %s can't be changed", c.feature, d.name, d.namespace)
		}
	}
	return done, err
}

// read returns which features a device has switched on.
func read(ctx context.Context, d device) (map[string]bool, error) {
	text, err := lab.Output(ctx, d.namespace, "ethtool", "-k", d.name)
	features := map[string]bool{}
	for line := range strings.Lines(text) {
		name, state, _ := strings.Cut(strings.TrimSpace(line), ": ")
		features[name] = strings.HasPrefix(state, "on")
	}
	return features, err
}

func (c change) apply(ctx context.Context) error {
	short := map[string]string{checksum: "tx", tso: "tso", gso: "gso", gro: "gro"} // which `ethtool -K` wants
	name, ok := short[c.feature]
	if !ok {
		name = c.feature
	}
	state := map[bool]string{true: "on", false: "off"}[c.on]
	_, err := lab.Output(ctx, c.device.namespace, "ethtool", "-K", c.device.name, name, state)
	return err
}

// undo changes back, the last first.
func (done changes) undo(ctx context.Context) error {
	var errs []error
	for n := len(done) - 1; n >= 0; n-- {
		c := done[n]
		c.on = !c.on
		errs = append(errs, c.apply(ctx))
	}
	return errors.Join(errs...)
}

// offloadRow is VXLAN's throughput without some of the offloads.
type offloadRow struct {
	Name               string
	Whole, Frames      []float64 // Gbit/s of one TCP stream, by what crosses the underlay
	Transfers, Correct int       // whose checksum was compared

	off func(h *lab.Host) map[device][]string // what is switched off on each host
}

// offloadRows has the states that are measured. The first is the one that all others are compared with.
func offloadRows() []*offloadRow {
	on := func(name string, features ...string) func(*lab.Host) map[device][]string {
		return func(h *lab.Host) map[device][]string { return map[device][]string{{h.Namespace, name}: features} }
	}
	return []*offloadRow{
		{Name: "as tulle leaves it: all on", off: on("tulle.1")},
		{Name: "tulle.1: no checksums", off: on("tulle.1", checksum)},
		{Name: "tulle.1: no segmentation (TSO, GSO)", off: on("tulle.1", tso, gso)},
		{Name: "tulle.1: no GRO", off: on("tulle.1", gro)},
		{Name: "tulle.1: none of these", off: on("tulle.1", tso, gso, gro, checksum)},
		{Name: "docker0: no checksums", off: on("docker0", checksum)},
		{Name: "containers: no segmentation", off: func(h *lab.Host) map[device][]string {
			return map[device][]string{{h.Container.Namespace, "eth0"}: {tso, gso}}
		}},
		{Name: "underlay: no VXLAN segmentation", off: on("eth0", tunnel, tunnelChecksum)},
		{Name: "underlay: none with UDP checksums", off: on("eth0", tunnelChecksum)},
		{Name: "underlay: no GRO", off: on("eth0", gro)},
		{Name: "underlay and tulle.1: no GRO", off: func(h *lab.Host) map[device][]string {
			return map[device][]string{{h.Namespace, "eth0"}: {gro}, {h.Namespace, "tulle.1"}: {gro}}
		}},
	}
}

// measureOffloads does one round.
func (b *bench) measureOffloads(ctx context.Context) error {
	if b.Offloads == nil {
		b.Offloads = offloadRows()
	}
	// What all are compared with is measured between them, too: the machine is not the same for long.
	var order []*offloadRow
	for n, r := range b.Offloads {
		if n%3 == 0 && n > 0 {
			order = append(order, b.Offloads[0])
		}
		order = append(order, r)
	}
	var errs []error
	for _, r := range order {
		errs = append(errs, b.measureOffload(ctx, r, "whole", &r.Whole))
	}
	frames, err := b.asFrames(ctx)
	for _, r := range order {
		if err == nil {
			errs = append(errs, b.measureOffload(ctx, r, "in frames", &r.Frames))
		}
	}
	return errors.Join(append(errs, err, frames.undo(ctx))...)
}

// measureOffload measures one state, and that data arrives in it as it was sent.
func (b *bench) measureOffload(ctx context.Context, r *offloadRow, underlay string, samples *[]float64) (err error) {
	var done changes
	defer func() {
		err = errors.Join(err, done.undo(ctx))
		if err != nil {
			err = fmt.Errorf("%s: %w", r.Name, err)
		}
	}()
	for _, h := range b.labs[0].Nodes {
		for d, features := range r.off(h) {
			changed, err := turn(ctx, false, d, features...)
			done = append(done, changed...)
			if err != nil {
				return err
			}
		}
	}
	vxlan := b.Overlay.Paths[len(b.Overlay.Paths)-1]
	report, err := iperf(ctx, vxlan, b.Seconds, "-C", congestion)
	if err != nil {
		return err
	}
	*samples = append(*samples, report.gbits())
	b.say("%s, %s: %s Gbit/s", r.Name, underlay, number(report.gbits()))
	const size = 64 << 20
	sent, err := lab.Transfer(ctx, vxlan.from, vxlan.to, vxlan.address, size)
	if err != nil {
		return err
	}
	r.Transfers++
	if !sent.Correct {
		return errors.New("what arrived is not what was sent")
	}
	r.Correct++
	return nil
}
