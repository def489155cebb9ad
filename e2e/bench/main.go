// Command bench measures what a large network costs its hosts: a real agent, on a host of package lab's, among ten thousand
// peers that exist in etcd only. It prints a table of figures and what they must not exceed. See `make bench`.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

type cli struct {
	Run     runCmd     `cmd:"" default:"withargs" help:"Measure. Needs root, for network namespaces."`
	Compare compareCmd `cmd:"" help:"Compare the results of two runs."`
}

type runCmd struct {
	Binary string   `default:"bin/tulle" help:"The tulle to measure (default ${default})." placeholder:"FILE"`
	JSON   string   `name:"json" help:"Write all that was measured here." placeholder:"FILE"`
	SVG    string   `name:"svg" help:"Draw the curves in this directory." placeholder:"DIR"`
	Only   []string `default:"start,restart,join,burst,memory,idle,calls,crowd,kernel" enum:"start,restart,join,burst,memory,idle,calls,crowd,kernel" help:"Sections to run (default all: ${default})." placeholder:"NAME"`
	Quick  bool     `help:"Few and small runs, to see that the bench itself works: what depends on time or size is not judged."`
}

type compareCmd struct {
	Old string `arg:"" help:"JSON file of the first run."`
	New string `arg:"" help:"JSON file of the second."`
}

func main() {
	var c cli
	parsed := kong.Parse(&c, kong.Name("bench"), kong.Description("Measures what ten thousand hosts cost each of them."), kong.UsageOnError())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	parsed.BindTo(ctx, (*context.Context)(nil))
	err := parsed.Run()
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func (c *compareCmd) Run() error {
	older, err := readReport(c.Old)
	if err != nil {
		return err
	}
	newer, err := readReport(c.New)
	if err != nil {
		return err
	}
	compare(os.Stdout, older, newer)
	return nil
}

// config is the network that the agent takes part in. The lab's underlay is outside of it.
const config = `{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan"}}`

const prefix = "/coreos.com/network"

// Run is called by kong.
func (c *runCmd) Run(ctx context.Context) error {
	if err := raiseLimit(); err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	b := &bench{size: c.size(), report: &report{Machine: machineOf(c.Binary), Quick: c.Quick}, progress: newProgress(os.Stderr)}
	err := b.run(ctx, c)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		err = c.write(b.report)
	case len(b.Figures) == 0:
		return err
	}
	return errors.Join(b.print(os.Stdout), err) // what was measured before something failed is worth a look
}

// raiseLimit lets this process open what a thousand stores need, and the etcd that it starts as many.
func raiseLimit() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Max = max(limit.Max, 16384)
	limit.Cur = limit.Max
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
}

// write writes the files that were asked for.
func (c *runCmd) write(r *report) error {
	if c.JSON != "" {
		if err := r.write(c.JSON); err != nil {
			return err
		}
	}
	if c.SVG == "" {
		return nil
	}
	return drawAll(c.SVG, r.Curves)
}

// size is how much is measured.
type size struct {
	sizes      []int // numbers of peers, ascending
	runs       int   // of a measurement whose median counts
	floorRuns  int
	joins      map[int]int // how many joins are timed, by the number of peers there are
	burstOnto  int         // peers that are there before a burst
	bursts     []int
	settled    time.Duration // how long nothing happens before memory is looked at
	churn      int           // leases replaced
	churned    time.Duration // how long nothing happens afterwards
	quiet      time.Duration // the idle time
	stores     int           // that join at once
	crowdRange string        // network with room for four times as many
}

func (c *runCmd) size() size {
	if c.Quick {
		return size{sizes: []int{500, 2000}, runs: 1, floorRuns: 1, joins: map[int]int{100: 20, 2000: 20},
			burstOnto: 500, bursts: []int{100, 500}, settled: time.Second, churn: 1000, churned: time.Second,
			quiet: 3 * time.Second, stores: 60, crowdRange: "172.16.0.0/16"}
	}
	return size{sizes: []int{1000, 2000, 4000, 7000, 10000}, runs: 5, floorRuns: 3, joins: map[int]int{100: 300, 1000: 300, 10000: 1000},
		burstOnto: 6000, bursts: []int{500, 1000, 2000, 4000}, settled: 10 * time.Second, churn: 100000, churned: 30 * time.Second,
		quiet: time.Minute, stores: 1000, crowdRange: "172.16.0.0/12"}
}

