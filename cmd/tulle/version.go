package main

import (
	"fmt"
	"runtime"
)

// Set by the linker: see the Makefile.
var (
	version = "0.0.0-dev"
	commit  = "unknown"
)

type versionCmd struct{}

func (versionCmd) Run() error {
	_, err := fmt.Printf("tulle %s, commit %s, %s %s/%s\n", version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
