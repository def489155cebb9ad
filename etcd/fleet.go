package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/tulle-net/tulle/subnet"
)

const (
	fleetCalls   = 64          // hosts that join or leave at the same time
	fleetCleanUp = time.Minute // for taking all back at the end
	fleetStreams = 250         // watchers on one connection: with one each, ten thousand would run out of files
)

// fleetAddresses are for tests of networks (RFC 2544, RFC 5180): nobody has them, so nobody is sent anything.
var fleetAddresses = subnet.Pair[netip.Prefix]{V4: netip.MustParsePrefix("198.18.0.0/15"), V6: netip.MustParsePrefix("2001:2::/48")}

// fleetPublic are the addresses of the simulated host that has the IPv4 address: the IPv6 one ends with that.
func fleetPublic(v4 netip.Addr) subnet.Pair[netip.Addr] {
	v6, tail := fleetAddresses.V6.Addr().As16(), v4.As4()
	copy(v6[12:], tail[:])
	return subnet.Pair[netip.Addr]{V4: v4, V6: netip.AddrFrom16(v6)}
}

// fleetAddress is the IPv4 address of the simulated host that has public addresses, and false if none does.
func fleetAddress(public subnet.Pair[netip.Addr]) (netip.Addr, bool) {
	v4 := public.V4
	if v6 := public.V6.As16(); !v4.IsValid() && fleetAddresses.V6.Contains(public.V6) {
		v4 = netip.AddrFrom4([4]byte(v6[12:]))
	}
	return v4, fleetAddresses.V4.Contains(v4)
}

// FleetOptions say what hosts a Fleet simulates.
type FleetOptions struct {
	Leases   int                       // how many hosts
	Churn    float64                   // hosts that leave, each replaced by a new one, a second
	Watchers int                       // how many of them watch, as agents do
	For      time.Duration             // from when all have joined; 0: until ctx ends
	Leave    bool                      // the leases are left behind at the end
	Range    subnet.Pair[subnet.Range] // of the network
	// Announce is what the lease of the host with the addresses tells its peers, without its subnets.
	Announce func(public subnet.Pair[netip.Addr]) subnet.Lease
}

// Fleet registers simulated hosts as real ones register themselves: a host's etcd lease, transaction, key and value are what
// an agent's are. Other than agents, they share a connection and its stream of keep-alives. Two fleets that run in one
// network at the same time may choose the same public addresses.
type Fleet struct {
	FleetOptions
	client    *Client
	calls     session // for its calls: it knows and holds nothing
	join      latencies
	delivery  latencies
	delivered atomic.Uint64

	mu        sync.Mutex
	stats     FleetStats
	subnets   subnet.Pair[*subnet.Pool]
	addresses addressPool
	hosts     []fleetHost                    // that have joined, the oldest first
	leases    map[clientv3.LeaseID]time.Time // granted and not yet revoked, and when their keys were sent
}

// fleetHost is a simulated host that has joined.
type fleetHost struct {
	holding
	address netip.Addr         // fleetAddress
	stop    context.CancelFunc // ends its keep-alives
}

// FleetStats is what a Fleet has done so far.
type FleetStats struct {
	Joined    int           // hosts that are registered
	Joins     uint64        // all that ever were
	Churned   uint64        // hosts that left, and have been replaced
	Watching  int           // watchers that etcd has confirmed
	Delivered uint64        // events that watchers got, whoever caused them
	Errors    uint64        // each is followed by another try
	LastError string        // "" for none
	FilledIn  time.Duration // how long it took until all had joined; 0 if they have not
	Churning  time.Duration // since then
	CleanedIn time.Duration // how long it took to take all back
	Join      Latencies     // of the transaction that registers a host
	Delivery  Latencies     // from when that transaction is sent until a watcher has its event
}

// NewFleet returns a Fleet. It does nothing before Run.
func (c *Client) NewFleet(o FleetOptions) *Fleet {
	return &Fleet{FleetOptions: o, client: c, calls: session{client: c}, leases: map[clientv3.LeaseID]time.Time{}}
}

// Stats returns what was done so far. It is for any goroutine.
func (f *Fleet) Stats() FleetStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.stats
	s.Delivered, s.Join, s.Delivery = f.delivered.Load(), f.join.now(), f.delivery.now()
	return s
}

// Run registers the hosts and lets them come and go until ctx ends or the time is up; then it takes back what it made. The
// Client must outlive ctx.
func (f *Fleet) Run(ctx context.Context) error {
	if err := f.look(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return f.client.explain(err)
	}
	watching, stop := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	err := f.watch(watching, &watchers)
	if err == nil {
		err = f.live(ctx)
	}
	stop() // first: nobody needs to be told of what is taken back
	watchers.Wait()
	if f.Leave {
		return err
	}
	return errors.Join(err, f.cleanUp())
}

