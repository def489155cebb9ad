package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/probe"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// probePeers probes peers until ctx ends. A host that may not do so carries packets all the same.
func (a *Agent) probePeers(ctx context.Context) error {
	if !a.config.Probe {
		return nil
	}
	if err := a.prober.Run(ctx); err != nil {
		a.log.Warn("peers are not probed, so that nobody knows whether they can be reached: --no-probe keeps it from being tried", "error", err)
		a.deaf.Store(true)
	}
	return nil
}

// aim tells the prober where peers are: all of them after a new plan, or else those whose leases changed.
func (a *Agent) aim(anew bool, changed map[string]subnet.Entry) {
	plan := a.state.plan
	if a.prober == nil || plan == nil {
		return
	}
	h := plan.Host()
	a.prober.SetSelf(h.Self.Key(), a.state.sources()...)
	if !anew {
		for key := range changed {
			a.aimAt(key)
		}
		return
	}
	a.prober.Reset(func(yield func(string, []probe.Target) bool) {
		for key, e := range plan.Entries() {
			if plan.IsPeer(key, e) && !yield(key, targets(plan, e.Lease)) {
				return
			}
		}
	})
}

// inside are the addresses inside the overlay that this host answers at and probes from, as far as it has them: with some backends
// they are the bridge's, which Docker may have given others.
func (s *state) inside() (inside subnet.Pair[netip.Addr]) {
	h := s.plan.Host()
	for f, bridge := range h.BridgeAddrs().All() {
		if a := s.plan.Inside(h.Self).Of(f); a != bridge.Addr() || s.bridged.Of(f) {
			*inside.At(f) = a
		}
	}
	return inside
}

// sources are the addresses that peers are probed from.
func (s *state) sources() (from []probe.Target) {
	inside, local := s.inside(), s.plan.Host().Underlay.Local
	for _, f := range []subnet.Family{subnet.IPv4, subnet.IPv6} {
		if t := (probe.Target{Overlay: inside.Of(f), Underlay: local.Of(f)}); t != (probe.Target{}) {
			from = append(from, t)
		}
	}
	return from
}

// aimAt tells the prober where the peer with this key is, or that there is none.
func (a *Agent) aimAt(key string) {
	if a.prober == nil {
		return
	}
	if e, there := a.state.plan.Entries()[key]; there && a.state.plan.IsPeer(key, e) {
		a.prober.Set(key, targets(a.state.plan, e.Lease)...)
	} else {
		a.prober.Drop(key)
	}
}

// targets are where a peer is probed: for each family inside, there, and where its packets are sent to.
func targets(p *backend.Plan, l subnet.Lease) (all []probe.Target) {
	for _, leg := range p.Legs(l).All() {
		all = append(all, probe.Target{Overlay: leg.Inside, Underlay: leg.To})
	}
	return all
}

// turned tells that a peer can or can't be reached any more; of many, how many.
func (a *Agent) turned(key string, r probe.Result) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, unreachable, _ := a.prober.Count()
	switch e := a.state.entries[key]; {
	case unreachable > talkative:
		a.say("unreachable", slog.LevelWarn, fmt.Sprintf("more than %d peers are unreachable: tulle status lists them", talkative))
	case r.State == probe.Unreachable:
		a.log.Warn(fmt.Sprintf("peer %s (%s) is unreachable: %s", subnetName(key), each(e.Lease.PublicIP), a.whyUnreachable(key, r)), "lease", key)
	default:
		delete(a.state.said, "unreachable")
		a.log.Info(fmt.Sprintf("peer %s (%s) is reachable again", subnetName(key), each(e.Lease.PublicIP)), "lease", key)
	}
}

// whyUnreachable says why a peer is unreachable.
func (a *Agent) whyUnreachable(key string, r probe.Result) string {
	plan, results := a.state.plan, a.prober.Results(key)
	legs := plan.Legs(a.state.entries[key].Lease)
	leg := legs.Of(subnet.FamilyOf(r.Target.Overlay))
	return byFamily(results, legs, leg, whyUnreachable(r, plan.Peers()*len(results), leg.Outer))
}

// byFamily names the family that a leg and its why are about, if the peer is reachable by the other. If what carries both is the same,
// that is not blocked.
func byFamily(results []probe.Result, legs subnet.Pair[backend.Leg], leg backend.Leg, why string) string {
	if !slices.ContainsFunc(results, func(r probe.Result) bool { return r.State == probe.Reachable }) {
		return why
	}
	family := subnet.FamilyOf(leg.Subnet.Addr())
	other := legs.Of(family.Other())
	if leg.To == other.To && leg.Outer == other.Outer {
		why = "what carries both is the same, so something inside is in its way, here or there: a packet filter, or what forwards"
	}
	return fmt.Sprintf("%s gets through, %s does not: %s", family.Other(), family, why)
}

