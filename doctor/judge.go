package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tulle-net/tulle/agent/probe"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/kernel"
	"github.com/tulle-net/tulle/subnet"
)

// The hops' names.
const (
	hopContainer  = "container"
	hopGateway    = "gateway"
	hopLease      = "lease"
	hopDevice     = "device"
	hopBridge     = "bridge"
	hopForwarding = "forwarding"
	hopRoute      = "route"
	hopNexthop    = "nexthop"
	hopNeighbour  = "neighbour"
	hopFDB        = "fdb"
	hopFlood      = "flood"
	hopEndpoint   = "endpoint"
	hopUnderlay   = "underlay"
	hopFirewall   = "firewall"
	hopForward    = "forward"
	hopMasquerade = "masquerade"
	hopOutput     = "output"
	hopInput      = "input"
	hopReturn     = "return"
	hopHost       = "peer host"
	hopOverlay    = "overlay"
	hopMTU        = "path MTU"
	hopAddress    = "address"
)

// Judge says what is right and what is wrong with each hop, in the packet's order, as far as no packet must be sent for it.
func (f *PathFacts) Judge() (hops []Hop) {
	add := func(name string, h Hop) {
		if err := f.Unseen[name]; err != nil {
			h = unknown(h.What, err.Error())
		}
		h.Name = name
		hops = append(hops, h)
	}
	if f.Container != nil {
		add(hopContainer, f.container())
		if f.Container.Way.Via.IsValid() {
			add(hopGateway, f.gateway())
		}
	}
	switch f.place() {
	case ofHost:
		add(hopRoute, f.local())
	case ofOutside:
		add(hopRoute, f.outside())
	case ofSubnet:
		add(hopLease, f.lease())
		add(hopBridge, f.bridge())
		add(hopRoute, f.connected())
	default:
		f.judgePeer(add)
	}
	return hops
}

func (f *PathFacts) judgePeer(add func(string, Hop)) {
	add(hopLease, f.lease())
	row, ok := f.row()
	if !ok {
		add(hopRoute, skipped(f.Forwarded.String()))
		return
	}
	if row.tunnelled() {
		add(hopDevice, f.device(row))
	}
	if f.arrives() != "" && !f.atBridge() {
		add(hopForwarding, f.forwarding())
	}
	switch {
	case row.routed():
		add(hopRoute, f.route(row))
		add(hopNexthop, f.nexthop(row))
	case bridged(f.Plan):
		add(hopBridge, f.bridge())
		add(hopRoute, f.connected())
		add(hopFlood, f.flood(row))
	default:
		add(hopRoute, f.operators(row))
	}
	if row.MAC != (backend.MAC{}) {
		add(hopNeighbour, f.neighbour(row))
		add(hopFDB, f.fdb(row))
	}
	if row.Endpoint.IsValid() {
		add(hopEndpoint, f.endpoint(row))
	}
	add(hopUnderlay, f.underlay(row))
	if err := f.Unseen[hopFirewall]; err != nil {
		add(hopFirewall, unknown("", err.Error()))
		return
	}
	for _, p := range f.passages(row) {
		add(p.name, f.pass(p))
	}
}

// heal is how something of the agent's comes back. command does it by hand, unless it is "".
func (f *PathFacts) heal(command string) string {
	switch {
	case f.Agent:
		return "the agent puts it back within seconds; if it does not, tulle events and journalctl -u tulle say why"
	case command == "":
		return "start the agent, which puts it right: systemctl start tulle"
	}
	return "start the agent, which puts it back: systemctl start tulle; or by hand: " + command
}

