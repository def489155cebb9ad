package backend

import (
	"cmp"
	"errors"
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
	rivals   map[string]bool          // those of rejected that are left out for another lease's sake
	youngest birth                    // of all that entries ever held
	gone     int                      // deleted from entries since it was made

	fdb        sum[FDBKey, netip.Addr]
	neighbours sum[NeighbourKey, MAC]
	routes     sum[netip.Prefix, Route]
	inside     map[netip.Prefix][]claim // what lies inside one of the network's subnets, by that subnet
}

// NewPlan plans h with the leases in entries, which it keeps and updates from then on.
func NewPlan(b Backend, h Host, entries map[string]subnet.Entry) (*Plan, error) {
	fixed, err := b.Fixed(h)
	if err != nil {
		return nil, err
	}
	p := &Plan{backend: b, host: h, fixed: fixed, entries: entries,
		fdb: newSum[FDBKey, netip.Addr](), neighbours: newSum[NeighbourKey, MAC](), routes: newSum[netip.Prefix, Route]()}
	p.build() // a full compare finds by itself what that changes
	p.fdb.watch()
	p.neighbours.watch()
	p.routes.watch()
	return p, nil
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
	s.FDB, s.Neighbours, s.Routes = p.fdb.total, p.neighbours.total, p.routes.total
	return s
}

