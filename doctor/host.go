package doctor

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/agent/docker"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// ours is the protocol number of the agent's routes.
const ours = 84

// lookAtHost reads what rtnetlink and /proc/sys say of the network namespace.
func (f *Facts) lookAtHost(context.Context) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return errors.Join(f.lookAtDevices(links, names), f.lookAtRoutes(names), f.lookAtSysctls())
}

func (f *Facts) lookAtDevices(links []netlink.Link, names map[int]string) error {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, l := range links {
		a := l.Attrs()
		d := Device{Name: a.Name, Kind: l.Type(), Master: names[a.MasterIndex], MTU: a.MTU, Up: a.Flags&net.FlagUp != 0}
		switch tunnel := l.(type) {
		case *netlink.Vxlan:
			d.VNI, d.Port = uint32(tunnel.VxlanId), uint16(tunnel.Port)
			d.Local, _ = netip.AddrFromSlice(tunnel.SrcAddr)
		case *netlink.Iptun:
			d.Local, d.Remote = specified(tunnel.Local), specified(tunnel.Remote)
		case *netlink.Tuntap:
			d.Kind = string(backend.KindTUN) // the library's word is another
		case *netlink.Geneve:
			d.VNI, d.Port = tunnel.ID, tunnel.Dport
		}
		for _, addr := range addrs {
			if addr.LinkIndex == a.Index {
				d.add(addr)
			}
		}
		f.Devices = append(f.Devices, d)
	}
	return nil
}

// add adds an address. What lasts for ever is marked so by the kernel.
func (d *Device) add(a netlink.Addr) {
	p := prefix(a.IPNet)
	d.Addrs = append(d.Addrs, p)
	if a.Flags&unix.IFA_F_DADFAILED != 0 {
		d.Duplicate = append(d.Duplicate, p)
	}
	if a.Flags&unix.IFA_F_PERMANENT == 0 {
		d.Lent = append(d.Lent, p)
	}
}

// specified is an address, not valid for one that stands for any.
func specified(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip.To4())
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// prefix takes a netlink prefix, which may be nil, as it is: with the bits beyond its length.
func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}

func (f *Facts) lookAtRoutes(names map[int]string) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Protocol == ours || r.Table == unix.RT_TABLE_LOCAL || !slices.Contains([]int{unix.RTN_UNICAST, unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT}, r.Type) {
				continue
			}
			f.Routes = append(f.Routes, route(family, r, names))
		}
		rules, err := netlink.RuleList(family)
		if err != nil {
			return fmt.Errorf("list policy rules: %w", err)
		}
		for _, r := range rules {
			f.Policies = append(f.Policies, Policy{r.Priority, r.Table, strings.TrimPrefix(r.String(), "ip rule ")})
		}
	}
	return nil
}

func route(family int, r netlink.Route, names map[int]string) Route {
	kinds := map[int]string{unix.RTN_UNICAST: "unicast", unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit"}
	is := Route{Dst: prefix(r.Dst), Dev: names[r.LinkIndex], Metric: r.Priority, Table: r.Table, Protocol: int(r.Protocol), Kind: kinds[r.Type]}
	if !is.Dst.IsValid() { // the default
		is.Dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if family == netlink.FAMILY_V6 {
			is.Dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
	}
	is.Via, _ = netip.AddrFromSlice(r.Gw)
	is.Via = is.Via.Unmap()
	for _, hop := range r.MultiPath { // the first may say
		if is.Dev == "" {
			is.Dev = names[hop.LinkIndex]
		}
	}
	return is
}

// String is the route as ip route prints it.
func (r Route) String() string {
	text := r.Dst.String()
	if r.Dst.Bits() == 0 {
		text = "default"
	}
	if r.Kind != "unicast" {
		text = r.Kind + " " + text
	}
	if r.Via.IsValid() {
		text += " via " + r.Via.String()
	}
	if r.Dev != "" {
		text += " dev " + r.Dev
	}
	if r.Table != 0 && r.Table != unix.RT_TABLE_MAIN {
		text += fmt.Sprintf(" table %d", r.Table)
	}
	if r.Metric != 0 {
		text += fmt.Sprintf(" metric %d", r.Metric)
	}
	return text
}

const (
	ipForward  = "net.ipv4.ip_forward"
	bridgeCall = "net.bridge.bridge-nf-call-iptables"
)

// conf names a device's sysctl of IPv4.
func conf(device, key string) string { return confOf(subnet.IPv4, device, key) }

// lookAtSysctls reads those that checks ask for. One that isn't there is none.
func (f *Facts) lookAtSysctls() error {
	names := []string{forwards.V4, forwards.V6, bridgeCall, conf("all", "rp_filter")}
	if f.Plan != nil {
		for name := range f.Plan.State().Sysctls {
			names = append(names, name)
		}
		for _, device := range append(f.tunnels(), f.Plan.Host().Bridge, f.Plan.Host().Underlay.Device) {
			names = append(names, conf(device, "rp_filter"), conf(device, "forwarding"))
			for _, key := range []string{"forwarding", "disable_ipv6", "accept_ra"} {
				names = append(names, confOf(subnet.IPv6, device, key))
			}
		}
	}
	f.Sysctls = map[string]string{}
	for _, name := range names {
		if value, err := readSysctl(name); err == nil {
			f.Sysctls[name] = value
		}
	}
	return nil
}

// readSysctl reads a sysctl by a name as sysctl(8) takes it: its parts are separated by what comes first in it, '.' or '/', and the
// other of the two stands for the first within a part.
func readSysctl(name string) (string, error) {
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		name = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	text, err := os.ReadFile(filepath.Join("/proc/sys", name))
	return strings.TrimSpace(string(text)), err
}

// lookAtKernel finds out what the kernel can do: in a network namespace that goes away with the thread, unless this one shows
// it already.
func (f *Facts) lookAtKernel(context.Context) error {
	request := nl.NewNetlinkRequest(rtmGetNexthop, unix.NLM_F_DUMP)
	request.AddData(nexthops{})
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	f.NoNexthops = errors.Is(err, unix.EOPNOTSUPP)
	if f.Plan == nil || f.outer().Kind == "" || slices.ContainsFunc(f.Devices, func(d Device) bool { return d.Kind == string(f.outer().Kind) }) {
		return nil
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = try(f.outer().Kind)
		}
		if f.outer().Kind == backend.KindWireGuard && errors.Is(err, unix.EOPNOTSUPP) { // the agent does it itself, then
			err = try(backend.KindTUN)
		}
		done <- err
	}()
	err = <-done
	for _, missing := range []error{unix.EOPNOTSUPP, unix.ENOENT, unix.ENODEV, unix.ENXIO} {
		if errors.Is(err, missing) {
			f.Lacks = f.outer().Kind
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("whether the kernel has %s can't be tried: %w: run it as root", f.outer().Kind, err)
	}
	return nil
}

// try makes a device of a kind; of TUN it asks only whether it could.
func try(kind backend.Kind) error {
	attrs := netlink.LinkAttrs{Name: "try"}
	switch kind {
	case backend.KindTUN:
		file, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return file.Close()
	case backend.KindIPIP:
		return netlink.LinkAdd(&netlink.Iptun{LinkAttrs: attrs, Local: net.IPv4(192, 0, 2, 1)}) // one for any address is there with the module
	case backend.KindWireGuard:
		return netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	}
	return netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 8472})
}