func (f *PathFacts) container() Hop {
	c, mtu := f.Container, f.Plan.State().MTU
	what := fmt.Sprintf("%s has %s on %s, MTU %d", c.Name, c.Addr, c.Dev, c.MTU)
	own := f.Plan.Host().Self.Subnet.Of(subnet.FamilyOf(f.Address))
	switch {
	case c.Host:
		return right(c.Name + " is in the host's own network")
	case !c.Way.Prefix.IsValid() || !c.Addr.IsValid():
		return wrong(c.Name+": "+c.Way.String(), "it has no way to "+f.Address.String(),
			"connect it to Docker's default network (docker network connect bridge "+c.Name+"), or give it an interface: tulle attach "+c.Name)
	case c.Way.Type != "unicast" && c.Way.Type != "local":
		return wrong(c.Name+": "+c.Way.String(), "its own network sends such packets nowhere", "delete that route inside the container")
	case f.elsewhere():
		why := fmt.Sprintf("that is no address of this host's lease %s: peers see the host's address instead", own)
		if c.MTU > mtu {
			why += fmt.Sprintf("; and its MTU is larger than the overlay's %d: make its network with -o com.docker.network.driver.mtu=%d", mtu, mtu)
		}
		return noted(what, why)
	case c.MTU > mtu && f.place() == ofPeer:
		return wrong(what, fmt.Sprintf("the overlay takes packets of at most %d bytes: longer ones are refused, and lost where ICMP is filtered", mtu),
			fmt.Sprintf("start dockerd with --mtu=%d, as the agent's env file says, and make the container anew", mtu))
	}
	return right(what)
}

// elsewhere says that the container's address is not of this host's lease: it is on another of Docker's networks.
func (f *PathFacts) elsewhere() bool {
	return f.Container != nil && !f.Container.Host && !f.Plan.Host().Self.Subnet.Of(subnet.FamilyOf(f.Address)).Contains(f.Container.Addr)
}

func (f *PathFacts) gateway() Hop {
	c := f.Container
	what := fmt.Sprintf("%s inside %s", c.Way, c.Name)
	switch {
	case !c.Gateway:
		return wrong(what, fmt.Sprintf("%s is not an address of this host", c.Way.Via),
			"docker0's address must be the lease's: restart dockerd with the agent's env file, and make the container anew")
	case c.Silent != nil:
		return wrong(what, fmt.Sprintf("its gateway does not answer: %v", c.Silent),
			fmt.Sprintf("is its cable still in the bridge? ip link show master %s; make the container anew otherwise", f.arrives()))
	}
	return right(what)
}

// lease compares what the agent plans with what etcd has now.
func (f *PathFacts) lease() Hop {
	stored, lease, exists := f.peer()
	if f.place() == ofSubnet {
		lease, exists = f.Plan.Host().Self, true
		stored = f.View.Self
	}
	if !exists {
		return wrong("no lease covers "+f.Address.String(), "nobody has leased its subnet",
			"start the agent on the host that is to have it; tulle lease ls shows who has what")
	}
	p, public := lease.Subnet.Of(subnet.FamilyOf(f.Address)), addresses(lease)
	what := fmt.Sprintf("%s is leased to %s", p, public)
	if stored.Reserved {
		what = fmt.Sprintf("%s is reserved for %s", p, public)
	}
	e := f.Etcd
	rejected, left := f.Plan.Rejected()[stored.Key]
	switch {
	case stored.LeftOut != "" || left:
		return wrong(what, "it is left out here: "+cmp.Or(stored.LeftOut, rejected.Error()), fmt.Sprintf("put it right on %s, or release it: tulle lease release %s", public, p))
	case stored.Reserved && lease.Idle() && !f.Plan.IsPeer(stored.Key, subnet.Entry{Lease: lease, Reserved: true}):
		return wrong(what, "its host has not come yet", fmt.Sprintf("start the agent on %s", public))
	case f.place() == ofPeer && !f.carried():
		return wrong(what, "packets of its family are not carried there: IPv6 can't be routed by way of an IPv4 gateway",
			"give both hosts IPv6 addresses on the segment, or choose a backend that encapsulates (tulle config set)")
	case e.Error != "":
		return unknown(what, "etcd does not say whether it still is: "+e.Error)
	case e.Lease == nil:
		return wrong(what, "etcd has that lease no more: it has expired, or somebody released it", fmt.Sprintf("start the agent on %s, which takes it again: systemctl start tulle", public))
	case e.Lease.Value != stored.Value:
		return wrong(what, "etcd has another value for it: "+e.Lease.Value, "this host goes by an older one: is its agent in touch with etcd (tulle status)? Restart it otherwise")
	}
	const soon = 30 * time.Minute // flanneld renews an hour before the end, agents much earlier
	remaining := time.Duration(e.TTL) * time.Second
	forTime := fmt.Sprintf("%s, for %d h %d min", what, remaining/time.Hour, remaining%time.Hour/time.Minute)
	switch {
	case e.TTL == 0:
		return right(what)
	case remaining < soon:
		return noted(forTime, fmt.Sprintf("nobody renews it: does the agent run on %s?", public))
	}
	return right(forTime)
}