func (s size) most() int { return s.sizes[len(s.sizes)-1] }

// bench is one run.
type bench struct {
	size
	*report
	*progress
	agent  *agent
	peers  *peers
	floors []point // what `ip -batch` takes
}

func (b *bench) run(ctx context.Context, c *runCmd) (err error) {
	b.say("a lab with etcd and one host")
	l, err := lab.Up(ctx, lab.Options{Name: "bench", Hosts: 1, Binary: c.Binary, Config: config, Prefix: prefix, Empty: true}, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	defer b.progress.end()
	b.agent = &agent{lab: l, host: l.Nodes[0], runs: true}
	b.peers, err = newPeers(ctx, l)
	if err != nil {
		return err
	}
	defer b.peers.client.Close()
	for _, s := range []struct {
		name string
		run  func(context.Context) error
	}{{"start", b.start}, {"restart", b.restart}, {"join", b.join}, {"burst", b.burst}, {"memory", b.memory}, {"idle", b.idle},
		{"calls", b.calls}, {"crowd", b.crowd}, {"kernel", b.kernel}} {
		if !slices.Contains(c.Only, s.name) {
			continue
		}
		if err := s.run(ctx); err != nil {
			return fmt.Errorf("%s: %w\nthe agent's last words:\n%s", s.name, err, b.agent.lastWords())
		}
	}
	return nil
}

// settle makes n peers and has the agent running, and returns when it has programmed them all and nothing else.
func (b *bench) settle(ctx context.Context, n int) error {
	if err := b.peers.set(ctx, n); err != nil {
		return err
	}
	if !b.agent.runs {
		if _, err := b.agent.launch(); err != nil {
			return err
		}
	}
	err := lab.Wait(ctx, patience, "the agent has programmed all peers", func() error {
		status, err := b.agent.host.Status(ctx)
		if err == nil && (!status.Ready || status.Peers.Total != n) {
			err = fmt.Errorf("%d of %d; %s", status.Peers.Total, n, status.Reason)
		}
		if err == nil { // as many, but maybe not the same: etcd may be behind with telling
			err = b.agent.check(b.peers.live)
		}
		return err
	})
	if err != nil {
		return err
	}
	b.peers.agent, err = b.agent.subnet()
	return err
}

// wipe leaves neither an agent on the host nor anything of one.
func (b *bench) wipe(ctx context.Context) error {
	if err := b.agent.kill(); err != nil {
		return err
	}
	if held, err := b.agent.subnet(); err == nil {
		if err := b.peers.release(ctx, held); err != nil {
			return err
		}
	}
	return b.agent.cleanup(ctx)
}

// series measures several times at each size, and adds the medians to a line of c.
func (b *bench) series(ctx context.Context, c *curve, name string, sizes []int, runs int, measure func(n int) (float64, error)) error {
	for _, n := range sizes {
		var samples []float64
		for lost := 0; len(samples) < runs; {
			b.say("%s with %s %s, %s, run %d of %d", c.Name, thousands(n), c.X, name, len(samples)+1, runs)
			value, err := measure(n)
			if errors.Is(err, errLost) && lost < 3 {
				lost++ // and measure again
				continue
			}
			if err != nil {
				return fmt.Errorf("%s, %s %s: %w", name, thousands(n), c.X, err)
			}
			samples = append(samples, value)
		}
		c.add(name, n, samples)
	}
	return nil
}

// idleFor lets time pass in which nothing is to happen: what is measured is what time does.
func idleFor(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// progress tells what is being done, in one line on a terminal.
type progress struct {
	out      *os.File
	started  time.Time
	terminal bool
}

func newProgress(out *os.File) *progress {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	return &progress{out, time.Now(), err == nil}
}

func (p *progress) say(format string, args ...any) {
	line := fmt.Sprintf("%7.1fs  ", time.Since(p.started).Seconds()) + fmt.Sprintf(format, args...)
	if p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K"+line)
	} else {
		fmt.Fprintln(p.out, line)
	}
}

func (p *progress) end() {
	if p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

// thousands writes 10000 as 10,000.
func thousands(n int) string {
	text := fmt.Sprint(n)
	var groups []string
	for ; len(text) > 3; text = text[:len(text)-3] {
		groups = append([]string{text[len(text)-3:]}, groups...)
	}
	return strings.Join(append([]string{text}, groups...), ",")
}
