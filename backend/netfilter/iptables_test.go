package netfilter

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/e2e/netnstest"
	"github.com/tulle-net/tulle/subnet"
)

// sandbox is a network namespace of a test's own, on the thread that the test runs on.
type sandbox struct {
	*testing.T
	way Choice
}

// newSandbox moves the calling goroutine into a new namespace. It never unlocks the thread: the runtime ends it with the
// goroutine, and the namespace, which has no name, with it.
func newSandbox(t *testing.T) sandbox {
	t.Helper()
	netnstest.Enter(t)
	s := sandbox{t, IPTables}
	s.run("ip link set lo up")
	return s
}

// eachVariant runs test with the iptables that speaks nftables and with the legacy one: hosts have either.
func eachVariant(t *testing.T, test func(s sandbox)) {
	for _, variant := range []string{"nft", "legacy"} {
		t.Run(variant, func(t *testing.T) {
			s := newSandbox(t)
			s.use(variant)
			test(s)
		})
	}
}

// eachWay runs test with each way to make our rules, beside either iptables, which others use. The first is that of s.apply.
func eachWay(t *testing.T, test func(s sandbox)) {
	for _, way := range []Choice{IPTables, NFTables} {
		t.Run(string(way), func(t *testing.T) {
			eachVariant(t, func(s sandbox) {
				s.way = way
				test(s)
			})
		})
	}
}

// use makes a variant the one that programs find as iptables.
func (s sandbox) use(variant string) {
	s.Helper()
	dir := s.TempDir()
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			path, err := exec.LookPath(name + "-" + variant + suffix)
			if err != nil {
				s.Skip(err)
			}
			if err := os.Symlink(path, filepath.Join(dir, name+suffix)); err != nil {
				s.Fatal(err)
			}
		}
	}
	s.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	if out, err := exec.Command("iptables", "-t", "nat", "-S").CombinedOutput(); err != nil {
		s.Skipf("iptables-%s does not work here: %s", variant, out)
	}
}

func (s sandbox) run(format string, args ...any) string {
	s.Helper()
	return netnstest.Run(s, format, args...)
}

func (s sandbox) runAll(commands string) {
	s.Helper()
	for line := range strings.Lines(commands) {
		if line = strings.TrimSpace(line); line != "" {
			s.run("%s", line)
		}
	}
}

// volatile is what iptables-save prints beside rules: comments, counters, and tables with nothing in them, which come into
// being when somebody looks.
var volatile = regexp.MustCompile(`(?m)^#.*\n| \[\d+:\d+\]$`)
var empty = regexp.MustCompile(`\*\w+\n(:\w+ ACCEPT\n)*COMMIT\n`)

// save is all rules of all tables.
func (s sandbox) save() string {
	s.Helper()
	var all strings.Builder
	for _, command := range []string{"iptables-save", "ip6tables-save"} {
		out, err := exec.Command(command).Output() // on stderr it warns of tables that the other variant made
		if err != nil {
			s.Fatalf("%s: %v", command, err)
		}
		all.WriteString(empty.ReplaceAllString(volatile.ReplaceAllString(string(out), ""), ""))
	}
	return all.String()
}

// everything is all rules of iptables, and our table of nftables.
func (s sandbox) everything() string {
	s.Helper()
	return s.save() + s.table()
}

// table is our table of nftables, as nft prints it; "" if there is none.
func (s sandbox) table() string {
	s.Helper()
	if !strings.Contains(s.run("nft list tables"), "table inet tulle\n") {
		return ""
	}
	return s.run("nft list table inet tulle")
}

// rules lists a chain's rules.
func (s sandbox) rules(table, chain string) []string {
	s.Helper()
	var rules []string
	for line := range strings.Lines(s.run("iptables -w -t %s -S %s", table, chain)) {
		if rule, ok := strings.CutPrefix(strings.TrimSpace(line), "-A "+chain+" "); ok {
			rules = append(rules, rule)
		}
	}
	return rules
}

// fresh opens a Filter, as a restarted agent does, in the namespace of the calling thread.
func (s sandbox) fresh(c Choice) *Filter {
	s.Helper()
	filter, err := Open(c)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(filter.Close)
	s.watch(filter.bell)
	return filter
}

// watch has a bell see this thread's tables: its own goroutines run on other threads, in other namespaces.
func (s sandbox) watch(b *bell) {
	b.legacy.proc = fmt.Sprintf("/proc/self/task/%d/net", unix.Gettid())
	b.last = b.legacy.tables()
}

