package backend

import (
	"cmp"
	"errors"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/tulle-net/tulle/subnet"
)

// Plan is the desired State of one host, kept as the sum of its parts so that a changed peer is planned and applied alone.
// Where two leases claim the same, the older one keeps it: nobody takes a peer's traffic over by writing another lease.
// A Plan is not for concurrent use.
type Plan struct {
	backend Backend
	host    Host
	fixed   State

	entries  map[string]subnet.Entry  // all that are stored, by key
	rejected map[string]subnet.Reject // those of them that are left out
	reasons  map[subnet.Reason]int    // how many of them for each reason
	rivals   map[string]Part          // those of rejected that are left out for another lease's sake, and what they would add
	youngest birth                    // of all that entries ever held
	gone     int                      // deleted from entries since it was made
	disorder bool                     // another order, that of the leases' age, may have led to another sum: it has to be built again

	untyped bool // this backend's leases don't name it, so that a host's can't be told from a reservation for it
	peers   int  // accepted

	fdb        sum[FDBKey, netip.Addr]
	floods     sum[Flood, struct{}]
	neighbours sum[NeighbourKey, MAC]
	routes     sum[netip.Prefix, Route]
	endpoints  sum[EndpointKey, netip.AddrPort]
	wireguard  sum[PeerKey, Peer]
	hooks      sum[string, subnet.Lease]
	inside     map[netip.Prefix][]claim // what lies inside one of the network's subnets, by that subnet, in order; claims that differ don't overlap
}

// NewPlan plans h with the leases in entries, which it keeps and updates from then on.
func NewPlan(b Backend, h Host, entries map[string]subnet.Entry) (*Plan, error) {
	fixed, err := b.Fixed(h)
	if err != nil {
		return nil, err
	}
	own, _ := h.Announce(b)
	p := &Plan{backend: b, host: h, fixed: fixed, entries: entries, untyped: own.Backend == ""}
	p.build() // a full compare finds by itself what that changes
	for _, t := range p.tables() {
		t.watch()
	}
	return p, nil
}

// table is a sum, whatever it is of.
type table interface {
	clear()
	watch()
}

func (p *Plan) tables() []table {
	return []table{&p.fdb, &p.floods, &p.neighbours, &p.routes, &p.endpoints, &p.wireguard, &p.hooks}
}

// Entries are the leases that the Plan was made from, by key. They are the Plan's: read only.
func (p *Plan) Entries() map[string]subnet.Entry { return p.entries }

// Rejected says which leases are left out and why, by key. It is the Plan's: read only.
func (p *Plan) Rejected() map[string]subnet.Reject { return p.rejected }

// Reasons says how many leases are left out by reason, without those that there are none for. It is the Plan's: read only.
func (p *Plan) Reasons() map[subnet.Reason]int { return p.reasons }

// Host is the host that the Plan is for.
func (p *Plan) Host() Host { return p.host }

// State is the whole desired State. Its tables are the Plan's: read only.
func (p *Plan) State() State {
	s := p.fixed
	s.FDB, s.Floods, s.Neighbours, s.Routes = p.fdb.total, p.floods.total, p.neighbours.total, p.routes.total
	s.Endpoints, s.Peers, s.Hooks = p.endpoints.total, p.wireguard.total, p.hooks.total
	return s
}

// Announce is the lease that tells peers of this host, and the range that its subnets are in.
func (p *Plan) Announce() (subnet.Lease, subnet.Pair[subnet.Range]) {
	return p.host.Announce(p.backend)
}

// Peers is how many peers the Plan has.
func (p *Plan) Peers() int { return p.peers }

// Inside is where a lease's host itself answers inside the overlay, this host, too; not valid if the backend has no such address.
func (p *Plan) Inside(l subnet.Lease) subnet.Pair[netip.Addr] { return p.backend.Inside(l) }

// IsPeer reports whether the entry stored under key is that of another host, and not left out.
func (p *Plan) IsPeer(key string, e subnet.Entry) bool {
	_, left := p.rejected[key]
	return !left && e.Err == nil && p.others(key, e)
}

// others reports whether an entry is another host's lease: not our own, and no reservation that its host has not come for yet.
func (p *Plan) others(key string, e subnet.Entry) bool {
	return e.Lease != (subnet.Lease{}) && key != p.host.Self.Key() && (!e.Reserved || !e.Lease.Idle() || p.untyped)
}

