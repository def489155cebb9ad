package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// screen is what a person reads from: aligned, and coloured where that is a terminal (and not refused: https://no-color.org).
type screen struct {
	w        io.Writer
	terminal bool
	colour   bool
}

func stdout() screen {
	terminal := isTerminal(os.Stdout)
	return screen{os.Stdout, terminal, terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// tone is a text's colour (ECMA-48, SGR).
type tone string

const (
	plain tone = ""
	good  tone = "32" // green
	bad   tone = "31" // red
	warn  tone = "33" // yellow
	dim   tone = "2"
)

// paint gives text a colour, if there are any.
func (s screen) paint(t tone, text string) string {
	if !s.colour || t == plain {
		return text
	}
	return "\x1b[" + string(t) + "m" + text + "\x1b[0m"
}

// cell is a text in a table.
type cell struct {
	text string
	tone tone
}

func cells(texts ...string) (row []cell) {
	for _, t := range texts {
		row = append(row, cell{t, plain})
	}
	return row
}

// clean takes out of a text what a terminal would not print but obey: some of it is what anybody may have written.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, text)
}

// table prints rows with aligned columns. A row's last cell ends its line; an empty one is a dash.
func (s screen) table(rows [][]cell) {
	var widths []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			if i < len(row)-1 {
				widths[i] = max(widths[i], utf8.RuneCountInString(dash(c.text)))
			}
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, c := range row {
			text := clean(dash(c.text))
			line.WriteString(s.paint(c.tone, text))
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text)+2))
			}
		}
		fmt.Fprintln(s.w, strings.TrimRight(line.String(), " "))
	}
}

// dash is what a table has for nothing.
func dash(text string) string { return cmp.Or(text, "-") }

// clear empties a terminal.
func (s screen) clear() {
	if s.terminal {
		fmt.Fprint(s.w, "\x1b[H\x1b[2J\x1b[3J")
	}
}

// ago says how long ago t was, as exactly as anybody cares.
func ago(t, now time.Time) string {
	if d := now.Sub(t); d >= time.Second {
		return span(d) + " ago"
	}
	return "just now"
}

// span writes a time in its two largest units.
func span(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d d %d h", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%d min %d s", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%d s", d/time.Second)
}

func join[T any](list []T) string {
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = fmt.Sprint(v)
	}
	return strings.Join(texts, ", ")
}

// plural counts things.
func plural(n int, thing string) string {
	if n != 1 {
		if thing = thing + "s"; strings.HasSuffix(thing, "ss") {
			thing = strings.TrimSuffix(thing, "s") + "es"
		}
	}
	return thousands(n) + " " + thing
}

// thousands writes a count with commas.
func thousands(n int) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
