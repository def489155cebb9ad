package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"
)

// escaper writes what a terminal would obey, or turn around, in the notation of JSON, as in \u001b: JSON means the same then, and any
// other text can be read. Each call has to hand it whole characters.
type escaper struct{ io.Writer }

func (e escaper) Write(p []byte) (int, error) {
	if _, err := io.WriteString(e.Writer, escape(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// escape is what an escaper writes. Lines stay lines.
func escape(text string) string {
	harmless := func(r rune) bool { return unicode.IsGraphic(r) && r != utf8.RuneError || r == '\n' || r == '\t' }
	if strings.IndexFunc(text, func(r rune) bool { return !harmless(r) }) < 0 {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		switch {
		case harmless(r):
			b.WriteRune(r)
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default: // as a surrogate pair (RFC 8259, 7)
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		}
	}
	return b.String()
}

// complain says something on the standard error, whoever has written what it is about.
func complain(format string, args ...any) { fmt.Fprintf(escaper{os.Stderr}, format, args...) }