// carried reports whether the plan has a way to the address, whoever makes it.
func (f *PathFacts) carried() bool {
	_, ok := f.row()
	return ok
}

func (f *PathFacts) device(row row) Hop {
	name := row.Outer.Device
	want, have := f.Plan.State().Links[name], f.Links[name]
	up := have
	up.Down = false
	switch {
	case have.Kind == "":
		return wrong(name, "there is no such device", f.heal(""))
	case have.Down:
		return wrong(fmt.Sprintf("%s is down, %s", name, have), "it is down, which also removes its routes", f.heal("ip link set "+name+" up"))
	case up != want:
		return wrong(name+" "+have.String(), "it should be "+want.String(), f.heal(""))
	case want.Kind == backend.KindTUN && !f.Agent:
		return wrong(name+" "+have.String(), "the agent itself carries its packets, and it does not run", f.heal(""))
	}
	return right(name + " " + have.String())
}

func (f *PathFacts) forwarding() Hop {
	sysctl := forwards.Of(subnet.FamilyOf(f.Address))
	if !f.Forwarding {
		return wrong(sysctl+"=0", "this host forwards nothing for its containers", f.heal("sysctl -w "+sysctl+"=1"))
	}
	return right(sysctl + "=1")
}

// route judges the routes of forwarded packets and of this host's own.
func (f *PathFacts) route(row row) Hop {
	add := fmt.Sprintf("ip route replace %s %s proto 84", row.Prefix, row.Route)
	for _, way := range []kernel.Way{f.Forwarded, f.Own} {
		covers := way.Prefix.IsValid() && way.Prefix.Bits() >= row.Prefix.Bits()
		switch {
		case way.Ours() && way.Prefix == row.Prefix && way.Type == "unicast":
			continue
		case way.Table != 0:
			return wrong(way.String(), fmt.Sprintf("somebody else's route takes the packets: a policy rule (ip rule) asks table %d first", way.Table),
				"delete it: ip route del "+routeSpec(way)+"; or delete that rule")
		case covers:
			return wrong(way.String(), fmt.Sprintf("somebody else's route takes the packets, not %s %s", row.Prefix, row.Route), "delete it: ip route del "+routeSpec(way))
		}
		return wrong(way.String(), fmt.Sprintf("the route to %s is missing", row.Prefix), f.heal(add))
	}
	return right(f.Forwarded.String())
}

// routeSpec is way as `ip route del` takes it.
func routeSpec(way kernel.Way) string {
	return quoteAll(strings.Fields(strings.TrimSuffix(way.String(), " onlink")))
}

func (f *PathFacts) nexthop(row row) Hop {
	what, id := f.Nexthop.String(), f.Forwarded.Nexthop
	command := fmt.Sprintf("ip route replace %s %s proto 84", row.Prefix, row.Route)
	if id != 0 {
		what, command = fmt.Sprintf("id %d %s", id, f.Nexthop), fmt.Sprintf("ip nexthop replace id %d %s proto 84", id, row.Route)
	}
	switch {
	case !f.Forwarded.Ours():
		return skipped(row.Route.String())
	case f.Nexthop != row.Route:
		return wrong(what, "it should be "+row.Route.String(), f.heal(command))
	}
	return right(what)
}

func (f *PathFacts) neighbour(row row) Hop {
	command := fmt.Sprintf("ip neigh replace %s lladdr %s dev %s nud permanent", row.Via, row.MAC, row.Dev)
	what, asks := fmt.Sprintf("%s lladdr %s dev %s %s", row.Via, f.MAC, row.Dev, f.Neighbour), resolution.Of(subnet.FamilyOf(row.Via))
	switch {
	case f.Links[row.Dev].Kind == "":
		return skipped(fmt.Sprintf("%s dev %s", row.Via, row.Dev))
	case f.Neighbour == "":
		return wrong(fmt.Sprintf("no neighbour %s dev %s", row.Via, row.Dev), "nobody answers "+asks+" there: the entry must be permanent", f.heal(command))
	case f.MAC != row.MAC:
		return wrong(what, "its lease says "+row.MAC.String(), f.heal(command))
	case f.Neighbour != "PERMANENT":
		return wrong(what, "the entry must be permanent: nobody answers "+asks+" there", f.heal(command))
	}
	return right(what)
}

