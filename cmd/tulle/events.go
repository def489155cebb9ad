package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tulle-net/tulle/agent/api"
)

type eventsCmd struct {
	agentFlags `embed:""`
	Follow     bool `short:"f" help:"Wait for more, until interrupted."`
	Lines      int  `short:"n" default:"100" help:"Print this many of the latest events (default ${default})." placeholder:"N"`
	JSON       bool `name:"json" help:"Print JSON, an event a line."`
}

// Run prints what happened on this host lately.
func (c *eventsCmd) Run(ctx context.Context) error {
	if c.Lines < 0 {
		return fmt.Errorf("--lines: %d is not a number of events", c.Lines)
	}
	client, s := c.client(), stdout()
	got, err := client.Events(ctx, 0, 0)
	if err != nil {
		return err
	}
	events, last := got.Events, int64(0)
	if len(events) > 0 {
		last = events[len(events)-1].Seq
	}
	events = events[max(0, len(events)-c.Lines):]
	for {
		for _, e := range events {
			if err := c.print(s, e); err != nil {
				return err
			}
			last = e.Seq
		}
		if !c.Follow {
			return nil
		}
		if got, err = client.Events(ctx, last, 30*time.Second); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return err
		}
		events = got.Events
	}
}

func (c *eventsCmd) print(s screen, e api.Event) error {
	if c.JSON {
		return json.NewEncoder(escaper{s.w}).Encode(e)
	}
	t := map[string]tone{"WARN": warn, "ERROR": bad}[e.Level]
	_, err := fmt.Fprintf(s.w, "%s  %s  %s%s\n", s.paint(dim, e.Time.Local().Format(time.DateTime)), s.paint(t, fmt.Sprintf("%-5s", e.Level)), clean(e.Text), s.paint(dim, clean(details(e))))
	return err
}

// details are an event's fields, without those that its text has already.
func details(e api.Event) (text string) {
	for _, key := range slices.Sorted(maps.Keys(e.Fields)) {
		value := e.Fields[key]
		if !strings.Contains(e.Text, value) && key != "lease" {
			text += fmt.Sprintf("  %s: %s", key, value)
		}
	}
	return text
}
