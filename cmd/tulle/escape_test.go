package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
)

// nasty is what somebody may have called something, to get at the terminal of who reads it.
const nasty = "\x1b[2J\x07\x7f\u009b31m\u202etxt.\u2066\U000e0041 and \\u0041, \xff, ü, 日本, 😀\ttab"

// JSON means the same whether or not it is escaped, and nothing in it acts upon a terminal; so with a log, and any text.
func TestEscaper(t *testing.T) {
	var out bytes.Buffer
	if err := json.NewEncoder(escaper{&out}).Encode(nasty); err != nil {
		t.Fatal(err)
	}
	var read string
	if err := json.Unmarshal(out.Bytes(), &read); err != nil || read != strings.ToValidUTF8(nasty, "\ufffd") {
		t.Errorf("%s became %q, %v", out.Bytes(), read, err)
	}
	for _, handler := range []slog.Handler{slog.NewTextHandler(escaper{&out}, nil), slog.NewJSONHandler(escaper{&out}, nil)} {
		slog.New(handler).Info(nasty, "name", nasty, "delete", "\x7f")
	}
	if _, err := (escaper{&out}).Write([]byte(nasty)); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"\x1b", "\x07", "\x7f", "\u009b", "\u202e", "\u2066", "\U000e0041", "\xff"} {
		if strings.Contains(strings.ReplaceAll(out.String(), "\ufffd", ""), bad) {
			t.Errorf("%q is in %q", bad, out.String())
		}
	}
	if n := strings.Count(out.String(), "😀"); n != 6 {
		t.Errorf("what does no harm is there %d times: %s", n, out.String())
	}
}
