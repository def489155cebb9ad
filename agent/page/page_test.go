package page

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"

	"github.com/tulle-net/tulle/agent/api"
)

// write writes the page and reads it as a browser does.
func write(t *testing.T, d Data) (root *html.Node, size int) {
	t.Helper()
	var page bytes.Buffer
	if err := Write(&page, d); err != nil {
		t.Fatal(err)
	}
	size = page.Len()
	root, err := html.Parse(&page)
	if err != nil {
		t.Fatal(err)
	}
	return root, size
}

// all returns the elements that a test holds for.
func all(root *html.Node, holds func(*html.Node) bool) (found []*html.Node) {
	for n := range root.Descendants() {
		if n.Type == html.ElementNode && holds(n) {
			found = append(found, n)
		}
	}
	return found
}

func tag(name string) func(*html.Node) bool {
	return func(n *html.Node) bool { return n.Data == name }
}

// in tells elements of a kind below one of a class.
func in(class, name string) func(*html.Node) bool {
	return func(n *html.Node) bool {
		if n.Data != name {
			return false
		}
		for above := range n.Ancestors() {
			if slices.Contains(strings.Fields(attribute(above, "class")), class) {
				return true
			}
		}
		return false
	}
}

func attribute(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

// text is what an element reads, with single spaces.
func text(n *html.Node) string {
	var b strings.Builder
	for d := range n.Descendants() {
		if d.Type == html.TextNode {
			b.WriteString(d.Data + " ")
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

// A page shows as much as fits, and is never larger than a browser shows at once.
func TestSizes(t *testing.T) {
	for _, c := range []struct{ peers, rows, named, dots, cells, kilobytes int }{
		{0, 0, 0, 0, 1, 14},
		{2, 2, 2, 0, 9, 22},
		{20, 20, 20, 0, 441, 100},
		{21, 21, 0, 21, 484, 100},
		{63, 63, 0, 63, 4096, 500},
		{10000, 200, 0, 1000, 4096, 800},
	} {
		t.Run(fmt.Sprint(c.peers, " peers"), func(t *testing.T) {
			root, size := write(t, network(c.peers))
			rows := all(root, func(n *html.Node) bool { return attribute(n, "scope") == "row" })
			named := all(root, func(n *html.Node) bool { return in("topology", "g")(n) && attribute(n, "transform") != "" })
			dots := all(root, in("dots", "use"))
			cells := all(root, in("heatmap", "path"))
			if len(rows) != c.rows || len(named) != c.named || len(dots) != c.dots || len(cells) != c.cells {
				t.Errorf("%d rows, %d peers drawn by name and %d as dots, %d cells; want %+v", len(rows), len(named), len(dots), len(cells), c)
			}
			if size > c.kilobytes<<10 {
				t.Errorf("%d bytes, want at most %d KiB", size, c.kilobytes)
			}
		})
	}
}

// The zero Data is what a page has to show before anything is known.
func TestNothing(t *testing.T) {
	root, _ := write(t, Data{Now: now})
	for _, want := range []string{"Not ready", "Lease ✗ none", "etcd ✗ not connected", "Peers None yet.", "Round trips No host has told any yet.", "Events None yet.", "does not probe"} {
		if !strings.Contains(text(root), strings.ReplaceAll(want, "✗ ", "")) {
			t.Errorf("the page of an agent that knows nothing does not say %q:\n%s", want, text(root))
		}
	}
}

// What a reader, a screen reader or a phone needs of a document.
func TestDocument(t *testing.T) {
	root, _ := write(t, broken(9))
	if got := attribute(all(root, tag("html"))[0], "lang"); got != "en" {
		t.Errorf("the language is %q", got)
	}
	if got := text(all(root, tag("title"))[0]); got != "rack1-node01: ready – tulle" {
		t.Errorf("the title is %q", got)
	}
	meta := map[string]string{}
	for _, n := range all(root, tag("meta")) {
		meta[attribute(n, "name")+attribute(n, "http-equiv")] = attribute(n, "content")
	}
	if meta["refresh"] != "5" || !strings.Contains(meta["viewport"], "width=device-width") || meta["color-scheme"] != "light dark" {
		t.Errorf("meta: %v", meta)
	}
	var headings []string
	for _, n := range all(root, func(n *html.Node) bool {
		return n.DataAtom == atom.H1 || n.DataAtom == atom.H2 || n.DataAtom == atom.H3
	}) {
		headings = append(headings, n.Data+" "+text(n))
	}
	if got := strings.Join(headings, ", "); got != "h1 rack1-node01, h2 Warnings, h2 This host, h2 Topology, h2 Peers, h2 Round trips, h2 Events" {
		t.Errorf("headings: %s", got)
	}
	for _, n := range all(root, tag("th")) {
		if attribute(n, "scope") == "" {
			t.Errorf("header %q of a table says not what it is for", text(n))
		}
	}
	for _, n := range all(root, func(n *html.Node) bool { return attribute(n, "role") == "img" }) {
		if attribute(n, "aria-label") == "" {
			t.Errorf("picture %s says nothing", attribute(n, "class"))
		}
	}
	still := broken(9)
	still.Still = true
	root, _ = write(t, still)
	if found := all(root, func(n *html.Node) bool { return attribute(n, "http-equiv") == "refresh" }); len(found) > 0 {
		t.Error("a page that was asked to hold still reloads itself")
	}
}

// Nothing is loaded, and nothing can run: the policy knows the style that the page has.
func TestPolicy(t *testing.T) {
	root, _ := write(t, broken(30))
	styles := all(root, tag("style"))
	if len(styles) != 1 || styles[0].FirstChild.Data != style {
		t.Error("the page's style is not the one that the policy has the hash of")
	}
	for n := range root.Descendants() {
		if slices.Contains([]string{"script", "img", "iframe", "object", "embed", "form"}, n.Data) && n.Type == html.ElementNode {
			t.Errorf("the page has an element %s", n.Data)
		}
		for _, a := range n.Attr {
			if link := a.Key == "href" || a.Key == "src" || a.Key == "xlink:href"; link && !regexp.MustCompile(`^(#|\.$|\?still$|data:image/svg)`).MatchString(a.Val) {
				t.Errorf("the page links to %q", a.Val)
			}
			if a.Key == "style" || strings.HasPrefix(a.Key, "on") {
				t.Errorf("attribute %s=%q, which the policy forbids", a.Key, a.Val)
			}
		}
	}
	if !strings.HasPrefix(Policy(), "default-src 'none'; style-src 'sha256-") || strings.Contains(Policy(), "unsafe") {
		t.Errorf("policy %q", Policy())
	}
}

// peerRows is the peers' table: a line each.
func peerRows(root *html.Node) (rows []string) {
	for _, n := range all(root, in("peers", "tr")) {
		rows = append(rows, text(n))
	}
	return rows[2:] // without its head
}

func TestPeers(t *testing.T) {
	root, _ := write(t, broken(9))
	got := strings.Join(peerRows(root), "\n")
	want := strings.TrimSpace(`
10.16.2.0/24 192.0.2.3 unreachable no answer over the overlay nor the underlay: the host is down, or cut off none since 12:02:34 100 % none yet 100 % 2 hours ago
10.16.5.0/24 192.0.2.6 left out its subnet overlaps 10.16.1.0/24, which is older – – – – 5 hours ago
10.16.9.0/24 192.0.2.10 reachable 12.1 ms 20 % 0.75 ms 0 % 9 hours ago
10.16.6.0/24 192.0.2.7 not known – – – – –
10.16.1.0/24 192.0.2.2 reachable 0.25 ms 0 % 0.21 ms 0 % 1 hour ago
10.16.3.0/24 192.0.2.4 reachable 0.26 ms 0 % 0.21 ms 0 % 3 hours ago
10.16.4.0/24 192.0.2.5 reachable 0.23 ms 0 % 0.19 ms 0 % 4 hours ago
10.16.7.0/24 192.0.2.8 reachable 0.26 ms 0 % 0.22 ms 0 % 7 hours ago
10.16.8.0/24 192.0.2.9 reachable 0.96 ms 0 % 0.80 ms 0 % 8 hours ago`)
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if page := text(root); !strings.Contains(page, "Peers 1 unreachable 1 left out 1 not known 6 reachable") || strings.Contains(page, "Not listed") {
		t.Errorf("the peers are not summed up right:\n%s", page)
	}
}

// Of many peers those have rows that need somebody, wherever they are in the network.
func TestManyPeers(t *testing.T) {
	d := network(10000)
	for _, n := range []int{17, 9998} {
		d.Peers[n].State, d.Peers[n].Why = api.Unreachable, "no answer"
	}
	root, _ := write(t, d)
	for i, row := range peerRows(root) {
		if strings.Contains(row, "unreachable") != (i < 2) {
			t.Errorf("row %d: %s", i, row)
		}
	}
	if want := "Not listed: 9,800 reachable."; !strings.Contains(text(root), want) {
		t.Errorf("the page does not say %q", want)
	}
	dots := all(root, in("dots", "use"))
	if got := text(dots[1]); got != "10.16.11.0/24 to 10.16.20.0/24: 1 of 10 unreachable" || attribute(dots[1], "class") != "unreachable" {
		t.Errorf("the dot with an unreachable peer has class %q, and reads %q", attribute(dots[1], "class"), got)
	}
	if got := text(dots[2]); got != "10.16.21.0/24 to 10.16.30.0/24: 10 of 10 reachable" {
		t.Errorf("a dot reads %q", got)
	}
}

func TestTopology(t *testing.T) {
	root, _ := write(t, broken(9))
	var got []string
	for _, n := range all(root, func(n *html.Node) bool { return in("topology", "g")(n) }) {
		sign := all(n, tag("use"))[0]
		got = append(got, attribute(sign, "href")+" "+text(n))
	}
	for i, want := range []string{
		"#reachable 10.16.1.0/24: reachable 0.25 ms 10.16.1.0/24 192.0.2.2",
		"#unreachable 10.16.2.0/24: unreachable: no answer over the overlay nor the underlay: the host is down, or cut off 10.16.2.0/24 192.0.2.3",
	} {
		if got[i] != want {
			t.Errorf("peer %d reads %q, want %q", i, got[i], want)
		}
	}
}

// The heatmap tells what is not known from what is not answered, and bears with a mesh that is not whole.
func TestHeatmap(t *testing.T) {
	ms := func(v float64) *float64 { v /= 1000; return &v }
	m := mesh(3)
	m.RTT = [][]*float64{{nil, ms(0.1), ms(-1)}, {ms(99), ms(5), nil}, {ms(1000)}}
	root, _ := write(t, Data{Now: now, Mesh: m})
	var got []string
	for _, n := range all(root, in("heatmap", "path")) {
		got = append(got, attribute(n, "class")+" "+text(n))
	}
	want := []string{"self 10.16.0.0/24 at 192.0.2.1 itself", "q1 10.16.0.0/24 to 10.16.1.0/24: 0.10 ms", "silent 10.16.0.0/24 to 10.16.2.0/24: no answer",
		"q9 10.16.1.0/24 to 10.16.0.0/24: 99.0 ms", "self 10.16.1.0/24 at 192.0.2.2 itself", "unknown 10.16.1.0/24 to 10.16.2.0/24: not known",
		"q11 10.16.2.0/24 to 10.16.0.0/24: 1000 ms", "unknown 10.16.2.0/24 to 10.16.1.0/24: not known", "self 10.16.2.0/24 at 192.0.2.3 itself"}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	words := "Of 6 paths between 3 hosts, 3 answer, 1 don't, and 2 are not known. Half of the round trips take 99.0 ms or less; the longest, 10.16.2.0/24 to 10.16.0.0/24, takes 1000 ms."
	if got := newHeatmap(m).Words; got != words {
		t.Errorf("in words: %s", got)
	}
	if got, want := newHeatmap(mesh(3)).Words[:35], "All 6 paths between 3 hosts answer."; got != want {
		t.Errorf("in words: %s, want %s", got, want)
	}
}

// What others wrote arrives as text, however it was meant, and cut.
func TestHostile(t *testing.T) {
	const evil = `</title></style></svg><script>alert(1)</script><img src=x onerror="alert(1)"> " ' onload=alert(1) {{.}} javascript:alert(1)`
	long := evil + "\u202e\x00" + strings.Repeat("&", 1<<20)
	d := broken(10000)
	d.Status = api.Status{Version: long, Host: long, Reason: long, Lease: &api.Lease{Key: long, Subnets: slices.Repeat([]netip.Prefix{{}}, 1000)},
		Network: api.Network{Backend: long, Device: long}, Underlay: api.Underlay{Device: long, PublicIPs: slices.Repeat([]netip.Addr{{}}, 1000)},
		Etcd: api.EtcdState{Error: long, Endpoints: slices.Repeat([]string{long}, 1000)}, Docker: api.DockerState{Bridge: long, EnvFile: long, Problem: long},
		LeftOut: map[string]int{long: 1}, Repaired: map[string]int{long: 1}, Warnings: slices.Repeat([]string{long}, 1000)}
	for i := range d.Peers {
		d.Peers[i] = api.Peer{Key: long, State: api.State(long), Why: long}
	}
	for i := range d.Mesh.Hosts {
		d.Mesh.Hosts[i].Key = long
	}
	d.Events = slices.Repeat([]api.Event{{Time: now, Level: long, Text: long, Fields: map[string]string{long: long}}}, 1000)
	root, size := write(t, d)
	if size > 3<<20 {
		t.Errorf("%d bytes", size)
	}
	if found := all(root, func(n *html.Node) bool {
		return n.Data == "script" || n.Data == "img" || attribute(n, "onerror") != "" || attribute(n, "onload") != ""
	}); len(found) > 0 {
		t.Errorf("what others wrote became %d elements, the first a %s", len(found), found[0].Data)
	}
	for _, place := range []func(*html.Node) bool{tag("h1"), tag("title"), tag("dl"), in("warnings", "li"), in("peers", "td"), in("events", "td"), in("topology", "text")} {
		read := ""
		for _, n := range all(root, place) {
			read += text(n) + "\n"
		}
		if !strings.Contains(read, `</title></style></svg>`) {
			t.Errorf("what others wrote is not to be read: %.300s", read)
		}
		if strings.ContainsAny(read, "\u202e\x00") {
			t.Error("what others wrote can turn the text around")
		}
	}
}

// What a backend doesn't have is not shown.
func TestOverlay(t *testing.T) {
	for want, n := range map[string]api.Network{
		"Overlay host-gw, MTU 1500 Public IP":                                                              {Backend: "host-gw", MTU: 1500},
		"Overlay tulle-ipip , ipip, MTU 1480 Public IP":                                                    {Backend: "ipip", Device: "tulle-ipip", Kind: "ipip", MTU: 1480},
		"Overlay tulle-wg , wireguard, UDP port 51820, MTU 1420 public key 4Wpg7=, in the agent Public IP": {Backend: "wireguard", Device: "tulle-wg", Port: 51820, MTU: 1420, PublicKey: "4Wpg7=", Userspace: true},
		"Overlay not known Public IP":                                                                      {},
	} {
		d := network(1)
		d.Status.Network = n
		root, _ := write(t, d)
		if got := text(all(root, tag("dl"))[0]); !strings.Contains(got, want) {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
}

func TestHost(t *testing.T) {
	root, _ := write(t, broken(9))
	want := "Lease 10.16.0.0/24 Expires 23 hours from now , unless renewed; last renewed 4 minutes ago Network 10.0.0.0/8 Overlay tulle.1 , vxlan, VNI 1, UDP port 8472, MTU 1450 " +
		"Public IP 192.0.2.1 Underlay eth0, 192.0.2.1, MTU 1500 etcd connected, revision 4711 http://192.0.2.201:2379, http://192.0.2.202:2379, http://192.0.2.203:2379 " +
		"Docker’s bridge docker0, 10.16.0.1/24 docker0 has another address than the lease says /run/tulle/subnet.env Left out 1: overlapping subnet Repaired 1: fdb 3: route Started 2 days ago"
	if got := text(all(root, tag("dl"))[0]); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	events := all(root, in("events", "tr"))
	if got, want := text(events[1]), "12:04:00 ERROR not everything is programmed; trying again error=add route: operation not permitted"; got != want {
		t.Errorf("the newest event reads %q, want %q", got, want)
	}
	if got, want := text(events[len(events)-1]), "28 Feb 12:04:05 INFO peer joined public-ip=192.0.2.2 subnet=10.16.1.0/24"; got != want {
		t.Errorf("the oldest event reads %q, want %q", got, want)
	}
	d := network(1)
	d.Status.Lease.Reserved, d.Status.Lease.Expires = true, nil
	root, _ = write(t, d)
	if got := text(root); !strings.Contains(got, "Expires never: it is reserved") {
		t.Errorf("a reservation: %s", got)
	}
}

func TestNumbers(t *testing.T) {
	answered := now.Add(-3 * time.Second)
	for _, c := range []struct {
		probe     *api.Probe
		state     api.State
		rtt, loss string
	}{
		{nil, api.Unknown, "–", "–"},
		{&api.Probe{}, api.Unknown, "none yet", "0 %"},
		{&api.Probe{Loss: 1}, api.Unreachable, "none yet", "100 %"},
		{&api.Probe{Loss: 1, RTT: 0.001, Answer: answered}, api.Reachable, "none since 12:04:02", "100 %"},
		{&api.Probe{Loss: 0.67, RTT: 0.001, Answer: answered, Sent: now}, api.Unreachable, "none since 12:04:02", "67 %"}, // that it had answered before makes no round trip of now
		{&api.Probe{Loss: 0.67, RTT: 0.001, Answer: answered, Sent: now}, api.Reachable, "1.00 ms", "67 %"},
		{&api.Probe{Loss: 0, RTT: 0.001, Answer: answered, Sent: now}, api.Unreachable, "1.00 ms", "0 %"}, // it is the other path that is cut
		{&api.Probe{Loss: 0.999, RTT: 0.000042, Answer: answered}, api.Reachable, "0.042 ms", "> 99 %"},
		{&api.Probe{Loss: 0.001, RTT: 0.00999, Answer: answered}, api.Reachable, "9.99 ms", "< 1 %"},
		{&api.Probe{Loss: 0.25, RTT: 0.0421, Answer: answered}, api.Reachable, "42.1 ms", "25 %"},
		{&api.Probe{RTT: 1.5, Answer: answered}, api.Reachable, "1500 ms", "0 %"},
	} {
		if rtt, loss := answer(c.probe, c.state, now), loss(c.probe); rtt != c.rtt || loss != c.loss {
			t.Errorf("%s, %+v: round trip %q, loss %q; want %q, %q", c.state, c.probe, rtt, loss, c.rtt, c.loss)
		}
	}
}

// Text can be read on what it stands on, in light and dark: WCAG 2.2, 1.4.3.
func TestContrast(t *testing.T) {
	light, dark, _ := strings.Cut(style, "@media (prefers-color-scheme: dark)")
	colours := map[string]string{}
	for i, part := range []string{light, dark} {
		for _, m := range regexp.MustCompile(`--([a-z0-9-]+): (#[0-9a-f]+);`).FindAllStringSubmatch(part, -1) {
			colours[m[1]] = m[2]
		}
		pairs := [][2]string{{"good", "good-ground"}, {"bad", "bad-ground"}, {"warn", "warn-ground"}, {"ink", "good-ground"}, {"ink", "bad-ground"}, {"ink", "warn-ground"}}
		for _, text := range []string{"ink", "quiet", "link", "good", "bad", "warn"} {
			pairs = append(pairs, [2]string{text, "ground"}, [2]string{text, "sheet"})
		}
		for q := range 12 {
			on := "on-low"
			if q > 4 {
				on = "on-mid"
			}
			if q > 6 {
				on = "on-high"
			}
			pairs = append(pairs, [2]string{on, fmt.Sprint("q", q)})
		}
		for _, p := range pairs {
			if c := contrast(t, colours[p[0]], colours[p[1]]); c < 4.5 {
				t.Errorf("%s: %s on %s has a contrast of %.2f, less than 4.5", []string{"light", "dark"}[i], p[0], p[1], c)
			}
		}
	}
}

// contrast is WCAG's, of two colours written as in CSS.
func contrast(t *testing.T, a, b string) float64 {
	x, y := luminance(t, a), luminance(t, b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

func luminance(t *testing.T, colour string) (sum float64) {
	if len(colour) == 4 {
		colour = string([]byte{'#', colour[1], colour[1], colour[2], colour[2], colour[3], colour[3]})
	}
	for i, weight := range []float64{0.2126, 0.7152, 0.0722} {
		v, err := strconv.ParseUint(colour[1+2*i:3+2*i], 16, 8)
		if err != nil {
			t.Fatal(err)
		}
		c := float64(v) / 255
		if c <= 0.04045 {
			c /= 12.92
		} else {
			c = math.Pow((c+0.055)/1.055, 2.4)
		}
		sum += weight * c
	}
	return sum
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestWriteError(t *testing.T) {
	if err := Write(brokenPipe{}, network(2)); err == nil || !strings.Contains(err.Error(), "broken pipe") {
		t.Errorf("error %v", err)
	}
}

// A host with both families is called by its first subnet where there is little room; its row has both, and both devices are named.
func TestBothFamilies(t *testing.T) {
	d := network(3)
	p := &d.Peers[0]
	p.Key += "&fd12:3456:0:2::-64"
	p.Subnets, p.PublicIPs = append(p.Subnets, netip.MustParsePrefix("fd12:3456:0:2::/64")), append(p.PublicIPs, netip.MustParseAddr("2001:db8::2"))
	p.State, p.Why = api.Unreachable, "IPv4 gets through, IPv6 does not: is UDP port 8472 blocked?"
	d.Status.Network.Devices = []api.Device{{Name: "tulle.1", Port: 8472}, {Name: "tulle-v6.1", Port: 8472}}
	v4 := p.Subnets[0].String()
	if got := newTopology(d.Peers).Named[0]; got.Name != v4 || !strings.HasPrefix(got.Title, v4+", fd12:3456:0:2::/64: unreachable: IPv4 gets through") {
		t.Errorf("%+v", got)
	}
	var page bytes.Buffer
	if err := Write(&page, d); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`<th scope="row">` + v4 + `, fd12:3456:0:2::/64</th>`, `, 2001:db8::2</td>`, `<b>tulle.1</b>, <b>tulle-v6.1</b>, vxlan`} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("no %s", want)
		}
	}
}
