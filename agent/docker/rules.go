package docker

import (
	"fmt"
	"strings"
)

// Firewall is what dockerd makes its packet filter rules with.
type Firewall string

// The firewall backends. nftables exists from 29.0, where it is not the default.
const (
	IPTables Firewall = "iptables"
	NFTables Firewall = "nftables"
)

// firewallOf reads a backend's name, as in "nftables+firewalld". None is iptables: an older dockerd has nothing else.
func firewallOf(name string) Firewall {
	if backend, _, _ := strings.Cut(name, "+"); backend == string(NFTables) {
		return NFTables
	}
	return IPTables
}

// Mark is the packet mark, and its mask, that says "this came in through the overlay" to Docker's nftables rules.
const Mark = 0x1000000

// Rules are what has to be in place on a host before routed traffic reaches its containers. All of them only ever let
// traffic in: out of a container, Docker's own rules let it go.
type Rules struct {
	DockerUser bool     // accept from the overlay to the bridge in filter DOCKER-USER, inserted: the chain ends in RETURN
	Raw        bool     // accept from the overlay in raw PREROUTING, before Docker's drop, which precedes conntrack and kills replies too
	Mark       bool     // set Mark on what enters through the overlay's device, in prerouting
	Forwarding bool     // net.ipv4.ip_forward=1 before dockerd starts, which leaves alone the forwarding it finds enabled
	Options    []Option // what dockerd has to be started with beside its addresses
}

// Needs returns what a dockerd needs, measured with 20.10, 26, 27, 28.5 and 29. An unknown version gets all that is harmless
// where it isn't needed; a version that has no nftables backend is one with iptables.
func Needs(v Version, f Firewall) Rules {
	unknown := v == Version{}
	switch {
	case f == NFTables && (unknown || v.Knows("--firewall-backend=nftables")):
		// Docker's own table drops whatever another table accepts, and an edit of it is lost when a container starts. Each of
		// the two options fails without the other.
		return Rules{Mark: true, Forwarding: true, Options: []Option{
			"--allow-direct-routing=true", Option(fmt.Sprintf("--bridge-accept-fwmark=%#x/%#x", Mark, Mark)),
		}}
	case unknown || v.Major >= 28:
		return Rules{DockerUser: true, Raw: true}
	default:
		return Rules{DockerUser: true}
	}
}