// apply applies f with a fresh Filter, and checks that a second time changes nothing.
func (s sandbox) apply(f backend.Firewall) int {
	s.Helper()
	return s.applyBy(s.way, f)
}

func (s sandbox) applyBy(c Choice, f backend.Firewall) int {
	s.Helper()
	n, err := s.fresh(c).Apply(s.Context(), f)
	if err != nil {
		s.Fatalf("Apply: %v", err)
	}
	after := s.everything()
	again, err := s.fresh(c).Apply(s.Context(), f)
	if again != 0 || err != nil {
		s.Errorf("a second Apply changed %d tables, %v", again, err)
	}
	if now := s.everything(); now != after {
		s.Errorf("a second Apply left\n%s\ninstead of\n%s", now, after)
	}
	return n
}

// inPlace checks that our chains are what f asks for.
func (s sandbox) inPlace(f backend.Firewall) {
	s.Helper()
	for family := range f.Network.All() {
		if family != subnet.IPv4 {
			continue
		}
		for _, c := range policy(f, family) {
			if len(c.rules) == 0 {
				continue
			}
			if got, want := s.rules(c.table, c.name), c.lines(true); !slices.Equal(got, want) {
				s.Errorf("chain %s has %q, want %q", c.name, got, want)
			}
			parent := s.rules(c.table, c.parent)
			jumps := 0
			for i, rule := range parent {
				if rule == "-j "+c.name {
					jumps++
					if c.place == head && i > 0 {
						s.Errorf("the jump to %s comes after %q", c.name, parent[:i])
					}
				}
			}
			if jumps != 1 {
				s.Errorf("%d jumps to %s in %q", jumps, c.name, parent)
			}
		}
	}
}

func firewall(masquerade, forward bool) backend.Firewall {
	return backend.Firewall{
		Network:    subnet.PairOf(subnet.IPv4, netip.MustParsePrefix("10.5.0.0/16")),
		Subnet:     subnet.PairOf(subnet.IPv4, netip.MustParsePrefix("10.5.1.0/24")),
		Masquerade: subnet.Pair[bool]{V4: masquerade, V6: masquerade}, Forward: forward,
	}
}

// dual is f for both families.
func dual(f backend.Firewall) backend.Firewall {
	f.Network.V6, f.Subnet.V6 = netip.MustParsePrefix("fd00:5::/48"), netip.MustParsePrefix("fd00:5:0:1::/64")
	return f
}

// dockers are the rules that Docker and an operator might have made.
const dockers = `
	iptables -w -t nat -N DOCKER
	iptables -w -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
	iptables -w -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
	iptables -w -t nat -A DOCKER -i docker0 -j RETURN
	iptables -w -P FORWARD DROP
	iptables -w -N DOCKER-USER
	iptables -w -A FORWARD -j DOCKER-USER
	iptables -w -A DOCKER-USER -s 10.5.9.0/24 -j DROP
	iptables -w -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
	iptables -w -t mangle -A PREROUTING -p udp -m udp --dport 9 -j MARK --set-xmark 0x4000/0x4000
	ip6tables -w -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
`

func TestApply(t *testing.T) {
	eachVariant(t, func(s sandbox) {
		f := firewall(true, true)
		if n := s.apply(f); n != 2 {
			s.Errorf("changed %d tables, want 2", n)
		}
		s.inPlace(f)
	})
}

// What iptables prints is what we write: else each Apply would find a difference.
func TestRulesAsPrinted(t *testing.T) {
	eachVariant(t, func(s sandbox) {
		s.apply(firewall(true, true))
		want := []string{
			"-m mark --mark 0x4000/0x4000 -j RETURN",
			"-s 10.5.1.0/24 -d 10.5.1.0/24 -j RETURN",
			"-s 10.5.1.0/24 -d 10.5.0.0/16 -j ACCEPT",
			"-s 10.5.0.0/16 -d 10.5.0.0/16 -j RETURN",
			"! -s 10.5.0.0/16 -d 10.5.1.0/24 -j RETURN",
			"-s 10.5.0.0/16 ! -d 224.0.0.0/3 -j MASQUERADE --random-fully",
			"! -s 10.5.0.0/16 -d 10.5.0.0/16 -j MASQUERADE --random-fully",
		}
		if got := s.rules("nat", "TULLE-POSTROUTING"); !slices.Equal(got, want) {
			s.Errorf("TULLE-POSTROUTING has\n%s", strings.Join(got, "\n"))
		}
		want = []string{"-s 10.5.0.0/16 -j ACCEPT", "-d 10.5.0.0/16 -j ACCEPT"}
		if got := s.rules("filter", "TULLE-FORWARD"); !slices.Equal(got, want) {
			s.Errorf("TULLE-FORWARD has\n%s", strings.Join(got, "\n"))
		}
	})
}

