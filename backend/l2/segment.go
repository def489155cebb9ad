package l2

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/kernel"
	"github.com/tulle-net/tulle/subnet"
)

// expiry is how often what was not heard of is looked for.
const expiry = 30 * time.Second

// place is where a segment's messages are seen, and which of its addresses are this host's.
type place struct {
	port, bridge int // ifindexes
	network, own subnet.Pair[netip.Prefix]
	gateway      subnet.Pair[netip.Addr] // the bridge's own addresses
}

// segment is this host's part of the network's one segment. The loop and what listens share it.
type segment struct {
	place
	learned           *kernel.Learned
	peers, neighbours socket // of the VXLAN port, and of the bridge

	mu     sync.Mutex
	table  *table
	vteps  map[netip.Addr]bool        // peers' underlay addresses
	locals map[netip.Addr]backend.MAC // of this host's own addresses, what was last heard
	wake   *time.Timer
	ended  bool
}

// localsMost bounds locals: they are but a help.
const localsMost = 1 << 12

func openSegment(p place, learned *kernel.Learned) (*segment, error) {
	s := &segment{place: p, learned: learned, table: newTable(), locals: map[netip.Addr]backend.MAC{}, wake: time.NewTimer(expiry)}
	var err error
	if s.peers, err = openSocket(p.port); err != nil {
		return nil, err
	}
	if s.neighbours, err = openSocket(p.bridge); err != nil {
		s.peers.Close()
		return nil, err
	}
	return s, nil
}

// close ends run.
func (s *segment) close() {
	s.peers.Close()
	s.neighbours.Close()
}

// over reports whether run has ended.
func (s *segment) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// run learns until ctx ends, s is closed, or a device goes down or away.
func (s *segment) run(ctx context.Context) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(ctx, s.close)()
	var tasks sync.WaitGroup
	for _, task := range []func(){
		func() { s.peers.listen(s.fromPeer) },
		func() { s.neighbours.listen(s.fromBridge) },
		func() { s.review(ctx) },
	} {
		tasks.Go(func() {
			defer end() // one ends the others
			task()
		})
	}
	tasks.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}

// fromPeer takes in a packet that came in from a peer.
func (s *segment) fromPeer(m message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.foreign(m.ip) || !s.vteps[s.learned.VTEP(s.port, m.mac)] {
		return
	}
	s.hear(m.ip, m.mac, time.Now())
}

// foreign reports whether an address is another host's.
func (s *segment) foreign(a netip.Addr) bool {
	f := subnet.FamilyOf(a)
	return s.network.Of(f).Contains(a) && !s.own.Of(f).Contains(a)
}

// hear takes note that ip has mac. If it had another, containers of this host may have been told so.
func (s *segment) hear(ip netip.Addr, mac backend.MAC, now time.Time) {
	e := s.table.hear(ip, now)
	before := e.mac
	if before != mac || e.lost || now.Sub(e.written) > time.Second {
		e.mac, e.lost, e.written = mac, false, now
		_ = s.learned.SetNeighbour(s.bridge, ip, mac) // without it questions are flooded, as on any segment
	}
	if before != mac && before != (backend.MAC{}) {
		s.neighbours.send(announcement(ip, mac), broadcast)
	}
	s.expire(now)
}

// fromBridge takes in a packet that the bridge was sent, by a container of this host or by a peer.
func (s *segment) fromBridge(m message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	moved := s.moved(m)
	switch {
	case moved, m.gratuitous():
		s.announce(m)
	case m.asks && !s.foreign(m.ip):
		s.verify(m.target, now)
	}
}

// moved reports whether one of this host's own addresses has another MAC than before.
func (s *segment) moved(m message) bool {
	if !s.own.Of(subnet.FamilyOf(m.ip)).Contains(m.ip) {
		return false
	}
	before, known := s.locals[m.ip]
	if len(s.locals) >= localsMost {
		clear(s.locals)
	}
	s.locals[m.ip] = m.mac
	return known && before != m.mac
}

