// Command data measures what the overlay costs the containers' packets, as ratios to the bare underlay between the same two
// hosts, and what each of VXLAN's offloads is worth. iperf3 makes the traffic, in network namespaces of e2e/lab.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/tulle-net/tulle/e2e/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b := bench{started: time.Now()}
	binary := flag.String("binary", "bin/tulle", "path of tulle")
	flag.IntVar(&b.Seconds, "seconds", 5, "how long each transfer takes")
	flag.IntVar(&b.Rounds, "rounds", 3, "how often all is measured; the tables have medians")
	jsonFile := flag.String("json", "", "file for the machine's facts and all samples")
	markdownFile := flag.String("markdown", "", "file for the tables in Markdown")
	flag.Parse()
	err := b.run(ctx, *binary)
	if len(b.Rows) > 0 {
		err = errors.Join(err, b.publish(*jsonFile, *markdownFile))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-data:", err)
		os.Exit(1)
	}
}

// publish prints the tables, and writes those files that have a name.
func (b *bench) publish(jsonFile, markdownFile string) error {
	paths, offloads := b.pathTable(), b.offloadTable()
	fmt.Printf("\n%s\n\n%s\n%s", b.Machine, paths.text(), offloads.text())
	samples, err := json.MarshalIndent(b, "", "  ")
	if err == nil && jsonFile != "" {
		err = os.WriteFile(jsonFile, append(samples, '\n'), 0o644)
	}
	if err == nil && markdownFile != "" {
		err = os.WriteFile(markdownFile, fmt.Appendf(nil, "%s\n\n%s\n%s", b.Machine, paths.markdown(), offloads.markdown()), 0o644)
	}
	return err
}

// bench is a run of all measurements, and what came of it.
type bench struct {
	Machine  machine
	Seconds  int // of one transfer
	Rounds   int
	Paths    []path
	Rows     []*row
	Offloads []*offloadRow

	started time.Time
	labs    []*lab.Lab // over VXLAN, and routed
}

// run measures. What could not be measured is in the error and missing in the tables; the rest goes on.
func (b *bench) run(ctx context.Context, binary string) (err error) {
	if b.Machine, err = describe(ctx, binary); err != nil {
		return err
	}
	defer func() {
		for _, l := range b.labs {
			err = errors.Join(err, l.Down())
		}
	}()
	if err := b.setUp(ctx, binary); err != nil {
		return err
	}
	var errs []error
	for round := 0; round < b.Rounds && ctx.Err() == nil; round++ {
		b.say("round %d of %d: the paths", round+1, b.Rounds)
		errs = append(errs, b.measurePaths(ctx))
	}
	for round := 0; round < b.Rounds && ctx.Err() == nil; round++ {
		b.say("round %d of %d: the offloads", round+1, b.Rounds)
		errs = append(errs, b.measureOffloads(ctx))
	}
	if ctx.Err() != nil {
		return errors.New("interrupted") // and what failed for it is not worth telling
	}
	return errors.Join(errs...)
}

// setUp makes two labs of two hosts, which differ in whether peers are reached through VXLAN.
func (b *bench) setUp(ctx context.Context, binary string) error {
	for _, o := range []lab.Options{
		{Name: "data-vxlan", Config: `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`},
		{Name: "data-routed", Config: `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`},
	} {
		o.Hosts, o.Prefix = 2, "/coreos.com/network"
		var err error
		if o.Binary, err = filepath.Abs(binary); err != nil {
			return err
		}
		l, err := lab.Up(ctx, o, nil)
		if err != nil {
			return err
		}
		b.labs = append(b.labs, l)
	}
	var err error
	b.Paths, err = paths(b.labs[0].Nodes, b.labs[1].Nodes)
	return err
}

// say tells of progress.
func (b *bench) say(format string, args ...any) {
	fmt.Printf("%6.1fs  %s\n", time.Since(b.started).Seconds(), fmt.Sprintf(format, args...))
}
