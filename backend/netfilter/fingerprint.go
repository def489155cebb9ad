package netfilter

import (
	"encoding/binary"
	"hash/fnv"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// fingerprint tells whether anything in the packet filter changed, whoever did it, by a few system calls and without running a
// program: looking at iptables' rules themselves takes iptables-save, once for each table.
type fingerprint struct {
	known      bool
	generation uint32 // nftables' (NFT_MSG_GETGEN): another after each change of a ruleset
	legacy     uint64 // hash of the legacy tables
}

// fingerprint is that of the packet filter as it is; one that isn't known if that can't be told.
func (b *bell) fingerprint() fingerprint {
	if b.legacy.blind() {
		return fingerprint{}
	}
	generation, err := b.generation()
	hash := fnv.New64a()
	if err != nil || b.legacy.sum(hash) != nil {
		return fingerprint{}
	}
	return fingerprint{true, generation, hash.Sum64()}
}

// queries is a socket to ask nftables by, in the calling thread's network namespace.
func queries() (map[int]*nl.SocketHandle, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	return map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: s}}, nil
}

// generation asks for nftables' ruleset's (linux/netfilter/nf_tables.h).
func (b *bell) generation() (uint32, error) {
	const getGeneration, genID = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, 1
	req := nl.NewNetlinkRequest(getGeneration, 0)
	req.Sockets = b.queries
	req.AddData(&nl.Nfgenmsg{Version: unix.NFNETLINK_V0})
	replies, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return 0, err
	}
	for _, reply := range replies {
		attrs, err := nl.ParseRouteAttr(reply[nl.SizeofNfgenmsg:])
		if err != nil {
			return 0, err
		}
		for _, a := range attrs {
			if a.Attr.Type == genID {
				return binary.BigEndian.Uint32(a.Value), nil
			}
		}
	}
	return 0, unix.ENODATA
}
