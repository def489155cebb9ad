package netfilter

import (
	"strings"
	"testing"
)

// FuzzLook finds chains of ours in whatever iptables-save may print, and says what is to be done about them: which is about them alone.
func FuzzLook(f *testing.F) {
	f.Add("*nat\n:POSTROUTING ACCEPT [0:0]\n:TULLE-POSTROUTING - [0:0]\n-A POSTROUTING -j TULLE-POSTROUTING\n-A TULLE-POSTROUTING -s 10.5.1.0/24 -j ACCEPT\nCOMMIT\n")
	f.Add("*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j RETURN\n-A FORWARD -j TULLE-FORWARD\n-A FORWARD -j TULLE-FORWARD\n-A  \n-A FORWARD\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, save string) {
		for _, where := range []place{anywhere, head, tail} {
			for _, rules := range [][]string{nil, {"-s 10.5.1.0/24 -j ACCEPT"}} {
				c := chain{table: "filter", parent: "FORWARD", name: "TULLE-FORWARD", place: where}
				found := look(strings.Split(save, "\n"), c)
				if n := c.position(found); n < 0 || n > len(found.siblings) {
					t.Errorf("the jump belongs after %d of %d rules", n, len(found.siblings))
				}
				for line := range strings.Lines(c.script(found, rules)) {
					if !strings.Contains(line, c.name) {
						t.Errorf("it is not about %s: %s", c.name, line)
					}
				}
			}
		}
	})
}
