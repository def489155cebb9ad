package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/e2e/lab"
)

type labCmd struct {
	Demo  labDemoCmd  `cmd:"" help:"Do it all once: make a lab, let its containers talk, show how, take it down."`
	Up    labUpCmd    `cmd:"" help:"Make a lab, and leave it running."`
	Exec  labExecCmd  `cmd:"" help:"Run a command in a host or a container of the lab."`
	Ls    labLsCmd    `cmd:"" help:"Show the lab's hosts and containers."`
	Down  labDownCmd  `cmd:"" help:"Take the lab down."`
	Fleet labFleetCmd `cmd:"" help:"Put the leases of many simulated hosts into an etcd, and see how it bears them."`
}

type labName struct {
	Name string `default:"lab" help:"The lab's name: several can stand side by side."`
}

type labOptions struct {
	labName  `embed:""`
	Hosts    int    `default:"3" help:"How many hosts (${minHosts} to ${maxHosts})."`
	Backend  string `default:"" enum:",vxlan,host-gw,wireguard,udp,ipip,l2" help:"How packets are carried: vxlan (the default), host-gw, wireguard, udp, ipip, l2." placeholder:"TYPE" xor:"network"`
	Network  string `help:"The whole config of the network, in place of --backend." placeholder:"JSON" xor:"network"`
	Underlay string `default:"ipv4" enum:"ipv4,ipv6,both" help:"Families of the hosts' own addresses: ipv4, ipv6 or both."`
}

// up makes the lab.
func (o labOptions) up(ctx context.Context, say func(string, ...any)) (*lab.Lab, error) {
	if err := needAdmin(); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	config := cmp.Or(o.Network, fmt.Sprintf(`{"Network":"10.5.0.0/16","Backend":{"Type":%q}}`, cmp.Or(o.Backend, "vxlan")))
	return lab.Up(ctx, lab.Options{Name: o.Name, Hosts: o.Hosts, Binary: self, Config: config, Families: o.Underlay, Prefix: "/coreos.com/network", Forward: "DROP"}, say)
}

// progress prints a step with the time since the first.
func progress() func(format string, args ...any) {
	started := time.Now()
	return func(format string, args ...any) {
		fmt.Printf("%5.1fs  %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, args...))
	}
}

type labUpCmd struct {
	labOptions `embed:""`
}

func (c *labUpCmd) Run(ctx context.Context) error {
	l, err := c.up(ctx, progress())
	if err != nil {
		return err
	}
	fmt.Printf("\nTry:  tulle lab exec --name %s c1 -- ping -c3 %s\n", c.Name, l.Nodes[len(l.Nodes)-1].Container.Address)
	fmt.Printf("      tulle lab exec --name %s host1 -- tulle doctor\n      tulle lab exec --name %s host1 -- ip route\n      tulle lab down --name %s\n", c.Name, c.Name, c.Name)
	return nil
}

type labExecCmd struct {
	labName `embed:""`
	Host    string   `arg:"" help:"As in host1 or c1."`
	Command []string `arg:"" passthrough:"" help:"What to run."`
}

func (c *labExecCmd) Run(ctx context.Context) error {
	l, err := lab.Open(c.Name)
	if err != nil {
		return err
	}
	command := c.Command
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}
	if len(command) == 0 {
		return fmt.Errorf("nothing to run: tulle lab exec %s -- COMMAND", c.Host)
	}
	code, err := l.Exec(ctx, c.Host, command)
	if err == nil && code != 0 {
		err = exitCode(code)
	}
	return err
}

type labLsCmd struct {
	labName `embed:""`
}

func (c *labLsCmd) Run(ctx context.Context) error {
	l, err := lab.Open(c.Name)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "HOST\tUNDERLAY\tCONTAINER\tADDRESS\tMTU\tAGENT")
	for _, h := range l.Nodes {
		state := "ready"
		if err := h.Ready(ctx); err != nil {
			state = err.Error()
		}
		container := lab.Container{Name: "-"}
		if h.Container != nil {
			container = *h.Container
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", h.Name, addresses(h.Addresses), container.Name, addresses(container.Addresses), container.MTU, state)
	}
	return w.Flush()
}

// addresses writes them with commas between.
func addresses(all []netip.Addr) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(all), " ", ", "), "[]")
}

type labDownCmd struct {
	labName `embed:""`
}

func (c *labDownCmd) Run() error {
	l, err := lab.Open(c.Name)
	if err != nil {
		return err
	}
	if err := l.Down(); err != nil {
		return err
	}
	fmt.Printf("lab %s is down\n", c.Name)
	return nil
}

type labDemoCmd struct {
	labOptions `embed:""`
	Size       int64 `default:"64" help:"How much to transfer between each pair, in MiB."`
}

func (c *labDemoCmd) Run(ctx context.Context) (err error) {
	say := progress()
	l, err := c.up(ctx, say)
	if err != nil {
		return err
	}
	defer func() {
		if downErr := l.Down(); downErr != nil && err == nil {
			err = downErr
		}
	}()
	cells, failed := c.pairs(ctx, l, say)
	printMatrix(l, cells)
	if err := printWalk(ctx, l); err != nil {
		return err
	}
	if failed > 0 {
		fmt.Printf("\n%d of %d pairs FAILED\n", failed, len(l.Nodes)*(len(l.Nodes)-1))
		return exitCode(1)
	}
	fmt.Printf("\nEvery container reaches every other by its own address. The lab is taken down again.\n")
	return nil
}

