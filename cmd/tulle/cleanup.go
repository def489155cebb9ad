package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tulle-net/tulle/agent"
	"github.com/tulle-net/tulle/backend/kernel"
	"github.com/tulle-net/tulle/backend/netfilter"
)

type cleanupCmd struct {
	RunDir     string `default:"/run/tulle" help:"The agent's run directory." placeholder:"DIR"`
	SubnetFile string `default:"subnet.env" help:"The agent's env file; relative to the run directory." placeholder:"FILE"`
}

func (c *cleanupCmd) Run(ctx context.Context) error {
	if err := needAdmin(); err != nil {
		return err
	}
	unlock, err := agent.Lock(c.RunDir)
	if err != nil {
		return fmt.Errorf("%w: stop it first", err)
	}
	defer unlock()
	k, err := kernel.Open()
	if err != nil {
		return err
	}
	defer k.Close()
	objects, kernelErr := k.Cleanup(ctx)
	rules, rulesErr := (&netfilter.IPTables{}).Cleanup(ctx)
	files, filesErr := c.files()
	removed := append(append(objects, rules...), files...)
	for _, line := range removed {
		fmt.Println("removed", line)
	}
	if len(removed) == 0 {
		fmt.Println("nothing of tulle's is on this host")
	}
	return errors.Join(kernelErr, rulesErr, filesErr)
}

// files removes the agent's files, and its directory if nothing else is in it.
func (c *cleanupCmd) files() (removed []string, err error) {
	env := c.SubnetFile
	if !filepath.IsAbs(env) {
		env = filepath.Join(c.RunDir, env)
	}
	switch err := os.Remove(env); {
	case err == nil:
		removed = append(removed, env)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if err := os.Remove(filepath.Join(c.RunDir, "lock")); err != nil {
		return removed, err
	}
	_ = os.Remove(c.RunDir) // not empty: somebody else's files
	return removed, nil
}
