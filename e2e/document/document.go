// Package document reads what is code in the project's documents, so that tests can hold it against the truth: whether a command
// is one that tulle has, or by running it.
package document

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/text"
)

// Code is a code block, or a code span in the midst of text.
type Code struct {
	Section string // the heading above, "" for none
	Info    string // what a fenced block says behind its fence
	Text    string // for a block with its last newline
	Line    int    // in the file, from 1; a block's first
	Span    bool
}

// Read returns all code of a Markdown file, in its order.
func Read(path string) ([]Code, error) {
	source, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, source)
}

// Parse returns all code of a Markdown text; name is for errors.
func Parse(name string, source []byte) (all []Code, err error) {
	section := ""
	line := func(offset int) int { return 1 + bytes.Count(source[:offset], []byte("\n")) }
	root := goldmark.New(goldmark.WithExtensions(extension.Table)).Parser().Parse(text.NewReader(source))
	err = ast.Walk(root, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		switch n := n.(type) {
		case *ast.Heading:
			section = strings.TrimSpace(string(n.Lines().Value(source)))
		case *ast.FencedCodeBlock:
			code := Code{Section: section, Text: string(n.Lines().Value(source))}
			if n.Info != nil {
				code.Info = string(n.Info.Value(source))
			}
			if n.Lines().Len() > 0 {
				code.Line = line(n.Lines().At(0).Start)
			}
			all = append(all, code)
		case *ast.CodeBlock:
			all = append(all, Code{Section: section, Text: string(n.Lines().Value(source)), Line: line(n.Lines().At(0).Start)})
		case *ast.CodeSpan:
			code := Code{Section: section, Span: true}
			for c := n.FirstChild(); c != nil; c = c.NextSibling() {
				part, ok := c.(*ast.Text)
				if !ok {
					return ast.WalkStop, fmt.Errorf("%s: a code span of %s", name, c.Kind())
				}
				if code.Line == 0 {
					code.Line = line(part.Segment.Start)
				}
				code.Text += string(part.Segment.Value(source))
			}
			code.Text = strings.ReplaceAll(code.Text, "\n", " ")
			all = append(all, code)
		}
		return ast.WalkContinue, nil
	})
	return all, err
}

// Script is what of a block is to be typed: the lines behind a prompt, where there is one, and the lines that they go on in. The
// rest is output then.
func (c Code) Script() string {
	if !strings.HasPrefix(c.Text, "$ ") && !strings.Contains(c.Text, "\n$ ") {
		return c.Text
	}
	var script strings.Builder
	goesOn := false
	for l := range strings.Lines(c.Text) {
		command, prompted := strings.CutPrefix(l, "$ ")
		if prompted || goesOn {
			script.WriteString(command)
		}
		goesOn = (prompted || goesOn) && strings.HasSuffix(l, "\\\n")
	}
	return script.String()
}
