package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/tulle-net/tulle/agent"
)

type statusCmd struct {
	Listen string `default:"127.0.0.1:9494" help:"Where the agent serves its status (default ${default})." placeholder:"ADDR"`
	JSON   bool   `name:"json" help:"Print JSON."`
}

// Run prints how this host's agent is. The exit code is 1 if it is not ready.
func (c *statusCmd) Run(ctx context.Context) error {
	status, err := c.ask(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		err = json.NewEncoder(os.Stdout).Encode(status)
	} else {
		err = printStatus(status)
	}
	if err == nil && !status.Ready {
		err = exitCode(1)
	}
	return err
}

func (c *statusCmd) ask(ctx context.Context) (status agent.Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.Listen+"/status", nil)
	if err != nil {
		return status, fmt.Errorf("--listen: %w", err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return status, fmt.Errorf("no agent answers at %s: is it running (systemctl status tulle), with another --listen? %w", c.Listen, err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&status); err != nil {
		return status, fmt.Errorf("what answers at %s is no tulle agent: %w", c.Listen, err)
	}
	return status, nil
}

func printStatus(s agent.Status) error {
	health := "ready"
	if !s.Ready {
		health = "NOT READY"
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s\t%s\n", health, s.Reason)
	expires := "never"
	if s.Expires != nil {
		expires = "in " + time.Until(*s.Expires).Round(time.Minute).String()
	}
	fmt.Fprintf(w, "lease\t%s, expires %s\n", dash(s.Lease), expires)
	fmt.Fprintf(w, "underlay\t%s on %s, MTU inside %d\n", s.PublicIP, dash(s.Device), s.MTU)
	fmt.Fprintf(w, "etcd\t%s, revision %d\n", s.Etcd, s.Revision)
	fmt.Fprintf(w, "peers\t%d\n", s.Peers)
	for _, reason := range slices.Sorted(maps.Keys(s.Rejected)) {
		fmt.Fprintf(w, "left out\t%d leases: %s\n", s.Rejected[reason], reason)
	}
	for _, table := range slices.Sorted(maps.Keys(s.Drift)) {
		fmt.Fprintf(w, "repaired\t%d %s\n", s.Drift[table], table)
	}
	for _, warning := range s.Warnings {
		fmt.Fprintf(w, "WARNING\t%s\n", warning)
	}
	return w.Flush()
}
