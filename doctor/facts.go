package doctor

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/docker"
	"github.com/tulle-net/tulle/agent/probe"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/kernel"
	"github.com/tulle-net/tulle/subnet"
)

// Facts are all that was seen, and nothing is made of it yet. Of a part that could not be looked at Unseen has why, and its
// fields are empty.
type Facts struct {
	Unseen map[Part]string
	Host   string // its name
	Now    time.Time

	Absent string // why no agent answers; "" if one does
	Status api.Status
	Peers  []api.Peer

	Plan   *backend.Plan // what the agent plans, or would plan if it ran
	Chosen bool          // the operator says which device is the underlay's; also if that is not known
	Etcd   api.Etcd      // also asked for the own key

	Devices      []Device
	Routes       []Route // not ours, and not the kernel's own of table local
	Policies     []Policy
	Sysctls      map[string]string // by their names, as in net.ipv4.ip_forward; without those that don't exist
	Filter       Filter
	Programs     []Program     // of this network namespace, and of interest
	DockerConfig docker.Config // daemon.json of the dockerd among Programs
	Lacks        backend.Kind  // the kind of device that the backend needs and the kernel can't make; "" for none
	NoNexthops   bool          // the kernel has no nexthop objects
	EnvPath      string
	Env          docker.Env
	FlannelEnv   netip.Prefix // the bridge's address in flannel's own env file; not valid if there is none
	FlannelPath  string

	Paths []Path // to some of the peers: those that are in trouble first
}

// Device is a network device.
type Device struct {
	Name, Kind, Master string
	MTU                int
	Up                 bool
	VNI                uint32     // of a tunnel
	Port               uint16     // UDP, of a tunnel
	Local, Remote      netip.Addr // of a tunnel; not valid for any
	Addrs              []netip.Prefix
	Duplicate          []netip.Prefix // of Addrs, those that another device on the segment has, too: the kernel does not use them (DAD, RFC 4862)
	Lent               []netip.Prefix // of Addrs, those that end, unless a router or a DHCP server renews them
}

// Route is where the kernel sends packets to, as somebody else wants it.
type Route struct {
	Dst      netip.Prefix
	Dev      string
	Via      netip.Addr
	Metric   int
	Table    int
	Protocol int
	Kind     string // unicast, or why packets go nowhere: blackhole, unreachable, prohibit
}

// Policy is a rule of policy routing.
type Policy struct {
	Priority, Table int
	Text            string // as ip rule prints it
}

// Program is a process that has to do with the network.
type Program struct {
	PID     int
	Name    string
	Args    []string // never to be shown
	Listens uint16   // on this UDP port, one of the overlay's, and is no agent; 0 if not
}

// Path is the way to a peer by one of its families inside, as it was tried.
type Path struct {
	Key      string
	Public   netip.Addr // on the underlay
	Subnet   netip.Prefix
	Inside   netip.Addr    // where its host answers inside the overlay; not valid if nowhere, or if this host has no address there to ask from
	Carrier  backend.Outer // what encapsulates its packets; the zero Outer if nothing does
	Outer    kernel.Way    // of packets to Public
	Inner    kernel.Way    // of containers' packets to its containers
	Entry    Hop           // what is wrong with the kernel's entries for it, if it does not answer; the zero Hop: nothing
	Underlay bool          // Public answers
	Overlay  bool          // Inside answers
	Longest  int           // packet that Inside answers, bytes; 0 if not tried
	Checksum probe.Checksummed
	Heard    *api.Probe // what the agent's own probes over the overlay say
	Shaken   *time.Time // WireGuard's last handshake with it, in year 1 if there never was one; nil: not known
}

// Options say what to look at.
type Options struct {
	RunDir   string // the agent's
	Fallback Source // asked if no agent answers
	Say      func(doing string)
}