// Update takes changed leases into the Plan, the zero Entry for one that is gone, and returns what that changes in the
// State. It costs as much as the changed leases do, unless they compete with others: then it may cost as much as all.
func (p *Plan) Update(changed map[string]subnet.Entry) Changes {
	p.disorder = len(changed)*len(p.rivals) > len(p.entries)+spare // to compare each with each would cost more than to begin anew
	for _, key := range byAge(changed) {
		p.replace(key, changed[key]) // each is taken in, whatever became of those before it
	}
	if p.disorder {
		p.build()
	}
	if p.gone > len(p.entries)/8+spare {
		p.entries, p.gone = maps.Collect(maps.All(p.entries)), 0
	}
	return p.changes()
}

// spare is how many entries may be deleted from a table, beside an eighth of it, before it is made anew: a map keeps the room of
// the most it ever held.
const spare = 1000

// replace puts e in the place of what is stored under key.
func (p *Plan) replace(key string, e subnet.Entry) {
	old, stored := p.entries[key]
	if e == (subnet.Entry{}) {
		delete(p.entries, key)
		p.gone++
	} else {
		p.entries[key] = e
	}
	switch reject, left := p.rejected[key]; {
	case left:
		if p.reasons[reject.Reason]--; p.reasons[reject.Reason] == 0 {
			delete(p.reasons, reject.Reason)
		}
	case stored:
		p.remove(key, old)
	}
	delete(p.rejected, key)
	delete(p.rivals, key)
	p.add(key, e)
}

// build sums all parts from nothing, the oldest lease first.
func (p *Plan) build() {
	for _, t := range p.tables() {
		t.clear()
	}
	for dst, r := range p.fixed.Routes {
		p.routes.add(row(dst, r))
	}
	p.peers = 0
	p.rejected, p.reasons, p.rivals, p.inside = map[string]subnet.Reject{}, map[subnet.Reason]int{}, map[string]Part{}, map[netip.Prefix][]claim{}
	for _, key := range byAge(p.entries) {
		p.add(key, p.entries[key])
	}
}

func (p *Plan) changes() Changes {
	return Changes{FDB: p.fdb.delta(), Floods: p.floods.delta(), Neighbours: p.neighbours.delta(), Routes: p.routes.delta(),
		Endpoints: p.endpoints.delta(), Peers: p.wireguard.delta(), Hooks: p.hooks.delta()}
}

// part is what the lease stored under key adds to the State; nothing if it isn't a peer's.
func (p *Plan) part(key string, e subnet.Entry) (Part, error) {
	if e.Err != nil {
		return Part{}, e.Err
	}
	if !p.others(key, e) {
		return Part{}, nil
	}
	return p.backend.Peer(p.host, e.Lease)
}

// add takes in the lease e. Like remove it notes if that may concern leases that are left out.
func (p *Plan) add(key string, e subnet.Entry) {
	if e == (subnet.Entry{}) {
		return
	}
	born := birth{e.Created, key}
	last := born.compare(p.youngest) >= 0
	if last {
		p.youngest = born
	}
	part, err := p.part(key, e)
	if !last {
		p.settle(part, e.Lease)
	}
	if err == nil {
		if err = p.rival(part, e.Lease); err != nil {
			p.rivals[key], p.disorder = part, p.disorder || !last
		}
	}
	if reject := (*subnet.Reject)(nil); errors.As(err, &reject) {
		p.rejected[key] = *reject
		p.reasons[reject.Reason]++
		return
	}
	p.claim(part, e.Lease)
	p.fdb.add(part.FDB)
	p.floods.add(part.Floods)
	p.neighbours.add(part.Neighbours)
	p.routes.add(part.Routes)
	p.endpoints.add(part.Endpoints)
	p.wireguard.add(part.Peers)
	p.hooks.add(part.Hooks)
	if p.others(key, e) {
		p.peers++
	}
}

// remove takes out what the accepted lease e added. A part depends on nothing but its lease and the host, so it need not be
// remembered.
func (p *Plan) remove(key string, e subnet.Entry) {
	part, _ := p.part(key, e)
	p.unclaim(part, e.Lease)
	p.fdb.remove(part.FDB)
	p.floods.remove(part.Floods)
	p.neighbours.remove(part.Neighbours)
	p.routes.remove(part.Routes)
	p.endpoints.remove(part.Endpoints)
	p.wireguard.remove(part.Peers)
	p.hooks.remove(part.Hooks)
	if p.others(key, e) {
		p.peers--
	}
	p.settle(part, e.Lease)
}

// settle notes a disorder, unless those that are left out for another's sake are so whether l, with its part, is there or not: each
// has a rival that is older and not l, and the others have none.
func (p *Plan) settle(part Part, l subnet.Lease) {
	for key, other := range p.rivals {
		if p.disorder {
			return
		}
		p.disorder = clash(part, other, l, p.entries[key].Lease)
	}
}

