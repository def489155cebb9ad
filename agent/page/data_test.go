package page

import (
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/tulle-net/tulle/agent/api"
)

// now is when the made-up data is from.
var now = time.Date(2026, 3, 4, 12, 4, 5, 0, time.UTC)

// before is so long before now.
func before(d time.Duration) *time.Time {
	t := now.Add(-d)
	return &t
}

// host is the n-th host of a made-up network.
func host(n int) (netip.Prefix, netip.Addr) {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(16 + n/256), byte(n), 0}), 24), netip.AddrFrom4([4]byte{192, 0, byte(2 + n/250), byte(1 + n%250)})
}

func key(n int) string {
	subnet, _ := host(n)
	return fmt.Sprintf("%s-%d", subnet.Addr(), subnet.Bits())
}

func probe(rtt, loss float64) *api.Probe {
	return &api.Probe{RTT: rtt, Loss: loss, Sent: *before(time.Second), Answer: *before(time.Duration(1+loss*90) * time.Second)}
}

// roundTripOf is a made-up round trip: in the same rack, between racks, and to a site far away.
func roundTripOf(from, to int) float64 {
	near := 0.00018 + 0.00004*math.Abs(math.Sin(float64(3*from+7*to)))
	switch site := func(n int) int { return n / 24 }; {
	case site(from) != site(to):
		return 0.006*float64(1+site(from)+site(to)) + 8*near
	case from/8 != to/8:
		return near * 4
	}
	return near
}

// network is what the host 0 of so many knows.
func network(peers int) Data {
	self, public := host(0)
	d := Data{Now: now, Status: api.Status{API: api.Version, Version: "v0.4.0", Host: "rack1-node01", Started: *before(50 * time.Hour), Ready: true, Reason: fmt.Sprintf("%d peers are programmed and the lease is held", peers),
		Lease:    &api.Lease{Key: key(0), Subnets: []netip.Prefix{self}, Expires: before(-23 * time.Hour), Renewed: before(4 * time.Minute)},
		Network:  api.Network{Ranges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Backend: "vxlan", Device: "tulle.1", VNI: 1, Port: 8472, MTU: 1450},
		Underlay: api.Underlay{Device: "eth0", MTU: 1500, Addresses: []netip.Addr{public}, PublicIPs: []netip.Addr{public}},
		Etcd:     api.EtcdState{Connected: true, Revision: 4711, Endpoints: []string{"http://192.0.2.201:2379", "http://192.0.2.202:2379", "http://192.0.2.203:2379"}},
		Docker:   api.DockerState{Bridge: "docker0", Addresses: []netip.Prefix{netip.PrefixFrom(self.Addr().Next(), 24)}, EnvFile: "/run/tulle/subnet.env"},
		Probing:  true}}
	for n := 1; n <= peers; n++ {
		subnet, public := host(n)
		rtt := roundTripOf(0, n)
		d.Peers = append(d.Peers, api.Peer{Key: key(n), Subnets: []netip.Prefix{subnet}, PublicIPs: []netip.Addr{public}, State: api.Reachable,
			Overlay: probe(rtt*1.2, 0), Underlay: probe(rtt, 0), Changed: before(time.Duration(n) * time.Hour)})
	}
	d.Mesh = mesh(min(64, peers+1))
	for n := range min(peers, 12) {
		subnet, public := host(n + 1)
		d.Events = append(d.Events, api.Event{Seq: int64(n + 1), Time: *before(time.Duration(40*(12-n)*(12-n)) * time.Minute), Level: "INFO", Text: "peer joined",
			Fields: map[string]string{"subnet": subnet.String(), "public-ip": public.String()}})
	}
	return d
}

func mesh(hosts int) api.Mesh {
	m := api.Mesh{API: api.Version}
	for from := range hosts {
		_, public := host(from)
		m.Hosts = append(m.Hosts, api.MeshHost{Key: key(from), PublicIP: public, Self: from == 0})
		row := make([]*float64, hosts)
		for to := range hosts {
			if rtt := roundTripOf(from, to); from != to {
				row[to] = &rtt
			}
		}
		m.RTT = append(m.RTT, row)
	}
	return m
}

// broken is a network with something wrong in every way.
func broken(peers int) Data {
	d := network(peers)
	d.Status.Warnings = []string{"docker0 has 172.17.0.1/16, not the lease's 10.16.0.1/24: containers of this host can't be reached. Restart Docker (systemctl restart docker)"}
	d.Status.Docker.Problem = "docker0 has another address than the lease says"
	d.Status.LeftOut = map[string]int{"overlapping subnet": 1}
	d.Status.Repaired = map[string]int{"route": 3, "fdb": 1}
	gone, lossy, odd := &d.Peers[1], &d.Peers[peers-1], &d.Peers[peers/2]
	gone.State, gone.Why, gone.Overlay, gone.Underlay = api.Unreachable, "no answer over the overlay nor the underlay: the host is down, or cut off", probe(0.0003, 1), &api.Probe{Loss: 1, Sent: now}
	lossy.Overlay = probe(0.0121, 0.2)
	odd.State, odd.Why, odd.Overlay, odd.Underlay = api.LeftOut, "its subnet overlaps 10.16.1.0/24, which is older", nil, nil
	if peers > 6 {
		d.Peers[5].State, d.Peers[5].Overlay, d.Peers[5].Underlay, d.Peers[5].Changed = api.Unknown, nil, nil, nil
	}
	no := -1.0
	for n := range d.Mesh.Hosts {
		d.Mesh.RTT[n][2], d.Mesh.RTT[2][n] = &no, nil
	}
	d.Events = append(d.Events, api.Event{Seq: 90, Time: *before(70 * time.Second), Level: "WARN", Text: "peer is unreachable", Fields: map[string]string{"subnet": gone.Subnets[0].String()}},
		api.Event{Seq: 91, Time: *before(5 * time.Second), Level: "ERROR", Text: "not everything is programmed; trying again", Fields: map[string]string{"error": "add route: operation not permitted"}})
	return d
}
