// Command sbom writes what tulle's binaries are made of: beside each a bill of materials (CycloneDX, JSON), and for all of them the
// texts of the licences under which others' code is in them. It reads what the Go linker wrote into the binaries, and the
// licences from the module cache. The same binaries make the same files.
package main

import (
	"debug/buildinfo"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "sbom: %v\n", err)
		os.Exit(1)
	}
}

// release is what all binaries have in common.
type release struct {
	version, commit string
	when            time.Time // of the commit
}

func run() error {
	var r release
	flag.StringVar(&r.version, "version", "", "the release's version")
	flag.StringVar(&r.commit, "commit", "", "the commit that it was built of")
	texts := flag.String("licenses", "", "the file for the licences' texts")
	flag.Parse()
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH, the time of the commit: %w", err)
	}
	r.when = time.Unix(seconds, 0).UTC()
	all := map[string]module{}
	for _, binary := range flag.Args() {
		modules, err := modulesOf(binary)
		if err != nil {
			return err
		}
		for _, m := range modules {
			all[m.path] = m
		}
		if err := r.describe(binary, modules); err != nil {
			return err
		}
	}
	return writeTexts(*texts, all)
}

// standard is what vulnerability databases call Go's own library.
const standard = "stdlib"

// module is a Go module that is linked in, or Go's own library.
type module struct {
	path, version string
	licenses      []string // SPDX identifiers, sorted
	texts         []string // files
}

// modulesOf lists what is linked into a binary, by path. It is an error if a licence is not known: somebody has to look at it.
func modulesOf(binary string) ([]module, error) {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	dirs, err := directories(info.Deps)
	if err != nil {
		return nil, err
	}
	modules := []module{{path: standard, version: strings.TrimPrefix(info.GoVersion, "go")}}
	for _, d := range info.Deps {
		modules = append(modules, module{path: d.Path, version: d.Version})
	}
	var errs []error
	for i := range modules {
		errs = append(errs, modules[i].readLicenses(dirs[modules[i].path]))
	}
	slices.SortFunc(modules, func(a, b module) int { return strings.Compare(a.path, b.path) })
	return modules, errors.Join(errs...)
}

// directories are where the modules are found: in the module cache, as go.mod of the current directory has it, and Go's own library.
func directories(deps []*debug.Module) (map[string]string, error) {
	root, err := goCommand("env", "GOROOT")
	if err != nil {
		return nil, err
	}
	args := []string{"list", "-m", "-f", "{{.Path}} {{.Dir}}"}
	for _, d := range deps {
		if d.Replace != nil {
			return nil, fmt.Errorf("%s is replaced by %s: a release is made of what go.mod names", d.Path, d.Replace.Path)
		}
		args = append(args, d.Path)
	}
	out, err := goCommand(args...)
	dirs := map[string]string{standard: root}
	for line := range strings.Lines(out) {
		path, dir, _ := strings.Cut(strings.TrimSpace(line), " ")
		dirs[path] = dir
	}
	return dirs, err
}

func goCommand(args ...string) (string, error) {
	out, err := exec.Command("go", args...).Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", args[0], err)
	}
	return strings.TrimSpace(string(out)), nil
}

// writeTexts writes the licences of all modules into one file.
func writeTexts(path string, modules map[string]module) error {
	var b strings.Builder
	b.WriteString("tulle is under the Apache License, version 2.0. Linked into its binaries is what follows, each under its own terms.\n")
	for _, name := range sortedKeys(modules) {
		m := modules[name]
		fmt.Fprintf(&b, "\n%s\n%s %s: %s\n", strings.Repeat("=", 100), m.path, m.version, strings.Join(m.licenses, " AND "))
		for _, file := range m.texts {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "\n--- %s ---\n\n%s\n", filepath.Base(file), strings.TrimSpace(string(text)))
		}
	}
	return os.WriteFile(path, []byte(b.String()), 0o644)
}