const rtmGetNexthop = 106 // linux/rtnetlink.h, Linux ≥ 5.3

// nexthops asks for all of them: a zero struct nhmsg.
type nexthops struct{}

func (nexthops) Len() int          { return 8 }
func (nexthops) Serialize() []byte { return make([]byte, 8) }

// lookAtPrograms finds what may interfere: dockerd, flanneld, and who listens on the overlay's UDP port.
func (f *Facts) lookAtPrograms(context.Context) error {
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	inodes := map[uint16][]string{}
	if f.Plan != nil {
		for _, o := range f.Plan.State().Outers() {
			inodes[o.Port] = socketsOn(o.Port)
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range processes {
		p := program(dir)
		known := p.Name == "dockerd" || p.Name == "flanneld"
		ns, err := os.Readlink(filepath.Join(dir, "ns/net"))
		if errors.Is(err, os.ErrPermission) && (known || os.Geteuid() != 0) {
			return fmt.Errorf("%s can't be looked at: run it as root", p)
		}
		if err != nil || ns != here { // it has ended, or is a container's
			continue
		}
		for port, names := range inodes {
			if !p.agent() && opens(dir, names) {
				p.Listens = port
			}
		}
		if known || p.Listens != 0 {
			f.Programs = append(f.Programs, p)
		}
		if p.Name == "dockerd" {
			path := filepath.Join(dir, "root", cmp.Or(option(p.Args, "--config-file"), "/etc/docker/daemon.json"))
			f.DockerConfig, _ = docker.ReadConfig(path) // dockerd does not start with one that it can't read
		}
	}
	return nil
}

// program reads what /proc says of a process.
func program(dir string) Program {
	comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
	args, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
	p := Program{Name: strings.TrimSpace(string(comm)), Args: strings.Split(strings.TrimRight(string(args), "\x00"), "\x00")}
	p.PID, _ = strconv.Atoi(filepath.Base(dir))
	return p
}

// agent reports whether a process is an agent, which may stand behind the overlay's device itself.
func (p Program) agent() bool { return p.Name == "tulle" && slices.Contains(p.Args, "agent") }

// String leaves out the arguments: there may be passwords among them.
func (p Program) String() string { return fmt.Sprintf("process %d (%s)", p.PID, p.Name) }

// opens reports whether a process has one of these files open.
func opens(dir string, names []string) bool {
	files, _ := os.ReadDir(filepath.Join(dir, "fd"))
	return slices.ContainsFunc(files, func(file os.DirEntry) bool {
		target, _ := os.Readlink(filepath.Join(dir, "fd", file.Name()))
		return slices.Contains(names, target)
	})
}

// option returns a flag's value in a command line, given in either way; "" if it is not there. The last counts.
func option(args []string, name string) (value string) {
	for i, arg := range args {
		if v, ok := strings.CutPrefix(arg, name+"="); ok {
			value = v
		}
		if arg == name && i+1 < len(args) {
			value = args[i+1]
		}
	}
	return value
}

// socketsOn lists the UDP sockets bound to a port, as /proc/PID/fd names them. The kernel's own are among them; no process has
// those.
func socketsOn(port uint16) (names []string) {
	for _, path := range []string{"/proc/net/udp", "/proc/net/udp6"} {
		text, _ := os.ReadFile(path) // no IPv6, no sockets
		for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
			fields := strings.Fields(lines.Text())
			if len(fields) > 9 && port != 0 && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
				names = append(names, "socket:["+fields[9]+"]")
			}
		}
	}
	return names
}
