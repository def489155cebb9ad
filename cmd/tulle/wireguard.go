package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/wireguard"
)

type wireguardCmd struct {
	RotateKey rotateKeyCmd `cmd:"" help:"Make a new key for this host, tell its peers, and wait until etcd has it. No connection is lost."`
}

type rotateKeyCmd struct {
	filesFlags `embed:""`
	Wait       time.Duration `default:"30s" help:"How long to wait for the agent to announce the key (default ${default})." placeholder:"TIME"`
}

func (c *rotateKeyCmd) Run(ctx context.Context) error {
	client := api.NewClient(c.RunDir)
	status, err := client.Status(ctx)
	runs := !errors.Is(err, api.ErrAbsent)
	switch {
	case runs && err != nil:
		return err
	case runs && status.Network.PublicKey == "":
		return fmt.Errorf("this host's network is of the type %s: it has no key", status.Network.Backend)
	}
	before, now, err := wireguard.Rotate(c.keyFile())
	if err != nil {
		return err
	}
	fmt.Printf("old public key  %s\nnew public key  %s\n", before, now)
	if !runs {
		fmt.Println("no agent runs here: it announces the new key when it starts")
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.Wait, fmt.Errorf("the key is changed, but after %s the lease still has another: see tulle status; if the agent has a --state-dir, give it here, too", c.Wait))
	defer cancel()
	return c.announced(ctx, client, now)
}

// announced waits until the lease that the agent holds has the key.
func (c *rotateKeyCmd) announced(ctx context.Context, client *api.Client, key backend.Key) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		view, err := client.View(ctx, "0.0.0.0") // of the leases only this host's own
		if err == nil && strings.Contains(view.Self.Value, key.String()) {
			fmt.Println("announced: peers send by the new key from now on")
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
