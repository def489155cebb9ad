package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/tulle-net/tulle/agent/api"
)

// agentFlags say which agent to ask.
type agentFlags struct {
	RunDir string `default:"/run/tulle" help:"The agent's run directory, where its socket is (default ${default})." placeholder:"DIR"`
}

func (f agentFlags) client() *api.Client { return api.NewClient(f.RunDir) }

type statusCmd struct {
	agentFlags `embed:""`
	Wide       bool          `short:"w" help:"List all peers, with all that is known of each."`
	JSON       bool          `name:"json" help:"Print JSON: the status, and the peers."`
	Watch      bool          `help:"Print it anew every other second, until interrupted."`
	Every      time.Duration `default:"2s" hidden:""`
}

// summarised is how many peers are listed without --wide: of more, only those that are not well, and of these not more than
// that.
const summarised = 30

// statusJSON is what --json prints.
type statusJSON struct {
	api.Status
	PeerList []api.Peer `json:"peer_list"`
}

// Run prints how this host's agent is. The exit code is 1 if it is not ready.
func (c *statusCmd) Run(ctx context.Context) error {
	client, s := c.client(), stdout()
	for {
		status, err := client.Status(ctx)
		if err != nil {
			return err
		}
		peers, err := client.Peers(ctx)
		if err != nil {
			return err
		}
		if c.Watch {
			s.clear()
		}
		if err := c.print(s, status, peers.Peers); err != nil {
			return err
		}
		if !c.Watch && !status.Ready {
			return exitCode(1)
		}
		if !c.Watch {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.Every):
		}
	}
}

func (c *statusCmd) print(s screen, status api.Status, peers []api.Peer) error {
	if c.JSON {
		return json.NewEncoder(escaper{os.Stdout}).Encode(statusJSON{status, peers})
	}
	now := time.Now()
	printHealth(s, status)
	s.table(facts(status, now))
	fmt.Fprintln(s.w)
	return c.printPeers(s, status, peers, now)
}

// printHealth prints the one line that a hurried person reads.
func printHealth(s screen, status api.Status) {
	p := status.Peers
	switch {
	case !status.Ready:
		fmt.Fprintf(s.w, "%s  %s: %s\n", status.Host, s.paint(bad, "NOT READY"), clean(status.Reason))
	case p.Unreachable > 0:
		fmt.Fprintf(s.w, "%s  %s, but %s of %s: see tulle doctor\n", status.Host, s.paint(warn, "ready"), plural(p.Unreachable, "unreachable peer"), thousands(p.Total))
	case !status.Etcd.Connected:
		fmt.Fprintf(s.w, "%s  %s, but etcd is out of reach; the network stays as it is\n", status.Host, s.paint(warn, "ready"))
	case len(status.Warnings) > 0:
		fmt.Fprintf(s.w, "%s  %s, but see the warnings\n", status.Host, s.paint(warn, "ready"))
	case p.Reachable == p.Total && p.Total > 0:
		fmt.Fprintf(s.w, "%s  %s, %s, all reachable\n", status.Host, s.paint(good, "ready"), plural(p.Total, "peer"))
	default:
		fmt.Fprintf(s.w, "%s  %s, %s\n", status.Host, s.paint(good, "ready"), plural(p.Total, "peer"))
	}
}

// facts are the lines about this host.
func facts(status api.Status, now time.Time) (rows [][]cell) {
	add := func(name, text string, t tone) { rows = append(rows, []cell{{name, dim}, {text, t}}) }
	add("lease", leaseText(status.Lease, now), plain)
	u, n := status.Underlay, status.Network
	if u.Device != "" {
		text := fmt.Sprintf("%s on %s, MTU %d", join(u.Addresses), u.Device, u.MTU)
		if !slices.Equal(u.Addresses, u.PublicIPs) {
			text += ", to peers " + join(u.PublicIPs)
		}
		add("underlay", text, plain)
		add("overlay", overlayText(n), plain)
		if n.PublicKey != "" {
			add("encryption", encryptionText(n), plain)
		}
	}
	if status.Etcd.Connected {
		add("etcd", fmt.Sprintf("connected to %s, revision %d", strings.Join(status.Etcd.Endpoints, ", "), status.Etcd.Revision), plain)
	} else {
		add("etcd", status.Etcd.Error, bad)
	}
	if d := status.Docker; d.Bridge != "" {
		add("docker", fmt.Sprintf("bridge %s has %s", d.Bridge, cmp.Or(join(d.Addresses), "no address")), plain)
	}
	for _, reason := range slices.Sorted(maps.Keys(status.LeftOut)) {
		add("left out", fmt.Sprintf("%s: %s", plural(status.LeftOut[reason], "lease"), reason), warn)
	}
	if len(status.Repaired) > 0 {
		add("repaired", repairedText(status.Repaired)+" that somebody had changed: see tulle events", plain)
	}
	for _, warning := range status.Warnings {
		add("WARNING", warning, warn)
	}
	return rows
}

func encryptionText(n api.Network) string {
	if n.Userspace {
		return "public key " + n.PublicKey + ", in the agent (this kernel has no WireGuard): a restart of the agent interrupts"
	}
	return "public key " + n.PublicKey + ", in the kernel"
}

