package netfilter

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// fingerprint tells whether anything in the packet filter changed, whoever did it, by two or three system calls and without
// running a program: looking at the rules themselves takes iptables-save, once for each table.
type fingerprint struct {
	known      bool
	generation uint32 // nftables' (NFT_MSG_GETGEN): another after each change of a ruleset
	legacy     uint64 // hash of the legacy tables, IPv4's
}

// fingerprint is that of the packet filter as it is; one that isn't known if that can't be told.
func (b *bell) fingerprint() fingerprint {
	if b == nil || b.legacy < 0 {
		return fingerprint{}
	}
	generation, err := b.generation()
	if err != nil {
		return fingerprint{}
	}
	hash, tables := fnv.New64a(), b.legacyTables()
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		rules, err := legacyRules(b.legacy, name, tables[name])
		if err != nil {
			return fingerprint{} // it has just changed
		}
		fmt.Fprintln(hash, name, len(rules))
		hash.Write(rules)
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

// legacyRules returns a legacy table's entries, without their counters. IPT_SO_GET_ENTRIES fills a struct ipt_get_entries, the
// name and the size before the entries; of a struct ipt_entry, next_offset and the counters are wanted
// (linux/netfilter_ipv4/ip_tables.h).
func legacyRules(socket int, name string, e extent) ([]byte, error) {
	const getEntries, header, nextOffset, counters, endOfCounters = 65, 40, 90, 96, 112
	table := make([]byte, header+int(e.bytes))
	copy(table[:31], name)
	binary.NativeEndian.PutUint32(table[32:], e.bytes)
	length := uint32(len(table))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(socket), unix.IPPROTO_IP, getEntries,
		uintptr(unsafe.Pointer(&table[0])), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return nil, errno
	}
	rules := table[header:]
	for entry := rules; len(entry) >= endOfCounters; {
		clear(entry[counters:endOfCounters])
		next := int(binary.NativeEndian.Uint16(entry[nextOffset:]))
		if next == 0 || next > len(entry) {
			break
		}
		entry = entry[next:]
	}
	return rules, nil
}
