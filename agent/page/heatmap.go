package page

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/tulle-net/tulle/agent/api"
)

const (
	maxHosts = 64 // the heatmap has room for
	maxLabel = 18 // characters of a host's name along its sides
)

// heatmap is the round trips between hosts, a row for each that asks and a column for each that answers. Its lengths are
// pixels, as all in the page's pictures.
type heatmap struct {
	Cell   box
	Margin int // what the names take, above and at the left
	Width  int
	Height int
	Hosts  []axis
	Rows   [][]cell
	Scale  []step
	Words  string // the same in a sentence or two
}

// box is the size of a cell.
type box struct{ W, H int }

// HalfW and Baseline are where the text of a cell goes.
func (b box) HalfW() int    { return b.W / 2 }
func (b box) Baseline() int { return b.H/2 + 4 }

// axis is a host at the sides of the heatmap.
type axis struct {
	Label, Name string // short, and whole
	Self        bool
	X, Y        int // the middles of its column and row
}

// cell is what is known of one host's way to another.
type cell struct {
	Class string // q0, the quickest, to q11; silent, unknown or self
	Text  string // milliseconds, if there is room
	Title string
	X, Y  int
}

// step is a colour of the scale.
type step struct {
	Class, From string // From is in milliseconds
}

// edges are where a colour ends and the next begins, milliseconds. They are the same for every mesh, so that a colour means
// the same on every host's page and at any time.
func edges() []float64 { return []float64{0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200} }

func newHeatmap(m api.Mesh) heatmap {
	hosts := m.Hosts[:min(maxHosts, len(m.Hosts))]
	h := heatmap{Cell: cellSize(len(hosts)), Scale: []step{{Class: "q0", From: "0"}}, Words: sum(m, hosts)}
	for i, edge := range edges() {
		h.Scale = append(h.Scale, step{fmt.Sprintf("q%d", i+1), fmt.Sprint(edge)})
	}
	for i, host := range hosts {
		label := short(first(host.Key), maxLabel)
		h.Margin = max(h.Margin, 12+7*len([]rune(label)))
		h.Hosts = append(h.Hosts, axis{Label: label, Name: name(host), Self: host.Self, X: i*h.Cell.W + h.Cell.W/2, Y: i*h.Cell.H + h.Cell.H/2})
	}
	for i := range hosts {
		h.Rows = append(h.Rows, h.row(m, i))
	}
	h.Width, h.Height = h.Margin+len(hosts)*h.Cell.W+1, h.Margin+len(hosts)*h.Cell.H+1
	return h
}

// cellSize is how large cells are for n hosts.
func cellSize(n int) box {
	if n <= 6 {
		return box{W: 72, H: 36}
	}
	size := min(40, max(11, 640/n))
	return box{W: size, H: size}
}

func (h heatmap) row(m api.Mesh, from int) (cells []cell) {
	const room = 34 // for a number
	for to := range h.Hosts {
		c := cell{X: to * h.Cell.W, Y: from * h.Cell.H}
		rtt := roundTrip(m, from, to)
		switch {
		case from == to:
			c.Class, c.Title = "self", h.Hosts[from].Name+" itself"
		case rtt == nil:
			c.Class, c.Title = "unknown", "not known"
		case *rtt < 0:
			c.Class, c.Title = "silent", "no answer"
		default:
			c.Class, c.Title = shade(*rtt), milliseconds(*rtt)+" ms"
			if h.Cell.W >= room {
				c.Text = milliseconds(*rtt)
			}
		}
		if from != to {
			c.Title = h.Hosts[from].Label + " to " + h.Hosts[to].Label + ": " + c.Title
		}
		cells = append(cells, c)
	}
	return cells
}

// roundTrip is nil for what the mesh does not say.
func roundTrip(m api.Mesh, from, to int) *float64 {
	if from >= len(m.RTT) || to >= len(m.RTT[from]) {
		return nil
	}
	return m.RTT[from][to]
}

// shade is the colour of a round trip, in seconds.
func shade(rtt float64) string {
	i, exact := slices.BinarySearch(edges(), rtt*1000)
	if exact {
		i++
	}
	return fmt.Sprintf("q%d", i)
}

func name(h api.MeshHost) string {
	if !h.PublicIP.IsValid() {
		return subnet(h.Key)
	}
	return subnet(h.Key) + " at " + h.PublicIP.String()
}

// path is how long one from host to host takes, in seconds.
type path struct {
	from, to int
	rtt      float64
}

// paths are those that answer, the quickest first, and how many don't.
func paths(m api.Mesh, hosts int) (known []path, silent int) {
	for from := range hosts {
		for to := range hosts {
			switch rtt := roundTrip(m, from, to); {
			case from == to || rtt == nil:
			case *rtt < 0:
				silent++
			default:
				known = append(known, path{from, to, *rtt})
			}
		}
	}
	slices.SortStableFunc(known, func(a, b path) int { return cmp.Compare(a.rtt, b.rtt) })
	return known, silent
}

// sum says what the heatmap shows, for those who don't see it.
func sum(m api.Mesh, hosts []api.MeshHost) string {
	known, silent := paths(m, len(hosts))
	all := len(hosts) * (len(hosts) - 1)
	text := fmt.Sprintf("All %d paths between %d hosts answer.", all, len(hosts))
	if len(known) < all {
		text = fmt.Sprintf("Of %d paths between %d hosts, %d answer, %d don't, and %d are not known.", all, len(hosts), len(known), silent, all-len(known)-silent)
	}
	if len(known) > 0 {
		half, last := known[(len(known)-1)/2], known[len(known)-1]
		text += fmt.Sprintf(" Half of the round trips take %s ms or less; the longest, %s to %s, takes %s ms.",
			milliseconds(half.rtt), subnet(hosts[last.from].Key), subnet(hosts[last.to].Key), milliseconds(last.rtt))
	}
	return text
}
