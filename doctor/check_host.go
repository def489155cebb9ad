package doctor

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/kernel"
	"github.com/tulle-net/tulle/subnet"
)

// kinds are the modules for kinds of devices, and what those are called.
var kinds = map[backend.Kind][2]string{backend.KindVXLAN: {"vxlan", "VXLAN"}, backend.KindIPIP: {"ipip", "IPIP"}, backend.KindWireGuard: {"wireguard", "WireGuard"}, backend.KindTUN: {"tun", "TUN devices"}}

func noModule(f Facts) []Finding {
	if f.Lacks == "" {
		return nil
	}
	module, what := kinds[f.Lacks][0], kinds[f.Lacks][1]
	evidence := "ip link add type " + module + ": Operation not supported"
	if f.Lacks == backend.KindTUN {
		evidence = "there is no /dev/net/tun that could be opened"
	}
	return one(fmt.Sprintf("the kernel has no %s, which the backend %s needs", what, carriage(f.Plan)), evidence,
		fmt.Sprintf("modprobe %s; if there is no such module, install the kernel's extra modules, or another kernel; or take another backend (tulle config set)", module))
}

func noNexthops(f Facts) []Finding {
	if !f.NoNexthops {
		return nil
	}
	return one("the kernel has no nexthop objects: all works, but routes to many peers take long to make", "ip nexthop: Operation not supported",
		"a kernel from 5.3 on")
}

func flanneld(f Facts) []Finding {
	var seen []string
	fix := "systemctl disable --now flanneld"
	for _, p := range f.Programs {
		if p.Name == "flanneld" {
			seen = append(seen, p.String()+" runs")
		}
	}
	for _, d := range f.Devices {
		if strings.HasPrefix(d.Name, "flannel.") || strings.HasPrefix(d.Name, "flannel-") || d.Name == "cni0" {
			seen = append(seen, fmt.Sprintf("device %s, with %s", d.Name, list(d.Addrs)))
			fix += "; ip link del " + d.Name
		}
	}
	h := f.Plan.Host()
	if own := netip.PrefixFrom(h.BridgeAddrs().V4.Addr(), h.Self.Subnet.V4.Bits()); f.FlannelEnv.IsValid() && f.FlannelEnv != own {
		seen = append(seen, fmt.Sprintf("%s says FLANNEL_SUBNET=%s, and this host's is %s", f.FlannelPath, f.FlannelEnv, own))
		fix += "; rm -f " + f.FlannelPath
	}
	if len(seen) == 0 {
		return nil
	}
	return one("flanneld runs on this host, or has left something behind that tulle has not taken over: both would do the same work",
		strings.Join(seen, "\n"), fix+"; systemctl restart tulle")
}

func list(addrs []netip.Prefix) string {
	if len(addrs) == 0 {
		return "no address"
	}
	return strings.Trim(fmt.Sprint(addrs), "[]")
}

// deviceClash looks for devices that keep the kernel from making the overlay's.
func deviceClash(f Facts) (findings []Finding) {
	s := f.Plan.State()
	for _, d := range f.Devices {
		outers := s.Outers()
		i := slices.IndexFunc(outers, func(o backend.Outer) bool { return d.clashes(o, s.Links[o.Device]) })
		if _, own := s.Links[d.Name]; own || i < 0 {
			continue
		}
		o := outers[i]
		what, evidence, fix := "UDP port", fmt.Sprintf("%s id %d dstport %d", d.Kind, d.VNI, d.Port), "another Port"
		switch o.Kind {
		case backend.KindVXLAN:
			what, fix = "VNI or UDP port", "another VNI or Port"
		case backend.KindIPIP:
			what, evidence, fix = "addresses", fmt.Sprintf("%s local %s remote any", d.Kind, d.Local), "another backend"
		}
		findings = append(findings, Finding{What: fmt.Sprintf("%s has the overlay's %s: %s can't be beside it", d.Name, what, o.Device),
			Evidence: fmt.Sprintf("ip -d link show %s: %s", d.Name, evidence),
			Fix:      fmt.Sprintf("ip link del %s; or choose %s for this network (tulle config set)", quote(d.Name), fix)})
	}
	return findings
}

