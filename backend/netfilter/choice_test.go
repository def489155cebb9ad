package netfilter

import (
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/backend"
)

// What makes the rules is what was asked for, or else what Docker and the host use.
func TestChoice(t *testing.T) {
	wanted, marked := besideDocker(), besideDocker()
	wanted.NFTables, marked.Mark = true, 0x1000000
	for name, c := range map[string]struct {
		choice   Choice
		f        backend.Firewall
		commands string
		name     string
		why      string
	}{
		"iptables":                     {IPTables, wanted, "", "iptables-nft", "--firewall"},
		"nftables":                     {NFTables, besideDocker(), "", "nftables", "--firewall"},
		"the config":                   {Auto, wanted, "", "nftables", "EnableNFTables in the network's config"},
		"Docker's nftables":            {Auto, marked, "", "nftables", "Docker's firewall backend is nftables"},
		"Docker's iptables":            {Auto, besideDocker(), "iptables -w -N DOCKER", "iptables-nft", "Docker's rules are there"},
		"no Docker":                    {Auto, besideDocker(), "iptables -w -N DOCKER-USER", "iptables-nft", "it is installed, and Docker will use it"},
		"beside firewalld":             {Auto, besideDocker(), "nft add table inet firewalld", "iptables-nft", "it is installed, and Docker will use it, beside firewalld"},
		"Docker's nftables, firewalld": {Auto, marked, "nft add table inet firewalld", "nftables", "Docker's firewall backend is nftables, beside firewalld"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			s.use("nft")
			s.runAll(c.commands)
			s.chooses(c.choice, c.f, c.name, c.why)
		})
	}
	t.Run("legacy", func(t *testing.T) {
		s := newSandbox(t)
		s.use("legacy")
		s.runAll("iptables -w -N DOCKER")
		s.chooses(Auto, besideDocker(), "iptables-legacy", "Docker's rules are there")
	})
	t.Run("no iptables", func(t *testing.T) {
		s := newSandbox(t)
		s.Setenv("PATH", t.TempDir())
		s.chooses(Auto, dual(besideDocker()), "nftables", "iptables is not installed")
	})
}

func (s sandbox) chooses(c Choice, f backend.Firewall, name, why string) {
	s.Helper()
	filter := s.fresh(c)
	if _, err := filter.Apply(s.Context(), f); err != nil {
		s.Fatal(err)
	}
	if gotName, gotWhy := filter.Chosen(); gotName != name || gotWhy != why {
		s.Errorf("%s because %s, want %s because %s", gotName, gotWhy, name, why)
	}
}

// Where iptables drops what is forwarded, nftables has all but what lifts that, and elsewhere there is no rule in iptables: nor is a
// program run.
func TestNFTablesBesideIPTables(t *testing.T) {
	eachVariant(t, func(s sandbox) {
		s.startDocker(28)
		s.applyBy(NFTables, dual(besideDocker()))
		if save := s.save(); strings.Count(save, ":TULLE-DOCKER") != 2 || strings.Count(save, ":TULLE-FORWARD") != 2 || strings.Count(save, ":TULLE-PREROUTING") != 2 || strings.Count(save, ":TULLE-") != 6 {
			s.Errorf("iptables has\n%s", save)
		}
		if table := s.table(); strings.Contains(table, "prerouting-raw") || !strings.Contains(table, "postrouting") {
			s.Errorf("nftables has\n%s", table)
		}
	})
	eachVariant(t, func(s sandbox) {
		s.run("ip6tables -w -P FORWARD DROP")
		s.applyBy(NFTables, dual(besideDocker()))
		if save := s.save(); !strings.Contains(save, "-A TULLE-FORWARD -d fd00:5::/48 -j ACCEPT") || strings.Contains(save, "10.5.0.0/16") {
			s.Errorf("iptables has\n%s", save)
		}
		s.run("ip6tables -w -P FORWARD ACCEPT")
		s.applyBy(NFTables, dual(besideDocker()))
		if save := s.save(); strings.Contains(save, "TULLE") {
			s.Errorf("iptables has\n%s", save)
		}
	})
	t.Run("nothing dropped", func(t *testing.T) {
		s := newSandbox(t)
		s.use("nft")
		s.run("iptables -w -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT")
		path := os.Getenv("PATH")
		s.Setenv("PATH", t.TempDir())
		if _, err := s.fresh(NFTables).Apply(s.Context(), dual(besideDocker())); err != nil {
			s.Error(err)
		}
		s.Setenv("PATH", path)
	})
}

