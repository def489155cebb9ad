// Package api is what an agent tells of itself: JSON over HTTP, at --listen and at a unix socket in the run directory. Its
// types are the wire format, and its Client asks. All of it is read-only, and nothing in it is secret: the network's config
// and leases, which every host of the network reads, and what this host makes of them.
package api

import (
	"net/netip"
	"path/filepath"
	"time"

	"github.com/tulle-net/tulle/backend"
)

// Version is the version of this format. It is in every path, and changes when a client of before would misread an answer; a
// field more is no change.
const Version = 1

// The paths. Each answers GET, with the type of its name.
const (
	PathStatus = "/v1/status"
	PathPeers  = "/v1/peers"
	PathEvents = "/v1/events" // ?after=SEQ: only those after this one; &wait=SECONDS: wait so long for one, 60 at most
	PathMesh   = "/v1/mesh"
	PathView   = "/v1/view" // ?address=IP: without the leases that don't cover this address
	PathEtcd   = "/v1/etcd" // ?key=KEY: with what is stored under this key now
)

// Socket is the unix socket of the agent with this run directory.
func Socket(runDir string) string { return filepath.Join(runDir, "agent.sock") }

// Status is how the agent and its host are.
type Status struct {
	API      int            `json:"api"`
	Version  string         `json:"version"` // tulle's
	Host     string         `json:"host"`    // its name
	Started  time.Time      `json:"started"`
	Ready    bool           `json:"ready"` // containers of this host can be reached
	Reason   string         `json:"reason"`
	Lease    *Lease         `json:"lease,omitempty"` // absent until one is held
	Network  Network        `json:"network"`
	Underlay Underlay       `json:"underlay"`
	Etcd     EtcdState      `json:"etcd"`
	Docker   DockerState    `json:"docker"`
	Peers    PeerCount      `json:"peers"`
	LeftOut  map[string]int `json:"left_out,omitempty"` // leases that are not programmed, by reason
	Repaired map[string]int `json:"repaired,omitempty"` // entries that somebody else had changed, by table
	Warnings []string       `json:"warnings,omitempty"` // what an operator should do something about
	Probing  bool           `json:"probing"`            // peers are probed
}

// Lease is what this host holds.
type Lease struct {
	Key      string         `json:"key"` // as in 10.5.1.0-24
	Subnets  []netip.Prefix `json:"subnets"`
	Reserved bool           `json:"reserved,omitempty"`
	Expires  *time.Time     `json:"expires,omitempty"` // unless it is renewed before; absent for a reservation
	Renewed  *time.Time     `json:"renewed,omitempty"` // when etcd last confirmed it
}

// Network is the overlay, as this host has set it up.
type Network struct {
	Ranges  []netip.Prefix `json:"ranges,omitempty"`
	Backend string         `json:"backend,omitempty"`
	Device  string         `json:"device,omitempty"` // that encapsulates, as in tulle.1; absent where nothing is encapsulated
	Kind    string         `json:"kind,omitempty"`   // Device's: vxlan, ipip, wireguard, or tun where the agent stands behind it
	VNI     uint32         `json:"vni,omitempty"`
	Port    uint16         `json:"port,omitempty"`    // UDP, of the encapsulation; absent with ipip
	MTU     int            `json:"mtu,omitempty"`     // inside, bytes
	Devices []Device       `json:"devices,omitempty"` // Device and the others, where there is one for each family of the underlay

	PublicKey string `json:"public_key,omitempty"` // WireGuard's, base64
	Userspace bool   `json:"userspace,omitempty"`  // WireGuard is not the kernel's, but the agent's
}

// Device is one of several that encapsulate.
type Device struct {
	Name string `json:"name"`
	Port uint16 `json:"port,omitempty"` // UDP
}