// look learns what others hold, and whether there is room.
func (f *Fleet) look(ctx context.Context) error {
	ctx, cancel := call(ctx)
	defer cancel()
	for family, r := range f.Range.All() {
		if theirs := fleetAddresses.Of(family); r.Network.Overlaps(theirs) {
			return fmt.Errorf("the network %s overlaps %s, where simulated hosts have their addresses: use another network, as in 10.5.0.0/16 or fd12:3456::/48", r.Network, theirs)
		}
	}
	list, err := f.client.etcd.Get(ctx, f.client.network(), clientv3.WithPrefix())
	if err != nil {
		return err
	}
	view, want := session{records: map[string]record{}}, f.request(netip.Addr{})
	held := map[netip.Addr]bool{}
	for key, kv := range f.client.leases(list.Kvs) {
		r := readRecord(key, kv)
		view.records[key] = r
		if a, ok := fleetAddress(r.entry.Lease.PublicIP); ok {
			held[a] = true
		}
	}
	f.subnets = view.free(want)
	for family, pool := range f.subnets.All() {
		if free := pool.Len(); free < uint64(f.Leases) {
			return fmt.Errorf("only %d more hosts fit, not %d: %w", free, f.Leases, view.full(want, family))
		}
	}
	f.addresses = newAddressPool(held)
	if n := f.addresses.free(); n < f.Leases {
		return fmt.Errorf("at most %d hosts can be simulated: there are no more addresses in %s", n, fleetAddresses.V4)
	}
	return nil
}

// request is what the host with the address asks for.
func (f *Fleet) request(public netip.Addr) subnet.Request {
	want := subnet.Request{Range: f.Range}
	if public.IsValid() {
		l := f.Announce(fleetPublic(public))
		want.PublicIP, want.Backend, want.Data = l.PublicIP, l.Backend, l.Data
	}
	return want
}

// live has all hosts join, and then come and go.
func (f *Fleet) live(ctx context.Context) error {
	started := time.Now()
	err := f.crowd(ctx, func(ctx context.Context, start func(func() error)) {
		for range f.Leases {
			start(func() error { return f.enter(ctx) })
		}
	})
	if err != nil || ctx.Err() != nil {
		return err
	}
	filled := time.Now()
	f.count(func(s *FleetStats) { s.FilledIn = filled.Sub(started) })
	if f.For > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, filled.Add(f.For))
		defer cancel()
	}
	err = f.crowd(ctx, f.churn)
	f.count(func(s *FleetStats) { s.Churning = time.Since(filled) })
	return err
}

// crowd runs what each starts, only so many at a time, until ctx ends or one fails.
func (f *Fleet) crowd(ctx context.Context, each func(ctx context.Context, start func(func() error))) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.SetLimit(fleetCalls)
	each(ctx, func(task func() error) {
		if ctx.Err() == nil {
			tasks.Go(task)
		}
	})
	return tasks.Wait()
}

// churn has a host replaced at each tick. Ticks that etcd is too slow for are dropped: made up for, they would come in a
// burst.
func (f *Fleet) churn(ctx context.Context, start func(func() error)) {
	var ticks <-chan time.Time
	if f.Churn > 0 {
		ticker := time.NewTicker(max(1, time.Duration(float64(time.Second)/f.Churn)))
		defer ticker.Stop()
		ticks = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks:
			start(func() error { return f.replace(ctx) })
		}
	}
}

// replace has the oldest host leave, and a new one join. It leaves first: the network may be full.
func (f *Fleet) replace(ctx context.Context) error {
	h, ok := f.oldest()
	if !ok {
		return nil // all are being replaced
	}
	if err := f.depart(h); err != nil {
		f.failed(err)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.hosts = append(f.hosts, h) // it tries again when it is the oldest
		return nil
	}
	f.count(func(s *FleetStats) { s.Churned++ })
	return f.enter(ctx)
}

// enter has a new host join, however often it must try, unless the network is full. It tries once if ctx has ended: it may be
// for a host that has left.
func (f *Fleet) enter(ctx context.Context) error {
	for again := (pause{}); ; {
		err := f.register()
		if err == nil || errors.Is(err, errFull) {
			return err
		}
		f.failed(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(again.next()):
		}
	}
}

