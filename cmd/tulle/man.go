package main

import (
	"fmt"
	"strings"
)

// manPage is a page as it grows, in the macros of man(7).
type manPage struct{ strings.Builder }

func (m *manPage) line(format string, args ...any) { fmt.Fprintf(m, format+"\n", args...) }

func (m *manPage) items(all []item) {
	for _, i := range all {
		m.line(".TP\n.B %s\n%s", roff(i.name), roff(i.meaning))
		if i.variable != "" {
			m.line("Variable: %s.", roff(i.variable))
		}
	}
}

// section is one with items; without them there is none.
func (m *manPage) section(title string, all []item) {
	if len(all) > 0 {
		m.line(".SH %s", title)
		m.items(all)
	}
}

// man is the page for man(1). It has no date: the same commit makes the same bytes.
func (p page) man(all []page) string {
	var m manPage
	m.line(".TH %s 1 \"\" \"tulle %s\" \"tulle\"", strings.ToUpper(roff(p.name())), roff(version))
	m.line(".nh\n.ad l") // no word of a command is to be parted
	m.line(".SH NAME\n%s \\- %s", roff(p.name()), roff(p.gist))
	m.line(".SH SYNOPSIS")
	if p.command == all[0].command {
		m.overview(p)
	} else {
		m.commands(p)
	}
	for _, g := range p.groups {
		m.section(strings.ToUpper(roff(g.heading())), g.items)
	}
	m.section("EXIT STATUS", p.exits)
	m.section("FILES", p.files)
	var others []string
	for _, o := range all {
		if o.command != p.command {
			others = append(others, fmt.Sprintf(".BR %s (1)", roff(o.name())))
		}
	}
	m.line(".SH SEE ALSO\n%s", strings.Join(others, " ,\n"))
	return m.String()
}

// overview is what tulle itself can do.
func (m *manPage) overview(p page) {
	m.line(".B %s\n.I command", roff(p.command))
	m.description(p)
	m.line(".SH COMMANDS")
	for _, c := range p.commands {
		m.line(".TP\n.B %s\n%s", roff(c.usage), roff(c.help))
	}
	m.line(".SH ENVIRONMENT\nEach flag is a variable, too, which the pages name beside it. A flag goes before its variable.")
}

// commands are one, or those below it.
func (m *manPage) commands(p page) {
	for i, c := range p.commands {
		if i > 0 {
			m.line(".br")
		}
		m.line("%s", roff(c.usage))
	}
	m.description(p)
	if len(p.commands) == 1 {
		m.section("OPTIONS", p.commands[0].items)
		return
	}
	m.line(".SH COMMANDS")
	for _, c := range p.commands {
		m.line(".SS %s\n%s", roff(c.name()), roff(c.help))
		m.items(c.items)
	}
}

func (m *manPage) description(p page) {
	m.line(".SH DESCRIPTION\n%s.", roff(p.gist))
	for _, text := range p.detail {
		m.line(".PP\n%s", roff(text))
	}
}

// roff is text as troff takes it, be it what it may.
func roff(text string) string {
	var b strings.Builder
	for i, r := range text {
		switch {
		case r == '\\':
			b.WriteString(`\e`)
		case r == '-':
			b.WriteString(`\-`)
		case r == '"':
			b.WriteString(`\(dq`)
		case (r == '.' || r == '\'') && (i == 0 || text[i-1] == '\n'):
			b.WriteString(`\&` + string(r))
		case r > '~':
			fmt.Fprintf(&b, `\[u%04X]`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
