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
	flag.StringVar(&b.only, "only", "", "measure only this: backends, paths or offloads")
	flag.Parse()
	err := b.run(ctx, *binary)
	if len(b.Overlay.Rows)+len(b.Backends.Rows) > 0 {
		err = errors.Join(err, b.publish(*jsonFile, *markdownFile))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-data:", err)
		os.Exit(1)
	}
}

// publish prints the tables, and writes those files that have a name.
func (b *bench) publish(jsonFile, markdownFile string) error {
	text, markdown := fmt.Sprintf("\n%s\n", b.Machine), fmt.Sprintf("%s\n", b.Machine)
	for _, t := range b.tables() {
		text, markdown = text+"\n"+t.text(), markdown+"\n"+t.markdown()
	}
	fmt.Print(text)
	samples, err := json.MarshalIndent(b, "", "  ")
	if err == nil && jsonFile != "" {
		err = os.WriteFile(jsonFile, append(samples, '\n'), 0o644)
	}
	if err == nil && markdownFile != "" {
		err = os.WriteFile(markdownFile, []byte(markdown), 0o644)
	}
	return err
}

// tables are those that something was measured for.
func (b *bench) tables() (list []table) {
	if len(b.Backends.Rows) > 0 {
		list = append(list, b.backendTable())
	}
	if len(b.Overlay.Rows) > 0 {
		list = append(list, b.pathTable())
	}
	if len(b.Offloads) > 0 {
		list = append(list, b.offloadTable())
	}
	return list
}

// bench is a run of all measurements, and what came of it.
type bench struct {
	Machine  machine
	Seconds  int // of one transfer
	Rounds   int
	Overlay  survey // what VXLAN costs
	Backends survey // what each way to carry packets costs
	Offloads []*offloadRow

	started time.Time
	only    string     // the backends: nothing else is measured
	labs    []*lab.Lab // over VXLAN, routed, and then by the other backends
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
	for _, part := range []struct {
		name    string
		measure func(context.Context) error
	}{{"backends", b.measureBackends}, {"paths", b.measurePaths}, {"offloads", b.measureOffloads}} {
		for round := 0; round < b.Rounds && ctx.Err() == nil && (b.only == "" || b.only == part.name); round++ {
			b.say("round %d of %d: the %s", round+1, b.Rounds, part.name)
			errs = append(errs, part.measure(ctx))
		}
	}
	if ctx.Err() != nil {
		return errors.New("interrupted") // and what failed for it is not worth telling
	}
	return errors.Join(errs...)
}

// setUp makes a lab of two hosts for each backend. The first two differ in whether peers are reached through VXLAN.
func (b *bench) setUp(ctx context.Context, binary string) error {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return err
	}
	for _, way := range ways {
		l, err := lab.Up(ctx, lab.Options{Name: "data-" + way.name, Hosts: 2, Binary: binary, Prefix: "/coreos.com/network",
			Config: `{"Network":"10.5.0.0/16","Backend":` + way.backend + `}`}, nil)
		if err != nil && way.module != "" { // this kernel may lack it
			b.say("%s is not measured: %v", way.name, err)
			continue
		}
		if err != nil {
			return err
		}
		b.labs = append(b.labs, l)
		p, err := between(way.name, l)
		if err != nil {
			return err
		}
		b.Backends.Paths = append(b.Backends.Paths, p)
	}
	under, err := below("underlay", b.labs[0])
	b.Overlay.Paths = []path{under, b.Backends.Paths[1], b.Backends.Paths[0]}
	b.Overlay.Paths[1].Name, b.Overlay.Paths[2].Name = "routed", "VXLAN"
	b.Backends.Paths = append([]path{under}, b.Backends.Paths...)
	return err
}

// say tells of progress.
func (b *bench) say(format string, args ...any) {
	fmt.Printf("%6.1fs  %s\n", time.Since(b.started).Seconds(), fmt.Sprintf(format, args...))
}
