package main

import (
	"fmt"
	"reflect"
	"strings"
)

const markdownHead = `# Commands

What ` + "`tulle COMMAND --help`" + ` says, and the man pages (` + "`man tulle-agent`" + `). Each flag is an environment variable, too; a flag goes before it.
This page is made of the commands' definitions (` + "`cmd/tulle`" + `) by ` + "`make cli`" + `. Where nothing else is said, a command ends with
`

// markdown is docs/cli.md.
func markdown(pages []page) string {
	var b strings.Builder
	b.WriteString(markdownHead + table("exit code", pages[0].exits, false))
	for _, p := range pages[1:] {
		fmt.Fprintf(&b, "\n## %s\n\n%s.\n", p.command, p.gist)
		for _, text := range p.detail {
			fmt.Fprintf(&b, "\n%s\n", text)
		}
		for _, c := range p.commands {
			if len(p.commands) > 1 {
				fmt.Fprintf(&b, "\n### %s\n\n%s\n", c.name(), c.help)
			}
			fmt.Fprintf(&b, "\n    %s\n%s", c.usage, table("argument or flag", c.items, true))
		}
		for _, g := range p.groups {
			b.WriteString(table(g.heading(), g.items, true))
		}
		if !reflect.DeepEqual(p.exits, pages[0].exits) {
			b.WriteString(table("exit code", p.exits, false))
		}
		b.WriteString(table("file", p.files, false))
	}
	return b.String()
}

// table is one with a line above it; without items there is none.
func table(head string, items []item, variables bool) string {
	if len(items) == 0 {
		return ""
	}
	rows := [][]string{{head, "variable", ""}, {"---", "---", "---"}}
	for _, i := range items {
		variable := ""
		if i.variable != "" {
			variable = "`" + i.variable + "`"
		}
		rows = append(rows, []string{"`" + i.name + "`", variable, i.meaning})
	}
	var b strings.Builder
	for _, row := range rows {
		if !variables {
			row = []string{row[0], row[2]}
		}
		for i := range row {
			row[i] = strings.ReplaceAll(row[i], "|", `\|`)
		}
		fmt.Fprintf(&b, "\n| %s |", strings.Join(row, " | "))
	}
	return "\n" + strings.TrimPrefix(b.String(), "\n") + "\n"
}