// Whatever somebody does to our chains, one Apply puts right, and changes no other table.
func TestDrift(t *testing.T) {
	for name, c := range map[string]struct {
		commands string
		changed  int
	}{
		"nothing":              {"", 0},
		"rule before ours":     {"iptables -w -t nat -I POSTROUTING -s 172.17.0.0/16 -j MASQUERADE", 1},
		"rule after ours":      {"iptables -w -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE", 0},
		"forward rule behind":  {"iptables -w -A FORWARD -s 172.17.0.0/16 -j ACCEPT", 0},
		"forward rule before":  {"iptables -w -I FORWARD -s 172.17.0.0/16 -j ACCEPT", 0},
		"second jump":          {"iptables -w -t nat -A POSTROUTING -j TULLE-POSTROUTING", 1},
		"many jumps":           {"iptables -w -A FORWARD -j TULLE-FORWARD\niptables -w -I FORWARD -j TULLE-FORWARD", 1},
		"jumps and a rule":     {"iptables -w -t nat -I POSTROUTING -j TULLE-POSTROUTING\niptables -w -t nat -I POSTROUTING -s 172.17.0.0/16 -j MASQUERADE", 1},
		"jump deleted":         {"iptables -w -t nat -D POSTROUTING -j TULLE-POSTROUTING", 1},
		"chain flushed":        {"iptables -w -t nat -F TULLE-POSTROUTING", 1},
		"both chains flushed":  {"iptables -w -t nat -F TULLE-POSTROUTING\niptables -w -F TULLE-FORWARD", 2},
		"rule deleted":         {"iptables -w -t nat -D TULLE-POSTROUTING 3", 1},
		"rule added":           {"iptables -w -A TULLE-FORWARD -j DROP", 1},
		"rule changed":         {"iptables -w -R TULLE-FORWARD 1 -s 10.5.0.0/16 -j DROP", 1},
		"rules in wrong order": {"iptables -w -D TULLE-FORWARD 1\niptables -w -A TULLE-FORWARD -s 10.5.0.0/16 -j ACCEPT", 1},
		"all flushed":          {"iptables -w -t nat -F\niptables -w -t nat -X\niptables -w -F\niptables -w -X", 2},
	} {
		t.Run(name, func(t *testing.T) {
			eachVariant(t, func(s sandbox) {
				f := firewall(true, true)
				s.apply(f)
				s.runAll(c.commands)
				before := s.foreign()
				if n := s.apply(f); n != c.changed {
					s.Errorf("changed %d tables, want %d", n, c.changed)
				}
				s.inPlace(f)
				if after := s.foreign(); after != before {
					s.Errorf("foreign rules were\n%s\nnow they are\n%s", before, after)
				}
			})
		})
	}
}

// foreign is save without our chains.
func (s sandbox) foreign() string {
	s.Helper()
	var others strings.Builder
	for line := range strings.Lines(s.save()) {
		if !strings.Contains(line, "TULLE-") {
			others.WriteString(line)
		}
	}
	return empty.ReplaceAllString(others.String(), "")
}

func TestSwitchedOff(t *testing.T) {
	eachVariant(t, func(s sandbox) {
		s.runAll(dockers)
		before := s.save()
		for _, step := range []struct {
			masquerade, forward bool
			changed             int
		}{{true, true, 2}, {false, true, 1}, {true, false, 2}, {false, false, 1}, {false, false, 0}, {true, true, 2}, {false, false, 2}} {
			if n := s.apply(firewall(step.masquerade, step.forward)); n != step.changed {
				s.Errorf("%+v: changed %d tables", step, n)
			}
			if got := strings.Contains(s.save(), "TULLE-POSTROUTING"); got != step.masquerade {
				s.Errorf("%+v: TULLE-POSTROUTING exists: %v", step, got)
			}
			if got := strings.Contains(s.run("iptables -w -S"), "TULLE-FORWARD"); got != step.forward {
				s.Errorf("%+v: TULLE-FORWARD exists: %v", step, got)
			}
		}
		s.apply(firewall(true, true))
		s.apply(backend.Firewall{}) // of a network that asks for no rules at all, as alloc's does
		if after := s.save(); after != before {
			s.Errorf("was\n%s\nis\n%s", before, after)
		}
	})
}

