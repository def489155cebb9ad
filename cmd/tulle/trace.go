package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/docker"
	"github.com/tulle-net/tulle/doctor"
)

type traceCmd struct {
	agentFlags `embed:""`
	etcdFlags  `embed:""`

	Address    string `arg:"" help:"As in 10.5.2.7: a container's, a host's in the overlay, or any other."`
	From       string `help:"Begin in this container of this host: its name or ID, or pid:PID, or netns:NAME|PATH." placeholder:"CONTAINER"`
	DockerHost string `default:"unix:///var/run/docker.sock" help:"Where this host's dockerd listens (default ${default})." placeholder:"URL"`
	JSON       bool   `name:"json" help:"Print JSON."`
}

// Run prints the path of a packet, hop by hop. The exit code is 1 if something on it is wrong, 2 if it could not be checked.
func (c *traceCmd) Run(ctx context.Context) error {
	trace, err := c.trace(ctx)
	if err != nil {
		complain("tulle: %v\n", err)
		return exitCode(2)
	}
	if c.JSON {
		err = json.NewEncoder(escaper{os.Stdout}).Encode(trace)
	} else {
		printTrace(stdout(), trace)
	}
	if code := trace.Code(); err == nil && code != 0 {
		err = exitCode(code)
	}
	return err
}

func (c *traceCmd) trace(ctx context.Context) (t doctor.Trace, err error) {
	r := doctor.Request{}
	if r.Address, err = netip.ParseAddr(c.Address); err != nil || r.Address.Zone() != "" {
		return t, fmt.Errorf("%q is not an address like 10.5.2.7: give the one that the container has (docker inspect NAME)", c.Address)
	}
	r.Address = r.Address.Unmap()
	if r.From, err = c.from(ctx); err != nil {
		return t, err
	}
	client := c.client()
	if _, err = client.Status(ctx); err == nil {
		r.Source, r.Agent = client, true
		return r.Run(ctx)
	}
	if !errors.Is(err, api.ErrAbsent) {
		return t, err
	}
	complain("%v\nUntil it runs nothing is repaired. What it would do is worked out from etcd.\n\n", err)
	options, err := c.etcdFlags.options()
	if err != nil {
		return t, err
	}
	r.Source = direct{options, c.RunDir}
	return r.Run(ctx)
}

// from finds the container.
func (c *traceCmd) from(ctx context.Context) (*doctor.Container, error) {
	kind, name, _ := strings.Cut(c.From, ":")
	switch {
	case c.From == "":
		return nil, nil
	case kind == "pid":
		pid, err := strconv.Atoi(name)
		if err != nil || pid < 1 {
			return nil, fmt.Errorf("--from %s: %q is not a process's number", c.From, name)
		}
		return &doctor.Container{Name: "process " + name, Netns: procNetns(pid)}, nil
	case kind == "netns":
		if !strings.Contains(name, "/") {
			return &doctor.Container{Name: name, Netns: filepath.Join("/run/netns", name)}, nil
		}
		return &doctor.Container{Name: name, Netns: name}, nil
	}
	socket, err := targetFlags{Container: c.From, DockerHost: c.DockerHost}.socket()
	if err != nil {
		return nil, err
	}
	found, err := docker.Find(ctx, socket, c.From)
	if err != nil {
		return nil, err
	}
	if found.PID == 0 {
		return nil, fmt.Errorf("container %s does not run, so no packet begins there: docker start it first", c.From)
	}
	return &doctor.Container{Name: c.From, Netns: procNetns(found.PID)}, nil
}

func printTrace(s screen, t doctor.Trace) {
	rows := [][]cell{}
	for _, h := range t.Hops {
		rows = append(rows, hopRows(h)...)
	}
	s.table(rows)
	verdict := good
	if t.Code() == 1 {
		verdict = bad
	} else if t.Code() == 2 {
		verdict = warn
	}
	fmt.Fprintf(s.w, "\n%s\n", s.paint(verdict, clean(t.Verdict)))
}

// hopRows is a hop in the table: with why and what to do below it, if there is something to say.
func hopRows(h doctor.Hop) [][]cell {
	marks := map[doctor.HopState]cell{doctor.HopOK: {"ok", good}, doctor.HopWrong: {"WRONG", bad}, doctor.HopUnknown: {"?", warn}, doctor.HopSkipped: {"-", dim}}
	what := cell{h.What, plain}
	if h.State == doctor.HopSkipped {
		what = cell{strings.TrimSpace(h.What + " (not reached)"), dim}
	}
	rows := [][]cell{{marks[h.State], cell{h.Name, plain}, what}}
	for _, below := range []struct{ name, text string }{{"why", h.Why}, {"fix", h.Fix}} {
		if below.text != "" {
			rows = append(rows, []cell{{" ", plain}, {"  " + below.name, dim}, {below.text, plain}})
		}
	}
	return rows
}
