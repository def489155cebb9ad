package netfilter

import (
	"slices"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/backend"
)

// besideDocker is a policy for a host with Docker's bridge.
func besideDocker() backend.Firewall {
	f := firewall(true, true)
	f.Bridge, f.From = "docker0", backend.Devices{"tulle.1"}
	return f
}

// Our accept stands in DOCKER-USER behind the operator's own rules and before the RETURN that older Dockers end it with,
// whoever comes first and whatever is added later.
func TestDockerUser(t *testing.T) {
	const accept = "-j TULLE-DOCKER"
	for name, c := range map[string]struct {
		before, after string
		want          []string
	}{
		"no Docker yet": {want: []string{accept}},
		"Docker 20.10 was first": {before: "iptables -w -N DOCKER-USER\niptables -w -A DOCKER-USER -j RETURN",
			want: []string{accept, "-j RETURN"}},
		"Docker 28 was first": {before: "iptables -w -N DOCKER-USER", want: []string{accept}},
		"Docker comes later": {after: "iptables -w -A DOCKER-USER -j RETURN",
			want: []string{accept, "-j RETURN"}},
		"the operator inserts": {before: "iptables -w -N DOCKER-USER\niptables -w -A DOCKER-USER -j RETURN", after: "iptables -w -I DOCKER-USER -s 10.5.9.0/24 -j DROP",
			want: []string{"-s 10.5.9.0/24 -j DROP", accept, "-j RETURN"}},
		"the operator appends": {after: "iptables -w -A DOCKER-USER -s 10.5.9.0/24 -j DROP",
			want: []string{"-s 10.5.9.0/24 -j DROP", accept}},
		"the operator appends in vain": {before: "iptables -w -N DOCKER-USER\niptables -w -A DOCKER-USER -j RETURN", after: "iptables -w -A DOCKER-USER -s 10.5.9.0/24 -j DROP",
			want: []string{accept, "-j RETURN", "-s 10.5.9.0/24 -j DROP"}},
		"somebody flushes": {before: "iptables -w -N DOCKER-USER\niptables -w -A DOCKER-USER -j RETURN", after: "iptables -w -F DOCKER-USER",
			want: []string{accept}},
	} {
		t.Run(name, func(t *testing.T) {
			eachVariant(t, func(s sandbox) {
				s.runAll(c.before)
				s.apply(besideDocker())
				s.runAll(c.after)
				s.apply(besideDocker())
				if got := s.rules("filter", "DOCKER-USER"); !slices.Equal(got, c.want) {
					s.Errorf("DOCKER-USER has %q, want %q", got, c.want)
				}
				if n := s.apply(besideDocker()); n != 0 {
					s.Errorf("another Apply changed %d chains", n)
				}
			})
		})
	}
}

// Only what comes from the overlay to this host's containers is let past Docker.
func TestDockerRules(t *testing.T) {
	eachVariant(t, func(s sandbox) {
		s.apply(besideDocker())
		for chain, want := range map[[2]string][]string{
			{"filter", "TULLE-DOCKER"}: {"-s 10.5.0.0/16 -d 10.5.1.0/24 -i tulle.1 -o docker0 -j ACCEPT"},
			{"raw", "TULLE-PREROUTING"}: {
				"-s 10.5.0.0/16 -d 10.5.1.0/24 -i tulle.1 -j ACCEPT",
				"-s 10.5.0.0/16 -d 10.5.1.0/24 -i docker0 -j RETURN",
				"-s 10.5.0.0/16 -d 10.5.1.0/24 -i lo -j RETURN",
				"-s 10.5.0.0/16 -d 10.5.1.0/24 -j DROP",
			},
		} {
			if got := s.rules(chain[0], chain[1]); !slices.Equal(got, want) {
				s.Errorf("%s has %q, want %q", chain[1], got, want)
			}
		}
		// Docker 28 and later put their own drops into raw's PREROUTING.
		s.run("iptables -w -t raw -I PREROUTING -d 10.5.1.2/32 ! -i docker0 -j DROP")
		s.apply(besideDocker())
		if got := s.rules("raw", "PREROUTING"); len(got) != 2 || got[0] != "-j TULLE-PREROUTING" {
			s.Errorf("raw PREROUTING has %q, want our jump first", got)
		}
	})
}

// Docker 29's nftables backend is told by a mark what may come in.
func TestMark(t *testing.T) {
	eachVariant(t, func(s sandbox) {
		f := besideDocker()
		f.Mark = 0x1000000
		s.apply(f)
		want := "-s 10.5.0.0/16 -d 10.5.1.0/24 -i tulle.1 -j MARK --set-xmark 0x1000000/0x1000000"
		if got := s.rules("mangle", "TULLE-PREROUTING"); !slices.Equal(got, []string{want}) {
			s.Errorf("mangle TULLE-PREROUTING has %q, want %q", got, want)
		}
		s.apply(besideDocker())
		if all := s.save(); strings.Contains(all, "--set-xmark") {
			s.Errorf("the mark is still set when no Docker wants it:\n%s", all)
		}
	})
}

// A DOCKER-USER that we made for a Docker that never came goes with us; Docker's own stays.
func TestDockerUserCleanup(t *testing.T) {
	for name, c := range map[string]struct {
		commands string
		stays    bool
	}{
		"ours":            {"", false},
		"Docker's":        {"iptables -w -A FORWARD -j DOCKER-USER", true},
		"an operator's":   {"iptables -w -A DOCKER-USER -s 10.5.9.0/24 -j DROP", true},
		"Docker's, older": {"iptables -w -A DOCKER-USER -j RETURN", true},
	} {
		t.Run(name, func(t *testing.T) {
			eachVariant(t, func(s sandbox) {
				s.apply(besideDocker())
				s.runAll(c.commands)
				if _, err := s.fresh(IPTables).Cleanup(t.Context()); err != nil {
					s.Fatal(err)
				}
				if stays := strings.Contains(s.save(), ":DOCKER-USER "); stays != c.stays {
					s.Errorf("DOCKER-USER is there: %t, want %t", stays, c.stays)
				}
			})
		})
	}
}
