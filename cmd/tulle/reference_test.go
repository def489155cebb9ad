package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// TestReferenceCurrent fails when a command or a flag has changed, and docs/cli.md has not.
func TestReferenceCurrent(t *testing.T) {
	t.Parallel()
	have, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := markdown(pagesOf(newParser(new(cli)).Model)); string(have) != want {
		t.Error("docs/cli.md is not what the commands' definitions say: make cli")
	}
}

// TestReferenceMan has man and groff read each page, who must not complain, and looks for what must be in it.
func TestReferenceMan(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := (&referenceManCmd{Dir: dir}).Run(&kong.Context{Kong: newParser(new(cli))}); err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(paths) < 10 {
		t.Fatal(paths, err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, section := range []string{"NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "SEE ALSO"} {
			if !strings.Contains(string(text), "\n.SH "+section+"\n") {
				t.Errorf("%s lacks %s", filepath.Base(path), section)
			}
		}
		for _, command := range [][]string{{"man", "--warnings", "-l", path}, {"groff", "-man", "-ww", "-z", path}} {
			lint(t, command)
		}
	}
}

func lint(t *testing.T, command []string) {
	t.Helper()
	if _, err := exec.LookPath(command[0]); err != nil && os.Getenv("TULLE_TEST_ROOT") == "" {
		t.Skip(err)
	}
	var complaints strings.Builder
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = &complaints
	if err := cmd.Run(); err != nil || complaints.Len() > 0 {
		t.Errorf("%s: %v\n%s", strings.Join(command, " "), err, &complaints)
	}
}

// TestHelp holds the help texts to what they owe: what it is, and the default where there is one.
func TestHelp(t *testing.T) {
	t.Parallel()
	for _, leaf := range newParser(new(cli)).Model.Leaves(true) {
		for f := range flagsOf(leaf) {
			shown := f.PlaceHolder == "" && !f.IsBool() // as --help shows the default in its place
			owed := f.HasDefault && f.Default != "" && !shown || f.Tag.Negatable != ""
			if owed && !strings.Contains(f.Help, "efault") {
				t.Errorf("%s --%s does not say its default, %s", leaf.Path(), f.Name, f.Default)
			}
			if f.Help == "" || !strings.HasSuffix(f.Help, ".") {
				t.Errorf("%s --%s: %q is no sentence", leaf.Path(), f.Name, f.Help)
			}
		}
	}
}
