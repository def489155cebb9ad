package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tulle-net/tulle/agent"
	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/flannel"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/extension"
	"github.com/tulle-net/tulle/backend/firewalld"
	"github.com/tulle-net/tulle/backend/kernel"
	"github.com/tulle-net/tulle/backend/l2"
	"github.com/tulle-net/tulle/backend/netfilter"
	"github.com/tulle-net/tulle/backend/udp"
	"github.com/tulle-net/tulle/backend/wireguard"
	"github.com/tulle-net/tulle/etcd"
	"github.com/tulle-net/tulle/subnet"
)

// filesFlags say where the agent's files are.
type filesFlags struct {
	RunDir     string `default:"/run/tulle" help:"Directory for the env file, the lock and the status socket (default ${default})." placeholder:"DIR"`
	SubnetFile string `default:"subnet.env" help:"Env file, relative to the run directory (default ${default})." placeholder:"FILE"`
	StateDir   string `help:"Directory for a copy of the env file that survives a reboot (default /var/lib/tulle; none with a --run-dir of your own)." placeholder:"DIR"`
}

// stateFile is the path of the env file's copy; "" for none. An agent with a run directory of its own may be one of several on
// a machine, as in a lab: the machine's own copy is none of its business.
func (f filesFlags) stateFile() string {
	switch {
	case f.StateDir != "":
		return filepath.Join(f.StateDir, "subnet.env")
	case filepath.Clean(f.RunDir) == "/run/tulle":
		return "/var/lib/tulle/subnet.env"
	}
	return ""
}

// keyFile is the path of WireGuard's private key: beside the env file's copy, so that it survives a reboot, too.
func (f filesFlags) keyFile() string {
	dir := f.RunDir
	if state := f.stateFile(); state != "" {
		dir = filepath.Dir(state)
	}
	return filepath.Join(dir, wireguard.KeyFile)
}

type agentCmd struct {
	etcdFlags  `embed:""`
	filesFlags `embed:""`

	Iface          []string         `group:"underlay" help:"Device, by name or address. May be repeated: the first that exists is used." placeholder:"NAME|IP"`
	IfaceRegex     []string         `group:"underlay" help:"Regular expression for the device's address or else its name. May be repeated." placeholder:"RE" sep:"none"`
	IfaceCanReach  netip.Addr       `group:"underlay" help:"Take the device that leads to this address." placeholder:"IP"`
	PublicIP       netip.Addr       `group:"underlay" name:"public-ip" help:"IPv4 address that peers send to, if it isn't the device's own." placeholder:"IP"`
	UnderlayFamily backend.Families `group:"underlay" default:"auto" enum:"auto,ipv4,ipv6,both" help:"By which addresses peers reach this host: auto, ipv4, ipv6 or both. auto takes the families of the network, and where the device lacks one the other (default ${default})." placeholder:"FAMILY"`
	PublicIPv6     netip.Addr       `group:"underlay" name:"public-ipv6" env:"TULLE_PUBLIC_IPV6" help:"The same for IPv6." placeholder:"IP"`

	IPMasq       bool          `name:"ip-masq" default:"true" negatable:"" help:"Masquerade the IPv4 packets that leave the overlay (default on)."`
	IPv6Masq     bool          `name:"ipv6-masq" negatable:"" env:"TULLE_IPV6_MASQ" help:"Masquerade the IPv6 packets that leave the overlay (default off)."`
	PeerGrace    time.Duration `default:"10m" help:"How long peers are kept that etcd has forgotten because it was wiped, or restored from an older backup (default ${default}; 0: not at all)." placeholder:"TIME"`
	ForwardRules bool          `default:"true" negatable:"" help:"Accept the overlay's packets in the FORWARD chain, and drop those that only claim to be (default on)."`
	Firewall     string        `default:"auto" enum:"auto,iptables,nftables" help:"What makes the rules: auto, iptables or nftables. auto takes what the network's config, Docker and the host say (default ${default})." placeholder:"WHICH"`
	Bridge       string        `default:"docker0" help:"The containers' bridge, made if it doesn't exist; empty for none (default ${default})." placeholder:"NAME"`
	AttachAddrs  int           `name:"attach-addresses" default:"0" help:"Keep at least this many of the lease's addresses from Docker, for tulle attach: half of the lease, or none for 0 (default ${default})." placeholder:"N"`
	DaemonJSON   string        `name:"daemon-json" default:"/etc/docker/daemon.json" help:"dockerd's own config, read to warn of options that it has, too (default ${default})." placeholder:"FILE"`
	Listen       string        `default:"127.0.0.1:9494" help:"Where to serve a page for people, and /healthz, /readyz, /metrics and /v1/ for programs; empty for nowhere (default ${default}: only for this host)." placeholder:"ADDR"`
	Probe        bool          `default:"true" negatable:"" help:"Ask peers for an answer, over the overlay and the underlay, to see whether they are reachable: five every 5 seconds (default on)."`
	PeerMetrics  bool          `help:"Metrics of each peer by itself, too: three series for each host on each host."`
	FromFlannel  bool          `help:"Take what flanneld's variables (FLANNELD_…) say as defaults, and its env file's subnet if no lease says another (default: off)."`
	LogLevel     string        `default:"info" enum:"debug,info,warn,error" help:"What is logged: debug, info, warn or error, and what is worse (default ${default})." placeholder:"LEVEL"`
	LogFormat    string        `default:"text" enum:"text,json" help:"How it is logged: text or json (default ${default})." placeholder:"FORMAT"`

	flannel flannel.Settings
}