// clash reports whether two leases may be rivals: it looks at the two alone, and rather finds too much than too little.
func clash(a, b Part, la, lb subnet.Lease) bool {
	for _, pa := range la.Subnet.All() {
		for _, pb := range lb.Subnet.All() {
			if pa.Overlaps(pb) || covers(pa, lb) || covers(pb, la) {
				return true
			}
		}
	}
	return differ(a.FDB, b.FDB) || differ(a.Neighbours, b.Neighbours) || differ(a.Peers, b.Peers)
}

// covers reports whether a lease's host has its public address inside a subnet.
func covers(p netip.Prefix, l subnet.Lease) bool {
	return p.Contains(l.PublicIP.V4) || p.Contains(l.PublicIP.V6)
}

// differ reports whether two parts of a table have different values for a key.
func differ[K, V comparable](a, b []Row[K, V]) bool {
	for _, ra := range a {
		if slices.ContainsFunc(b, func(rb Row[K, V]) bool { return ra.Key == rb.Key && ra.Value != rb.Value }) {
			return true
		}
	}
	return false
}

// claim is a part of one of the network's subnets: the subnet of a lease with a longer prefix, or a host's public address.
// Usually there is none. No lease has a shorter prefix (subnet.Range.Admits), so what overlaps lies in the same subnet.
type claim struct {
	prefix netip.Prefix
	host   bool
}

// compare orders claims by where they begin.
func (c claim) compare(o claim) int {
	return cmp.Or(c.prefix.Addr().Compare(o.prefix.Addr()), cmp.Compare(c.prefix.Bits(), o.prefix.Bits()))
}

// prefixes yields what a part sends to its peer, and whether by a route.
func (p Part) prefixes() iter.Seq2[netip.Prefix, bool] {
	return func(yield func(netip.Prefix, bool) bool) {
		for _, r := range p.Routes {
			if !yield(r.Key, true) {
				return
			}
		}
		for _, r := range p.Hooks {
			for _, prefix := range r.Value.Subnet.All() {
				if !yield(prefix, false) {
					return
				}
			}
		}
	}
}

// carried reports whether p sends anything to its peer by the peer's subnets.
func (p Part) carried() bool { return len(p.Routes)+len(p.Hooks) > 0 }

// claims are those of an accepted lease.
func (p *Plan) claims(part Part, l subnet.Lease) (claims []claim) {
	for prefix, routed := range part.prefixes() {
		if within, ok := p.within(prefix); ok && (within != prefix || !routed) {
			claims = append(claims, claim{prefix: prefix})
		}
	}
	for _, a := range l.PublicIP.All() {
		host := netip.PrefixFrom(a, a.BitLen())
		if _, ok := p.within(host); ok && part.carried() {
			claims = append(claims, claim{host, true})
		}
	}
	return claims
}

// within returns the network's subnet that q lies in, if it lies in the network.
func (p *Plan) within(q netip.Prefix) (netip.Prefix, bool) {
	r := p.host.Config.Range.Of(subnet.FamilyOf(q.Addr()))
	if r == (subnet.Range{}) || !r.Network.Contains(q.Addr()) || q.Bits() < r.SubnetLen {
		return q, false
	}
	return netip.PrefixFrom(q.Addr(), r.SubnetLen).Masked(), true
}

func (p *Plan) claim(part Part, l subnet.Lease) {
	for _, c := range p.claims(part, l) {
		within, _ := p.within(c.prefix)
		i, _ := slices.BinarySearchFunc(p.inside[within], c, claim.compare)
		p.inside[within] = slices.Insert(p.inside[within], i, c)
	}
}

func (p *Plan) unclaim(part Part, l subnet.Lease) {
	for _, c := range p.claims(part, l) {
		within, _ := p.within(c.prefix)
		i, _ := slices.BinarySearchFunc(p.inside[within], c, claim.compare)
		if p.inside[within] = slices.Delete(p.inside[within], i, i+1); len(p.inside[within]) == 0 {
			delete(p.inside, within)
		}
	}
}

// overlapping returns what the Plan holds that overlaps q: of several always the same, so that its name in a log is no news.
func (p *Plan) overlapping(q netip.Prefix) (claim, bool) {
	within, inNetwork := p.within(q)
	if !inNetwork {
		return claim{}, false
	}
	if _, held := p.routes.total[within]; held {
		return claim{prefix: within}, true
	}
	claims := p.inside[within]
	i, _ := slices.BinarySearchFunc(claims, claim{prefix: q}, claim.compare)
	for _, c := range claims[max(0, i-1):min(len(claims), i+1)] { // the one before may have q in it, the one after lie in q
		if c.prefix.Overlaps(q) {
			return c, true
		}
	}
	return claim{}, false
}