// Look looks at everything. It takes a few seconds, and changes nothing. What it can't do is noted in the Facts.
func Look(ctx context.Context, o Options) Facts {
	f := Facts{Unseen: map[Part]string{}, Now: time.Now(), EnvPath: filepath.Join(o.RunDir, "subnet.env"), FlannelPath: flannelEnv}
	f.Host, _ = os.Hostname()
	source := o.Fallback
	for _, look := range []struct {
		part  Part
		doing string
		at    func(context.Context) error
	}{
		{PartAgent, "asking the agent", func(ctx context.Context) (err error) { source, err = f.lookAtAgent(ctx, o); return err }},
		{PartNetwork, "reading the network's leases", func(ctx context.Context) error { return f.lookAtNetwork(ctx, source) }},
		{PartEtcd, "asking etcd's members", func(ctx context.Context) error { return f.lookAtEtcd(ctx, source) }},
		{PartHost, "looking at devices and routes", f.lookAtHost},
		{PartKernel, "looking at devices and routes", f.lookAtKernel},
		{PartPrograms, "looking at programs", f.lookAtPrograms},
		{PartEnv, "looking at programs", f.lookAtEnv},
		{PartFilter, "reading the packet filter", f.lookAtFilter},
		{PartPaths, "probing peers", f.lookAtPaths},
		{PartLong, "sending peers long packets", f.lookAtLongest},
		{PartChecksum, "sending peers packets with and without a checksum", f.lookAtChecksums},
	} {
		o.Say(look.doing)
		if err := look.at(ctx); err != nil {
			f.Unseen[look.part] = err.Error()
		}
	}
	o.Say("")
	return f
}

// flannelEnv is where flanneld writes its env file.
const flannelEnv = "/run/flannel/subnet.env"

// errNoAgent is why nothing is known that only an agent can say.
var errNoAgent = errors.New("no agent answers")

// lookAtAgent returns who is to be asked for the rest.
func (f *Facts) lookAtAgent(ctx context.Context, o Options) (Source, error) {
	client := api.NewClient(o.RunDir)
	status, err := client.Status(ctx)
	if err == nil {
		var peers api.Peers
		peers, err = client.Peers(ctx)
		f.Peers = peers.Peers
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return o.Fallback, err
	case err != nil:
		f.Absent = err.Error()
		return o.Fallback, errNoAgent
	}
	f.Status, f.EnvPath = status, status.Docker.EnvFile
	return client, nil
}

func (f *Facts) lookAtNetwork(ctx context.Context, source Source) error {
	if source == nil {
		return errNoAgent
	}
	view, err := source.View(ctx, "")
	if err == nil && view.Self.Key == "" {
		err = errors.New("this host holds no lease yet")
	}
	if err == nil {
		f.Chosen = view.Chosen
		f.Plan, err = Plan(view)
	}
	return err
}

// lookAtEtcd notes also that nobody answers: that is a finding.
func (f *Facts) lookAtEtcd(ctx context.Context, source Source) error {
	if source == nil {
		return errNoAgent
	}
	key := ""
	if f.Plan != nil {
		key = f.Plan.Host().Self.Key()
	}
	etcd, err := source.Etcd(ctx, key)
	if err != nil && etcd.Error == "" {
		etcd.Error = err.Error()
	}
	f.Etcd = etcd
	return nil
}

func (f *Facts) lookAtEnv(context.Context) (err error) {
	if e, err := docker.ReadEnv(f.FlannelPath); err == nil && f.EnvPath != f.FlannelPath {
		f.FlannelEnv = e.Subnet.V4
	}
	f.Env, err = docker.ReadEnv(f.EnvPath)
	return err
}

// family is the one inside.
func (p Path) family() subnet.Family { return subnet.FamilyOf(p.Subnet.Addr()) }

// outerFamily is the one on the underlay.
func (p Path) outerFamily() subnet.Family { return subnet.FamilyOf(p.Public) }

// direct tells that its packets are not encapsulated.
func (p Path) direct() bool { return p.Carrier == (backend.Outer{}) }

// peers is how many of them some paths lead to.
func peers(paths []Path) int {
	keys := map[string]bool{}
	for _, p := range paths {
		keys[p.Key] = true
	}
	return len(keys)
}

// outer is how the network's packets look on the underlay, where they are encapsulated.
func (f Facts) outer() backend.Outer { return f.Plan.State().Outer() }

// device returns a device by its name; none has the empty one.
func (f Facts) device(name string) (Device, bool) {
	for _, d := range f.Devices {
		if d.Name == name {
			return d, true
		}
	}
	return Device{}, false
}