// announce tells peers what m says of its sender, if it is a container of this host: the bridge keeps to itself what doesn't ask
// for anything (br_do_proxy_suppress_arp, br_do_suppress_nd, net/bridge/br_arp_nd_proxy.c), and peers answer in its name.
func (s *segment) announce(m message) {
	if port := s.learned.Port(s.bridge, m.mac); !s.network.Of(subnet.FamilyOf(m.ip)).Contains(m.ip) || port == 0 || port == s.port {
		return
	}
	if e := s.table.find(m.ip); e != nil {
		s.forget(e) // it moved here
	}
	s.peers.relay(announcement(m.ip, m.mac))
}

// verify asks an address whether it is still there, because a container was just told so in its name.
func (s *segment) verify(ip netip.Addr, now time.Time) {
	e := s.table.find(ip)
	if e == nil || e.lost || !s.table.ask(e, now) {
		return
	}
	s.ask(ip, e.mac)
	if len(s.table.asked) == 1 {
		s.wake.Reset(patience)
	}
}

// review looks after those that don't answer, and those that were not heard of for too long.
func (s *segment) review(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-s.wake.C:
			s.mu.Lock()
			for _, e := range s.table.silent(now) {
				s.lose(e)
			}
			s.expire(now)
			s.rest()
			s.mu.Unlock()
		}
	}
}

// rest sets the timer for the next review.
func (s *segment) rest() {
	if len(s.table.asked) == 0 {
		s.wake.Reset(expiry)
		return
	}
	s.wake.Reset(time.Until(s.table.asked[0].at.Add(patience)))
}

// lose stops answering for an address that does not answer itself, and asks all peers for it: another container may have it now,
// and those of this host that were told wrongly are told again then.
func (s *segment) lose(e *entry) {
	e.asked, e.lost = time.Time{}, true
	_ = s.learned.DeleteNeighbour(s.bridge, e.ip)
	s.ask(e.ip, broadcast)
}

// ask asks for an address in this host's own name.
func (s *segment) ask(ip netip.Addr, to backend.MAC) {
	s.peers.send(message{asks: true, mac: s.neighbours.address(), ip: s.gateway.Of(subnet.FamilyOf(ip)), target: ip}, to)
}

func (s *segment) expire(now time.Time) {
	for e := s.table.outdated(now); e != nil; e = s.table.outdated(now) {
		s.forget(e)
	}
}

func (s *segment) forget(e *entry) {
	s.table.forget(e)
	if !e.lost {
		_ = s.learned.DeleteNeighbour(s.bridge, e.ip)
	}
}

// compare takes in what the kernel has, from an earlier life or learned by itself, and forgets what it lacks or what was behind
// peers that are gone.
func (s *segment) compare(floods map[backend.Flood]struct{}) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.vteps = map[netip.Addr]bool{}
	for f := range floods {
		s.vteps[f.Dst] = true
	}
	has := map[netip.Addr]bool{}
	now := time.Now()
	err := s.learned.Neighbours(s.bridge, func(ip netip.Addr, mac backend.MAC) {
		if has[ip] = true; s.foreign(ip) && s.table.find(ip) == nil {
			s.table.hear(ip, now).mac = mac
		}
	})
	if err != nil {
		return err
	}
	for _, e := range s.table.all() {
		if !e.lost && !has[e.ip] {
			s.table.forget(e)
		}
	}
	s.expire(now)
	return s.part(func(vtep netip.Addr) bool { return !s.vteps[vtep] })
}

// change takes in which peers came and went.
func (s *segment) change(c backend.Delta[backend.Flood, struct{}]) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range c.Set {
		s.vteps[f.Dst] = true
	}
	left := map[netip.Addr]bool{}
	for f := range c.Del {
		delete(s.vteps, f.Dst)
		left[f.Dst] = true
	}
	if len(left) == 0 {
		return nil
	}
	return s.part(func(vtep netip.Addr) bool { return left[vtep] })
}

// part forgets all that was behind peers that left.
func (s *segment) part(left func(vtep netip.Addr) bool) error {
	macs, err := s.learned.ForgetVTEPs(s.port, left)
	for _, e := range s.table.all() {
		if macs[e.mac] {
			s.forget(e)
		}
	}
	return err
}
