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
		_, _ = daemon.SdNotify(false, daemon.SdNotifyReady) // no systemd, nobody to tell
	})
}