func (c *agentCmd) Run(ctx context.Context) error {
	options, err := c.etcdFlags.options()
	if err != nil {
		return err
	}
	config, err := c.config()
	if err != nil {
		return err
	}
	if err := needAdmin(); err != nil {
		return err
	}
	unlock, stranger, err := agent.LockHost()
	if err != nil {
		return err
	}
	defer unlock()
	k, err := kernel.Open()
	if err != nil {
		return err
	}
	defer k.Close()
	firewall, err := netfilter.Open(netfilter.Choice(c.Firewall))
	if err != nil {
		return err
	}
	defer firewall.Close()
	log := c.logger()
	log.Info("tulle agent", "version", version, "commit", commit, "etcd", c.EtcdEndpoints, "prefix", c.EtcdPrefix)
	if c.FromFlannel {
		sayFlannel(log, c.flannel)
	}
	if stranger != nil {
		log.Warn("nothing keeps a second agent from starting on this host", "error", stranger)
	}
	options.Grace = c.PeerGrace
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50) // what is held stays the same for days, and is resident twice by default
	}
	keys, err := wireguard.New(c.keyFile(), log)
	if err != nil {
		return err
	}
	defer keys.Close()
	segment, err := l2.New()
	if err != nil {
		return err
	}
	defer segment.Close()
	tunnel := udp.New(log)
	carriers := []agent.Carrier{
		keys,
		segment,
		tunnel,
		firewalld.New(log),
		extension.New(extension.Options{File: filepath.Join(c.RunDir, "extension.json"), Log: log}),
	}
	registry := prometheus.NewRegistry()
	metrics := agent.NewStoreMetrics(registry)
	agent.RegisterCarried(registry, func() agent.Carried { return carried(tunnel.Counters()) })
	options.Observe, options.Lag = metrics.Request, metrics.Lag
	a := agent.New(config, etcd.NewStore(options), k, firewall, carriers, registry, log)
	err = a.Run(ctx)
	if err == nil {
		log.Info("stopped; the network stays as it is")
	}
	return err
}

// carried is what the metrics tell of the udp backend's datapath.
func carried(c udp.Counters) agent.Carried {
	return agent.Carried{Sent: agent.Traffic(c.Sent), Received: agent.Traffic(c.Received),
		Dropped: map[string]uint64{"no-peer": c.Strayed, "spoofed": c.Spoofed, "not-ip": c.Foreign, "refused": c.Refused}}
}

func (c *agentCmd) config() (agent.Config, error) {
	choice := backend.Choice{Ifaces: c.Iface, CanReach: c.IfaceCanReach, Public: subnet.Pair[netip.Addr]{V4: c.PublicIP, V6: c.PublicIPv6}}
	for _, text := range c.IfaceRegex {
		re, err := regexp.Compile(text)
		if err != nil {
			return agent.Config{}, fmt.Errorf("--iface-regex: %w", err)
		}
		choice.Regexes = append(choice.Regexes, re)
	}
	for f, a := range choice.Public.All() {
		if subnet.FamilyOf(a) != f {
			return agent.Config{}, fmt.Errorf("--public-ip and --public-ipv6: %s is not an %s address", a, f)
		}
	}
	if c.PeerGrace < 0 {
		return agent.Config{}, fmt.Errorf("--peer-grace: %s is not a time to keep peers for: 10m, or 0 for not at all", c.PeerGrace)
	}
	if c.AttachAddrs < 0 {
		return agent.Config{}, fmt.Errorf("--attach-addresses: %d is not a number of addresses: 0 for none, or how many tulle attach needs", c.AttachAddrs)
	}
	if c.Bridge != "" {
		if err := backend.CheckBridge(c.Bridge); err != nil {
			return agent.Config{}, fmt.Errorf("--bridge: %w", err)
		}
	}
	host, err := os.Hostname()
	if err != nil {
		host = "a host without a name"
	}
	return agent.Config{
		Host: host, Endpoints: c.EtcdEndpoints, Probe: c.Probe, RunDir: c.RunDir, Socket: api.Socket(c.RunDir), SubnetFile: c.SubnetFile, StateFile: c.stateFile(), FlannelFile: c.flannel.EnvFile, DaemonJSON: c.DaemonJSON, Listen: c.Listen, Version: version,
		Choice: choice, PerPeer: c.PeerMetrics, SetConfig: c.setConfig(), Options: backend.Options{Bridge: c.Bridge, Families: c.UnderlayFamily, Masquerade: subnet.Pair[bool]{V4: c.IPMasq, V6: c.IPv6Masq}, Forward: c.ForwardRules, Attach: c.AttachAddrs},
	}, nil
}

// setConfig is the command that stores its input as the network config, where this agent looks for it.
func (c *agentCmd) setConfig() string {
	command := "tulle config set"
	for _, endpoint := range c.EtcdEndpoints[:1] {
		command += " --etcd-endpoints=" + endpoint
	}
	return command + " --etcd-prefix=" + c.EtcdPrefix + " -"
}

func (c *agentCmd) logger() *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.LogLevel)) // one of the enum's
	options := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}