func TestRenumbered(t *testing.T) {
	eachVariant(t, func(s sandbox) {
		s.apply(firewall(true, true))
		f := firewall(true, true)
		f.Subnet.V4 = netip.MustParsePrefix("10.5.77.0/24")
		if n := s.apply(f); n != 1 { // only the masquerade rules know the own subnet
			s.Errorf("changed %d tables, want 1", n)
		}
		s.inPlace(f)
		f.Network.V4, f.Subnet.V4 = netip.MustParsePrefix("10.64.0.0/10"), netip.MustParsePrefix("10.64.1.0/24")
		s.apply(f)
		s.inPlace(f)
	})
}

func TestCleanup(t *testing.T) {
	eachVariant(t, func(s sandbox) {
		s.runAll(dockers)
		before := s.save()
		s.apply(firewall(true, true))
		if foreign := s.foreign(); foreign != before {
			s.Errorf("foreign rules were\n%s\nnow they are\n%s", before, foreign)
		}
		s.run("iptables -w -A FORWARD -j TULLE-FORWARD")
		removed, err := s.fresh(IPTables).Cleanup(s.Context())
		want := []string{"IPv4 chain TULLE-POSTROUTING in table nat", "IPv4 chain TULLE-FORWARD in table filter"}
		if err != nil || !slices.Equal(removed, want) {
			s.Errorf("removed %q, %v", removed, err)
		}
		if after := s.save(); after != before {
			s.Errorf("was\n%s\nis\n%s", before, after)
		}
		if removed, err := s.fresh(IPTables).Cleanup(s.Context()); err != nil || len(removed) > 0 {
			s.Errorf("again: %q, %v", removed, err)
		}
	})
}

// A family that the network has no more has no rules of ours left.
func TestOtherFamilyIsSwept(t *testing.T) {
	eachWay(t, func(s sandbox) {
		s.apply(firewall(true, true))
		before := s.everything()
		s.apply(dual(firewall(true, true)))
		s.apply(firewall(true, true))
		if after := s.everything(); after != before {
			s.Errorf("was\n%s\nis\n%s", before, after)
		}
	})
}

func TestIPv6(t *testing.T) {
	eachVariant(t, func(s sandbox) {
		if n := s.apply(dual(firewall(true, true))); n != 4 {
			s.Errorf("changed %d tables, want 4", n)
		}
		want := "-A TULLE-POSTROUTING -s fd00:5::/48 ! -d ff00::/8 -j MASQUERADE --random-fully\n"
		if save := s.save(); !strings.Contains(save, want) {
			s.Errorf("no %q in\n%s", want, save)
		}
		if removed, err := s.fresh(IPTables).Cleanup(s.Context()); err != nil || len(removed) != 4 {
			s.Errorf("removed %q, %v", removed, err)
		}
	})
}

func TestNotInstalled(t *testing.T) {
	s := newSandbox(t)
	t.Setenv("PATH", t.TempDir())
	_, err := s.fresh(IPTables).Apply(t.Context(), firewall(true, true))
	if err == nil {
		t.Fatal("no error")
	}
	for _, word := range []string{"iptables is not installed", "apt install iptables", "--ip-masq=false"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not say %q", err, word)
		}
	}
	// What the error advises must help.
	if n, err := s.fresh(IPTables).Apply(t.Context(), firewall(false, false)); n != 0 || err != nil {
		t.Errorf("with our rules off: changed %d tables, %v", n, err)
	}
	if removed, err := s.fresh(IPTables).Cleanup(t.Context()); err != nil || len(removed) > 0 {
		t.Errorf("Cleanup: %q, %v", removed, err)
	}
}

// An agent that isn't root can't open the lock that root has made, as long as nobody lets it.
func TestLockOfRoot(t *testing.T) {
	for said, advised := range map[string]bool{
		"Fatal: can't open lock file /run/xtables.lock: Permission denied":           true,
		"Fatal: can't open lock file /run/xtables.lock: Read-only file system":       true,
		"iptables-restore v1.8.9 (nf_tables): Permission denied (you must be root)":  false,
		"Another app is currently holding the xtables lock; still 4s 0us time ahead": false,
	} {
		_, err := run(t.Context(), said, "sh", "-c", "cat >&2; exit 4")
		if err == nil || strings.Contains(err.Error(), "systemd-tmpfiles --create") != advised {
			t.Errorf("%s: error %v", said, err)
		}
	}
}
