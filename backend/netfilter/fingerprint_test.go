package netfilter

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// A packet filter that nobody has changed is not looked at twice: that takes a program for each table. Whatever somebody
// changes, also what leaves number and size of the rules as they were, makes us look.
func TestUnchangedRunsNothing(t *testing.T) {
	for name, command := range map[string]string{
		"rule altered":          "iptables -w -R TULLE-FORWARD 1 -s 10.99.0.0/16 -j ACCEPT",
		"rule deleted":          "iptables -w -D TULLE-FORWARD 1",
		"somebody else's rule":  "iptables -w -t nat -I POSTROUTING -s 172.17.0.0/16 -j RETURN",
		"another table flushed": "iptables -w -t raw -F",
		"IPv6 rule altered":     "ip6tables -w -R TULLE-FORWARD 1 -s fd00:99::/32 -j ACCEPT",
		"IPv6 rule deleted":     "ip6tables -w -D TULLE-FORWARD 1",
	} {
		t.Run(name, func(t *testing.T) {
			eachVariant(t, func(s sandbox) {
				filter := s.fresh(IPTables)
				policy := dual(besideDocker())
				apply := func(f backend.Firewall) (int, error) { return filter.Apply(s.Context(), f) }
				for range 2 { // the second finds that the first has done it
					if _, err := apply(policy); err != nil {
						s.Fatal(err)
					}
				}
				saves := map[*tool]string{}
				for _, tool := range filter.tools {
					saves[tool], tool.save = tool.save, "/bin/false"
				}
				restore := func() {
					for tool, save := range saves {
						tool.save = save
					}
				}
				if n, err := apply(policy); n != 0 || err != nil {
					s.Errorf("unchanged: %d, %v", n, err)
				}
				other := policy
				other.Masquerade.V4 = !other.Masquerade.V4
				if _, err := apply(other); err == nil {
					s.Error("it did not look for the sake of another policy")
				}
				restore()
				for range 2 {
					if _, err := apply(policy); err != nil {
						s.Fatal(err)
					}
				}
				s.run("%s", command)
				for tool := range saves {
					tool.save = "/bin/false"
				}
				if _, err := apply(policy); err == nil {
					s.Error("it did not look after a change")
				}
				restore()
				if _, err := apply(policy); err != nil {
					s.Error(err)
				}
				s.inPlace(policy)
			})
		})
	}
}

// Who isn't root, and whom nobody lets see the names of the legacy tables, must not take them for none: what is theirs may have changed.
func TestBlind(t *testing.T) {
	s := newSandbox(t)
	s.use("legacy")
	filter := s.fresh(IPTables)
	if _, err := filter.Apply(t.Context(), firewall(true, true)); err != nil {
		t.Fatal(err)
	}
	if filter.bell.legacy.blind() || !filter.bell.fingerprint().known {
		t.Error("root does not see the tables")
	}
	const nobody = 65534
	become := func(call, id uintptr) { // this thread alone; root stays the saved user
		if _, _, errno := unix.RawSyscall(call, id, id, 0); errno != 0 {
			t.Fatal(errno)
		}
	}
	become(unix.SYS_SETRESGID, nobody)
	become(unix.SYS_SETRESUID, nobody)
	defer become(unix.SYS_SETRESUID, 0) // for who cleans up
	if !filter.bell.legacy.blind() || filter.bell.fingerprint().known {
		t.Error("what can't be seen is known")
	}
	if found, err := filter.hasChain(0, "DOCKER\x00"); !found || err != nil {
		t.Errorf("there may be a Docker: %t, %v", found, err)
	}
}
