package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/etcd"
	"github.com/tulle-net/tulle/subnet"
)

type labFleetCmd struct {
	etcdFlags `embed:""`
	Leases    int           `required:"" help:"How many hosts to simulate." placeholder:"N"`
	Churn     float64       `help:"How many of them leave each second, each replaced by a new one." placeholder:"RATE"`
	Watchers  int           `help:"How many of them watch the network, as agents do." placeholder:"M"`
	For       time.Duration `help:"For how long, from when all have joined (default: until Ctrl-C)." placeholder:"TIME"`
	Leave     bool          `help:"Leave the leases behind at the end. They expire after a day."`
	JSON      bool          `name:"json" help:"Print nothing but the summary, as JSON."`
}

// Validate is called by kong.
func (c *labFleetCmd) Validate() error {
	switch {
	case c.Leases < 1:
		return errors.New("--leases: at least one")
	case c.Churn < 0 || c.Watchers < 0 || c.For < 0:
		return errors.New("--churn, --watchers and --for can't be negative")
	}
	return nil
}

func (c *labFleetCmd) Run(ctx context.Context) error {
	client, err := c.dial(context.WithoutCancel(ctx)) // what was made is taken back after Ctrl-C
	if err != nil {
		return err
	}
	defer client.Close()
	o, err := c.fleet(ctx, client)
	if err != nil {
		return err
	}
	fleet, ended := client.NewFleet(o), make(chan error, 1)
	go func() { ended <- fleet.Run(ctx) }()
	err = c.report(fleet, ended)
	summary := fleetSummaryOf(fleet.Stats())
	switch {
	case summary.Joins == 0 && err != nil: // nothing to sum up
	case c.JSON:
		err = errors.Join(err, json.NewEncoder(escaper{os.Stdout}).Encode(summary))
	default:
		summary.print()
	}
	return err
}

// fleet turns the flags and the network's config into a Fleet's options.
func (c *labFleetCmd) fleet(ctx context.Context, client *etcd.Client) (etcd.FleetOptions, error) {
	_, stored, err := client.Config(ctx)
	if err != nil {
		return etcd.FleetOptions{}, err
	}
	if stored.Err != nil {
		return etcd.FleetOptions{}, fmt.Errorf("the stored config can't be used: %w", stored.Err)
	}
	b, err := backend.New(stored.Config)
	if err != nil {
		return etcd.FleetOptions{}, fmt.Errorf("simulated hosts can only have vxlan, and the stored config can't be used for that: %w", err)
	}
	announce := func(public subnet.Pair[netip.Addr]) subnet.Lease {
		return b.Announce(backend.Host{Config: stored.Config, Underlay: backend.Underlay{Public: public}})
	}
	if name := announce(subnet.Pair[netip.Addr]{}).Backend; name != "vxlan" {
		return etcd.FleetOptions{}, fmt.Errorf("the network's backend is %s, simulated hosts can only have vxlan", name)
	}
	return etcd.FleetOptions{Leases: c.Leases, Churn: c.Churn, Watchers: c.Watchers, For: c.For, Leave: c.Leave,
		Range: stored.Config.Range, Announce: announce}, nil
}

const (
	fleetHeader = "%7s %7s %8s %7s %9s %9s %8s %9s %9s %9s %6s\n"
	fleetLine   = "%6.1fs %7d %8.0f %7d %9s %9s %8d %9.0f %9s %9s %6d\n"
)

