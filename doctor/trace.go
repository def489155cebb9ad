package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/tulle-net/tulle/agent/api"
)

// Trace is the path of a packet to an address, as it was found.
type Trace struct {
	API     int        `json:"api"` // api.Version
	Address netip.Addr `json:"address"`
	From    string     `json:"from,omitempty"` // the container
	Whole   bool       `json:"whole"`          // nothing is wrong
	Verdict string     `json:"verdict"`
	Hops    []Hop      `json:"hops"` // as the packet takes them
}

// Hop is one thing that the packet's way depends on.
type Hop struct {
	Name  string   `json:"name"`
	What  string   `json:"what"` // what is there, as its own program prints it
	State HopState `json:"state"`
	Why   string   `json:"why,omitempty"` // it is wrong or not known; or what there is to say of one that is right
	Fix   string   `json:"fix,omitempty"` // of a wrong one: what to do
}

// HopState is how a hop is.
type HopState string

// The states of a hop.
const (
	HopOK      HopState = "ok"
	HopWrong   HopState = "wrong"
	HopUnknown HopState = "unknown" // it could not be looked at, or not all of it was understood
	HopSkipped HopState = "skipped" // not reached
)

func right(what string) Hop           { return Hop{What: what, State: HopOK} }
func noted(what, why string) Hop      { return Hop{What: what, State: HopOK, Why: why} }
func wrong(what, why, fix string) Hop { return Hop{What: what, State: HopWrong, Why: why, Fix: fix} }
func unknown(what, why string) Hop    { return Hop{What: what, State: HopUnknown, Why: why} }
func skipped(what string) Hop         { return Hop{What: what, State: HopSkipped} }

// Request says which path to trace.
type Request struct {
	Address netip.Addr
	From    *Container // nil: whichever of this host, and the host itself
	Source  Source
	Agent   bool // Source is an agent, which repairs what is its own
}

// Container is where a trace begins.
type Container struct {
	Name  string
	Netns string // path of its network namespace
}

// Run traces the path. It changes nothing, sends a few pings, and takes a few seconds if some are not answered. Its error says
// why there is nothing to compare the path with.
func (r Request) Run(ctx context.Context) (Trace, error) {
	view, err := r.Source.View(ctx, r.Address.String())
	if err != nil {
		return Trace{}, err
	}
	if view.Self.Key == "" || view.Underlay.Device == "" {
		return Trace{}, errors.New("the agent has no lease or no underlay yet, so there is no path into the overlay: tulle status says why")
	}
	plan, err := Plan(view)
	if err != nil {
		return Trace{}, err
	}
	f := PathFacts{Address: r.Address, Plan: plan, View: view, Agent: r.Agent, Unseen: map[string]error{}}
	if err := f.look(ctx, r); err != nil {
		return Trace{}, err
	}
	t := Trace{API: api.Version, Address: r.Address, Hops: f.Judge()}
	if r.From != nil {
		t.From = r.From.Name
	}
	p := f.probe(ctx, r, !t.broken())
	t.Hops = append(t.Hops, p.Judge(f)...)
	t.conclude()
	return t, nil
}

// shaken asks an agent for WireGuard's last handshake with a peer; nil if it does not know.
func (r Request) shaken(ctx context.Context, key string) (*time.Time, error) {
	agent, ok := r.Source.(interface {
		Peers(ctx context.Context) (api.Peers, error)
	})
	if !ok {
		return nil, nil
	}
	all, err := agent.Peers(ctx)
	if i := slices.IndexFunc(all.Peers, func(p api.Peer) bool { return p.Key == key }); i >= 0 {
		return all.Peers[i].Handshake, err
	}
	return nil, err
}

func (t Trace) broken() bool { return t.first(HopWrong) >= 0 }

// first is the first hop in a state, -1 if none is.
func (t Trace) first(s HopState) int {
	return slices.IndexFunc(t.Hops, func(h Hop) bool { return h.State == s })
}

// conclude makes the verdict of the hops.
func (t *Trace) conclude() {
	last := t.Hops[len(t.Hops)-1]
	bad, doubtful := t.first(HopWrong), t.first(HopUnknown)
	t.Whole = bad < 0 && (doubtful < 0 || last.State == HopOK)
	switch {
	case bad >= 0:
		t.Verdict = fmt.Sprintf("the path to %s is broken: %s", t.Address, t.Hops[bad].Name)
	case t.Whole:
		t.Verdict = fmt.Sprintf("the path to %s is whole", t.Address)
	default:
		t.Verdict = fmt.Sprintf("whether the path to %s is whole is not known: %s", t.Address, t.Hops[doubtful].Name)
	}
}

// Code is the exit code that says it in short: 0 the path is whole, 1 something is wrong, 2 it is not known.
func (t Trace) Code() int {
	switch {
	case t.Whole:
		return 0
	case t.broken():
		return 1
	}
	return 2
}
