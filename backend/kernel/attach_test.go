package kernel

import (
	"strings"
	"testing"
)

// TestAttached has interfaces of tulle attach: an agent leaves them alone, and Cleanup removes them, and nothing that only looks
// a little like them.
func TestAttached(t *testing.T) {
	eachMode(t, func(s *sandbox) {
		s.setup(`
			ip link add tulle-abc type veth peer name x1
			ip link add tulle-ather001 type veth peer name x2
			ip link set tulle-ather001 alias mine
			ip link add tulle-abridge1 type bridge
		`)
		before := s.before
		s.setup(`
			ip link add tulle-af0000001 type veth peer name c1
			ip link add tulle-af0000002 type veth peer name c2
		`)
		s.alias("tulle-af0000001", "tulle attach 10.5.1.128 0123456789ab")
		s.before = s.objects()
		k, want := s.open(), state(s, 3)
		s.apply(k, want)
		s.converged(k, want)
		removed, err := s.open().Cleanup(s.Context())
		if err != nil {
			s.Error(err)
		}
		text := strings.Join(removed, "\n")
		for _, line := range []string{"link tulle-af0000001, tulle attach 10.5.1.128 0123456789ab", "link tulle-af0000002, a half-made"} {
			if !strings.Contains(text, line) {
				s.Errorf("Cleanup does not tell of %q:\n%s", line, text)
			}
		}
		s.before = before
		s.has()
	})
}

func (s *sandbox) alias(device, alias string) {
	s.Helper()
	link, err := s.open().links.LinkByName(device)
	if err == nil {
		err = s.open().links.LinkSetAlias(link, alias)
	}
	if err != nil {
		s.Fatal(err)
	}
}
