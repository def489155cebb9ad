// Package probe finds out whether other hosts can be reached, how long that takes, and what gets lost: over the overlay, and
// over the underlay that carries it. All it needs of a peer is a kernel that answers ICMP echo requests. It changes nothing on
// this host, and knows nothing of leases: what is to be probed it is told.
package probe
