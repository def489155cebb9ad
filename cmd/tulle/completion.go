package main

import (
	"embed"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

//go:embed completion
var completionScripts embed.FS

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Help is the command's longer description.
func (completionCmd) Help() string {
	return `For this shell alone, in bash: source <(tulle completion bash). For all of a user's: in ~/.local/share/bash-completion/completions/tulle, in
_tulle in a directory of zsh's fpath, or in ~/.config/fish/completions/tulle.fish. The packages bring all three.`
}

func (c *completionCmd) Run() error {
	script, err := completionScripts.ReadFile(path.Join("completion", "tulle."+c.Shell))
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(script)
	return err
}

// completeCmd is what the scripts ask.
type completeCmd struct {
	Words []string `arg:"" optional:"" passthrough:"" help:"What is typed, without tulle itself, as far as the cursor: the last word is to be completed."`
}

func (c *completeCmd) Run(k *kong.Context) error {
	words := c.Words
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	_, err := fmt.Print(complete(k.Model.Node, words))
	return err
}

// The kinds of what may come next.
const (
	ofWords       = "words"
	ofFiles       = "files"
	ofDirectories = "directories"
)

// completion is what may come next. The shell itself looks for files.
type completion struct {
	kind  string
	words []string // each may have what it means behind a tab
}

// String is what the scripts read: the kind, and a word a line.
func (c completion) String() string {
	return strings.Join(append([]string{c.kind}, c.words...), "\n") + "\n"
}

// complete says what the last of words may be. Words that tulle would not take are passed over.
func complete(root *kong.Node, words []string) completion {
	if len(words) == 0 {
		words = []string{""}
	}
	at, last := &place{node: root}, words[len(words)-1]
	for _, word := range words[:len(words)-1] {
		at.pass(word)
	}
	c := at.next(&last)
	c.words = slices.DeleteFunc(c.words, func(w string) bool { return !strings.HasPrefix(w, last) })
	return c
}

// place is where in a command line a word stands.
type place struct {
	node *kong.Node
	flag *kong.Flag // waits for its value
	args int        // positional ones before
	only bool       // a -- was before: no flags any more
}

// pass goes on behind a word.
func (p *place) pass(word string) {
	if p.flag != nil {
		p.flag = nil
		return
	}
	name, _, hasValue := strings.Cut(word, "=")
	switch child := p.child(word); {
	case p.only:
		p.args++
	case word == "--":
		p.only = true
	case strings.HasPrefix(word, "-"):
		if f := p.named(name); f != nil && !hasValue && !f.IsBool() {
			p.flag = f
		}
	case child != nil:
		p.node = child
	default:
		p.args++
		p.only = p.only || p.node.Passthrough
	}
}

// next is all that may stand here. Of a flag with its value behind =, word becomes the value.
func (p *place) next(word *string) completion {
	name, value, hasValue := strings.Cut(*word, "=")
	flag := p.flag
	if flag == nil && !p.only && hasValue && strings.HasPrefix(name, "--") {
		flag, *word = p.named(name), value
		if flag == nil {
			return completion{kind: ofWords}
		}
	}
	switch positional := p.positional(); {
	case flag != nil:
		return values(flag.Value, flag.PlaceHolder)
	case !p.only && strings.HasPrefix(*word, "-"):
		return completion{ofWords, p.flags()}
	case len(p.node.Children) > 0:
		return completion{ofWords, p.commands()}
	case positional != nil:
		return values(positional, strings.ToUpper(positional.Name))
	case p.only:
		return completion{kind: ofWords}
	}
	return completion{ofWords, p.flags()}
}

// values are those of a flag or an argument; its placeholder says whether they are files.
func values(v *kong.Value, placeholder string) completion {
	switch {
	case v.Enum != "":
		return completion{ofWords, slices.DeleteFunc(v.EnumSlice(), func(w string) bool { return w == "" })}
	case strings.Contains(placeholder, "DIR"):
		return completion{kind: ofDirectories}
	case strings.Contains(placeholder, "FILE"), strings.Contains(placeholder, "PATH"), v.PassthroughMode != kong.PassThroughModeNone:
		return completion{kind: ofFiles}
	}
	return completion{kind: ofWords}
}

func (p *place) child(name string) *kong.Node {
	i := slices.IndexFunc(p.node.Children, func(n *kong.Node) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	return p.node.Children[i]
}

// positional is the argument that comes next; nil for none.
func (p *place) positional() *kong.Value {
	all := p.node.Positional
	switch last := len(all) - 1; {
	case p.args <= last:
		return all[p.args]
	case last >= 0 && all[last].IsCumulative():
		return all[last]
	}
	return nil
}

// named finds a flag by its name, as in --wide, or by its letter: the last of several, as in -wf.
func (p *place) named(name string) *kong.Flag {
	for f := range flagsOf(p.node) {
		if name == "--"+f.Name || !strings.HasPrefix(name, "--") && f.Short != 0 && strings.HasSuffix(name, string(f.Short)) {
			return f
		}
	}
	return nil
}

func (p *place) flags() (words []string) {
	for f := range flagsOf(p.node) {
		words = append(words, "--"+f.Name+"\t"+gist(f.Help))
		if no := negated(f); no != "" {
			words = append(words, no+"\tNot: "+gist(f.Help))
		}
	}
	return words
}

func (p *place) commands() (words []string) {
	for _, n := range p.node.Children {
		if !n.Hidden {
			words = append(words, n.Name+"\t"+gist(n.Help))
		}
	}
	return words
}

// flagsOf are a command's flags and those of the commands that it is part of, without hidden ones.
func flagsOf(n *kong.Node) func(yield func(*kong.Flag) bool) {
	return func(yield func(*kong.Flag) bool) {
		for _, group := range n.AllFlags(true) {
			for _, f := range group {
				if !yield(f) {
					return
				}
			}
		}
	}
}

// negated is the flag that switches f off; "" for none.
func negated(f *kong.Flag) string {
	if f.Tag.Negatable == "" {
		return ""
	}
	return "--no-" + f.Name
}

// gist is the first sentence of a help text, without its full stop.
func gist(help string) string {
	first, _, _ := strings.Cut(help, ". ")
	return strings.TrimSuffix(first, ".")
}