// register has a new host join. No ctx ends it, only each call's own time: what a call made that was cut off is not known.
func (f *Fleet) register() error {
	f.mu.Lock()
	public := f.addresses.take()
	f.mu.Unlock()
	t, err := f.calls.grant(context.Background())
	if err == nil {
		f.sending(t.lease)
		if err = f.claim(public, t); err != nil {
			err = errors.Join(err, f.revoke(t.lease))
		}
	}
	if err != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.addresses.giveBack(public)
	}
	return err
}

// claim leases subnets for the host with the address and the etcd lease. One that another host was faster to take stays its own for
// good, as far as we are concerned.
func (f *Fleet) claim(public netip.Addr, t term) error {
	for want := f.request(public); ; {
		f.mu.Lock()
		subnets, err := choose(want, f.subnets)
		for family, p := range subnets.All() {
			f.subnets.Of(family).Take(p)
		}
		f.mu.Unlock()
		if err != nil {
			return fmt.Errorf("%w: other hosts have taken what was free; enlarge the network (tulle config set)", err)
		}
		l, sent := want.Lease(subnets), f.sending(t.lease)
		revision, _, err := f.calls.claimFree(context.Background(), want, l, t.lease)
		if err != nil {
			f.giveBack(subnets)
			return err
		}
		if revision != 0 {
			f.join.add(time.Since(sent))
			return f.keep(public, holding{key: l.Key(), modified: revision, granted: l, term: t})
		}
	}
}

// giveBack makes subnets free again.
func (f *Fleet) giveBack(subnets subnet.Pair[netip.Prefix]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for family, p := range subnets.All() {
		f.subnets.Of(family).Return(p)
	}
}

// keep counts a host in, and renews its lease from now on.
func (f *Fleet) keep(public netip.Addr, h holding) error {
	ctx, stop := context.WithCancel(f.client.etcd.Ctx())
	_, err := f.client.etcd.KeepAlive(ctx, h.lease) // every 8 hours: the channel has room for the answers of days, and is not read
	if err != nil {
		stop()
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hosts = append(f.hosts, fleetHost{h, public, stop})
	f.stats.Joined++
	f.stats.Joins++
	return nil
}

// oldest returns the host that has been there for longest, and counts it out.
func (f *Fleet) oldest() (h fleetHost, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.hosts) == 0 {
		return fleetHost{}, false
	}
	h, f.hosts = f.hosts[0], f.hosts[1:]
	f.stats.Joined--
	return h, true
}

// depart has a host leave: its key is deleted, and its etcd lease revoked.
func (f *Fleet) depart(h fleetHost) error {
	if err := f.calls.remove(context.Background(), h.key, h.modified); err != nil {
		return err
	}
	h.stop()
	f.giveBack(h.granted.Subnet)
	f.mu.Lock()
	f.addresses.giveBack(h.address)
	f.mu.Unlock()
	if err := f.revoke(h.lease); err != nil {
		f.failed(err) // it is revoked at the end
	}
	return nil
}

// sending notes that the key of an etcd lease is about to be sent, and returns when.
func (f *Fleet) sending(id clientv3.LeaseID) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.leases[id] = now
	return now
}

// revoke ends an etcd lease, and with it what still hangs on it.
func (f *Fleet) revoke(id clientv3.LeaseID) error {
	err := f.calls.revoke(context.Background(), id)
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.leases, id)
	return nil
}

// cleanUp takes back what was made, as far as there is time.
func (f *Fleet) cleanUp() error {
	started := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), fleetCleanUp)
	defer cancel()
	hosts := f.forget()
	_ = f.crowd(ctx, func(_ context.Context, start func(func() error)) { // no task returns an error
		for id := range hosts {
			start(func() error {
				if err := f.revoke(id); err != nil {
					f.failed(err)
				} else if hosts[id] {
					f.count(func(s *FleetStats) { s.Joined-- })
				}
				return nil
			})
		}
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stats.CleanedIn = time.Since(started)
	if left := len(f.leases); left > 0 {
		return fmt.Errorf("%d simulated hosts are still registered, their leases expire within %s: %s", left, LeaseTTL*time.Second, f.stats.LastError)
	}
	return nil
}

// forget stops the keep-alives, and returns all etcd leases, true for those of hosts that have joined.
func (f *Fleet) forget() map[clientv3.LeaseID]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[clientv3.LeaseID]bool, len(f.leases))
	for id := range f.leases {
		all[id] = false
	}
	for _, h := range f.hosts {
		h.stop()
		all[h.lease] = true
	}
	f.hosts = nil
	return all
}