// whyUnreachable says as much as the probes tell. Which way is open is told by who was heard, and goes on being heard, later than
// the other: by more than hosts take to probe all their peers, which have so many targets. Outer is what carries the probes.
func whyUnreachable(r probe.Result, targets int, outer backend.Outer) string {
	underlay, round := r.Paths[probe.Underlay], max(5, time.Duration(targets))*time.Second+2*time.Second
	speaks := !r.HeardUs.IsZero() || r.Heard.Sub(r.Paths[probe.Overlay].Answered) > round // a flannel host answers, and says nothing
	switch {
	case underlay.Answered.IsZero() || underlay.Failures > 1:
		return "it answers neither over the overlay nor over the underlay: is its host down?"
	case speaks && r.Heard.Sub(r.HeardUs) > round:
		return fmt.Sprintf("its packets come in over the overlay, ours don't reach it: %s blocked from here to there?", are(outer))
	case r.HeardUs.Sub(r.Heard) > round:
		return fmt.Sprintf("ours reach it over the overlay, as it says, its packets don't come in: %s blocked from there to here?", are(outer))
	}
	return fmt.Sprintf("it answers over the underlay, but not over the overlay: %s blocked, or its agent stopped?", are(outer))
}

// are begins a question about what carries packets.
func are(o backend.Outer) string {
	if o == (backend.Outer{}) {
		return "are " + o.String()
	}
	return "is " + o.String()
}

// whyUnknown says why no peer's answers are known inside the overlay; "" if they may be.
func (s *state) whyUnknown() string {
	h, inside := s.plan.Host(), s.inside()
	wanted := s.plan.Inside(h.Self)
	if wanted == (subnet.Pair[netip.Addr]{}) {
		return fmt.Sprintf("the network's backend, %s, carries nothing: whether it can be reached is not probed", h.Config.Backend.Type)
	}
	for f := range h.BridgeAddrs().All() {
		if !inside.Of(f).IsValid() {
			return fmt.Sprintf("this host has no bridge with the address %s to probe from", wanted.Of(f))
		}
	}
	return ""
}

// reached adds to a peer what its probes tell.
func (a *Agent) reached(p *api.Peer) {
	if a.prober == nil {
		return
	}
	r, ok := a.prober.Result(p.Key)
	if !ok {
		return
	}
	f := found(r)
	p.State, p.Overlay, p.Underlay = f.State, f.Overlay, f.Underlay
	if r.State == probe.Unreachable {
		p.Why = a.whyUnreachable(p.Key, r)
	} else if r.State == probe.Unknown {
		p.Why = a.state.whyUnknown()
	}
	if results := a.prober.Results(p.Key); len(results) > 1 {
		for _, r := range results {
			p.Families = append(p.Families, found(r))
		}
	}
}

// found is what probes by one family tell, for the API.
func found(r probe.Result) api.Family {
	f := api.Family{Family: subnet.FamilyOf(r.Target.Overlay).String(), To: r.Target.Underlay,
		State:   [...]api.State{probe.Unknown: api.Unknown, probe.Reachable: api.Reachable, probe.Unreachable: api.Unreachable}[r.State],
		Overlay: probed(r.Paths[probe.Overlay]), Underlay: probed(r.Paths[probe.Underlay])}
	if f.Overlay != nil {
		f.Overlay.Heard, f.Overlay.HeardUs = r.Heard, r.HeardUs
	}
	return f
}

func probed(r probe.PathResult) *api.Probe {
	if r.Sent.IsZero() {
		return nil
	}
	return &api.Probe{RTT: r.Trip.Seconds(), Loss: r.Loss, Sent: r.Sent.UTC(), Answer: r.Answered.UTC()}
}

// peerCount counts the peers that are programmed.
func (a *Agent) peerCount() api.PeerCount {
	c := api.PeerCount{Total: a.state.plan.Peers()}
	if a.prober != nil {
		c.Reachable, c.Unreachable, _ = a.prober.Count()
	}
	c.Unknown = max(0, c.Total-c.Reachable-c.Unreachable)
	return c
}

// Mesh returns the round trips between all hosts, as far as they are known here.
func (a *Agent) Mesh() api.Mesh {
	m := api.Mesh{API: api.Version, Hosts: []api.MeshHost{}, RTT: [][]*float64{}}
	if a.prober == nil {
		return m
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.prober.Mesh()
	for i, key := range known.Keys {
		h := api.MeshHost{Key: key, Self: key == a.state.own.Lease.Key()}
		public := a.state.entries[key].Lease.PublicIP
		if h.Self {
			public = a.state.own.Lease.PublicIP
		}
		h.PublicIP = cmp.Or(public.V4, public.V6)
		row := seconds(known.RTT[i])
		if r := a.prober.Results(key); len(r) > 0 && r[0].State == probe.Unreachable { // what it said before tells nothing of now
			row = make([]*float64, len(row))
		}
		m.Hosts, m.RTT = append(m.Hosts, h), append(m.RTT, row)
	}
	return m
}

// seconds writes round trips as the API has them: null for those not known.
func seconds(trips []time.Duration) []*float64 {
	row := make([]*float64, len(trips))
	for i, t := range trips {
		if t != 0 {
			s := t.Seconds()
			row[i] = &s
		}
	}
	return row
}
