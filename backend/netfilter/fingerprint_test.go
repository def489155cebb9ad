package netfilter

import (
	"testing"

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