func (f *PathFacts) fdb(row row) Hop {
	command := fmt.Sprintf("bridge fdb replace %s dev %s dst %s self permanent", row.MAC, row.Dev, row.Public)
	switch {
	case f.Links[row.Dev].Kind == "":
		return skipped(fmt.Sprintf("%s dev %s", row.MAC, row.Dev))
	case !f.VTEP.IsValid():
		return wrong(fmt.Sprintf("no entry for %s dev %s", row.MAC, row.Dev), "frames for it are sent nowhere", f.heal(command))
	case f.VTEP != row.Public:
		return wrong(fmt.Sprintf("%s dev %s dst %s", row.MAC, row.Dev, f.VTEP), fmt.Sprintf("its lease says %s", row.Public), f.heal(command))
	}
	return right(fmt.Sprintf("%s dev %s dst %s", row.MAC, row.Dev, f.VTEP))
}

// endpoint says where a device sends to that is not the kernel's to look into.
func (f *PathFacts) endpoint(row row) Hop {
	what := fmt.Sprintf("%s is sent to %s by %s", row.Prefix, row.Endpoint, row.Dev)
	switch {
	case f.Links[row.Dev].Kind == "":
		return skipped(what)
	case f.Shaken == nil:
		return right(what)
	case f.Shaken.IsZero():
		return noted(what, "there was no handshake yet: the first packet begins one")
	}
	return right(fmt.Sprintf("%s, last handshake at %s UTC", what, f.Shaken.UTC().Format(time.TimeOnly)))
}

// flood judges the entry by which a peer gets a copy of what has no one destination: all that asks for its containers' MACs.
func (f *PathFacts) flood(row row) Hop {
	dev := row.Outer.Device
	what := fmt.Sprintf("%s dev %s dst %s", backend.MAC{}, dev, row.Public)
	switch {
	case f.Links[dev].Kind == "":
		return skipped(what)
	case !f.Flood:
		return wrong("no entry "+what, "no broadcast gets there, nor what asks for a container's MAC", f.heal("bridge fdb append "+what+" self permanent"))
	}
	return right(what)
}

// operators tells of the route that the operator's own means have made, or not.
func (f *PathFacts) operators(row row) Hop {
	who := "the network's backend is alloc, which makes no routes: this is the operator's own business"
	fix := fmt.Sprintf("make a way to %s, behind %s, by whatever carries your packets", row.Prefix, row.Public)
	if carriage(f.Plan) == "extension" {
		who = "it is the extension's commands that make the way, not the agent"
		fix = fmt.Sprintf("see that SubnetAddCommand (tulle config get) made a way to %s, behind %s: tulle events says if it failed", row.Prefix, row.Public)
	}
	if !f.Forwarded.Prefix.IsValid() || f.Forwarded.Type != "unicast" {
		return wrong(f.Forwarded.String(), who+", and this host has no way there", fix)
	}
	return noted(f.Forwarded.String(), who)
}

// underlay judges the route that packets to the peer's host take.
func (f *PathFacts) underlay(row row) Hop {
	way, device := f.Underlay, f.Plan.Host().Underlay.Device
	public := row.Public
	what := fmt.Sprintf("%s: %s", public, way)
	switch {
	case !way.Prefix.IsValid():
		return wrong(what, "this host has no route to its peer", "give it one: ip route add "+public.String()+" via … dev "+quote(device))
	case way.Type == "local":
		return wrong(what, public.String()+" is an address of this host itself", "take it away from here, or correct the peer's --public-ip")
	case way.Type != "unicast":
		return wrong(what, "that route leads nowhere", fmt.Sprintf("delete it: ip route del %s %s", way.Type, way.Prefix))
	case row.tunnelled() && way.Dev == row.Outer.Device:
		return wrong(what, "that is the overlay itself: what carries it can't go through it", "ip route del "+routeSpec(way)+", and give the underlay a range outside of the network's")
	case way.Dev != device:
		return noted(what, fmt.Sprintf("the overlay uses %s: tulle agent --iface chooses another", device))
	}
	return right(what)
}

