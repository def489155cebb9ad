// Command flanneld is flannel's own packages, as of the version in go.mod, put together for the tests as flannel's main does it:
// with etcd and on Linux, without Kubernetes, the cloud providers' backends and IPsec. What it leases, writes into etcd and into the
// kernel, and how it follows others, is flannel's own code. It is a module of its own, so that tulle has none of that.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/alloc" // these register themselves
	_ "github.com/flannel-io/flannel/pkg/backend/extension"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw"
	_ "github.com/flannel-io/flannel/pkg/backend/ipip"
	_ "github.com/flannel-io/flannel/pkg/backend/udp"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
	_ "github.com/flannel-io/flannel/pkg/backend/wireguard"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/subnet/etcd"
	"github.com/flannel-io/flannel/pkg/trafficmngr"
	"github.com/flannel-io/flannel/pkg/trafficmngr/iptables"
	"github.com/flannel-io/flannel/pkg/trafficmngr/nftables"
)

const (
	renewMargin = 60 // minutes, flannel's default
	resync      = 5  // seconds, flannel's default
)

// options are those of flannel's flags that the tests need, under their names.
type options struct {
	endpoints, prefix, subnetFile, iface, publicIP, publicIPv6 string
	masquerade                                                 bool
}

func main() {
	var o options
	flag.StringVar(&o.endpoints, "etcd-endpoints", "http://127.0.0.1:2379", "etcd's members, with commas between them")
	flag.StringVar(&o.prefix, "etcd-prefix", "/coreos.com/network", "what all keys begin with")
	flag.StringVar(&o.subnetFile, "subnet-file", "/run/flannel/subnet.env", "env file")
	flag.StringVar(&o.iface, "iface", "", "device, by name or address")
	flag.StringVar(&o.publicIP, "public-ip", "", "address that peers send to")
	flag.StringVar(&o.publicIPv6, "public-ipv6", "", "the same for IPv6")
	flag.BoolVar(&o.masquerade, "ip-masq", false, "masquerade what leaves the overlay")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "flanneld:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	manager, err := o.manager(ctx)
	if err != nil {
		return err
	}
	config, err := manager.GetNetworkConfig(ctx)
	if err != nil {
		return fmt.Errorf("network config: %w", err)
	}
	stack, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return err
	}
	device, err := ipmatch.LookupExtIface(o.iface, "", "", stack, ipmatch.PublicIPOpts{PublicIP: o.publicIP, PublicIPv6: o.publicIPv6})
	if err != nil {
		return fmt.Errorf("underlay: %w", err)
	}
	way, err := backend.NewManager(ctx, manager, device).GetBackend(config.BackendType)
	if err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	var tasks sync.WaitGroup
	defer tasks.Wait()
	network, err := way.RegisterNetwork(ctx, &tasks, config)
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	if err := o.filter(ctx, config, network.Lease()); err != nil {
		return fmt.Errorf("packet filter: %w", err)
	}
	own := network.Lease()
	if err := manager.HandleSubnetFile(o.subnetFile, config, o.masquerade, own.Subnet, own.IPv6Subnet, network.MTU()); err != nil {
		return fmt.Errorf("env file: %w", err)
	}
	tasks.Go(func() { network.Run(ctx) })
	if err := manager.CompleteLease(ctx, own, &tasks); err != nil && ctx.Err() == nil {
		return fmt.Errorf("lease: %w", err)
	}
	return nil
}

// manager keeps the leases. What this host held before is in the env file.
func (o options) manager(ctx context.Context) (subnet.Manager, error) {
	before, before6 := o.before("FLANNEL_SUBNET"), o.before("FLANNEL_IPV6_SUBNET")
	subnet4, subnet6 := ip.IP4Net{}, ip.IP6Net{IP: ip.FromIP6(net.IPv6zero)}
	if before != nil {
		subnet4 = ip.FromIPNet(before)
	}
	if before6 != nil {
		subnet6 = ip.FromIP6Net(before6)
	}
	return etcd.NewLocalManager(ctx, &etcd.EtcdConfig{Endpoints: strings.Split(o.endpoints, ","), Prefix: o.prefix}, subnet4, subnet6, renewMargin)
}

// before is a subnet that the env file names, masked; nil if it doesn't.
func (o options) before(variable string) *net.IPNet {
	text, _ := os.ReadFile(o.subnetFile)
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), variable+"="); ok {
			_, own, _ := net.ParseCIDR(value)
			return own
		}
	}
	return nil
}

// filter sets up the rules. Those of an earlier network are none of the tests' business.
func (o options) filter(ctx context.Context, config *subnet.Config, own *lease.Lease) error {
	var rules trafficmngr.TrafficManager = &iptables.IPTablesManager{}
	if config.EnableNFTables {
		rules = &nftables.NFTablesManager{}
	}
	if err := rules.Init(ctx); err != nil {
		return err
	}
	if o.masquerade {
		err := rules.SetupAndEnsureMasqRules(ctx, config.Network, own.Subnet, config.Network, config.IPv6Network, own.IPv6Subnet, config.IPv6Network, own, resync, false)
		if err != nil {
			return err
		}
	}
	rules.SetupAndEnsureForwardRules(ctx, config.Network, config.IPv6Network, resync)
	return nil
}
