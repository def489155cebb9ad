package main

import (
	"math"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name, json, err string
		packets         int
		gbits           float64
	}{
		{name: "tcp", gbits: 10, json: `{"start":{},"end":{"sum_sent":{"bytes":2600000000,"retransmits":3},"sum_received":{"bytes":2500000000,"seconds":2.0}}}`},
		{name: "udp", packets: 193300, gbits: 0.032005777066666665,
			json: `{"end":{"sum":{"packets":193300},"sum_sent":{"packets":193300},"sum_received":{"bytes":12002304,"seconds":3.000020,"packets":193221,"lost_packets":5685}}}`},
		{name: "refused", err: "iperf3: error - unable to connect", json: `{"start":{},"end":{},"error":"error - unable to connect to server: Connection refused"}`},
		{name: "nothing", err: "nothing was received", json: `{"end":{"sum_received":{"bytes":0,"seconds":2}}}`},
		{name: "no JSON", err: "says no JSON", json: `iperf3: parameter error`},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := parse([]byte(c.json))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.End.Sent.Packets != c.packets || math.Abs(r.gbits()-c.gbits) > 1e-6 {
				t.Errorf("%d packets and %v Gbit/s, want %d and %v", r.End.Sent.Packets, r.gbits(), c.packets, c.gbits)
			}
		})
	}
}