// local judges an address of this host.
func (f *PathFacts) local() Hop {
	if f.Own.Type != "local" && f.Own.Type != "anycast" { // an IPv6 subnet's first is every router's (RFC 4291, 2.6.1)
		return wrong(f.Own.String(), f.Address.String()+" is to be this host's own address, and is not", f.heal(""))
	}
	return noted(f.Own.String(), "it is this host's own address")
}

func (f *PathFacts) outside() Hop {
	why := "it is outside of the overlay, which has no addresses of its family"
	if network := f.Plan.Host().Config.Range.Of(subnet.FamilyOf(f.Address)).Network; network.IsValid() {
		why = fmt.Sprintf("it is outside of the overlay's %s", network)
	}
	if !f.Forwarded.Prefix.IsValid() || f.Forwarded.Type != "unicast" {
		return wrong(f.Forwarded.String(), why+", and this host has no way there", "give the host a route: ip route add "+f.Address.String()+" via …")
	}
	return noted(f.Forwarded.String(), why+": this route is not the agent's")
}

// bridge judges the device that this host's own containers are behind.
func (f *PathFacts) bridge() Hop {
	h := f.Plan.Host()
	want := h.BridgeAddrs().Of(subnet.FamilyOf(f.Address))
	have := fmt.Sprintf("%s has %s", h.Bridge, joined(f.Bridge))
	switch {
	case h.Bridge == "":
		return noted("no bridge", "the agent was started without one")
	case f.Links[h.Bridge].Kind == "":
		return wrong(h.Bridge, "there is no such device", f.heal("ip link add "+h.Bridge+" type bridge"))
	case f.Links[h.Bridge].Down:
		return wrong(h.Bridge+" is down", "its containers are cut off", f.heal("ip link set "+h.Bridge+" up"))
	case !slices.Contains(f.Bridge, want):
		return wrong(have, fmt.Sprintf("by the lease it should have %s", want), "restart dockerd with the agent's env file: systemctl restart docker")
	}
	return right(have)
}

func joined(list []netip.Prefix) string {
	if len(list) == 0 {
		return "no address"
	}
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(list), " ", ", "), "[]")
}

// connected judges the route to this host's own containers.
func (f *PathFacts) connected() Hop {
	h := f.Plan.Host()
	want := h.BridgeAddrs().Of(subnet.FamilyOf(f.Address)).Masked()
	switch way := f.Own; {
	case h.Bridge == "" || way.Dev == h.Bridge && way.Type == "unicast":
		return right(way.String())
	case way.Prefix.IsValid() && way.Prefix.Bits() >= want.Bits():
		return wrong(way.String(), "somebody else's route takes the packets, not "+h.Bridge, "delete it: ip route del "+routeSpec(way))
	}
	return wrong(f.Own.String(), fmt.Sprintf("the route to %s dev %s is missing", want, h.Bridge), f.heal(fmt.Sprintf("ip route add %s dev %s", want, h.Bridge)))
}

// Judge says what the pings mean. Those that were not sent, because something before is wrong, are not reached.
func (p Pings) Judge(f PathFacts) (hops []Hop) {
	add := func(name string, h Hop) {
		h.Name = name
		hops = append(hops, h)
	}
	where := f.place()
	row, planned := f.row()
	if where == ofPeer && planned {
		add(hopHost, p.host(row.Public))
		if row.Inside.IsValid() {
			add(hopOverlay, p.overlay(f, row))
			add(hopMTU, p.mtu(f, row))
		}
	}
	if where != ofHost && (where != ofPeer || planned) {
		add(hopAddress, p.address(f, where, row.Public))
	}
	return hops
}

func (p *Pinged) what() string {
	return fmt.Sprintf("%s answers in %s", p.To, p.Trip.Round(10*time.Microsecond))
}

func (p *Pinged) silence() string { return fmt.Sprintf("%s does not answer", p.To) }

// lost says that a ping was sent and not answered; any other error says why none could be sent.
func (p *Pinged) lost() bool {
	return errors.Is(p.Error, probe.ErrNoAnswer) || errors.As(p.Error, new(*probe.ICMPError))
}

