// Package lab makes a whole network on one machine: each host is a network namespace with a real agent in it, and a
// container (a namespace behind the host's bridge); the hosts are joined by an underlay bridge in a namespace of its own,
// where etcd runs too, or which etcd's cluster is plugged into. Nothing of it touches the machine's own network. The tests
// are built on it, and `tulle lab` is it.
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/agent/api"
)

const (
	// MaxHosts is what the underlay's range has room for.
	MaxHosts = 200

	stateDir = "/run/tulle-lab"
)

// readyWait is how long an agent may take until it is ready: longer in the tests' virtual machine, whose processor is emulated.
var readyWait = func() time.Duration {
	if os.Getenv("TULLE_VM") != "" {
		return 2 * time.Minute
	}
	return 30 * time.Second
}()

// segment is a family's part of the underlay.
type segment struct {
	prefix  netip.Prefix
	gateway netip.Addr // a single etcd is at the first segment's
	outside netip.Addr // neither the underlay's nor the overlay's
}

// The underlay's addresses (RFC 5737, RFC 3849).
var (
	ipv4Segment = segment{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParseAddr("192.0.2.1"), Outside}
	ipv6Segment = segment{netip.MustParsePrefix("2001:db8::/64"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:ffff::1")}
	segments    = map[string][]segment{"": {ipv4Segment}, "ipv4": {ipv4Segment}, "ipv6": {ipv6Segment}, "both": {ipv4Segment, ipv6Segment}}
)

// Outside is an address that is neither the underlay's nor the overlay's.
var Outside = netip.MustParseAddr("198.51.100.1")

var nameRegex = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,15}$`)

// end is an interface's address, and the gateway that it is to have.
type end struct {
	address netip.Prefix
	via     netip.Addr
}

// at is the end of the n-th machine on the segment.
func (s segment) at(n int) end {
	b := s.prefix.Addr().AsSlice()
	b[len(b)-1] = byte(n)
	a, _ := netip.AddrFromSlice(b)
	return end{netip.PrefixFrom(a, s.prefix.Bits()), s.gateway}
}

// ends are those of the n-th machine on the underlay, one for each of its families.
func (l *Lab) ends(n int) (ends []end) {
	for _, s := range segments[l.Families] {
		ends = append(ends, s.at(n))
	}
	return ends
}

// Options say what lab to make.
type Options struct {
	Name     string   // of the lab: several can stand side by side
	Hosts    int      // to begin with
	Binary   string   // path of tulle
	Etcd     string   // path of etcd's own server; "" for the one in Binary
	EtcdArgs []string // more arguments for etcd; with --cert-file it is at https://
	Client   []string // more arguments for who asks etcd: agents, and the lab itself
	Members  int      // of etcd's cluster; 0 and 1 for a single server
	Quota    int      // what etcd may store, bytes; 0 for its own default
	Config   string   // the network's config, JSON
	Families string   // of the underlay: ipv4, ipv6 or both; "" for ipv4
	Prefix   string   // of the keys in etcd
	Agent    []string // more arguments for each agent
	Forward  string   // policy of the hosts' FORWARD chain: Docker sets DROP
	Empty    bool     // hosts without a container: Docker is to make them
	Bare     bool     // hosts and nothing else: no etcd, no agents
}

// Lab is a network on this machine.
type Lab struct {
	Options
	Nodes  []*Host
	Server *Member                          // etcd, or the first of its cluster
	Others []*Member                        // the rest of the cluster
	Say    func(format string, args ...any) `json:"-"` // told of each step; may be nil

	mu sync.Mutex // hosts start side by side, and each start is saved
}

// Host is a network namespace that stands for a machine.
type Host struct {
	Name      string
	Namespace string
	Address   netip.Addr   // on the underlay
	Addresses []netip.Addr // all of them there, Address first
	RunDir    string
	Agent     *Process
	Flannel   *Process   // in place of an agent, for tests
	Container *Container // nil until the host has a subnet
}

// Container is a network namespace behind a host's bridge.
type Container struct {
	Name      string
	Namespace string
	Address   netip.Addr // on the overlay
	Subnet    netip.Prefix
	Addresses []netip.Addr // of both families, Address first
	Subnets   []netip.Prefix
	MTU       int
}

// Up makes a lab and returns when every agent is ready and every container has its address. A lab that could not be made
// whole is taken down again.
func Up(ctx context.Context, o Options, say func(format string, args ...any)) (*Lab, error) {
	if !nameRegex.MatchString(o.Name) {
		return nil, fmt.Errorf("%q can't be a lab's name: up to 16 small letters, digits and dashes", o.Name)
	}
	if o.Hosts < 1 || o.Hosts > MaxHosts {
		return nil, fmt.Errorf("%d hosts: a lab has 1 to %d", o.Hosts, MaxHosts)
	}
	if _, known := segments[o.Families]; !known {
		return nil, fmt.Errorf("%q can't be the underlay's families: it is ipv4, ipv6 or both", o.Families)
	}
	if o.Members < 0 || o.Members > maxMembers {
		return nil, fmt.Errorf("%d members of etcd: a lab has up to %d", o.Members, maxMembers)
	}
	l := &Lab{Options: o, Say: say}
	if _, err := os.Stat(l.Dir()); err == nil {
		return nil, fmt.Errorf("a lab named %s exists already: tulle lab down --name %s takes it down", o.Name, o.Name)
	}
	if err := l.up(ctx); err != nil {
		return nil, errors.Join(err, l.Down())
	}
	return l, nil
}

func (l *Lab) up(ctx context.Context) error {
	if err := os.MkdirAll(l.Dir(), 0o755); err != nil {
		return err
	}
	if err := l.save(); err != nil {
		return err
	}
	var ranges []string
	for _, s := range segments[l.Families] {
		ranges = append(ranges, s.prefix.String())
	}
	l.say("underlay: a bridge in a namespace of its own, %s", strings.Join(ranges, " and "))
	if err := l.makeUnderlay(); err != nil {
		return err
	}
	if l.Bare {
		return l.makeHosts()
	}
	if err := l.makeMembers(); err != nil {
		return err
	}
	l.say("etcd: %s", l.Endpoints())
	if err := l.StartEtcd(ctx); err != nil {
		return err
	}
	l.say("network: %s", l.Config)
	if _, err := l.Tulle(ctx, l.Config, "config", "set", "-"); err != nil {
		return err
	}
	if err := l.makeHosts(); err != nil {
		return err
	}
	return l.start(ctx, l.Nodes...)
}

func (l *Lab) makeHosts() error {
	for range l.Hosts {
		if _, err := l.NewHost(); err != nil {
			return err
		}
	}
	return nil
}

// start starts the agents of hosts side by side, and their containers.
func (l *Lab) start(ctx context.Context, hosts ...*Host) error {
	starts, startCtx := errgroup.WithContext(ctx)
	for _, h := range hosts {
		starts.Go(func() error {
			if err := l.StartAgent(startCtx, h); err != nil {
				return err
			}
			if l.Empty {
				return nil
			}
			return l.NewContainer(h)
		})
	}
	if err := starts.Wait(); err != nil {
		return err
	}
	if err := l.Converge(ctx); err != nil {
		return err
	}
	for _, h := range hosts {
		if h.Container == nil {
			continue
		}
		l.say("%s: agent ready at %s, container %s at %s", h.Name, h.Address, h.Container.Name, h.Container.Address)
	}
	return nil
}

// AddHost joins another host to the lab.
func (l *Lab) AddHost(ctx context.Context) (*Host, error) {
	h, err := l.NewHost()
	if err != nil {
		return nil, err
	}
	return h, l.start(ctx, h)
}

// Dir is where the lab keeps its files.
func (l *Lab) Dir() string { return filepath.Join(stateDir, l.Name) }

// Underlay is the namespace that the underlay bridge and a single etcd are in.
func (l *Lab) Underlay() string { return l.namespace("underlay") }

func (l *Lab) namespace(name string) string { return "tulle-" + l.Name + "-" + name }

func (l *Lab) say(format string, args ...any) {
	if l.Say != nil {
		l.Say(format, args...)
	}
}

func (l *Lab) makeUnderlay() error {
	if err := newNamespace(l.Underlay()); err != nil {
		return err
	}
	return In(l.Underlay(), func() error {
		// With a MAC of its own: the kernel would choose anew among the ports' as hosts join, and the others know the old one.
		mac := net.HardwareAddr{0x02, 0, 0, 0, 0, 1}
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "underlay", HardwareAddr: mac, TxQLen: -1}}
		if err := netlink.LinkAdd(bridge); err != nil {
			return fmt.Errorf("make the underlay bridge: %w", err)
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		errs := []error{netlink.LinkSetUp(bridge)}
		for _, s := range segments[l.Families] {
			errs = append(errs, addAddr(bridge, netip.PrefixFrom(s.gateway, s.prefix.Bits())), addAddr(lo, netip.PrefixFrom(s.outside, s.outside.BitLen())))
		}
		return errors.Join(errs...)
	})
}

// NewHost makes a host's namespace and plugs it into the underlay. It has no agent yet.
func (l *Lab) NewHost() (*Host, error) {
	n := len(l.Nodes) + 1
	name, ends := fmt.Sprintf("host%d", n), l.ends(10+n)
	h := &Host{Name: name, Namespace: l.namespace(name), RunDir: filepath.Join(l.Dir(), name)}
	for _, e := range ends {
		h.Addresses = append(h.Addresses, e.address.Addr())
	}
	h.Address = h.Addresses[0]
	if err := errors.Join(newNamespace(h.Namespace), os.MkdirAll(h.RunDir, 0o755)); err != nil {
		return nil, err
	}
	if err := plug(l.Underlay(), "underlay", name, h.Namespace, 1500, ends...); err != nil {
		return nil, fmt.Errorf("plug %s into the underlay: %w", name, err)
	}
	if l.Forward != "" {
		for _, iptables := range []string{"iptables", "ip6tables"} {
			if _, err := Output(context.Background(), h.Namespace, iptables, "-P", "FORWARD", l.Forward); err != nil {
				return nil, err
			}
		}
	}
	l.Nodes = append(l.Nodes, h)
	return h, nil
}

// plug lays a cable from a bridge to a namespace, where its end is eth0, with an address and a default route for each of ends.
func plug(bridgeNS, bridge, port, namespace string, mtu int, ends ...end) error {
	target, err := netns.GetFromName(namespace)
	if err != nil {
		return err
	}
	defer target.Close()
	err = In(bridgeNS, func() error {
		master, err := netlink.LinkByName(bridge)
		if err != nil {
			return fmt.Errorf("bridge %s: %w", bridge, err)
		}
		cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port, MTU: mtu, MasterIndex: master.Attrs().Index, TxQLen: -1},
			PeerName: "eth0", PeerNamespace: netlink.NsFd(target), PeerMTU: uint32(mtu)}
		return errors.Join(netlink.LinkAdd(cable), netlink.LinkSetUp(cable))
	})
	if err != nil {
		return err
	}
	return In(namespace, func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetUp(eth0), dress(eth0, ends))
	})
}

// dress gives an interface addresses and default routes.
func dress(link netlink.Link, ends []end) error {
	var errs []error
	for _, e := range ends {
		errs = append(errs, addAddr(link, e.address), netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: e.via.AsSlice()}))
	}
	return errors.Join(errs...)
}

// addAddr adds an address that can be used at once: nobody else in a lab has it (IFA_F_NODAD).
func addAddr(link netlink.Link, p netip.Prefix) error {
	addr, err := netlink.ParseAddr(p.String())
	if err != nil {
		return err
	}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return netlink.AddrAdd(link, addr)
}

// Like returns which of c's addresses is of the same family as another; not valid if none is.
func (c *Container) Like(other netip.Addr) netip.Addr {
	for _, a := range c.Addresses {
		if a.Is4() == other.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// Outsides are addresses that are neither the underlay's nor the overlay's, one for each of the underlay's families.
func (l *Lab) Outsides() (addrs []netip.Addr) {
	for _, s := range segments[l.Families] {
		addrs = append(addrs, s.outside)
	}
	return addrs
}

// NewContainer puts a container behind h's bridge, the way Docker does it from the env file. If h has one it stays, and gets the
// addresses that a new one would have.
func (l *Lab) NewContainer(h *Host) error {
	env, err := h.Env()
	if err != nil {
		return err
	}
	name := strings.Replace(h.Name, "host", "c", 1)
	c := &Container{Name: name, Namespace: l.namespace(name)}
	if _, err := fmt.Sscan(env["FLANNEL_MTU"], &c.MTU); err != nil {
		return fmt.Errorf("%s: FLANNEL_MTU: %w", h.Name, err)
	}
	ends, err := c.join(env)
	if err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	if h.Container != nil { // it has addresses of what the network's families were
		return l.renumber(h, c, ends)
	}
	if err := newNamespace(c.Namespace); err != nil {
		return err
	}
	if err := plug(h.Namespace, "docker0", name, c.Namespace, c.MTU, ends...); err != nil {
		return fmt.Errorf("plug %s into %s: %w", name, h.Name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	h.Container = c
	return l.save()
}

// renumber gives the container of a host that runs the addresses that a new one would have.
func (l *Lab) renumber(h *Host, c *Container, ends []end) error {
	err := In(c.Namespace, func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			addrs, err := netlink.AddrList(eth0, family)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				p, _ := netip.ParsePrefix(a.IPNet.String())
				if ends = slices.DeleteFunc(ends, func(e end) bool { return e.address == p }); slices.Contains(c.Addresses, p.Addr()) || p.Addr().IsLinkLocalUnicast() {
					continue
				}
				if err := netlink.AddrDel(eth0, &a); err != nil {
					return err
				}
			}
		}
		return dress(eth0, ends)
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	h.Container = c
	return errors.Join(err, l.save())
}

// join gives c an address of each family that its host's env file has, and returns what its cable's end is to have.
func (c *Container) join(env map[string]string) (ends []end, err error) {
	for _, names := range [][2]string{{"FLANNEL_SUBNET", "TULLE_BRIDGE"}, {"FLANNEL_IPV6_SUBNET", "TULLE_IPV6_BRIDGE"}} {
		name := names[0]
		if env[name] == "" {
			continue
		}
		subnet, err := netip.ParsePrefix(env[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		bridge := subnet
		if wider, err := netip.ParsePrefix(env[names[1]]); err == nil { // all hosts are one segment
			bridge = wider
		}
		ends = append(ends, end{netip.PrefixFrom(bridge.Addr().Next(), bridge.Bits()), bridge.Addr()})
		c.Addresses, c.Subnets = append(c.Addresses, bridge.Addr().Next()), append(c.Subnets, subnet.Masked())
	}
	if len(ends) == 0 {
		return nil, errors.New("the env file has no FLANNEL_SUBNET and no FLANNEL_IPV6_SUBNET")
	}
	c.Address, c.Subnet = c.Addresses[0], c.Subnets[0]
	return ends, nil
}

// FlannelEnv is the path of flannel's env file.
func (h *Host) FlannelEnv() string { return filepath.Join(h.RunDir, "flannel.env") }

// Env reads the host's env file: flannel's, if no agent has written one.
func (h *Host) Env() (map[string]string, error) {
	text, err := os.ReadFile(filepath.Join(h.RunDir, "subnet.env"))
	if errors.Is(err, os.ErrNotExist) {
		text, err = os.ReadFile(h.FlannelEnv())
	}
	if err != nil {
		return nil, err
	}
	env := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		env[name] = strings.Trim(value, `"`)
	}
	return env, nil
}