// report prints a line each second until the fleet has ended, and returns its error.
func (c *labFleetCmd) report(fleet *etcd.Fleet, ended <-chan error) error {
	if c.JSON {
		return <-ended
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	started, last, before := time.Now(), time.Now(), etcd.FleetStats{}
	for lines := 0; ; lines++ {
		select {
		case err := <-ended:
			return err
		case <-tick.C:
		}
		if lines%30 == 0 {
			fmt.Printf(fleetHeader, "TIME", "JOINED", "LEASES/S", "CHURNED", "JOIN P50", "P99", "WATCHERS", "EVENTS/S", "SEEN P50", "P99", "ERRORS")
		}
		s, now := fleet.Stats(), time.Now()
		took := now.Sub(last).Seconds()
		join, seen := s.Join.Since(before.Join), s.Delivery.Since(before.Delivery)
		fmt.Printf(fleetLine, now.Sub(started).Seconds(), s.Joined, float64(s.Joins-before.Joins)/took, s.Churned,
			latency(join, 0.5), latency(join, 0.99), s.Watching, float64(s.Delivered-before.Delivered)/took,
			latency(seen, 0.5), latency(seen, 0.99), s.Errors)
		if s.LastError != before.LastError {
			fmt.Printf("        %s\n", s.LastError)
		}
		last, before = now, s
	}
}

// latency is a quantile as text.
func latency(l etcd.Latencies, q float64) string {
	if l.Len() == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", milliseconds(l.Quantile(q)))
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// fleetSummary is what a run comes to.
type fleetSummary struct {
	Joins          uint64        `json:"joins"`
	JoinSeconds    float64       `json:"join_seconds,omitempty"` // until all had joined; absent if they never had
	Churned        uint64        `json:"churned"`
	ChurnSeconds   float64       `json:"churn_seconds"`
	Join           fleetLatency  `json:"join_ms"` // of the transaction alone
	Watchers       int           `json:"watchers"`
	Delivered      uint64        `json:"events_delivered"`
	Delivery       *fleetLatency `json:"delivery_ms,omitempty"`
	Errors         uint64        `json:"errors"`
	LastError      string        `json:"last_error,omitempty"`
	CleanUpSeconds float64       `json:"clean_up_seconds,omitempty"`
	Left           int           `json:"left"` // hosts that are still registered
}

type fleetLatency struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func fleetLatencyOf(l etcd.Latencies) fleetLatency {
	return fleetLatency{milliseconds(l.Quantile(0.5)), milliseconds(l.Quantile(0.99)), milliseconds(l.Quantile(1))}
}

func (l fleetLatency) String() string {
	return fmt.Sprintf("p50 %.1f ms, p99 %.1f ms, at most %.1f ms", l.P50, l.P99, l.Max)
}

func fleetSummaryOf(s etcd.FleetStats) fleetSummary {
	summary := fleetSummary{Joins: s.Joins, JoinSeconds: s.FilledIn.Seconds(), Churned: s.Churned, ChurnSeconds: s.Churning.Seconds(),
		Join: fleetLatencyOf(s.Join), Watchers: s.Watching, Delivered: s.Delivered, Errors: s.Errors, LastError: s.LastError,
		CleanUpSeconds: s.CleanedIn.Seconds(), Left: s.Joined}
	if s.Delivery.Len() > 0 {
		delivery := fleetLatencyOf(s.Delivery)
		summary.Delivery = &delivery
	}
	return summary
}

func (s fleetSummary) print() {
	fmt.Println()
	if first := s.Joins - s.Churned; s.JoinSeconds > 0 {
		fmt.Printf("joined    %d hosts in %.1f s, %.0f a second; transactions %s\n", first, s.JoinSeconds, float64(first)/s.JoinSeconds, s.Join)
	} else {
		fmt.Printf("joined    %d hosts before the end; transactions %s\n", s.Joins, s.Join)
	}
	if s.Churned > 0 {
		fmt.Printf("replaced  %d hosts in %.1f s, %.1f a second\n", s.Churned, s.ChurnSeconds, float64(s.Churned)/s.ChurnSeconds)
	}
	if s.Delivery != nil {
		fmt.Printf("watched   %d watchers got %d events; from put to watcher %s\n", s.Watchers, s.Delivered, s.Delivery)
	}
	if s.Errors > 0 {
		fmt.Printf("errors    %d, each followed by another try; the last: %s\n", s.Errors, s.LastError)
	}
	switch {
	case s.Left > 0:
		fmt.Printf("left      %d leases, which expire within a day\n", s.Left)
	default:
		fmt.Printf("cleaned   all taken back in %.1f s\n", s.CleanUpSeconds)
	}
}
