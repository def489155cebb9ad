package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/tulle-net/tulle/agent"
	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/docker"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/firewalld"
	"github.com/tulle-net/tulle/backend/kernel"
	"github.com/tulle-net/tulle/backend/netfilter"
	"github.com/tulle-net/tulle/subnet"
)

type cleanupCmd struct {
	filesFlags `embed:""`
	ForFlannel bool `help:"Remove nothing: hand devices and routes over to a flanneld that is to be started, so that no packet is lost. When it runs, tulle cleanup removes the rest (default: off)."`
}

func (c *cleanupCmd) Run(ctx context.Context) error {
	if err := needAdmin(); err != nil {
		return err
	}
	unlock, _, err := agent.LockHost()
	if err != nil {
		return fmt.Errorf("%w: stop it first", err)
	}
	defer unlock()
	unlockDir, err := agent.Lock(c.RunDir)
	if err != nil {
		return fmt.Errorf("%w: stop it first", err)
	}
	defer unlockDir()
	k, err := kernel.Open()
	if err != nil {
		return err
	}
	defer k.Close()
	if c.ForFlannel {
		return c.handOver(ctx, k)
	}
	objects, kernelErr := k.Cleanup(ctx)
	filter, err := netfilter.Open(netfilter.Auto)
	if err != nil {
		return errors.Join(kernelErr, err)
	}
	defer filter.Close()
	rules, rulesErr := filter.Cleanup(ctx)
	env, _ := docker.ReadEnv(c.envFile()) // without it, only devices are ours for sure
	zoned, zonedErr := firewalld.Cleanup(ctx, env.Network)
	files, filesErr := c.files()
	removed := slices.Concat(objects, rules, zoned, files)
	if tell("removed", removed); len(removed) == 0 {
		fmt.Println("nothing of tulle's is on this host")
	}
	return errors.Join(kernelErr, rulesErr, zonedErr, filesErr)
}

// handOver gives flannel what it can go on with. The packet filter's rules stay, since it takes its own away for a moment when it starts,
// but for those that name devices: they would drop what comes by flannel's.
func (c *cleanupCmd) handOver(ctx context.Context, k *kernel.Kernel) error {
	env, err := docker.ReadEnv(c.envFile())
	if err != nil {
		return err
	}
	filter, err := netfilter.Open(netfilter.Auto)
	if err != nil {
		return err
	}
	defer filter.Close()
	for f, p := range env.Subnet.All() {
		*env.Subnet.At(f) = p.Masked()
	}
	_, err = filter.Apply(ctx, backend.Firewall{Network: env.Network, Subnet: env.Subnet, Bridge: "docker0", Forward: true,
		Masquerade: subnet.Pair[bool]{V4: env.Masquerade, V6: env.Masquerade}})
	if err != nil {
		return err
	}
	handed, err := k.HandOver(ctx)
	tell("handed over", handed)
	return err
}

// tell prints what was done to what.
func tell(done string, objects []string) {
	for _, line := range objects {
		fmt.Println(done, line)
	}
}

func (c *cleanupCmd) envFile() string {
	if filepath.IsAbs(c.SubnetFile) {
		return c.SubnetFile
	}
	return filepath.Join(c.RunDir, c.SubnetFile)
}

// files removes the agent's files, and its directories if nothing else is in them.
func (c *cleanupCmd) files() (removed []string, err error) {
	paths := []string{c.envFile(), filepath.Join(c.RunDir, "lease"), filepath.Join(c.RunDir, "extension.json"), c.keyFile()}
	if state := c.stateFile(); state != "" {
		paths = append(paths, state)
	}
	var errs []error
	for _, path := range paths {
		switch err := os.Remove(path); {
		case err == nil:
			removed = append(removed, path)
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		}
	}
	errs = append(errs, os.Remove(filepath.Join(c.RunDir, "lock")))
	_ = os.Remove(api.Socket(c.RunDir)) // usually gone: an agent that is not killed takes it along
	_ = os.Remove(c.RunDir)             // not empty: somebody else's files
	if state := c.stateFile(); state != "" {
		_ = os.Remove(filepath.Dir(state))
	}
	return removed, errors.Join(errs...)
}