// StartAgent starts the host's agent and waits until it is ready.
func (l *Lab) StartAgent(ctx context.Context, h *Host) error {
	if err := l.LaunchAgent(h); err != nil {
		return err
	}
	return h.WaitReady(ctx)
}

// WaitReady waits until the host's agent is ready.
func (h *Host) WaitReady(ctx context.Context) error {
	return Wait(ctx, readyWait, h.Name+"'s agent is ready", h.Agent.alive(func() error { return h.Ready(ctx) }))
}

// LaunchAgent starts the host's agent and does not wait for it.
func (l *Lab) LaunchAgent(h *Host) error {
	args := append([]string{"agent", "--etcd-endpoints", l.Endpoints(), "--etcd-prefix", l.Prefix, "--run-dir", h.RunDir,
		"--daemon-json", filepath.Join(l.dockerDir(h), "daemon.json")}, l.Client...) // not the machine's own
	args = append(args, l.Agent...)
	p, err := startProcess(h.Namespace, filepath.Join(l.Dir(), h.Name+".log"), l.Binary, args...)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	h.Agent = p
	return l.save()
}

// LaunchWith starts an agent on the host with arguments and environment variables of its own, and does not wait for it.
func (l *Lab) LaunchWith(h *Host, variables []string, args ...string) (err error) {
	args = append(append(variables, l.Binary, "agent", "--run-dir", h.RunDir), args...)
	h.Agent, err = startProcess(h.Namespace, filepath.Join(l.Dir(), h.Name+".log"), "env", args...)
	return errors.Join(err, l.save())
}

