package main

import (
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"mvdan.cc/sh/v3/syntax"

	"github.com/tulle-net/tulle/e2e/document"
)

// notCommands are spans that begin like a command of tulle's, and are something else.
var notCommands = map[string]string{
	"tulle attach ADDRESS ID": "an interface's alias",
	"tulle COMMAND --help":    "any command",
}

// TestDocumentedCommands parses each command line of tulle's that a document has: those in code blocks must be whole, those in the
// midst of text may lack arguments.
func TestDocumentedCommands(t *testing.T) {
	t.Parallel()
	count, unused := 0, len(notCommands)
	for _, path := range documents(t) {
		all, err := document.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, code := range all {
			if notCommands[code.Text] != "" {
				unused--
				continue
			}
			for _, args := range commands(t, path, code) {
				count++
				if err := understood(args, code.Span); err != nil {
					t.Errorf("%s:%d: tulle %s: %v", path, code.Line, strings.Join(args, " "), err)
				}
			}
		}
	}
	if count < 100 {
		t.Errorf("%d commands were found, of 100 and more: the search is broken", count)
	}
	if unused > 0 {
		t.Error("notCommands has what no document has any more")
	}
}

// documents are all that users read.
func documents(t *testing.T) (paths []string) {
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch name := filepath.Base(path); {
		case err != nil:
			return err
		case d.IsDir() && (name == "bin" || name == ".git" || name == "testdata"):
			return fs.SkipDir
		case filepath.Ext(name) == ".md" && name != "cli.md": // that has none, but how they are made up
			paths = append(paths, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// commands are the arguments of each tulle that is called somewhere in a piece of code, be it by sudo or within a lab.
func commands(t *testing.T, path string, code document.Code) (all [][]string) {
	script := code.Text
	if !code.Span {
		script = code.Script()
	}
	if !strings.Contains(script, "tulle ") {
		return nil
	}
	file, err := syntax.NewParser().Parse(strings.NewReader(script), path)
	if err != nil {
		if !code.Span && strings.HasPrefix(strings.TrimLeft(script, "# "), "tulle ") {
			t.Errorf("%s:%d: not what a shell understands: %v", path, code.Line, err)
		}
		return nil
	}
	syntax.Walk(file, func(n syntax.Node) bool {
		call, ok := n.(*syntax.CallExpr)
		if !ok {
			return true
		}
		words := literals(call.Args)
		for i := range words {
			if isCommand(words, i) && i+1 < len(words) {
				all = append(all, words[i+1:])
			}
		}
		return true
	})
	return all
}

// isCommand is whether the i-th of these words is a tulle that is run.
func isCommand(words []string, i int) bool {
	by := ""
	if i > 0 {
		by = words[i-1]
	}
	return filepath.Base(words[i]) == "tulle" && (by == "" || by == "sudo" || by == "--" || slices.Contains(words[:i], "systemd-run"))
}

// literals are the words of a command; what the shell puts in place of something is a word of its own making.
func literals(args []*syntax.Word) (words []string) {
	for _, word := range args {
		var text strings.Builder
		for _, part := range word.Parts {
			syntax.Walk(part, func(n syntax.Node) bool {
				switch n := n.(type) {
				case *syntax.Lit:
					text.WriteString(n.Value)
				case *syntax.SglQuoted:
					text.WriteString(n.Value)
				case *syntax.ParamExp, *syntax.CmdSubst:
					text.WriteString("1")
					return false
				}
				return true
			})
		}
		words = append(words, text.String())
	}
	return words
}

// understood fails unless tulle takes these arguments; of those in the midst of text, as far as they go.
func understood(args []string, span bool) error {
	if last := len(args) - 1; span && args[last] == "…" {
		args = args[:last]
	}
	parser := newParser(new(cli))
	if !span && !slices.Contains(args, "--help") { // which would end the test
		_, err := parser.Parse(args)
		return err
	}
	parsed, err := kong.Trace(parser, args)
	if err == nil {
		err = parsed.Error
	}
	if err != nil && strings.Contains(err.Error(), `got "EOL"`) { // a flag is named, but not a value for it
		return nil
	}
	return err
}