// pairs pings and transfers between all pairs, and returns what to print for each.
func (c *labDemoCmd) pairs(ctx context.Context, l *lab.Lab, say func(string, ...any)) (cells map[[2]string]string, failed int) {
	cells = map[[2]string]string{}
	say("ping, and %d MiB over TCP with a checksum, between all pairs of containers", c.Size)
	for _, from := range l.Nodes {
		for _, to := range l.Nodes {
			if from == to || ctx.Err() != nil {
				continue
			}
			text, err := pair(ctx, from.Container, to.Container, c.Size<<20)
			if err != nil {
				text = "FAILED"
				say("%s to %s: %v", from.Container.Name, to.Container.Name, err)
				failed++
			}
			cells[[2]string{from.Name, to.Name}] = text
		}
	}
	return cells, failed
}

// pair tries one pair of containers out.
func pair(ctx context.Context, from, to *lab.Container, size int64) (string, error) {
	ping, err := lab.Ping(ctx, from.Namespace, to.Address, 5, 84)
	if err != nil {
		return "", err
	}
	if ping.Lost() > 0 {
		return "", fmt.Errorf("%d of %d pings lost", ping.Lost(), ping.Sent)
	}
	transfer, err := lab.Transfer(ctx, from.Namespace, to.Namespace, to.Address, size)
	switch {
	case err != nil:
		return "", err
	case !transfer.Correct:
		return "", fmt.Errorf("the checksum is wrong")
	case transfer.Source != from.Address:
		return "", fmt.Errorf("the receiver saw %s, not %s", transfer.Source, from.Address)
	}
	rate := float64(size) * 8 / transfer.Took.Seconds() / 1e9
	return fmt.Sprintf("%.2f ms, %.1f Gbit/s", float64(ping.RoundTrip.Microseconds())/1000, rate), nil
}

func printMatrix(l *lab.Lab, cells map[[2]string]string) {
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprint(w, "FROM \\ TO")
	for _, to := range l.Nodes {
		fmt.Fprintf(w, "\t%s %s", to.Container.Name, to.Container.Address)
	}
	fmt.Fprintln(w)
	for _, from := range l.Nodes {
		fmt.Fprintf(w, "%s %s", from.Container.Name, from.Container.Address)
		for _, to := range l.Nodes {
			fmt.Fprintf(w, "\t%s", dash(cells[[2]string{from.Name, to.Name}]))
		}
		fmt.Fprintln(w)
	}
	w.Flush()
}

// printWalk shows how a packet gets from the first container to the last, from the kernel's own tables and from the wire.
func printWalk(ctx context.Context, l *lab.Lab) error {
	from, to := l.Nodes[0], l.Nodes[len(l.Nodes)-1]
	if from == to {
		return nil
	}
	status, err := from.Status(ctx)
	if err != nil {
		return err
	}
	seen, err := lab.Capture(l.Underlay(), from.Name, status.Network, from.Container.Address, to.Container.Address, func() error {
		_, err := lab.Ping(ctx, from.Container.Namespace, to.Container.Address, 1, 84)
		return err
	})
	if err != nil {
		return err
	}
	fmt.Printf("\nHow %s's packet reaches %s:\n\n", from.Container.Name, to.Container.Name)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, step := range walk(from, to, status.Network) {
		if step.where == to.Name {
			fmt.Fprintf(w, "  underlay\ton the wire\t%s\n", seen)
		}
		text, err := lab.Output(ctx, step.namespace, strings.Fields(step.command)...)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", step.where, step.what, pick(text, to.Container.Subnet.Addr().String(), seen.TargetMAC.String()))
	}
	return w.Flush()
}

// step is one of the kernel's tables on a packet's way.
type step struct{ where, what, namespace, command string }

// walk is what there is to see on the way of a packet, which depends on how the network carries it.
func walk(from, to *lab.Host, n api.Network) []step {
	address, vtep := to.Container.Address.String(), to.Container.Subnet.Addr().String()
	steps := []step{{from.Container.Name, "its route", from.Container.Namespace, "ip route get " + address}}
	switch {
	case n.Backend == "l2":
		steps = append(steps, step{from.Name, "the MAC's host", from.Namespace, "bridge fdb show dev " + n.Device})
	case n.Kind == "vxlan":
		steps = append(steps, step{from.Name, "the peer's subnet", from.Namespace, "ip route show " + to.Container.Subnet.String()}, step{from.Name, "its nexthop", from.Namespace, "ip nexthop show"},
			step{from.Name, "the VTEP's MAC", from.Namespace, "ip neigh show " + vtep}, step{from.Name, "the VTEP's host", from.Namespace, "bridge fdb show dev " + n.Device})
	default:
		steps = append(steps, step{from.Name, "the peer's subnet", from.Namespace, "ip route get " + address})
	}
	return append(steps, step{to.Name, "the container's bridge", to.Namespace, "ip route get " + address})
}

// pick returns the first line that names one of words, or the first line.
func pick(text string, words ...string) string {
	lines := strings.Split(text, "\n")
	for _, line := range lines {
		for _, word := range words {
			if strings.Contains(line, word) {
				return strings.Join(strings.Fields(line), " ")
			}
		}
	}
	return strings.Join(strings.Fields(lines[0]), " ")
}