// Whichever made the rules before, and however often, one Apply leaves what it would have made on a host that never had any.
func TestSwitch(t *testing.T) {
	for _, docker := range []bool{false, true} {
		eachVariant(t, func(s sandbox) {
			if docker {
				s.startDocker(28)
			}
			want := map[Choice]string{}
			for range 2 {
				for _, c := range []Choice{IPTables, NFTables} {
					s.applyBy(c, dual(besideDocker()))
					if now := s.state(); want[c] == "" {
						want[c] = now
					} else if now != want[c] {
						s.Errorf("by %s it was\n%s\nis\n%s", c, want[c], now)
					}
				}
			}
			if strings.Contains(want[IPTables], "inet tulle") || strings.Contains(want[NFTables], "TULLE-POSTROUTING") {
				s.Errorf("something is left:\n%s\n%s", want[IPTables], want[NFTables])
			}
		})
	}
}

// An agent that runs follows the network's config, and Docker's.
func TestSwitchWhileRunning(t *testing.T) {
	eachVariant(t, func(s sandbox) {
		filter, plain := s.fresh(Auto), dual(besideDocker())
		wanted, marked := plain, plain
		wanted.NFTables, marked.Mark = true, 0x1000000
		seen := map[backend.Firewall]string{}
		for range 2 {
			for _, f := range []backend.Firewall{plain, wanted, plain, marked} {
				if _, err := filter.Apply(s.Context(), f); err != nil {
					s.Fatal(err)
				}
				now, before := s.state(), seen[f]
				if before != "" && before != now {
					s.Errorf("%s was\n%s\nis\n%s", f, before, now)
				}
				if byNFT := f != plain; byNFT != strings.Contains(now, "table inet tulle") || byNFT == strings.Contains(now, "TULLE-") {
					s.Errorf("%s is\n%s", f, now)
				}
				seen[f] = now
			}
		}
	})
}

// state is everything that is in the packet filter, chain by chain: in which order these were made is left out.
func (s sandbox) state() string {
	s.Helper()
	chains, table := map[string]string{}, ""
	for line := range strings.Lines(s.save()) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case line[0] == '*': // a table of each family has its turn
			if _, again := chains[line]; again {
				line = "6" + line
			}
			table = line
			chains[table] = ""
		default:
			chain := strings.TrimPrefix(words[min(1, len(words)-1)], ":")
			if line[0] == ':' {
				chain = words[0][1:]
			}
			chains[table+chain] += line
		}
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(chains)) {
		b.WriteString(chains[name])
	}
	return b.String() + s.table()
}

// A hundred restarts of the agent and of Docker in any order, switches between the ways to make the rules, and others' flushes among
// them: each rule is there once, and where it belongs, as if there had been one start of each.
func TestRestarts(t *testing.T) {
	eachWay(t, func(s sandbox) {
		seed := uint64(time.Now().UnixNano())
		s.Logf("seed %d", seed)
		random, policy := rand.New(rand.NewPCG(seed, 0)), dual(besideDocker())
		s.startDocker(28)
		s.applyBy(s.way, policy)
		want := s.state()
		agent := func(c Choice, f backend.Firewall) {
			filter := s.fresh(c)
			if _, err := filter.Apply(s.Context(), f); err != nil {
				s.Fatal(err)
			}
		}
		steps := []func(){
			func() { agent(s.way, policy) },
			func() { agent(s.way, policy) },
			func() { s.startDocker(28) },
			func() { s.startDocker(28) },
			func() { agent([]Choice{IPTables, NFTables}[random.IntN(2)], policy) },
			func() { agent(s.way, firewall(random.IntN(2) == 0, random.IntN(2) == 0)) }, // of other flags, and IPv4 alone
			func() { s.runAll("nft flush ruleset") },
			func() { s.runAll("iptables -w -t nat -F\niptables -w -F FORWARD\nip6tables -w -t raw -F") },
		}
		for range 100 {
			steps[random.IntN(len(steps))]()
		}
		s.startDocker(28)
		s.applyBy(s.way, policy)
		if got := s.state(); got != want {
			s.Errorf("after seed %d it is\n%s\nnot\n%s", seed, got, want)
		}
	})
}
