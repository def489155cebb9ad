package main

import (
	"context"
	"fmt"
)

// way is a backend to measure.
type way struct {
	name, backend string
	module        string // that it needs, and a kernel may lack; "" for none
	encrypted     bool
}

var ways = []way{
	{"vxlan", `{"Type":"vxlan"}`, "", false},
	{"vxlan-dr", `{"Type":"vxlan","DirectRouting":true}`, "", false},
	{"host-gw", `{"Type":"host-gw"}`, "", false},
	{"l2", `{"Type":"l2"}`, "", false},
	{"ipip", `{"Type":"ipip"}`, "ipip", false},
	{"udp", `{"Type":"udp"}`, "", false},
	{"wireguard", `{"Type":"wireguard"}`, "", true},
}

// measureBackends does one round.
func (b *bench) measureBackends(ctx context.Context) error {
	return b.measure(ctx, &b.Backends, "", tcp(1), tcp(4), udp(64), echo)
}

// backendTable has a line for each backend, and one for what they all run over.
func (b *bench) backendTable() table {
	t := table{{"", "MTU (bytes)", "encrypted", "TCP, 1 stream (Gbit/s)", "4 streams (Gbit/s)", "1,000 packets/s", "round trip (µs)", "CPU s/Gbit"}}
	for _, p := range b.Backends.Paths {
		line := []string{p.Name, fmt.Sprint(p.MTU), ""}
		for _, w := range ways {
			if w.name == p.Name && w.encrypted {
				line[2] = "yes"
			}
		}
		for _, figure := range []struct {
			row, unit string
			times     float64
		}{{"TCP, 1 stream", "Gbit/s", 1}, {"TCP, 4 streams", "Gbit/s", 1}, {"UDP, 64 bytes", "1,000/s", 1},
			{"round trip, median", "µs", 1}, {"TCP, 1 stream", "CPU s/GB", 1. / 8}} {
			line = append(line, number(median(b.Backends.row(figure.row, figure.unit).Samples[p.Name])*figure.times))
		}
		t = append(t, line)
	}
	return t
}
