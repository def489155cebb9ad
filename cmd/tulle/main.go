// Command tulle joins Docker hosts into one flat container network. Each file here is one subcommand: it turns flags into
// the other packages' options, and their results into what a person reads.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

type cli struct {
	Agent      agentCmd      `cmd:"" help:"Take part in the network: the per-host daemon."`
	Status     statusCmd     `cmd:"" help:"Show how this host's agent and its peers are."`
	Events     eventsCmd     `cmd:"" help:"Show what happened on this host lately, and why."`
	Doctor     doctorCmd     `cmd:"" help:"Find out what keeps this host's containers from reaching others, and what to do."`
	Trace      traceCmd      `cmd:"" help:"Show the path of a packet to an address, hop by hop, and what is wrong with it."`
	Config     configCmd     `cmd:"" help:"Store, show or check the network's config in etcd."`
	Lease      leaseCmd      `cmd:"" help:"Show who holds which subnet; reserve and release subnets."`
	Etcd       etcdCmd       `cmd:"" help:"Run an etcd server, for labs and small clusters."`
	WireGuard  wireguardCmd  `cmd:"" name:"wireguard" help:"Give this host another WireGuard key."`
	Lab        labCmd        `cmd:"" help:"A whole network on this machine, to try things out."`
	DockerOpts dockerOptsCmd `cmd:"" help:"Write the options that dockerd must be started with: for scripts that use mk-docker-opts.sh."`
	Attach     attachCmd     `cmd:"" help:"Give a running container of this host an interface on the overlay."`
	Detach     detachCmd     `cmd:"" help:"Take that interface away again."`
	Cleanup    cleanupCmd    `cmd:"" help:"Remove everything that an agent ever made on this host, and nothing else."`
	Completion completionCmd `cmd:"" help:"Print a script that completes tulle's commands and flags in a shell."`
	Complete   completeCmd   `cmd:"" hidden:"" help:"What the completion scripts ask."`
	Reference  referenceCmd  `cmd:"" hidden:"" help:"What man pages and docs/cli.md are made by."`
	Version    versionCmd    `cmd:"" help:"Print version, commit and Go version."`
}

const description = `tulle joins plain Docker hosts into one flat container network.

To see it work, on this machine alone:  sudo tulle lab demo
On real hosts: store the network's range once (tulle config set), then run tulle agent on each.
When containers don't reach each other: tulle doctor, and tulle trace ADDRESS.`

func main() {
	os.Exit(run(os.Args[1:]))
}

// newParser reads arguments into c.
func newParser(c *cli) *kong.Kong {
	return kong.Must(c, kong.Name("tulle"), kong.Description(description), kong.DefaultEnvars("TULLE"), kong.Vars{"minHosts": "1", "maxHosts": strconv.Itoa(lab.MaxHosts)},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 110}), kong.UsageOnError(),
		kong.ExplicitGroups([]kong.Group{
			{Key: "etcd", Title: "etcd:"}, {Key: "underlay", Title: "Underlay, tried in this order (default: the device of the default route):"},
		}))
}

// run is main, with the process's exit code.
func run(args []string) int {
	var c cli
	parser := newParser(&c)
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(args)
	if err == nil && c.Agent.FromFlannel {
		if c.Agent.flannel, err = fromFlannel(); err == nil {
			parsed, err = parser.Parse(args) // with other defaults
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "tulle: %v\n", err)
		if usage := (*kong.ParseError)(nil); errors.As(err, &usage) {
			fmt.Fprintf(os.Stderr, "See: tulle%s --help\n", commandPath(usage.Context))
		}
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	parsed.BindTo(ctx, (*context.Context)(nil))
	switch err := parsed.Run(); {
	case err == nil:
		return 0
	case errors.As(err, new(exitCode)):
		code := exitCode(0)
		errors.As(err, &code)
		return int(code)
	default:
		fmt.Fprintf(os.Stderr, "tulle: %v\n", err)
		return 1
	}
}

// exitCode is the error of a command that has said what there is to say.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// commandPath is the command as far as it was understood, each word with a space before it.
func commandPath(c *kong.Context) string {
	path := ""
	for _, step := range c.Path {
		if step.Command != nil {
			path += " " + step.Command.Name
		}
	}
	return path
}