func (p Pings) host(public netip.Addr) Hop {
	overlay := p.Overlay != nil && p.Overlay.Error == nil
	switch u := p.Underlay; {
	case u == nil:
		return skipped(public.String())
	case u.Error == nil:
		return right(u.what())
	case overlay:
		return noted(u.silence(), "but the overlay does: something filters pings")
	case !u.lost():
		return unknown(u.silence(), u.Error.Error())
	case p.Overlay == nil:
		return unknown(u.silence(), "the host is down or not to be reached, or something filters pings")
	}
	return wrong(p.Underlay.silence(), fmt.Sprintf("neither it nor the overlay does (%v): the host is down or cut off, or something on the way filters", p.Underlay.Error),
		fmt.Sprintf("is %s up, and has it a way back here? Look there: ip addr, ip route", public))
}

func (p Pings) overlay(f PathFacts, row row) Hop {
	switch o := p.Overlay; {
	case o == nil || p.Underlay.Error != nil && o.Error != nil && o.lost():
		return skipped(row.Inside.String())
	case o.Error == nil:
		return right(o.what())
	case !o.lost():
		return unknown(o.silence(), o.Error.Error())
	case byOperator(f.Plan):
		return wrong(o.silence(), fmt.Sprintf("%s does, but not its address in the overlay: the extension's commands made no way there, or none back here", row.Public),
			fmt.Sprintf("see to the commands, here and there: ip route get %s; tulle events", row.Inside))
	case !row.tunnelled():
		return wrong(o.silence(), fmt.Sprintf("%s does, but not its address in the overlay: its agent does not run, it does not route back here, or something on the way drops containers' addresses (a cloud that checks sources)", row.Public),
			fmt.Sprintf("look there: tulle status, tulle trace %s", f.inside()))
	}
	suspects := "the peer's " + row.Outer.Device + " or agent is not there"
	if carriage(f.Plan) == "wireguard" {
		suspects = "the peer has another key or PSK, or " + suspects
	}
	return wrong(p.Overlay.silence(), fmt.Sprintf("%s does, but not through the tunnel: %s is blocked one way or both, or %s", row.Public, row.Outer, suspects),
		fmt.Sprintf("let %s pass between the hosts, in both directions and also in what is between them (security groups); look at %s: tulle status, tulle doctor", row.Outer, row.Public))
}

func (p Pings) mtu(f PathFacts, row row) Hop {
	want := f.Plan.State().MTU
	switch {
	case p.MTUErr != nil:
		return unknown(fmt.Sprintf("%d bytes", want), p.MTUErr.Error())
	case p.MTU == 0:
		return skipped(fmt.Sprintf("%d bytes", want))
	case p.MTU < want:
		outer := p.MTU
		if row.tunnelled() {
			outer += overheads[carriage(f.Plan)].Of(subnet.FamilyOf(row.Public))
		}
		return wrong(fmt.Sprintf("%d bytes", p.MTU), fmt.Sprintf("longer packets are lost on the way, though the overlay's MTU is %d: the underlay between here and %s carries %d bytes, not all that it should", want, row.Public, outer),
			"raise the MTU on the way, or "+lowerMTU(f.Plan, outer))
	}
	return right(fmt.Sprintf("%d bytes", p.MTU))
}

// lowerMTU says how the whole network gets by with an underlay of a smaller MTU. Not all backends have a key for it.
func lowerMTU(p *backend.Plan, underlay int) string {
	if slices.Contains([]string{"vxlan", "l2", "wireguard"}, carriage(p)) {
		return fmt.Sprintf(`tell the network: "MTU": %d in the config's Backend (tulle config set), and restart Docker on all hosts`, underlay)
	}
	return fmt.Sprintf("tell the hosts: ip link set %s mtu %d on all of them, and restart Docker", p.Host().Underlay.Device, underlay)
}

func (p Pings) address(f PathFacts, where place, public netip.Addr) Hop {
	switch a := p.Address; {
	case a == nil:
		return skipped(f.Address.String())
	case a.Error == nil:
		return right(a.what())
	case !a.lost() || where == ofOutside:
		return unknown(a.silence(), a.Error.Error())
	case where == ofSubnet:
		return wrong(a.silence(), fmt.Sprintf("no container of this host has it, or it answers no pings (%v)", a.Error), "is it running? docker ps, docker network inspect bridge")
	}
	return wrong(p.Address.silence(), fmt.Sprintf("its host does: the container is down, answers no pings, or %s does not forward to it (%v)", public, p.Address.Error),
		fmt.Sprintf("look at %s: docker ps, tulle doctor, tulle trace %s", public, f.source()))
}
