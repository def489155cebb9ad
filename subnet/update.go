package subnet

import (
	"net/netip"
	"slices"
	"time"
)

// Update is what the lease store knows that its reader does not know yet: the state as of Revision, and, so that a join
// among ten thousand hosts costs one host's work, only those leases that differ from what the reader took before. Events
// are folded: a lease that changed twice is here once, as it is now.
type Update struct {
	Revision int64
	Config   StoredConfig
	Own      Own
	Reset    bool             // Leases is the whole set: forget what it does not hold
	Leases   map[string]Entry // by key name; the zero Entry for one that is gone
	Err      error            // why the store has lost touch with etcd; nil while it is in touch
	Alert    string           // what an operator should do something about in etcd; "" for nothing
}

// StoredConfig is the network's config as found in etcd.
type StoredConfig struct {
	Revision int64 // of the config's last change; 0 if none is stored
	Text     string
	Config   Config
	Unknown  []string // keys that Config does not know
	Err      error    // why it can't be used
}

// Usable reports whether there is a config, and a valid one.
func (c StoredConfig) Usable() bool { return c.Revision != 0 && c.Err == nil }

// Entry is what is stored under one key.
type Entry struct {
	Lease    Lease
	Created  int64 // etcd revision of the key's creation: the older of two rivals keeps what they both claim
	Reserved bool  // the key has no etcd lease: it stays until it is released
	Err      error // a *Reject, if it can't be read
}

// Own is what this host holds.
type Own struct {
	Lease    Lease // the zero Lease while none is held
	Reserved bool
	Revision int64         // etcd's, of the key as we wrote or found it: by it the next life knows that nobody else took it
	Renewed  time.Time     // when etcd last confirmed it
	TTL      time.Duration // from then; 0 if reserved
	Err      error         // why none is held, or why a held one could not be renewed
	Yielded  string        // why the lease is not the same as before: an older one had some of it; "" if none had
	Rival    string        // which other host claims the same; "" for none
}

// Held reports whether a lease is held.
func (o Own) Held() bool { return o.Lease.Subnet != (Pair[netip.Prefix]{}) }

// Request is what a host asks of the lease store.
type Request struct {
	Range    Pair[Range]        // what the subnets must come from
	PublicIP Pair[netip.Addr]   // finds the host's reservation or its earlier lease again
	Previous Pair[netip.Prefix] // the subnets held in an earlier life: taken again if they are free
	Revision int64              // Own.Revision of that life; 0 if it isn't known, AnyRevision if nobody else can hold them
	Exclude  []netip.Prefix     // never taken: what the underlay itself needs
	Backend  string             // to be published with the lease, as Data
	Data     Pair[string]
}

// AnyRevision says that what is stored for this host's address and earlier subnets is its own, however it was left.
const AnyRevision = -1

// Equal reports whether q asks for the same as r.
func (r Request) Equal(q Request) bool {
	return r.Range == q.Range && r.PublicIP == q.PublicIP && r.Previous == q.Previous && r.Revision == q.Revision && slices.Equal(r.Exclude, q.Exclude) &&
		r.Backend == q.Backend && r.Data == q.Data
}

// Lease is what the host publishes if it gets subnets.
func (r Request) Lease(subnets Pair[netip.Prefix]) Lease {
	return Lease{Subnet: subnets, PublicIP: r.PublicIP, Backend: r.Backend, Data: r.Data}
}

// Merge takes the update's leases into entries, or returns them in its place if they are the whole set.
func (u Update) Merge(entries map[string]Entry) map[string]Entry {
	if u.Reset {
		return u.Leases
	}
	for key, e := range u.Leases {
		if e == (Entry{}) {
			delete(entries, key)
		} else {
			entries[key] = e
		}
	}
	return entries
}

// Look is what etcd says at one moment.
type Look struct {
	Members  []Member
	Revision int64         // 0: no member said
	Entry    *Entry        // under the key that was asked for; nil if nothing is
	TTL      time.Duration // what that entry has left; 0 if it does not expire
}

// Member is one of etcd's members, as it answers.
type Member struct {
	URL     string
	Err     error
	Version string
	Took    time.Duration // for a read that all members agreed to
	Clock   time.Duration // how far its clock is ahead of ours, to about a second; 0 if it does not say
}
