package agent

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/probe"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

func TestWhyUnreachable(t *testing.T) {
	t.Parallel()
	answered := time.Unix(1700000000, 0)
	later := answered.Add(20 * time.Second)
	for _, c := range []struct {
		name           string
		lost           int
		heard, heardUs time.Time
		want           string
	}{
		{"the host is down", 3, answered, answered, "neither over the overlay nor over the underlay"},
		{"from here to there", 0, later, later.Add(-8 * time.Second), "blocked from here to there"},
		{"from there to here", 1, later.Add(-8 * time.Second), later, "blocked from there to here"},
		{"not long enough to tell", 0, later, later.Add(-6 * time.Second), "but not over the overlay"},
		{"a flannel host", 0, answered, time.Time{}, "but not over the overlay"},
		{"from here to there, from the beginning", 0, later, time.Time{}, "blocked from here to there"},
		{"both ways", 0, later, later.Add(-time.Second), "but not over the overlay"},
	} {
		r := probe.Result{State: probe.Unreachable, Heard: c.heard, HeardUs: c.heardUs}
		r.Paths[probe.Overlay] = probe.PathResult{Answered: answered, Loss: 1}
		r.Paths[probe.Underlay] = probe.PathResult{Answered: answered, Failures: c.lost}
		if got := whyUnreachable(r, 2, backend.Outer{Device: "tulle.1", Kind: backend.KindVXLAN, Port: 8472}); !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// The prober is told of exactly those that are programmed, whatever becomes of leases.
func TestAim(t *testing.T) {
	bubble(t, func(r *rig) {
		known := func(keys ...string) {
			t.Helper()
			if _, _, unknown := r.agent.prober.Count(); unknown != len(keys) {
				t.Errorf("%d peers are to be probed, want %v", unknown, keys)
			}
			for _, key := range keys {
				if _, ok := r.agent.prober.Result(key); !ok {
					t.Errorf("%s is not to be probed", key)
				}
			}
		}
		r.ready()
		known()
		r.put(peer(2), peer(3))
		known("10.5.2.0-24", "10.5.3.0-24")
		bad := peer(3)
		bad.Lease.Data.V4 = `{"VNI":1,"VtepMAC":"x"}`
		r.put(bad)
		known("10.5.2.0-24")
		rival := peer(4)
		rival.Lease.Data = peer(2).Lease.Data // the older keeps the MAC
		r.put(rival, subnet.Entry{Lease: subnet.Lease{Subnet: peer(9).Lease.Subnet, PublicIP: peer(9).Lease.PublicIP}, Reserved: true})
		known("10.5.2.0-24")
		r.remove("10.5.2.0-24") // that lets the rival in
		known("10.5.4.0-24")
		r.setConfig(`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}`)
		known()
		if c := r.agent.Status().Peers; c != (api.PeerCount{}) {
			t.Errorf("no peer has this VNI, and still they count as %+v", c)
		}
	})
}

func TestTurned(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.put(peer(2))
		r.log.take()
		down := probe.Result{State: probe.Unreachable}
		r.agent.turned("10.5.2.0-24", down)
		r.agent.turned("10.5.2.0-24", probe.Result{State: probe.Reachable})
		r.wantLog(`level=WARN msg="peer 10.5.2.0/24 (192.0.2.2) is unreachable: it answers neither over the overlay nor over the underlay: is its host down?" lease=10.5.2.0-24`,
			`level=INFO msg="peer 10.5.2.0/24 (192.0.2.2) is reachable again" lease=10.5.2.0-24`)
		if got := r.agent.Peers().Peers; len(got) != 1 || got[0].State != api.Unknown || got[0].Subnets[0] != netip.MustParsePrefix("10.5.2.0/24") {
			t.Errorf("%+v", got)
		}
	})
}

// What is said of a peer that does not answer names what carries the packets.
func TestWhyUnreachableByBackend(t *testing.T) {
	t.Parallel()
	r := probe.Result{State: probe.Unreachable}
	r.Paths[probe.Underlay].Answered = time.Unix(1700000000, 0)
	for _, c := range []struct {
		outer backend.Outer
		want  string
	}{
		{backend.Outer{Device: "tulle-udp", Kind: backend.KindTUN, Port: 8285}, "is UDP port 8285 blocked, or its agent stopped?"},
		{backend.Outer{Device: "tulle-ipip", Kind: backend.KindIPIP}, "is IP protocol 4 (IPIP) blocked, or its agent stopped?"},
		{backend.Outer{}, "are packets with containers' addresses blocked, or its agent stopped?"},
	} {
		if got := whyUnreachable(r, 2, c.outer); !strings.HasSuffix(got, c.want) {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// A host that has no address inside the overlay probes nobody there, and says why nobody is known.
func TestNotProbed(t *testing.T) {
	for _, c := range []struct {
		config string
		bridge string // that has the lease's address
		inside string // this host's address to probe from
		why    string
	}{
		{`{"Type":"alloc"}`, "docker0", "invalid IP", "alloc, carries nothing"},
		{`{"Type":"host-gw"}`, "", "invalid IP", "no bridge with the address 10.5.1.1"},
		{`{"Type":"host-gw"}`, "docker0", "10.5.1.1", ""},
		{`{"Type":"ipip"}`, "", "10.5.1.0", ""},
	} {
		bubble(t, func(r *rig) {
			if c.bridge == "" {
				r.kernel.bridge = "docker0"
			}
			r.list(`{"Network":"10.5.0.0/16","Backend":` + c.config + `}`)
			r.hold("10.5.1.0/24")
			e := peer(2)
			e.Lease.Backend, e.Lease.Data = r.store.lastWant().Backend, subnet.Pair[string]{}
			r.put(e)
			r.agent.mu.Lock()
			inside := r.agent.state.inside().V4
			r.agent.mu.Unlock()
			p := r.agent.Peers().Peers
			if len(p) != 1 || p[0].State != api.Unknown || !strings.Contains(p[0].Why, c.why) || (p[0].Why == "") != (c.why == "") || inside.String() != c.inside {
				t.Errorf("%s: from %s, %+v; want %s, %q", c.config, inside, p, c.inside, c.why)
			}
			if s := r.agent.Status(); s.Peers != (api.PeerCount{Total: 1, Unknown: 1}) {
				t.Errorf("%s: %+v", c.config, s.Peers)
			}
		})
	}
}