// LaunchFlannel starts a flanneld on the host and does not wait for it.
func (l *Lab) LaunchFlannel(h *Host, flanneld string, args ...string) (err error) {
	args = append([]string{"WIREGUARD_KEY_FILE=" + filepath.Join(h.RunDir, "wgkey"), flanneld,
		"--etcd-endpoints", l.Endpoints(), "--etcd-prefix", l.Prefix, "--subnet-file", h.FlannelEnv(), "--ip-masq"}, args...)
	h.Flannel, err = startProcess(h.Namespace, filepath.Join(l.Dir(), h.Name+"-flannel.log"), "env", args...)
	return errors.Join(err, l.save())
}

// Converge waits until every running agent has programmed all the others.
func (l *Lab) Converge(ctx context.Context) error {
	var running []*Host
	for _, h := range l.Nodes {
		if h.Agent.running() {
			running = append(running, h)
		}
	}
	for _, h := range running {
		err := Wait(ctx, readyWait, h.Name+" has programmed all its peers", func() error {
			status, err := h.Status(ctx)
			if err == nil && (!status.Ready || status.Peers.Total != len(running)-1) {
				err = fmt.Errorf("%d of %d; %s", status.Peers.Total, len(running)-1, status.Reason)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Status asks the host's agent how it is.
func (h *Host) Status(ctx context.Context) (status api.Status, err error) {
	_, body, err := h.Get(ctx, api.PathStatus)
	if err != nil {
		return status, err
	}
	return status, json.Unmarshal([]byte(body), &status)
}

// Ready asks the host's agent whether it is.
func (h *Host) Ready(ctx context.Context) error {
	status, body, err := h.Get(ctx, "/readyz")
	if err == nil && status != http.StatusOK {
		err = errors.New(strings.TrimSpace(body))
	}
	return err
}

// Tulle runs a subcommand that talks to etcd, from the underlay.
func (l *Lab) Tulle(ctx context.Context, stdin string, args ...string) (string, error) {
	return l.tulle(ctx, l.Endpoints(), stdin, args...)
}

func (l *Lab) tulle(ctx context.Context, endpoints, stdin string, args ...string) (string, error) {
	args = append([]string{l.Binary}, args...)
	args = append(append(args, "--etcd-endpoints", endpoints, "--etcd-prefix", l.Prefix), l.Client...)
	return output(ctx, l.Underlay(), stdin, args...)
}

// Down ends the lab's processes and removes its namespaces and files. It does so for a lab that was only half made, and for
// one of another process.
func (l *Lab) Down() error {
	var errs []error
	for _, h := range l.Nodes {
		errs = append(errs, h.Agent.Stop(unix.SIGKILL), h.Flannel.Stop(unix.SIGKILL))
	}
	for _, m := range l.Cluster() {
		errs = append(errs, m.Stop(unix.SIGKILL))
	}
	names, err := namespaces(l.namespace(""))
	errs = append(errs, err)
	for _, name := range names {
		if !l.othersHave(name) {
			errs = append(errs, deleteNamespace(name))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(l.Dir()))...)
}

// othersHave reports whether a namespace is that of a lab whose name begins with ours.
func (l *Lab) othersHave(namespace string) bool {
	others, _ := filepath.Glob(l.Dir() + "-*")
	return slices.ContainsFunc(others, func(dir string) bool {
		other := Lab{Options: Options{Name: filepath.Base(dir)}}
		return strings.HasPrefix(namespace, other.namespace(""))
	})
}

func (l *Lab) save() error {
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.Dir(), "lab.json"), text, 0o644)
}

// Open returns a lab that another process made.
func Open(name string) (*Lab, error) {
	l := &Lab{Options: Options{Name: name}}
	text, err := os.ReadFile(filepath.Join(l.Dir(), "lab.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no lab named %s: tulle lab up makes one", name)
	}
	if err != nil {
		return nil, err
	}
	return l, json.Unmarshal(text, l)
}

// Find returns the namespace of a host or container by its name, as in host1 or c1.
func (l *Lab) Find(name string) (string, error) {
	for _, h := range l.Nodes {
		if h.Name == name {
			return h.Namespace, nil
		}
		if h.Container != nil && h.Container.Name == name {
			return h.Container.Namespace, nil
		}
	}
	return "", fmt.Errorf("the lab has no %q: tulle lab ls shows what it has", name)
}

// Wait waits until condition holds. What it last said is in the error.
func Wait(ctx context.Context, limit time.Duration, what string, condition func() error) error {
	deadline := time.After(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return nil
		}
		if errors.Is(err, errEnded) {
			return fmt.Errorf("waiting until %s: %w", what, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w", what, ctx.Err())
		case <-deadline:
			return fmt.Errorf("waited %s until %s: %w", limit, what, err)
		case <-tick.C:
		}
	}
}