// clashes reports whether d has what the overlay's device needs for itself: of VXLAN devices several may share a port.
func (d Device) clashes(o backend.Outer, want backend.Link) bool {
	switch {
	case o.Kind == backend.KindIPIP:
		return d.Kind == string(o.Kind) && d.Local == want.IPIP.Local && !d.Remote.IsValid()
	case o.Kind == backend.KindVXLAN && d.Kind == string(o.Kind):
		return d.VNI == want.VXLAN.VNI && d.Port == o.Port && d.Local.Is6() == want.VXLAN.Local.Is6()
	}
	return o.Port != 0 && d.Port == o.Port
}

func portTaken(f Facts) (findings []Finding) {
	for _, p := range f.Programs {
		if p.Listens != 0 {
			outers := f.Plan.State().Outers()
			i := slices.IndexFunc(outers, func(o backend.Outer) bool { return o.Port == p.Listens })
			findings = append(findings, Finding{What: fmt.Sprintf("%s listens on the overlay's UDP port %d: %s can't have it", p.Name, p.Listens, outers[i].Device),
				Evidence: fmt.Sprintf("ss -ulnp: %s", p),
				Fix:      fmt.Sprintf("stop %s, or choose another port for this network (tulle config set)", quote(p.Name))})
		}
	}
	return findings
}

// explained reports whether another check says why the overlay's device can't be as it should.
func (f Facts) explained() bool { return f.Lacks != "" || len(deviceClash(f))+len(portTaken(f)) > 0 }

// deviceWell reports whether the overlay's device is as it should be: else it is no wonder that peers don't answer.
func (f Facts) deviceWell() bool { return !f.explained() && len(overlayDevice(f)) == 0 }

func overlayDevice(f Facts) (findings []Finding) {
	if f.explained() {
		return nil
	}
	for _, o := range f.Plan.State().Outers() {
		findings = append(findings, f.tunnel(o)...)
	}
	return findings
}

// tunnel looks at one of the devices that encapsulate.
func (f Facts) tunnel(o backend.Outer) []Finding {
	d, ok := f.device(o.Device)
	have, wanted := d.text(), deviceOf(f.Plan.State().Links[o.Device]).text()
	const fix = "systemctl restart tulle; journalctl -u tulle says if it can't be made"
	nobody := "no peer is reached"
	if len(f.tunnels()) > 1 {
		nobody += " by it"
	}
	switch {
	case !ok:
		return one(o.Device+" is missing: "+nobody, "ip link show "+o.Device+": it does not exist", fix)
	case !d.Up:
		return one(o.Device+" is down: "+nobody, "ip link show "+o.Device+": state DOWN",
			"ip link set "+quote(o.Device)+" up; systemctl restart tulle puts back the routes that it lost")
	case have != wanted && len(mtuUnderlay(f)) == 0:
		return one(o.Device+" is not as the network's config has it", "ip -d link show "+o.Device+": "+have+"; wanted is "+wanted, fix)
	case o.Kind == backend.KindTUN && f.Absent != "":
		return one(o.Device+" leads nowhere: the agent itself carries its packets, and it does not run", "ip link show "+o.Device+": type tun, and no agent answers", "systemctl start tulle")
	}
	return nil
}

// deviceOf is a link as it is to be found.
func deviceOf(l backend.Link) Device {
	d := Device{Kind: string(l.Kind), Master: l.Master, MTU: l.MTU, VNI: l.VXLAN.VNI, Port: l.VXLAN.Port, Local: l.VXLAN.Local}
	if l.Kind == backend.KindIPIP {
		d.Local = l.IPIP.Local
	}
	return d
}

// text is what a tunnel's device is, as ip -d link prints it.
func (d Device) text() string {
	text := d.Kind
	if d.Kind == string(backend.KindVXLAN) {
		text += fmt.Sprintf(" id %d", d.VNI)
	}
	if d.Local.IsValid() {
		text += fmt.Sprintf(" local %s", d.Local)
	}
	if d.Port != 0 {
		text += fmt.Sprintf(" dstport %d", d.Port)
	}
	if text += fmt.Sprintf(" mtu %d", d.MTU); d.Master != "" {
		text += " master " + d.Master
	}
	return text
}

