package page

import (
	"fmt"
	"math"

	"github.com/tulle-net/tulle/agent/api"
)

const (
	picture  = 400  // width of the topology
	busTop   = 112  // where the part below this host and the underlay's name begins
	maxNamed = 20   // peers that are drawn with their names; more become a grid
	maxDots  = 1024 // of the grid; with more peers, a dot stands for several
)

// topology is this host above, the underlay, and the peers that hang on it: each with its name, or, if they are many, as a
// grid of dots in the order of their subnets.
type topology struct {
	Width, Height int
	Named         []node
	Dots          []node
	Each          int // peers to a dot, at most
	Words         string
}

// node is a peer, or several, in the picture.
type node struct {
	X, Y, Size         int
	Left               bool // of the underlay
	State              api.State
	Name, Address, RTT string
	Title              string
}

func newTopology(peers []api.Peer) topology {
	t := topology{Width: picture, Words: "This host and its peers around the underlay:"}
	for _, c := range counts(peers) {
		t.Words += fmt.Sprintf(" %d %s;", c.N, says(c.State))
	}
	if len(peers) <= maxNamed {
		t.bus(peers)
	} else {
		t.grid(peers)
	}
	return t
}

// bus hangs peers on the underlay, left and right in turn.
func (t *topology) bus(peers []api.Peer) {
	const step = 50
	for i, p := range peers {
		n := named(p)
		n.Y, n.Left = busTop+16+i/2*step, i%2 == 0
		t.Named = append(t.Named, n)
	}
	t.Height = busTop + (len(peers)+1)/2*step - 10
}

func named(p api.Peer) node {
	n := node{State: state(p.State), Name: short(first(p.Key), 20), Address: short(list(p.PublicIPs), 22)}
	if n.State == api.Reachable && p.Overlay != nil {
		n.RTT = milliseconds(p.Overlay.RTT) + " ms"
	}
	n.Title = subnet(p.Key) + ": " + says(n.State)
	if p.Why != "" {
		n.Title += ": " + short(p.Why, maxText)
	}
	return n
}

// grid puts peers in rows, as many to a dot as it takes.
func (t *topology) grid(peers []api.Peer) {
	t.Each = (len(peers) + maxDots - 1) / maxDots
	dots := (len(peers) + t.Each - 1) / t.Each
	columns := int(math.Ceil(math.Sqrt(float64(dots) * 1.4)))
	size := min(24, (picture-8)/columns)
	left := (picture - columns*size) / 2
	for i := range dots {
		n := dot(peers[i*t.Each : min((i+1)*t.Each, len(peers))])
		n.X, n.Y, n.Size = left+i%columns*size, busTop+12+i/columns*size, size-2
		if n.State != api.Reachable { // it stands out among many
			n.X, n.Y, n.Size = n.X-2, n.Y-2, n.Size+4
		}
		t.Dots = append(t.Dots, n)
	}
	t.Height = busTop + 16 + (dots+columns-1)/columns*size
}

// dot stands for peers, and is as the worst of them.
func dot(peers []api.Peer) node {
	worst := counts(peers)[0]
	first, last := subnet(peers[0].Key), subnet(peers[len(peers)-1].Key)
	if len(peers) == 1 {
		return node{State: worst.State, Title: first + ": " + says(worst.State)}
	}
	return node{State: worst.State, Title: fmt.Sprintf("%s to %s: %d of %d %s", first, last, worst.N, len(peers), says(worst.State))}
}
