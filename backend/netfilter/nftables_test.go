package netfilter

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Whatever somebody does to our table, one Apply puts right, and leaves others' tables as they are.
func TestTableDrift(t *testing.T) {
	for name, c := range map[string]struct {
		commands string
		changed  int
	}{
		"nothing":          {"", 0},
		"chain flushed":    {"nft flush chain inet tulle postrouting", 1},
		"rule added":       {"nft add rule inet tulle prerouting-raw counter drop", 1},
		"rule inserted":    {"nft insert rule inet tulle postrouting accept", 1},
		"chain added":      {"nft add chain inet tulle more", 1},
		"hooked chain":     {"nft add chain inet tulle more { type filter hook input priority 0 ; policy drop ; }", 1},
		"chain with drop":  {"nft chain inet tulle prerouting-raw { policy drop ; }", 1},
		"table flushed":    {"nft flush table inet tulle", 2},
		"table deleted":    {"nft delete table inet tulle", 2},
		"table dormant":    {"nft add table inet tulle { flags dormant ; }", 2},
		"ruleset flushed":  {"nft flush ruleset", 2},
		"table moved":      {"nft delete table inet tulle\nnft add table inet tulle\nnft add chain inet tulle postrouting { type nat hook postrouting priority 100 ; }", 2},
		"others' table":    {"nft add table inet other\nnft add chain inet other tulle", 0},
		"namesake, for ip": {"nft add table ip tulle", 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			s.runAll("nft add table inet firewalld\nnft add chain inet firewalld f { type filter hook forward priority 10 ; policy accept ; }\nnft add rule inet firewalld f ip daddr 10.0.0.0/8 counter accept")
			policy := dual(besideDocker())
			s.applyBy(NFTables, policy)
			want := s.table()
			s.runAll(c.commands)
			others := func() string { return strings.Replace(s.run("nft list ruleset"), s.table(), "", 1) }
			before := others()
			if n := s.applyBy(NFTables, policy); n != c.changed {
				s.Errorf("changed %d chains, want %d", n, c.changed)
			}
			if got := s.table(); got != want {
				s.Errorf("was\n%s\nis\n%s", want, got)
			}
			if after := others(); after != before {
				s.Errorf("others had\n%s\nnow they have\n%s", before, after)
			}
		})
	}
}

// A policy that changes is a table that changes; one that asks for nothing leaves none.
func TestTablePolicy(t *testing.T) {
	s := newSandbox(t)
	for _, step := range []struct {
		masquerade, forward bool
		changed             int
	}{{true, true, 2}, {false, true, 1}, {true, false, 2}, {false, false, 1}, {false, false, 0}, {true, true, 2}} {
		f := besideDocker()
		f.Masquerade.V4, f.Forward = step.masquerade, step.forward
		if n := s.applyBy(NFTables, f); n != step.changed {
			s.Errorf("%+v: changed %d chains", step, n)
		}
		table := s.table()
		if strings.Contains(table, "masquerade") != step.masquerade || strings.Contains(table, "drop") != step.forward || (table == "") == (step.masquerade || step.forward) {
			s.Errorf("%+v: %s", step, table)
		}
	}
	if removed, err := s.fresh(Auto).Cleanup(s.Context()); err != nil || len(removed) != 1 || removed[0] != "nftables table inet tulle" || s.table() != "" {
		s.Errorf("removed %q, %v, left %s", removed, err, s.table())
	}
}

// Without nf_tables there is nothing to remove, and a word on what to do.
func TestNoNFTables(t *testing.T) {
	for _, errno := range []error{unix.EINVAL, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.ENOENT} {
		err := explain(errno)
		if !errors.Is(err, errNoNFT) || !strings.Contains(err.Error(), "--firewall=iptables") {
			t.Errorf("%v: %v", errno, err)
		}
	}
	if err := explain(unix.EPERM); errors.Is(err, errNoNFT) {
		t.Error(err)
	}
}