// watch starts the watchers, and returns when etcd has confirmed them all, or ctx has ended.
func (f *Fleet) watch(ctx context.Context, running *sync.WaitGroup) error {
	var client *Client
	starting := make(chan struct{}, fleetCalls)
	for i := range f.Watchers {
		if i%fleetStreams == 0 {
			var err error
			if client, err = Dial(ctx, f.client.options); err != nil {
				return err
			}
			context.AfterFunc(ctx, func() { client.Close() })
		}
		select {
		case starting <- struct{}{}:
			started := sync.OnceFunc(func() {
				<-starting
				f.count(func(s *FleetStats) { s.Watching++ })
			})
			running.Go(func() { f.follow(ctx, client, started) })
		case <-ctx.Done():
			return nil
		}
	}
	for range fleetCalls { // as soon as none is starting any more
		select {
		case starting <- struct{}{}:
		case <-ctx.Done():
		}
	}
	return nil
}

// follow watches as an agent does, on a stream of its own.
func (f *Fleet) follow(ctx context.Context, client *Client, started func()) {
	for again := (pause{}); ctx.Err() == nil; {
		watcher := clientv3.NewWatcher(client.etcd)
		for r := range watcher.Watch(clientv3.WithRequireLeader(ctx), client.network(), clientv3.WithPrefix(),
			clientv3.WithProgressNotify(), clientv3.WithCreatedNotify()) {
			if r.Created {
				started()
			}
			if err := r.Err(); err != nil && ctx.Err() == nil {
				f.failed(err)
			}
			f.deliver(r.Events)
		}
		_ = watcher.Close() // it has ended
		select {
		case <-ctx.Done():
		case <-time.After(again.next()):
		}
	}
}

// deliver notes events that a watcher got. How old they are is known of those that tell of a host that is still there.
func (f *Fleet) deliver(events []*clientv3.Event) {
	now := time.Now()
	f.delivered.Add(uint64(len(events)))
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range events {
		if sent, ok := f.leases[clientv3.LeaseID(e.Kv.Lease)]; ok && e.Type == clientv3.EventTypePut {
			f.delivery.add(now.Sub(sent))
		}
	}
}

func (f *Fleet) count(change func(s *FleetStats)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.stats)
}

// failed notes an error that is followed by another try.
func (f *Fleet) failed(err error) {
	text := f.client.explain(err).Error()
	f.count(func(s *FleetStats) { s.Errors, s.LastError = s.Errors+1, text })
}

// addressPool hands out fleetAddresses.V4 in turn.
type addressPool struct {
	taken map[netip.Addr]bool
	next  netip.Addr
}

func newAddressPool(held map[netip.Addr]bool) addressPool {
	return addressPool{held, fleetAddresses.V4.Addr()}
}

func (a *addressPool) free() int { return 1<<(32-fleetAddresses.V4.Bits()) - len(a.taken) }

// take returns an address that is free, of which there is one (look).
func (a *addressPool) take() netip.Addr {
	for {
		if a.next = a.next.Next(); !fleetAddresses.V4.Contains(a.next) {
			a.next = fleetAddresses.V4.Addr()
		}
		if !a.taken[a.next] {
			a.taken[a.next] = true
			return a.next
		}
	}
}

func (a *addressPool) giveBack(p netip.Addr) { delete(a.taken, p) }

// Latencies says how often something took how long: in whole microseconds below 32, and in sixteenths of each power of two
// from there on, so that millions of measurements take no room and a quantile is off by 6 % at most.
type Latencies [400]uint64

// Quantile returns the time within which the part q of all was done, 0 if there was nothing.
func (l Latencies) Quantile(q float64) time.Duration {
	done, all := uint64(0), l.Len()
	for i, n := range l {
		if done += n; n > 0 && float64(done) >= q*float64(all) {
			return latencyOf(i)
		}
	}
	return 0
}

// Len is the number of measurements.
func (l Latencies) Len() (n uint64) {
	for _, each := range l {
		n += each
	}
	return n
}

// Since returns what was added to earlier.
func (l Latencies) Since(earlier Latencies) Latencies {
	for i := range l {
		l[i] -= earlier[i]
	}
	return l
}

// latencyOf is the least time that counts in the i-th place.
func latencyOf(i int) time.Duration {
	if i >= 32 {
		i = (i%16 + 16) << (i/16 - 1)
	}
	return time.Duration(i) * time.Microsecond
}

// latencies are Latencies that several goroutines add to.
type latencies [len(Latencies{})]atomic.Uint64

func (l *latencies) add(d time.Duration) {
	i := max(0, d.Microseconds())
	if shift := bits.Len64(uint64(i)) - 5; shift > 0 {
		i = int64(shift*16) + i>>shift
	}
	l[min(int(i), len(l)-1)].Add(1)
}

func (l *latencies) now() (n Latencies) {
	for i := range l {
		n[i] = l[i].Load()
	}
	return n
}
