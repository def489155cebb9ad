package firewalld

import (
	"net/netip"
	"strings"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// zone is the one whose members may send whatever they like wherever they like.
const zone = "trusted"

// dockersBridge is Docker's to put into a zone. It would not start if it were in another.
const dockersBridge = "docker0"

// The kinds of members, as in the names of firewalld's methods.
const (
	device = "Interface"
	source = "Source"
)

// member is a device or a range of addresses that packets come in by.
type member struct{ kind, name string }

func (m member) String() string { return m.name }

// membersOf are what s has peers' packets come in by, and the containers' bridge if nobody else looks after it. What comes in on the
// underlay's device, beside everything else, is told by its source.
func membersOf(s backend.State) map[member]struct{} {
	members := map[member]struct{}{}
	f := s.Firewall
	if !f.Forward {
		return members
	}
	for name := range f.From.All() {
		switch name {
		case f.Bridge:
		case s.Underlay:
			for _, network := range f.Network.All() {
				members[member{source, network.String()}] = struct{}{}
			}
		default:
			members[member{device, name}] = struct{}{}
		}
	}
	if f.Bridge != "" && f.Bridge != dockersBridge {
		members[member{device, f.Bridge}] = struct{}{}
	}
	return members
}

// ours reports whether a member of the zone was put there by an agent of this host, in this life or another: a device of ours, or the
// network's range.
func ours(m member, network subnet.Pair[netip.Prefix]) bool {
	if m.kind == device {
		return strings.HasPrefix(m.name, backend.Prefix+".") || strings.HasPrefix(m.name, backend.Prefix+"-")
	}
	p, err := netip.ParsePrefix(m.name)
	return err == nil && (p == network.V4 || p == network.V6)
}