// wrongInterface looks for an underlay device that is not the one which peers are reached by.
func wrongInterface(f Facts) (findings []Finding) {
	u := f.Plan.Host().Underlay
	for family, a := range u.Local.All() {
		if d, _ := f.device(u.Device); !d.has(a) {
			findings = append(findings, Finding{What: fmt.Sprintf("%s, which the overlay is on, does not have its address %s", u.Device, a),
				Evidence: fmt.Sprintf("ip addr show %s: %s", u.Device, list(d.Addrs)),
				Fix:      "systemctl restart tulle, with --iface DEVICE if it is to be another"})
		}
		public := u.Public.Of(family)
		i := slices.IndexFunc(f.Devices, func(d Device) bool { return d.has(public) })
		if public == a || i < 0 || f.Devices[i].Name == u.Device {
			continue
		}
		d := f.Devices[i]
		findings = append(findings, Finding{What: fmt.Sprintf("the public address %s is on %s, and the overlay on %s", public, d.Name, u.Device),
			Evidence: fmt.Sprintf("ip addr show %s: %s", d.Name, list(d.Addrs)),
			Fix:      fmt.Sprintf("start the agent with --iface %s and without --public-ip", quote(d.Name))})
	}
	if peers, dev, evidence := f.ledAway(true); len(peers) > 0 {
		findings = append(findings, Finding{What: fmt.Sprintf("the way to %s is by %s, and the overlay is on %s", strings.Join(peers, ", "), dev, u.Device),
			Evidence: evidence, Fix: fmt.Sprintf("start the agent with --iface %s", quote(dev))})
	}
	return append(findings, rivalDefaults(f)...)
}

// usual reports whether a route is one that a device brings along, or the default: not one that somebody has thought of.
func usual(w kernel.Way) bool {
	return w.Type == "unicast" && (w.Prefix.Bits() == 0 || w.Protocol == unix.RTPROT_KERNEL)
}