// Underlay is the network that carries the overlay's packets.
type Underlay struct {
	Device    string       `json:"device,omitempty"`
	MTU       int          `json:"mtu,omitempty"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	PublicIPs []netip.Addr `json:"public_ips,omitempty"` // where peers send to
}

// EtcdState is how the agent gets on with etcd.
type EtcdState struct {
	Connected bool     `json:"connected"`
	Error     string   `json:"error,omitempty"`
	Revision  int64    `json:"revision"`
	Endpoints []string `json:"endpoints,omitempty"`
}

// DockerState is what the agent sees of Docker, without asking dockerd.
type DockerState struct {
	Bridge    string         `json:"bridge,omitempty"`
	Addresses []netip.Prefix `json:"addresses,omitempty"` // the bridge's, now
	EnvFile   string         `json:"env_file"`
	Problem   string         `json:"problem,omitempty"` // what keeps Docker from using the lease
}

// PeerCount counts the peers that are programmed.
type PeerCount struct {
	Total       int `json:"total"`
	Reachable   int `json:"reachable"`
	Unreachable int `json:"unreachable"`
	Unknown     int `json:"unknown"` // not probed inside the overlay, or not yet
}

// State is how a peer is.
type State string

// The states of a peer. All but a LeftOut one are programmed.
const (
	Reachable   State = "reachable"
	Unreachable State = "unreachable"
	Unknown     State = "unknown" // not probed inside the overlay (yet)
	LeftOut     State = "left-out"
)

// Peers are all leases but this host's own, by subnet.
type Peers struct {
	API   int    `json:"api"`
	Peers []Peer `json:"peers"`
}

// Peer is another host.
type Peer struct {
	Key       string         `json:"key"`
	Subnets   []netip.Prefix `json:"subnets,omitempty"` // none if the key says none
	PublicIPs []netip.Addr   `json:"public_ips,omitempty"`
	State     State          `json:"state"`
	Why       string         `json:"why,omitempty"`     // it is left out, or unreachable, or why nobody can know
	Overlay   *Probe         `json:"overlay,omitempty"` // of two families, by that which is worse off, as is Underlay
	Underlay  *Probe         `json:"underlay,omitempty"`
	Families  []Family       `json:"families,omitempty"`  // how it is by each of two families inside; absent where there is one
	Handshake *time.Time     `json:"handshake,omitempty"` // WireGuard's last; year 1 if there never was one, absent if that is not known
	Changed   *time.Time     `json:"changed,omitempty"`   // when its lease last did; absent if not since the agent started, or a thousand others have since
}

// Family is how a peer is by one of its families inside.
type Family struct {
	Family   string     `json:"family"` // IPv4 or IPv6
	To       netip.Addr `json:"to"`     // on the underlay, whose family may be another
	State    State      `json:"state"`
	Overlay  *Probe     `json:"overlay,omitempty"`
	Underlay *Probe     `json:"underlay,omitempty"`
}

// SessionEnds is how old WireGuard's last handshake with a peer can be while packets get through (REJECT_AFTER_TIME, WireGuard's paper, 6.1).
const SessionEnds = 180 * time.Second

// Probe is what came of probing a peer by one path.
type Probe struct {
	RTT     float64   `json:"rtt_seconds"`       // of the last answer; 0 if there never was one
	Loss    float64   `json:"loss"`              // share of the last probes, 0 to 1
	Sent    time.Time `json:"sent"`              // the last
	Answer  time.Time `json:"answer,omitzero"`   // the last
	Heard   time.Time `json:"heard,omitzero"`    // when it was last heard of over the overlay, be it by a probe of its own
	HeardUs time.Time `json:"heard_us,omitzero"` // when it last heard of us over the overlay, if it says so
}

// Events are what happened lately, the oldest first.
type Events struct {
	API    int     `json:"api"`
	Events []Event `json:"events"`
}

// Event is one thing that happened, as it was logged.
type Event struct {
	Seq    int64             `json:"seq"` // counts up from 1 as long as the agent runs
	Time   time.Time         `json:"time"`
	Level  string            `json:"level"` // INFO, WARN or ERROR
	Text   string            `json:"text"`
	Fields map[string]string `json:"fields,omitempty"`
}

// Mesh is how long packets take between all hosts, there and back, as they tell each other with their probes.
type Mesh struct {
	API   int          `json:"api"`
	Hosts []MeshHost   `json:"hosts"`       // by subnet, at most 64
	RTT   [][]*float64 `json:"rtt_seconds"` // from host to host, by their places in Hosts; null: not known. Negative: no answer
}

// MeshHost is one of a Mesh's hosts.
type MeshHost struct {
	Key      string     `json:"key"`
	PublicIP netip.Addr `json:"public_ip"`
	Self     bool       `json:"self,omitempty"`
}

// View is what the agent plans from: with it, whoever asks can make the same plan.
type View struct {
	API       int                    `json:"api"`
	Version   string                 `json:"version"`
	Revision  int64                  `json:"revision"` // etcd's
	Config    string                 `json:"config"`   // the network's, as stored, but without what is secret of it
	Self      StoredLease            `json:"self"`
	Underlay  backend.Underlay       `json:"underlay"`
	Chosen    bool                   `json:"chosen,omitempty"` // the operator said which device is the underlay's; else it is the default route's
	Options   backend.Options        `json:"options"`
	Userspace bool                   `json:"userspace,omitempty"` // WireGuard is the agent's own, since the kernel has none
	Leases    map[string]StoredLease `json:"leases"`              // by key; this host's own, too
}

// StoredLease is a lease as it is stored.
type StoredLease struct {
	Key      string `json:"key"`
	Value    string `json:"value"`
	Created  int64  `json:"created"`            // revision
	Reserved bool   `json:"reserved,omitempty"` // it does not expire
	LeftOut  string `json:"left_out,omitempty"` // why the agent does not program it
}

// Etcd is what etcd says at this moment.
type Etcd struct {
	API       int            `json:"api"`
	Endpoints []EtcdEndpoint `json:"endpoints"`
	Revision  int64          `json:"revision"`
	Lease     *StoredLease   `json:"lease,omitempty"` // under the key that was asked for; absent if there is none
	TTL       float64        `json:"ttl_seconds"`     // what that lease has left; 0 if it does not expire, or there is none
	Error     string         `json:"error,omitempty"` // why there is no Revision
}

// EtcdEndpoint is one of etcd's members, as it answers.
type EtcdEndpoint struct {
	URL     string  `json:"url"`
	Error   string  `json:"error,omitempty"`
	Version string  `json:"version,omitempty"` // etcd's
	Took    float64 `json:"took_seconds"`
	Clock   float64 `json:"clock_seconds"` // how far its clock is ahead of ours, to about a second; 0 if it does not say
}
