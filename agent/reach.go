package agent

import (
	"context"
	"fmt"
	"log/slog"
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
	if !anew {
		for key := range changed {
			a.aimAt(key)
		}
		return
	}
	h := plan.Host()
	a.prober.SetSelf(h.Self.Key(), probe.Target{Overlay: backend.VTEPs(h.Self).V4, Underlay: h.Underlay.Local.V4})
	a.prober.Reset(func(yield func(string, probe.Target) bool) {
		for key, e := range plan.Entries() {
			if programmed(plan, key, e) && !yield(key, target(e.Lease)) {
				return
			}
		}
	})
}

// aimAt tells the prober where the peer with this key is, or that there is none.
func (a *Agent) aimAt(key string) {
	if a.prober == nil {
		return
	}
	if e, there := a.state.plan.Entries()[key]; there && programmed(a.state.plan, key, e) {
		a.prober.Set(key, target(e.Lease))
	} else {
		a.prober.Drop(key)
	}
}

// programmed reports whether a lease is that of a peer that this host sends packets to.
func programmed(p *backend.Plan, key string, e subnet.Entry) bool {
	_, left := p.Rejected()[key]
	return e.Err == nil && !left && key != p.Host().Self.Key() && !(e.Reserved && e.Lease.Idle())
}

func target(l subnet.Lease) probe.Target {
	return probe.Target{Overlay: backend.VTEPs(l).V4, Underlay: l.PublicIP.V4}
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
		a.log.Warn(fmt.Sprintf("peer %s (%s) is unreachable: %s", subnetName(key), e.Lease.PublicIP.V4, whyUnreachable(r, len(a.state.plan.State().Routes))), "lease", key)
	default:
		delete(a.state.said, "unreachable")
		a.log.Info(fmt.Sprintf("peer %s (%s) is reachable again", subnetName(key), e.Lease.PublicIP.V4), "lease", key)
	}
}

// whyUnreachable says as much as the probes tell. Which way is open is told by who was heard, and goes on being heard, later than
// the other: by more than hosts take to probe all their peers, of which there are so many.
func whyUnreachable(r probe.Result, peers int) string {
	underlay, round := r.Paths[probe.Underlay], max(5, time.Duration(peers))*time.Second+2*time.Second
	speaks := !r.HeardUs.IsZero() || r.Heard.Sub(r.Paths[probe.Overlay].Answered) > round // a flannel host answers, and says nothing
	switch {
	case underlay.Answered.IsZero() || underlay.Failures > 1:
		return "it answers neither over the overlay nor over the underlay: is its host down?"
	case speaks && r.Heard.Sub(r.HeardUs) > round:
		return "its packets come in over the overlay, ours don't reach it: is the overlay's UDP port blocked from here to there?"
	case r.HeardUs.Sub(r.Heard) > round:
		return "ours reach it over the overlay, as it says, its packets don't come in: is the overlay's UDP port blocked from there to here?"
	}
	return "it answers over the underlay, but not over the overlay: is the overlay's UDP port blocked, or its agent stopped?"
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
		p.Why = whyUnreachable(r, len(a.state.plan.State().Routes))
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
	c := api.PeerCount{Total: len(a.state.plan.State().Routes)}
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