func (d Device) has(a netip.Addr) bool {
	return slices.ContainsFunc(d.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
}

// ledAway lists the peers whose public addresses are not reached by the underlay's device, but by a route that is usual or not. It
// is no harm to those that answer: the overlay's own packets never leave by another device.
func (f Facts) ledAway(asUsual bool) (peers []string, dev, evidence string) {
	for _, p := range f.Paths {
		if f.outside(p) || !p.Outer.Prefix.IsValid() || usual(p.Outer) != asUsual || p.Overlay && (p.Underlay || asUsual) {
			continue
		}
		peers, dev = append(peers, p.Public.String()), p.Outer.Dev
		evidence = fmt.Sprintf("ip route get fibmatch %s: %s%s", p.Public, p.Outer, f.because(p.Outer))
	}
	return peers, dev, evidence
}

// because names the policy rules that lead to a route's table.
func (f Facts) because(w kernel.Way) (text string) {
	for _, p := range f.Policies {
		if w.Table != 0 && p.Table == int(w.Table) {
			text += "; ip rule: " + p.Text
		}
	}
	return text
}

// rivalDefaults looks for default routes of which it is chance which one the agent chose the underlay by: those of IPv6 only where there
// is no IPv4.
func rivalDefaults(f Facts) []Finding {
	var rivals []Route
	h := f.Plan.Host()
	for _, r := range f.Routes {
		if r.Dst.Bits() != 0 || r.Dst.Addr().Is6() == h.Underlay.Local.V4.IsValid() || r.Table != unix.RT_TABLE_MAIN || r.Kind != "unicast" {
			continue
		}
		if len(rivals) > 0 && r.Metric < rivals[0].Metric {
			rivals = nil
		}
		if len(rivals) == 0 || r.Metric == rivals[0].Metric && r.Dev != rivals[0].Dev {
			rivals = append(rivals, r)
		}
	}
	u := h.Underlay.Device
	if f.Chosen || len(rivals) < 2 || !slices.ContainsFunc(rivals, func(r Route) bool { return r.Dev == u }) {
		return nil
	}
	var rows []string
	for _, r := range rivals {
		rows = append(rows, r.String())
	}
	return one(fmt.Sprintf("%d default routes are equally good: that the overlay is on %s is chance, and may change", len(rivals), u),
		"ip route: "+strings.Join(rows, "; "),
		"start the agent with --iface "+u+", or the device that leads to the peers; or give one route a higher metric")
}

// inNetwork reports whether a route claims some of the network's range. One that is wider is no harm: ours are narrower.
func (f Facts) inNetwork(r Route) bool {
	h := f.Plan.Host()
	network := h.Config.Range.Of(subnet.FamilyOf(r.Dst.Addr())).Network
	own := h.Self.Subnet.Of(subnet.FamilyOf(r.Dst.Addr()))
	if h.Bridge == "" && r.Dst == own { // to what this host has in a bridge's place
		return false
	}
	_, planned := f.Plan.State().Links[r.Dev]
	return network.IsValid() && !byOperator(f.Plan) && r.Dst.Bits() >= network.Bits() && network.Contains(r.Dst.Addr()) && r.Table == unix.RT_TABLE_MAIN &&
		!planned && r.Dev != h.Bridge && !slices.Contains(h.Underlay.OnLink, r.Dst)
}

func overlappingRoutes(f Facts) (findings []Finding) {
	var rows []string
	for _, r := range f.Routes {
		if f.inNetwork(r) {
			rows = append(rows, "ip route: "+r.String())
		}
	}
	for _, p := range f.Paths {
		row := fmt.Sprintf("ip route get fibmatch: %s%s", p.Inner, f.because(p.Inner))
		if p.Inner.Table != 0 && !byOperator(f.Plan) && !slices.Contains(rows, row) {
			rows = append(rows, row)
		}
	}
	if len(rows) > 0 {
		findings = one(fmt.Sprintf("somebody else routes parts of the overlay's range %s", networks(f.Plan)), some(rows),
			"take the route or rule away from whoever made it (a VPN, another overlay, a Docker network); or choose another range for this network (tulle config set)")
	}
	if peers, dev, evidence := f.ledAway(false); len(peers) > 0 {
		if dev == "" {
			dev = "nowhere"
		}
		findings = append(findings, Finding{What: fmt.Sprintf("a route leads to peers' public addresses another way than by %s: %s by %s",
			f.Plan.Host().Underlay.Device, strings.Join(peers, ", "), dev),
			Evidence: evidence, Fix: "take that route away (a VPN's, mostly), or keep the peers' addresses out of it"})
	}
	return findings
}

// programmed reports whether packets to a peer's containers go the way that the agent made, if it makes one.
func (f Facts) programmed(p Path) bool {
	return p.Entry == (Hop{}) && (p.Inner.Ours() || byOperator(f.Plan) || bridged(f.Plan))
}

// outside reports whether packets to a peer's host go to the underlay.
func (f Facts) outside(p Path) bool {
	return p.Outer.Type == "unicast" && p.Outer.Dev == f.Plan.Host().Underlay.Device
}

// notProgrammed looks for what the agent makes for each peer. A route that somebody else's stands in front of is overlapping.
func notProgrammed(f Facts) []Finding {
	var rows []string
	var missing []Path
	fix := "systemctl restart tulle"
	for _, p := range f.Paths {
		network := f.Plan.Host().Config.Range.Of(p.family()).Network
		theirs := p.Inner.Table != 0 || p.Inner.Prefix.IsValid() && p.Inner.Prefix.Bits() >= network.Bits()
		switch {
		case p.Entry != (Hop{}):
			rows, fix = append(rows, fmt.Sprintf("%s: %s; %s", p.Key, p.Entry.What, p.Entry.Why)), p.Entry.Fix
		case !f.programmed(p) && !theirs:
			rows = append(rows, fmt.Sprintf("ip route get fibmatch, to %s: %s", p.Key, p.Inner))
		default:
			continue
		}
		missing = append(missing, p)
	}
	if len(rows) == 0 || !f.deviceWell() {
		return nil
	}
	return one(fmt.Sprintf("what leads to %s is not in the kernel, or altered", count(peers(missing), "peer")), some(rows), fix+"; tulle trace ADDRESS shows the whole way")
}

// dockerd is this host's, if one runs.
func (f Facts) dockerd() (p Program, runs bool) {
	i := slices.IndexFunc(f.Programs, func(p Program) bool { return p.Name == "dockerd" })
	if i < 0 {
		return p, false
	}
	return f.Programs[i], true
}

// setting is one of dockerd's options, from its command line or daemon.json, where its key is without dashes; "" if it has none.
func (f Facts) setting(name string) string {
	p, _ := f.dockerd()
	if value := option(p.Args, name); value != "" {
		return value
	}
	return strings.Trim(string(f.DockerConfig[strings.TrimPrefix(name, "--")]), `"`)
}

// restored reports whether a dockerd was told the address that it should have, and kept another: with --live-restore and
// containers that run it does.
func (f Facts) restored(want netip.Prefix) bool {
	return f.setting(bips.Of(subnet.FamilyOf(want.Addr()))) == want.String()
}

// bridged looks at the bridge's addresses by family: find is given the one that it should have, and the others that it has.
func (f Facts) bridged(find func(bridge Device, want netip.Prefix, rest []netip.Prefix) []Finding) (findings []Finding) {
	bridge, exists := f.device(f.Plan.Host().Bridge)
	for family, want := range f.Plan.Host().BridgeAddrs().All() {
		var rest []netip.Prefix
		for _, a := range bridge.Addrs {
			if a != want && subnet.FamilyOf(a.Addr()) == family && !a.Addr().IsLinkLocalUnicast() {
				rest = append(rest, a)
			}
		}
		if exists && !f.off(bridge.Name, family) {
			findings = append(findings, find(bridge, want, rest)...)
		}
	}
	return findings
}

func bridgeAddress(f Facts) []Finding { return f.bridged(f.addressOf) }

func (f Facts) addressOf(bridge Device, want netip.Prefix, rest []netip.Prefix) []Finding {
	if slices.Contains(bridge.Addrs, want) || len(rest) > 0 && f.restored(want) {
		return nil
	}
	has := list(rest)
	if len(rest) == 0 && len(bridge.Addrs) > 0 {
		has = "no address of " + subnet.FamilyOf(want.Addr()).String()
	}
	return one(fmt.Sprintf("%s has %s, and this host's lease says %s: its containers are not reached", bridge.Name, has, want),
		fmt.Sprintf("ip addr show %s: %s", bridge.Name, list(bridge.Addrs)),
		fmt.Sprintf("systemctl stop docker; ip link del %s; systemctl start docker, with DOCKER_OPTS from %s", bridge.Name, f.EnvPath))
}

func liveRestore(f Facts) []Finding { return f.bridged(f.keptOf) }

func (f Facts) keptOf(bridge Device, want netip.Prefix, rest []netip.Prefix) []Finding {
	has := slices.Contains(bridge.Addrs, want)
	if len(rest) == 0 || !has && !f.restored(want) {
		return nil
	}
	evidence := fmt.Sprintf("ip addr show %s: %s; wanted is %s", bridge.Name, list(bridge.Addrs), want)
	if f.restored(want) {
		evidence += "; dockerd was told " + bips.Of(subnet.FamilyOf(want.Addr())) + "=" + want.String()
	}
	return one(fmt.Sprintf("%s keeps %s from before: Docker's --live-restore leaves it as long as containers run", bridge.Name, list(rest)), evidence,
		fmt.Sprintf("docker stop $(docker ps -q); systemctl restart docker, with DOCKER_OPTS from %s; if the address stays: ip addr del %s dev %s",
			f.EnvPath, rest[0], bridge.Name))
}

func dockerOptions(f Facts) []Finding {
	if _, runs := f.dockerd(); !runs {
		return nil
	}
	var rows []string
	for _, o := range f.Env.Options() {
		name, want, _ := strings.Cut(string(o), "=")
		have := f.setting(name)
		if have == want || have == "" && name != "--mtu" && name != "--fixed-cidr" { // containers show, or it is the same; an MTU has another default, and a range is larger
			continue
		}
		rows = append(rows, fmt.Sprintf("dockerd runs with %s=%s, the env file says %s", name, cmp.Or(have, "(not given)"), want))
	}
	if len(rows) == 0 {
		return nil
	}
	return one("dockerd does not run with what the env file says", strings.Join(rows, "\n"),
		fmt.Sprintf("start dockerd with DOCKER_OPTS from %s (in its unit: EnvironmentFile=%s), and make the containers anew", f.EnvPath, f.EnvPath))
}
