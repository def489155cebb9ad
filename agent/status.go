package agent

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// Status returns how the agent is.
func (a *Agent) Status() api.Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := &a.state
	status := api.Status{API: api.Version, Version: a.config.Version, Host: a.config.Host, Started: a.started,
		Lease: s.lease(), LeftOut: map[string]int{}, Repaired: maps.Clone(s.drift), Probing: a.config.Probe && !a.deaf.Load(),
		Etcd:   api.EtcdState{Connected: s.etcd == nil, Revision: s.revision, Endpoints: a.config.Endpoints},
		Docker: api.DockerState{Bridge: a.config.Options.Bridge, EnvFile: a.config.SubnetFile}}
	status.Ready, status.Reason = s.ready()
	if s.etcd != nil {
		status.Etcd.Error = s.etcd.Error()
	}
	for _, topic := range slices.Sorted(maps.Keys(s.warnings)) {
		status.Warnings = append(status.Warnings, s.warnings[topic])
	}
	if s.plan == nil {
		return status
	}
	status.Network, status.Underlay = network(s.plan), underlay(s.plan.Host().Underlay)
	status.Docker.Problem = cmp.Or(s.warnings["bridge"], s.warnings["daemon.json"])
	if status.Docker.Bridge != "" {
		status.Docker.Addresses, _ = a.kernel.Addresses(status.Docker.Bridge) // an error is the loop's to tell
	}
	status.Peers = a.peerCount()
	for _, r := range s.plan.Rejected() {
		status.LeftOut[string(r.Reason)]++
	}
	return status
}

// lease is what is held, for the API.
func (s *state) lease() *api.Lease {
	if !s.own.Held() {
		return nil
	}
	l := &api.Lease{Key: s.own.Lease.Key(), Subnets: values(s.own.Lease.Subnet), Reserved: s.own.Reserved}
	if at := expiry(s.own).UTC(); !at.IsZero() {
		l.Expires = &at
		renewed := at.Add(-s.own.TTL)
		l.Renewed = &renewed
	}
	return l
}

// values are those of a pair that are there, IPv4 first.
func values[T interface {
	comparable
	IsValid() bool
}](p subnet.Pair[T]) (list []T) {
	for _, v := range p.All() {
		list = append(list, v)
	}
	return list
}

// each writes the values of a pair that are there.
func each[T comparable](p subnet.Pair[T]) string { return p.Join(", ") }

func network(p *backend.Plan) api.Network {
	s, o := p.State(), p.State().Outer()
	n := api.Network{Backend: cmp.Or(p.Host().Config.Backend.Type, "vxlan"), MTU: s.MTU, Device: o.Device, Kind: string(o.Kind), VNI: s.Links[o.Device].VXLAN.VNI, Port: o.Port}
	if outers := s.Outers(); len(outers) > 1 {
		for _, o := range outers {
			n.Devices = append(n.Devices, api.Device{Name: o.Device, Port: o.Port})
		}
	}
	for _, r := range p.Host().Config.Range.All() {
		n.Ranges = append(n.Ranges, r.Network)
	}
	for name, t := range p.State().Tunnels {
		if t.Key != (backend.Secret{}) {
			n.PublicKey, n.Userspace = t.Key.Public().String(), p.State().Links[name].Kind == backend.KindTUN
		}
	}
	return n
}

func underlay(u backend.Underlay) api.Underlay {
	return api.Underlay{Device: u.Device, MTU: u.MTU, Addresses: values(u.Local), PublicIPs: values(u.Public)}
}

// Peers returns how each peer is, by subnet; those that are left out, too.
func (a *Agent) Peers() api.Peers {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, handshakes := &a.state, a.handshakes()
	peers := make([]api.Peer, 0, len(s.entries))
	for key, e := range s.entries {
		if key != s.own.Lease.Key() && (!(e.Reserved && e.Lease.Idle()) || s.plan != nil && s.plan.IsPeer(key, e)) {
			p := a.peer(key, e)
			if at, known := handshakes[key]; known {
				shaken(&p, at)
			}
			peers = append(peers, p)
		}
	}
	slices.SortFunc(peers, comparePeers)
	return api.Peers{API: api.Version, Peers: peers}
}

func (a *Agent) peer(key string, e subnet.Entry) api.Peer {
	s := &a.state
	p := api.Peer{Key: key, Subnets: values(e.Lease.Subnet), PublicIPs: values(e.Lease.PublicIP), State: api.Unknown}
	if at, ok := s.changed.of(key); ok {
		at = at.UTC()
		p.Changed = &at
	}
	switch {
	case s.plan == nil:
		p.Why = "nothing is programmed yet"
	case e.Err != nil:
		p.State, p.Why = api.LeftOut, e.Err.Error()
	}
	if s.plan != nil {
		if r, left := s.plan.Rejected()[key]; left {
			p.State, p.Why = api.LeftOut, r.Error()
		}
	}
	if p.State != api.LeftOut {
		a.reached(&p)
	}
	return p
}

// shaken adds to a peer when WireGuard's last handshake with it was.
func shaken(p *api.Peer, at time.Time) {
	utc := at.UTC()
	p.Handshake = &utc
	if p.State != api.Unreachable || time.Since(at) < api.SessionEnds {
		return
	}
	p.Why += "; there is no WireGuard handshake with it: is its agent stopped, or has it another PSK?"
}

// comparePeers orders peers by their subnets; those without one come last.
func comparePeers(a, b api.Peer) int {
	if len(a.Subnets) == 0 || len(b.Subnets) == 0 {
		return cmp.Or(cmp.Compare(len(b.Subnets), len(a.Subnets)), cmp.Compare(a.Key, b.Key))
	}
	return cmp.Or(a.Subnets[0].Compare(b.Subnets[0]), cmp.Compare(a.Key, b.Key))
}

// View returns what the agent plans from; of the leases, if address is valid, only those that cover it, and this host's own.
func (a *Agent) View(address netip.Addr) api.View {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := &a.state
	v := api.View{API: api.Version, Version: a.config.Version, Revision: s.revision, Config: backend.Redact(s.config.Text, ""), Options: a.options(),
		Chosen: a.config.Choice.Named(), Leases: map[string]api.StoredLease{}}
	if s.own.Held() {
		v.Self = api.Stored(s.own.Lease.Key(), subnet.Entry{Lease: s.own.Lease, Reserved: s.own.Reserved})
	}
	var rejected map[string]subnet.Reject
	if s.plan != nil {
		v.Underlay, v.Userspace, rejected = s.plan.Host().Underlay, s.plan.Host().Facts.Userspace, s.plan.Rejected()
	}
	for key, e := range s.entries {
		if address.IsValid() && !covers(e.Lease, address) && key != v.Self.Key {
			continue
		}
		l := api.Stored(key, e)
		if r, left := rejected[key]; left {
			l.LeftOut = r.Error()
		}
		v.Leases[key] = l
	}
	return v
}

func covers(l subnet.Lease, a netip.Addr) bool {
	for _, p := range l.Subnet.All() {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Etcd asks etcd how it is, and what is stored under key unless that is "".
func (a *Agent) Etcd(ctx context.Context, key string) api.Etcd {
	look, err := a.store.Look(ctx, key)
	return api.Looked(look, key, err)
}
