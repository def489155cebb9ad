package wireguard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/kernel"
	"github.com/tulle-net/tulle/e2e/lab"
	"github.com/tulle-net/tulle/e2e/netnstest"
	"github.com/tulle-net/tulle/subnet"
)

const plain = `{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}`

// network is a lab of hosts without agents: the tests are these.
type network struct {
	*testing.T
	hosts []*host
	lab   *lab.Lab
}

// host is one of them, with 10.5.N.0/24 and fd12:3456:0:N::/64 for its subnets, as far as the network has them.
type host struct {
	*lab.Host
	t       *testing.T
	key     string // path
	carrier *Carrier
	kernel  *kernel.Kernel
	number  int
	self    subnet.Lease
	config  string
	options []Option
	peers   []subnet.Lease
	plan    *backend.Plan
	stop    func()
}

// newNetwork makes hosts that know of each other and have all programmed.
func newNetwork(t *testing.T, hosts int) *network {
	return newNetworkOf(t, hosts, plain, "ipv4", InUserspace)
}

// everywhere runs a test with WireGuard in this process, and in the kernel where that has it.
func everywhere(t *testing.T, test func(t *testing.T, where ...Option)) {
	t.Run("userspace", func(t *testing.T) { test(t, InUserspace) })
	t.Run("kernel", func(t *testing.T) {
		if !hasKernel(t) {
			t.Skip("this kernel has no WireGuard: e2e/vm 'TestFamilies$' backend/wireguard has one that does")
		}
		test(t)
	})
}

// hasKernel reports whether this kernel has WireGuard, by a device in a namespace that goes away.
func hasKernel(t *testing.T) (has bool) {
	t.Helper()
	netnstest.NeedRoot(t)
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		var links *netlink.Handle
		if err == nil {
			links, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		}
		if err == nil {
			has, err = hasWireGuard(links)
			links.Close()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return has
}

// newNetworkOf makes a network with a config, on an underlay of one family or both.
func newNetworkOf(t *testing.T, hosts int, config, underlay string, where ...Option) *network {
	t.Helper()
	netnstest.NeedRoot(t)
	l, err := lab.Up(t.Context(), lab.Options{Name: fmt.Sprintf("wg%d-%d", os.Getpid(), time.Now().UnixNano()%100000), Hosts: hosts, Bare: true, Families: underlay}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	n := &network{T: t, lab: l}
	for i, node := range l.Nodes {
		h := &host{Host: node, t: t, key: filepath.Join(t.TempDir(), KeyFile), number: i + 1, config: config, options: where}
		for _, a := range node.Addresses {
			*h.self.PublicIP.At(subnet.FamilyOf(a)) = a
		}
		n.hosts = append(n.hosts, h)
		h.start()
	}
	n.meet(n.hosts...)
	return n
}

// meet makes hosts know of each other, one after another as they learn it from etcd: nobody greets anybody.
func (n *network) meet(hosts ...*host) {
	n.Helper()
	for _, h := range hosts {
		h.peers = nil
		h.apply() // so that it has a key
	}
	for _, h := range hosts {
		for _, other := range hosts {
			if other != h {
				h.peers = append(h.peers, other.lease())
				h.update(other.self.Key(), subnet.Entry{Lease: other.lease(), Created: int64(len(h.peers))})
			}
		}
	}
}

func (h *host) in(f func() error) {
	h.t.Helper()
	if err := lab.In(h.Namespace, f); err != nil {
		h.t.Fatalf("%s: %v", h.Name, err)
	}
}

func (h *host) run(command ...string) string {
	h.t.Helper()
	out, err := lab.Output(h.t.Context(), h.Namespace, command...)
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

// start starts what an agent has of this, anew.
func (h *host) start() {
	h.t.Helper()
	h.in(func() (err error) {
		if h.kernel, err = kernel.Open(); err != nil {
			return err
		}
		h.carrier, err = New(h.key, slog.New(slog.DiscardHandler), h.options...)
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	carrier, kernel := h.carrier, h.kernel
	go func() { ended <- carrier.Run(ctx) }()
	stopped := false
	h.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			h.t.Errorf("%s: %v", h.Name, err)
		}
		carrier.Close()
		kernel.Close()
	}
	h.t.Cleanup(h.stop)
}

// try does what a pass of an agent does: it plans anew, and puts the plan in force.
func (h *host) try() (changes backend.Changes, err error) {
	h.t.Helper()
	h.in(func() error {
		config, _, parseErr := subnet.ParseConfig([]byte(h.config))
		if parseErr != nil {
			return parseErr
		}
		b, newErr := backend.New(config)
		if newErr != nil {
			return newErr
		}
		var facts backend.Facts
		if err = h.carrier.Prepare(h.t.Context(), b.Needs(), &facts); err != nil {
			return nil
		}
		entries := map[string]subnet.Entry{}
		for i, l := range h.peers {
			entries[l.Key()] = subnet.Entry{Lease: l, Created: int64(i + 1)}
		}
		h.self.Subnet = h.subnets(config)
		underlay := backend.Underlay{Device: "eth0", MTU: 1500, Local: h.self.PublicIP, Public: h.self.PublicIP, OnLink: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")}}
		if h.plan, err = backend.NewPlan(b, backend.Host{Config: config, Self: h.self, Underlay: underlay, Facts: facts}, entries); err != nil {
			return nil
		}
		want := h.plan.State()
		opened := h.carrier.Open(h.t.Context(), want)
		changes, err = h.kernel.Apply(h.t.Context(), want)
		own, applied := h.carrier.Apply(h.t.Context(), want)
		changes, err = changes.Join(own), errors.Join(opened, err, applied)
		return nil
	})
	return changes, err
}

func (h *host) apply() backend.Changes {
	h.t.Helper()
	changes, err := h.try()
	if err != nil {
		h.t.Fatalf("%s: %v", h.Name, err)
	}
	return changes
}

// update takes a changed lease in, as an agent does that has seen it in etcd.
func (h *host) update(key string, e subnet.Entry) {
	h.t.Helper()
	h.updates(map[string]subnet.Entry{key: e})
}

func (h *host) updates(entries map[string]subnet.Entry) {
	h.t.Helper()
	changes := h.plan.Update(entries)
	h.in(func() error {
		return errors.Join(h.carrier.Change(h.t.Context(), changes), h.kernel.Change(h.t.Context(), changes))
	})
}

// lease is what the host tells its peers.
func (h *host) lease() subnet.Lease {
	l, _ := h.plan.Announce()
	return l
}

// subnets are the host's own, of the families that the network has.
func (h *host) subnets(c subnet.Config) (own subnet.Pair[netip.Prefix]) {
	for f := range c.Range.All() {
		*own.At(f) = [...]netip.Prefix{subnet.IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(h.number), 0}), 24),
			subnet.IPv6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x12, 0x34, 0x56, 7: byte(h.number)}), 64)}[f]
	}
	return own
}

