package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// referenceCmd is for `make`: what it writes is in the packages and in docs/cli.md.
type referenceCmd struct {
	Man      referenceManCmd      `cmd:"" help:"Write the man pages."`
	Markdown referenceMarkdownCmd `cmd:"" help:"Print docs/cli.md."`
}

type referenceManCmd struct {
	Dir string `arg:"" help:"Directory to write tulle.1 and the others to; made if it doesn't exist."`
}

func (c *referenceManCmd) Run(k *kong.Context) error {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return err
	}
	pages := pagesOf(k.Model)
	for _, p := range pages {
		if err := os.WriteFile(filepath.Join(c.Dir, p.name()+".1"), []byte(p.man(pages)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

type referenceMarkdownCmd struct{}

func (referenceMarkdownCmd) Run(k *kong.Context) error {
	_, err := fmt.Print(markdown(pagesOf(k.Model)))
	return err
}

// page is what there is to say of tulle as a whole, or of one of its commands with the commands below.
type page struct {
	command  string // as in "tulle agent"
	gist     string
	detail   []string // paragraphs
	commands []command
	groups   []group // flags of more than one of the commands, or of a kind
	notes
}

// command is one that can be run.
type command struct {
	usage string
	help  string
	items []item // arguments and flags
}

// name is the usage without the flags.
func (c command) name() string {
	name, _, _ := strings.Cut(c.usage, " [")
	return name
}

type group struct {
	title string
	items []item
}

// item is an argument, a flag, an exit code or a file, and what it means.
type item struct{ name, variable, meaning string }

func (p page) name() string { return strings.ReplaceAll(p.command, " ", "-") }

// pagesOf are tulle's, the first one of tulle itself.
func pagesOf(app *kong.Application) []page {
	all := []page{{command: app.Name, gist: "join Docker hosts into one flat container network", detail: paragraphs(strings.ReplaceAll(app.Help, "\n", "\n\n"))[1:], notes: notesOf("")}}
	for _, n := range app.Children {
		if n.Hidden {
			continue
		}
		all[0].commands = append(all[0].commands, command{usage: app.Name + " " + n.Name, help: n.Help})
		p := page{command: app.Name + " " + n.Name, gist: strings.TrimSuffix(n.Help, "."), detail: paragraphs(n.Detail), notes: notesOf(n.Name)}
		for _, leaf := range append([]*kong.Node{n}, n.Leaves(true)...) {
			if leaf.Leaf() {
				p.add(app.Name, leaf)
			}
		}
		all = append(all, p)
	}
	return all
}

func paragraphs(text string) (all []string) {
	for _, t := range strings.Split(text, "\n\n") {
		if t = strings.TrimSpace(t); t != "" {
			all = append(all, t)
		}
	}
	return all
}

// add adds a command to the page. Flags of a group are there once for all commands.
func (p *page) add(app string, n *kong.Node) {
	c := command{usage: app + " " + n.Summary(), help: n.Help}
	for _, a := range n.Positional {
		c.items = append(c.items, item{name: strings.Trim(a.Summary(), "[]"), meaning: a.Help})
	}
	for f := range flagsOf(n) {
		if f.Name == "help" {
			continue
		}
		i := item{name: f.String(), variable: strings.Join(f.Tag.Envs, ", "), meaning: f.Help}
		if negated(f) != "" {
			i.name = strings.Replace(i.name, "--", "--[no-]", 1)
		}
		if i.name += optional(f); f.Group == nil {
			c.items = append(c.items, i)
			continue
		}
		g := slices.IndexFunc(p.groups, func(g group) bool { return g.title == f.Group.Title })
		if g < 0 {
			g, p.groups = len(p.groups), append(p.groups, group{title: f.Group.Title})
		}
		if !slices.Contains(p.groups[g].items, i) {
			p.groups[g].items = append(p.groups[g].items, i)
		}
	}
	p.commands = append(p.commands, c)
}

// optional says of a flag that it isn't.
func optional(f *kong.Flag) string {
	if f.Required {
		return " (required)"
	}
	return ""
}

// notes are what the definitions of the commands don't say.
type notes struct{ exits, files []item }

// notesOf are those of a command; "" for tulle itself.
func notesOf(command string) notes {
	n := notes{exits: []item{{name: "0", meaning: "It is done."}, {name: "1", meaning: "It failed, and one line on standard error says why."},
		{name: "2", meaning: "The arguments are wrong."}}}
	switch command {
	case "agent":
		n.files = []item{
			{name: "/run/tulle/subnet.env", meaning: "What this host leased, for Docker and for scripts."},
			{name: "/run/tulle/agent.sock", meaning: "Where status, events, trace and doctor ask."},
			{name: "/var/lib/tulle/subnet.env", meaning: "The env file's copy, by which the host gets its subnet again after a reboot."},
			{name: "/var/lib/tulle/wireguard.key", meaning: "This host's private key, where the network needs one."},
			{name: "/etc/docker/daemon.json", meaning: "Read, to warn of options that do not fit."},
		}
	case "status":
		n.exits[1].meaning = "The agent is not ready, or does not answer."
	case "doctor", "trace":
		n.exits = []item{{name: "0", meaning: "All was checked, and nothing is wrong."}, {name: "1", meaning: "Something is wrong."},
			{name: "2", meaning: "Nothing is known to be wrong, but not all could be checked; or the arguments are wrong."}}
	case "config":
		n.exits[1].meaning = "It failed, or agents can't use the config; one line on standard error says why."
	case "lab":
		n.exits = append(n.exits, item{name: "other", meaning: "Of tulle lab exec: the command's own."})
	case "docker-opts":
		n.files = []item{{name: "/run/tulle/subnet.env", meaning: "What is read."}, {name: "/run/docker_opts.env", meaning: "What is written."},
			{name: "/etc/docker/daemon.json", meaning: "Docker's own config, which must not say the same."}}
	}
	return n
}

// heading is the group's title, without the colon that --help needs.
func (g group) heading() string { return strings.TrimSuffix(cmp.Or(g.title, "Flags"), ":") }
