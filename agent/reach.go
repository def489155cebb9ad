package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
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
	a.prober.SetSelf(h.Self.Key(), probe.Target{Overlay: a.state.inside(), Underlay: h.Underlay.Local.V4})
	if !anew {
		for key := range changed {
			a.aimAt(key)
		}
		return
	}
	a.prober.Reset(func(yield func(string, probe.Target) bool) {
		for key, e := range plan.Entries() {
			if plan.IsPeer(key, e) && !yield(key, target(plan, e.Lease)) {
				return
			}
		}
	})
}

// inside is the address inside the overlay that this host answers at and probes from; not valid if it has none: with some backends
// it is the bridge's, which Docker may have given another.
func (s *state) inside() netip.Addr {
	h := s.plan.Host()
	a := s.plan.Inside(h.Self).V4
	if a == h.BridgeAddrs().V4.Addr() && !s.bridged {
		return netip.Addr{}
	}
	return a
}

// aimAt tells the prober where the peer with this key is, or that there is none.
func (a *Agent) aimAt(key string) {
	if a.prober == nil {
		return
	}
	if e, there := a.state.plan.Entries()[key]; there && a.state.plan.IsPeer(key, e) {
		a.prober.Set(key, target(a.state.plan, e.Lease))
	} else {
		a.prober.Drop(key)
	}
}

func target(p *backend.Plan, l subnet.Lease) probe.Target {
	return probe.Target{Overlay: p.Inside(l).V4, Underlay: l.PublicIP.V4}
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
		a.log.Warn(fmt.Sprintf("peer %s (%s) is unreachable: %s", subnetName(key), e.Lease.PublicIP.V4, whyUnreachable(r, a.state.plan.Peers(), a.state.plan.Outer(e.Lease))), "lease", key)
	default:
		delete(a.state.said, "unreachable")
		a.log.Info(fmt.Sprintf("peer %s (%s) is reachable again", subnetName(key), e.Lease.PublicIP.V4), "lease", key)
	}
}

// whyUnreachable says as much as the probes tell. Which way is open is told by who was heard, and goes on being heard, later than
// the other: by more than hosts take to probe all their peers, of which there are so many. Outer is what carries the probes.
func whyUnreachable(r probe.Result, peers int, outer backend.Outer) string {
	underlay, round := r.Paths[probe.Underlay], max(5, time.Duration(peers))*time.Second+2*time.Second
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
	own := s.plan.Host().Self
	switch {
	case !s.plan.Inside(own).V4.IsValid():
		return fmt.Sprintf("the network's backend, %s, carries nothing: whether it can be reached is not probed", s.plan.Host().Config.Backend.Type)
	case !s.inside().IsValid():
		return fmt.Sprintf("this host has no bridge with the address %s to probe from", s.plan.Inside(own).V4)
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
	p.State = [...]api.State{probe.Unknown: api.Unknown, probe.Reachable: api.Reachable, probe.Unreachable: api.Unreachable}[r.State]
	if r.State == probe.Unreachable {
		p.Why = whyUnreachable(r, a.state.plan.Peers(), a.state.plan.Outer(a.state.entries[p.Key].Lease))
	} else if r.State == probe.Unknown {
		p.Why = a.state.whyUnknown()
	}
	p.Overlay, p.Underlay = probed(r.Paths[probe.Overlay]), probed(r.Paths[probe.Underlay])
	if p.Overlay != nil {
		p.Overlay.Heard, p.Overlay.HeardUs = r.Heard, r.HeardUs
	}
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
		if h.PublicIP = a.state.entries[key].Lease.PublicIP.V4; h.Self {
			h.PublicIP = a.state.own.Lease.PublicIP.V4
		}
		row := seconds(known.RTT[i])
		if r, ok := a.prober.Result(key); ok && r.State == probe.Unreachable { // what it said before tells nothing of now
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