// rival returns why part, l's, can't stand beside what the Plan holds already.
func (p *Plan) rival(part Part, l subnet.Lease) error {
	for prefix := range part.prefixes() {
		switch other, ok := p.overlapping(prefix); {
		case ok && other.host:
			return subnet.Rejectf(subnet.OnUnderlay, "%s covers %s, another host's public address", prefix, other.prefix.Addr())
		case ok:
			return subnet.Rejectf(subnet.Overlap, "%s overlaps %s, which an older lease holds", prefix, other.prefix)
		}
	}
	for _, a := range l.PublicIP.All() {
		other, ok := p.overlapping(netip.PrefixFrom(a, a.BitLen()))
		if ok && !other.host && part.carried() {
			return subnet.Rejectf(subnet.BadAddress, "public address %s lies inside the overlay, in %s", a, other.prefix)
		}
	}
	for _, r := range part.FDB {
		if other, ok := p.fdb.total[r.Key]; ok && other != r.Value {
			return subnet.Rejectf(subnet.Conflict, "VTEP MAC %s is already in use at %s", r.Key.MAC, other)
		}
	}
	for _, r := range part.Neighbours {
		if other, ok := p.neighbours.total[r.Key]; ok && other != r.Value {
			return subnet.Rejectf(subnet.Conflict, "VTEP address %s already has MAC %s", r.Key.IP, other)
		}
	}
	for _, r := range part.Peers {
		if other, ok := p.wireguard.total[r.Key]; ok && other != r.Value {
			return subnet.Rejectf(subnet.Conflict, "public key %s is already in use at %s", r.Key.Key, other.Endpoint)
		}
	}
	return nil
}

// birth is what leases' age is told by: the revision that a key was created at, and for what was made by one transaction the key.
type birth struct {
	created int64
	key     string
}

func (b birth) compare(o birth) int {
	return cmp.Or(cmp.Compare(b.created, o.created), cmp.Compare(b.key, o.key))
}

// byAge returns the keys of entries, the oldest first.
func byAge(entries map[string]subnet.Entry) []string {
	births := make([]birth, 0, len(entries))
	for key, e := range entries {
		births = append(births, birth{e.Created, key})
	}
	slices.SortFunc(births, birth.compare)
	keys := make([]string, len(births))
	for i, b := range births {
		keys[i] = b.key
	}
	return keys
}

// sum is one table of a State as the sum of parts. Several parts may add the same entry: it stays until the last is removed.
type sum[K, V comparable] struct {
	total  map[K]V
	extra  map[K]int    // by how many more than one part an entry was added
	before map[K]was[V] // the entries touched since the last delta, as they were; nil before anybody watches
	gone   int          // deleted from total since it was made
}

type was[V comparable] struct {
	value   V
	present bool
}

// watch begins what delta returns. A map made anew, because one that was cleared keeps the room of the most it ever held.
func (s *sum[K, V]) watch() { s.before = map[K]was[V]{} }

func (s *sum[K, V]) touch(k K) {
	if _, done := s.before[k]; !done && s.before != nil {
		v, ok := s.total[k]
		s.before[k] = was[V]{v, ok}
	}
}

func (s *sum[K, V]) add(part []Row[K, V]) {
	for _, r := range part {
		if _, shared := s.total[r.Key]; shared {
			s.extra[r.Key]++
			continue
		}
		s.touch(r.Key)
		s.total[r.Key] = r.Value
	}
}

func (s *sum[K, V]) remove(part []Row[K, V]) {
	for _, r := range part {
		k := r.Key
		switch n := s.extra[k]; n {
		case 0:
			s.touch(k)
			delete(s.total, k)
			s.gone++
		case 1:
			delete(s.extra, k)
		default:
			s.extra[k] = n - 1
		}
	}
}

// clear takes all parts out; a sum must be cleared before it is first used.
func (s *sum[K, V]) clear() {
	if s.total == nil {
		s.total, s.extra = map[K]V{}, map[K]int{}
	}
	for k := range s.total {
		s.touch(k)
	}
	clear(s.total)
	clear(s.extra)
}

// delta returns what changed since it was last called.
func (s *sum[K, V]) delta() Delta[K, V] {
	d := Delta[K, V]{Set: map[K]V{}, Del: map[K]V{}}
	for k, before := range s.before {
		now, ok := s.total[k]
		switch {
		case ok && (!before.present || now != before.value):
			d.Set[k] = now
		case !ok && before.present:
			d.Del[k] = before.value
		}
	}
	s.watch()
	if s.gone > len(s.total)/8+spare {
		s.total, s.gone = maps.Collect(maps.All(s.total)), 0
	}
	return d
}
