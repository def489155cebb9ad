package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/tulle-net/tulle/etcd"
)

type etcdCmd struct {
	etcd.ServerOptions `embed:""`
}

func (c *etcdCmd) Run(ctx context.Context) error {
	return etcd.Serve(ctx, c.ServerOptions, func(urls []string) {
		fmt.Fprintf(os.Stderr, "etcd serves clients on %s\n", strings.Join(urls, ", "))
		if url := c.Exposed(); url != "" {
			fmt.Fprintf(os.Stderr, "whoever reaches %s can change the network: docs/security.md says how to give etcd TLS and users\n", url)
		}
		_, _ = daemon.SdNotify(false, daemon.SdNotifyReady) // no systemd, nobody to tell
	})
}