// insides are where the host answers inside the overlay, by each of the network's families.
func (h *host) insides() (addrs []netip.Addr) {
	for _, p := range h.self.Subnet.All() {
		addrs = append(addrs, p.Addr())
	}
	return addrs
}

// inside is the first of insides.
func (h *host) inside() netip.Addr { return h.insides()[0] }

// reach waits until a host reaches another by each family. Where both begin a handshake at the same time, on a slow machine, it takes WireGuard up to 15
// seconds to begin another.
func (n *network) reach(from, to *host) {
	n.Helper()
	for _, inside := range to.insides() {
		err := lab.Wait(n.Context(), 40*time.Second, fmt.Sprintf("%s reaches %s at %s", from.Name, to.Name, inside), func() error {
			r, err := lab.Ping(n.Context(), from.Namespace, inside, 1, 84)
			if err == nil && r.Lost() > 0 {
				err = fmt.Errorf("no answer (%v)", r.Refused)
			}
			return err
		})
		if err != nil {
			n.Fatal(err)
		}
	}
}

// cut checks that a host does not reach another.
func (n *network) cut(from, to *host) {
	n.Helper()
	r, err := lab.Ping(n.Context(), from.Namespace, to.inside(), 2, 84)
	if err != nil {
		n.Fatal(err)
	}
	if r.Answered > 0 {
		n.Errorf("%s reaches %s", from.Name, to.Name)
	}
}

func (n *network) flow(from, to *host, pace time.Duration) *lab.Flow {
	n.Helper()
	return n.flowTo(from, to.inside(), pace)
}

func (n *network) flowTo(from *host, to netip.Addr, pace time.Duration) *lab.Flow {
	n.Helper()
	f, err := lab.StartFlow(from.Namespace, to, pace)
	if err != nil {
		n.Fatal(err)
	}
	return f
}

// more waits until a flow has sent so many packets more.
func (n *network) more(f *lab.Flow, count int) {
	n.Helper()
	before := f.Sent()
	err := lab.Wait(n.Context(), 10*time.Second, "packets go on", func() error {
		if sent := f.Sent() - before; sent < count {
			return fmt.Errorf("%d of %d", sent, count)
		}
		return nil
	})
	if err != nil {
		n.Fatal(err)
	}
}

// capture returns the frames that pass the underlay while f runs.
func (n *network) capture(f func()) (frames [][]byte) {
	n.Helper()
	fd := -1
	err := lab.In(n.lab.Underlay(), func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		link, err := net.InterfaceByName(n.hosts[0].Name) // a port of the bridge: the first host's cable
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL << 8, Ifindex: link.Index})
	})
	if err != nil {
		n.Fatal(err)
	}
	defer unix.Close(fd)
	f()
	for buffer := make([]byte, 1<<16); ; {
		size, _, err := unix.Recvfrom(fd, buffer, 0)
		if err != nil {
			return frames
		}
		frames = append(frames, append([]byte{}, buffer[:size]...))
	}
}