// Update takes changed leases into the Plan, the zero Entry for one that is gone, and returns what that changes in the
// State. It costs as much as the changed leases do, unless they compete with others: then it may cost as much as all.
func (p *Plan) Update(changed map[string]subnet.Entry) Changes {
	inOrder := true
	for _, key := range byAge(changed) {
		inOrder = p.replace(key, changed[key]) && inOrder // each is taken in, whatever became of those before it
	}
	if !inOrder {
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

// replace puts e in the place of what is stored under key. It returns false if another order, that of the leases' age, may
// have led to another sum, so that it has to be built again.
func (p *Plan) replace(key string, e subnet.Entry) bool {
	old, inOrder := p.entries[key], true
	if e == (subnet.Entry{}) {
		delete(p.entries, key)
		p.gone++
	} else {
		p.entries[key] = e
	}
	if reject, left := p.rejected[key]; !left {
		inOrder = p.remove(key, old)
	} else if p.reasons[reject.Reason]--; p.reasons[reject.Reason] == 0 {
		delete(p.reasons, reject.Reason)
	}
	delete(p.rejected, key)
	delete(p.rivals, key)
	return p.add(key, e) && inOrder
}

// build sums all parts from nothing, the oldest lease first.
func (p *Plan) build() {
	p.fdb.clear()
	p.neighbours.clear()
	p.routes.clear()
	p.rejected, p.reasons, p.rivals, p.inside = map[string]subnet.Reject{}, map[subnet.Reason]int{}, map[string]bool{}, map[netip.Prefix][]claim{}
	for _, key := range byAge(p.entries) {
		p.add(key, p.entries[key])
	}
}

func (p *Plan) changes() Changes {
	return Changes{FDB: p.fdb.delta(), Neighbours: p.neighbours.delta(), Routes: p.routes.delta()}
}

// part is what the lease stored under key adds to the State; nothing if it isn't a peer's.
func (p *Plan) part(key string, e subnet.Entry) (Part, error) {
	if e.Err != nil {
		return Part{}, e.Err
	}
	if e.Lease == (subnet.Lease{}) || key == p.host.Self.Key() || e.Reserved && e.Lease.Idle() {
		return Part{}, nil
	}
	return p.backend.Peer(p.host, e.Lease)
}

// add takes in the lease e. Like remove it returns false if that may concern leases that are left out.
func (p *Plan) add(key string, e subnet.Entry) (inOrder bool) {
	born := birth{e.Created, key}
	last := born.compare(p.youngest) >= 0
	if last {
		p.youngest = born
	}
	part, err := p.part(key, e)
	inOrder = last || p.settled(part, e.Lease)
	if err == nil {
		if err = p.rival(part, e.Lease); err != nil {
			p.rivals[key], inOrder = true, last
		}
	}
	if reject := (*subnet.Reject)(nil); errors.As(err, &reject) {
		p.rejected[key] = *reject
		p.reasons[reject.Reason]++
		return inOrder
	}
	p.claim(part, e.Lease)
	p.fdb.add(part.FDB)
	p.neighbours.add(part.Neighbours)
	p.routes.add(part.Routes)
	return inOrder
}

// remove takes out what the accepted lease e added. A part depends on nothing but its lease and the host, so it need not be
// remembered.
func (p *Plan) remove(key string, e subnet.Entry) (inOrder bool) {
	part, _ := p.part(key, e)
	p.unclaim(part, e.Lease)
	p.fdb.remove(part.FDB)
	p.neighbours.remove(part.Neighbours)
	p.routes.remove(part.Routes)
	return p.settled(part, e.Lease)
}

// settled reports whether those that are left out for another's sake are so whether l, with its part, is there or not: each has
// a rival that is older and not l, and the others have none.
func (p *Plan) settled(part Part, l subnet.Lease) bool {
	for key := range p.rivals {
		e := p.entries[key]
		if other, _ := p.part(key, e); clash(part, other, l, e.Lease) {
			return false
		}
	}
	return true
}

// clash reports whether two leases may be rivals: it looks at the two alone, and rather finds too much than too little.
func clash(a, b Part, la, lb subnet.Lease) bool {
	for _, ra := range a.Routes {
		for _, rb := range b.Routes {
			if ra.Key.Overlaps(rb.Key) || covers(ra.Key, lb) || covers(rb.Key, la) {
				return true
			}
		}
	}
	return differ(a.FDB, b.FDB) || differ(a.Neighbours, b.Neighbours)
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

// claims are those of an accepted lease.
func (p *Plan) claims(part Part, l subnet.Lease) (claims []claim) {
	for _, r := range part.Routes {
		if within, ok := p.within(r.Key); ok && within != r.Key {
			claims = append(claims, claim{prefix: r.Key})
		}
	}
	for _, a := range l.PublicIP.All() {
		host := netip.PrefixFrom(a, a.BitLen())
		if _, ok := p.within(host); ok && len(part.Routes) > 0 {
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
		p.inside[within] = append(p.inside[within], c)
	}
}

func (p *Plan) unclaim(part Part, l subnet.Lease) {
	for _, c := range p.claims(part, l) {
		within, _ := p.within(c.prefix)
		i := slices.Index(p.inside[within], c)
		if p.inside[within] = slices.Delete(p.inside[within], i, i+1); len(p.inside[within]) == 0 {
			delete(p.inside, within)
		}
	}
}

// overlapping returns what the Plan holds that overlaps q: of several always the same, so that its name in a log is no news.
func (p *Plan) overlapping(q netip.Prefix) (found claim, ok bool) {
	within, inNetwork := p.within(q)
	if !inNetwork {
		return claim{}, false
	}
	if _, held := p.routes.total[within]; held {
		return claim{prefix: within}, true
	}
	for _, c := range p.inside[within] {
		if c.prefix.Overlaps(q) && (!ok || c.prefix.Compare(found.prefix) < 0) {
			found, ok = c, true
		}
	}
	return found, ok
}

// rival returns why part, l's, can't stand beside what the Plan holds already.
func (p *Plan) rival(part Part, l subnet.Lease) error {
	for _, r := range part.Routes {
		switch other, ok := p.overlapping(r.Key); {
		case ok && other.host:
			return subnet.Rejectf(subnet.OnUnderlay, "%s covers %s, another host's public address", r.Key, other.prefix.Addr())
		case ok:
			return subnet.Rejectf(subnet.Overlap, "%s overlaps %s, which an older lease holds", r.Key, other.prefix)
		}
	}
	for _, a := range l.PublicIP.All() {
		other, ok := p.overlapping(netip.PrefixFrom(a, a.BitLen()))
		if ok && !other.host && len(part.Routes) > 0 {
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

func newSum[K, V comparable]() sum[K, V] {
	return sum[K, V]{total: map[K]V{}, extra: map[K]int{}}
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

func (s *sum[K, V]) clear() {
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