// overlayText says how packets are carried. What the backend doesn't have is left out.
func overlayText(n api.Network) string {
	text := fmt.Sprintf("%s by %s", join(n.Ranges), n.Backend)
	names, ports := []string{n.Device}, []uint16{n.Port}
	for _, d := range n.Devices {
		if !slices.Contains(names, d.Name) {
			names = append(names, d.Name)
		}
		if !slices.Contains(ports, d.Port) {
			ports = append(ports, d.Port)
		}
	}
	if n.Device != "" {
		text += " on " + join(names)
	}
	if n.VNI != 0 {
		text += fmt.Sprintf(", VNI %d", n.VNI)
	}
	if n.Port != 0 {
		text += ", UDP " + join(ports)
	}
	return text + fmt.Sprintf(", MTU inside %d", n.MTU)
}

func leaseText(l *api.Lease, now time.Time) string {
	switch {
	case l == nil:
		return "none"
	case l.Expires == nil:
		return join(l.Subnets) + ", reserved: it does not expire"
	}
	return fmt.Sprintf("%s, renewed %s, expires in %s", join(l.Subnets), ago(*l.Renewed, now), span(l.Expires.Sub(now)))
}

func repairedText(repaired map[string]int) string {
	var parts []string
	for _, table := range slices.Sorted(maps.Keys(repaired)) {
		parts = append(parts, plural(repaired[table], table))
	}
	return strings.Join(parts, ", ")
}

// printPeers prints the peers, those that are not well first; of very many only those.
func (c *statusCmd) printPeers(s screen, status api.Status, peers []api.Peer, now time.Time) error {
	slices.SortStableFunc(peers, func(a, b api.Peer) int { return cmp.Compare(urgency(a), urgency(b)) })
	listed := peers
	if !c.Wide && len(peers) > summarised {
		listed = slices.DeleteFunc(slices.Clone(peers), func(p api.Peer) bool { return urgency(p) > urgent })
		listed = listed[:min(len(listed), summarised)]
		fmt.Fprintf(s.w, "%s: %s reachable, %s unreachable, %s not known; %s left out\n", plural(len(peers), "peer"), thousands(status.Peers.Reachable),
			thousands(status.Peers.Unreachable), thousands(status.Peers.Unknown), plural(sum(status.LeftOut), "lease"))
	}
	if len(listed) > 0 {
		s.table(c.peerRows(listed, now))
	}
	if rest := len(peers) - len(listed); rest > 0 {
		_, err := fmt.Fprintf(s.w, "(%s not listed here: --wide lists all)\n", plural(rest, "peer"))
		return err
	}
	return nil
}

// urgent is the last of the urgencies that need somebody.
const urgent = 1

func urgency(p api.Peer) int {
	return slices.Index([]api.State{api.Unreachable, api.LeftOut, api.Unknown, api.Reachable}, p.State)
}

func (c *statusCmd) peerRows(peers []api.Peer, now time.Time) [][]cell {
	head := cells("PEER", "PUBLIC IP", "STATE", "OVERLAY", "UNDERLAY", "LOSS")
	if c.Wide {
		head = append(head, cells("ANSWERED", "CHANGED")...)
	}
	rows := [][]cell{append(head, cell{" ", plain})}
	for _, p := range peers {
		row := []cell{{cmp.Or(join(p.Subnets), printable(p.Key)), plain}, {join(p.PublicIPs), plain}, {string(p.State), toneOf(p.State)},
			{trip(p.Overlay), plain}, {trip(p.Underlay), plain}, {loss(p.Overlay), plain}}
		if c.Wide {
			row = append(row, cell{answered(p.Overlay, now), plain}, cell{changed(p, now), plain})
		}
		rows = append(rows, append(row, cell{cmp.Or(p.Why, " "), plain}))
		if c.Wide {
			rows = append(rows, familyRows(p, now)...)
		}
	}
	return rows
}

func toneOf(s api.State) tone {
	return map[api.State]tone{api.Unreachable: bad, api.LeftOut: warn, api.Unknown: dim, api.Reachable: good}[s]
}

// familyRows are those below a peer's own with two families, one for each.
func familyRows(p api.Peer, now time.Time) (rows [][]cell) {
	for _, f := range p.Families {
		rows = append(rows, []cell{{"  " + f.Family, dim}, {f.To.String(), plain}, {string(f.State), toneOf(f.State)},
			{trip(f.Overlay), plain}, {trip(f.Underlay), plain}, {loss(f.Overlay), plain}, {answered(f.Overlay, now), plain}, {" ", plain}})
	}
	return rows
}

func trip(p *api.Probe) string {
	if p == nil || p.RTT == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f ms", p.RTT*1000)
}

func loss(p *api.Probe) string {
	if p == nil || p.Answer.IsZero() && p.Loss == 0 { // nothing has become of any yet
		return ""
	}
	return fmt.Sprintf("%.0f %%", p.Loss*100)
}

func answered(p *api.Probe, now time.Time) string {
	if p == nil || p.Answer.IsZero() {
		return ""
	}
	return ago(p.Answer, now)
}

func changed(p api.Peer, now time.Time) string {
	if p.Changed == nil {
		return ""
	}
	return ago(*p.Changed, now)
}

func sum(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}
