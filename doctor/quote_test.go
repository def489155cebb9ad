package doctor

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/backend/kernel"
)

// A shell that is handed a fix takes each name for a word, whatever it is.
func TestQuote(t *testing.T) {
	t.Parallel()
	names := []string{"eth0", "", "a b", "$(echo out)", "`echo out`", "';echo out;'", "a'b", `"`, `\`, "*", "~", "!!", "#", "a\nb", "x;reboot", "-rf", "&", "<x", "日本"}
	out, err := exec.Command("sh", "-c", "printf '%s|' "+quoteAll(names)).Output()
	if want := strings.Join(names, "|") + "|"; err != nil || string(out) != want {
		t.Errorf("a shell reads %q, %v, want %q", out, err, want)
	}
}

// FuzzQuote has a shell read words that anybody may have chosen.
func FuzzQuote(f *testing.F) {
	f.Add("$(reboot)", "a'b")
	f.Fuzz(func(t *testing.T, a, b string) {
		if strings.ContainsRune(a+b, 0) {
			return // which no argument has
		}
		if out, err := exec.Command("sh", "-c", "printf '%s|' "+quoteAll([]string{a, b})).Output(); err != nil || string(out) != a+"|"+b+"|" {
			t.Errorf("%q and %q are %q, %v", a, b, out, err)
		}
	})
}

// What names of others' devices, programs, chains and comments do in the commands that a finding tells.
func TestFixesAreQuoted(t *testing.T) {
	t.Parallel()
	const evil = "$(reboot)"
	d := dropped{Verdict: Verdict{Rule: `-A FORWARD -i ` + evil + ` -m comment --comment "say \"hi\"; $(reboot)" -j DROP`, Chain: evil}, table: "filter"}
	for what, command := range map[string]string{"a rule": d.without(), "a route": routeSpec(kernel.Way{Prefix: netip.MustParsePrefix("10.5.2.0/24"), Type: "unicast", Dev: evil})} {
		if out, err := exec.Command("sh", "-c", "reboot() { echo rebooted; }; iptables() { :; }; ip6tables() { :; }; "+"set -- "+command+"; printf '%s\n' \"$@\"").CombinedOutput(); err != nil || strings.Contains(string(out), "rebooted") || !strings.Contains(string(out), evil) {
			t.Errorf("%s: %s is read as %q, %v", what, command, out, err)
		}
	}
}
