package netfilter

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/subnet"
)

// legacy is the legacy iptables' tables of both families, as the kernel tells of them: by system calls, without a program.
type legacy struct {
	proc    string // the directory of the files that name the tables in use
	sockets [2]int // raw ones, by family; -1 for a family that the kernel hasn't got
}

// openLegacy needs CAP_NET_RAW.
func openLegacy() (*legacy, error) {
	l := &legacy{"/proc/self/net", [2]int{-1, -1}}
	for f, domain := range []int{subnet.IPv4: unix.AF_INET, subnet.IPv6: unix.AF_INET6} {
		socket, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			l.close()
			return nil, err
		}
		if err == nil {
			l.sockets[f] = socket
		}
	}
	return l, nil
}

// blind reports whether nobody lets us see which tables are in use: their names are root's to read, unless the unit gives them to the
// agent's user. A name of our own guessing would make a table that isn't there.
func (l *legacy) blind() bool {
	if l == nil {
		return true
	}
	return slices.ContainsFunc([]subnet.Family{subnet.IPv4, subnet.IPv6}, func(f subnet.Family) bool {
		return errors.Is(unix.Access(filepath.Join(l.proc, layoutOf(f).names), unix.R_OK), unix.EACCES)
	})
}

func (l *legacy) close() {
	for _, socket := range l.sockets {
		if socket >= 0 {
			unix.Close(socket)
		}
	}
}

// layout is how one family's tables are asked for, and where an entry has what is wanted of it: bytes from its beginning
// (linux/netfilter_ipv4/ip_tables.h, struct ipt_entry; linux/netfilter_ipv6/ip6_tables.h, struct ip6t_entry).
type layout struct {
	names                     string // of the file with the tables' names
	level                     int    // of the socket options
	next, counters, afterward int
}

func layoutOf(f subnet.Family) layout {
	if f == subnet.IPv4 {
		return layout{"ip_tables_names", unix.IPPROTO_IP, 90, 96, 112}
	}
	return layout{"ip6_tables_names", unix.IPPROTO_IPV6, 142, 152, 168}
}

// Socket options, IPv4's as IPv6's.
const (
	getInfo    = 64 // IPT_SO_GET_INFO
	getEntries = 65 // IPT_SO_GET_ENTRIES
)

// legacyTable names one.
type legacyTable struct {
	family subnet.Family
	name   string
}

func (t legacyTable) compare(o legacyTable) int {
	return cmp.Or(cmp.Compare(t.family, o.family), strings.Compare(t.name, o.name))
}

// extent is how much a table holds, and where the policy of FORWARD is among it: bytes from the beginning.
type extent struct{ entries, bytes, forward uint32 }

// tables are those in use, of which there are none where iptables is the nftables one.
func (l *legacy) tables() map[legacyTable]extent {
	tables := map[legacyTable]extent{}
	for _, f := range []subnet.Family{subnet.IPv4, subnet.IPv6} {
		names, _ := os.ReadFile(filepath.Join(l.proc, layoutOf(f).names)) // no file, no tables
		for _, name := range strings.Fields(string(names)) {
			t := legacyTable{f, name}
			if e, err := l.extent(t); err == nil {
				tables[t] = e
			}
		}
	}
	return tables
}

// extent asks for a table's struct ipt_getinfo: name, valid_hooks, hook_entry[5], underflow[5], num_entries, size.
func (l *legacy) extent(t legacyTable) (extent, error) {
	var info [84]byte
	copy(info[:31], t.name)
	err := l.ask(t.family, getInfo, info[:])
	return extent{binary.NativeEndian.Uint32(info[76:]), binary.NativeEndian.Uint32(info[80:]), binary.NativeEndian.Uint32(info[64:])}, err
}

// rules returns a table's entries, without their counters. What is asked for is a struct ipt_get_entries: the name and the size
// before the entries.
func (l *legacy) rules(t legacyTable, e extent) ([]byte, error) {
	const header = 40
	table := make([]byte, header+int(e.bytes))
	copy(table[:31], t.name)
	binary.NativeEndian.PutUint32(table[32:], e.bytes)
	if err := l.ask(t.family, getEntries, table); err != nil {
		return nil, err
	}
	rules, at := table[header:], layoutOf(t.family)
	for entry := rules; len(entry) >= at.afterward; {
		clear(entry[at.counters:at.afterward])
		next := int(binary.NativeEndian.Uint16(entry[at.next:]))
		if next == 0 || next > len(entry) {
			break
		}
		entry = entry[next:]
	}
	return rules, nil
}

func (l *legacy) ask(f subnet.Family, option int, answer []byte) error {
	length := uint32(len(answer))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(l.sockets[f]), uintptr(layoutOf(f).level), uintptr(option),
		uintptr(unsafe.Pointer(&answer[0])), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// each calls f with the rules of each table in use.
func (l *legacy) each(f func(t legacyTable, rules []byte)) error {
	tables := l.tables()
	for _, t := range slices.SortedFunc(maps.Keys(tables), legacyTable.compare) {
		rules, err := l.rules(t, tables[t])
		if err != nil {
			return err // it has just changed
		}
		f(t, rules)
	}
	return nil
}

// sum adds all tables to a hash.
func (l *legacy) sum(h hash.Hash) error {
	return l.each(func(t legacyTable, rules []byte) {
		fmt.Fprintln(h, t, len(rules))
		h.Write(rules)
	})
}

// has reports whether a family's tables have a chain whose name begins so; an end of the name is a NUL. It is in an entry of its own,
// between zeros (struct xt_error_target).
func (l *legacy) has(f subnet.Family, name string) (found bool, err error) {
	err = l.each(func(t legacyTable, rules []byte) {
		found = found || t.family == f && bytes.Contains(rules, []byte("\x00"+name))
	})
	return found, err
}

// policyDrops reports whether a family's FORWARD has a policy of DROP: it is the verdict of the last rule (struct xt_standard_target).
func (l *legacy) policyDrops(f subnet.Family) (bool, error) {
	t := legacyTable{f, "filter"}
	e, ok := l.tables()[t]
	if !ok {
		return false, nil
	}
	rules, err := l.rules(t, e)
	if err != nil {
		return false, err
	}
	const header, dropped = 32, -1 // of a struct xt_entry_target; -NF_DROP - 1
	policy := rules[e.forward:]
	target := binary.NativeEndian.Uint16(policy[layoutOf(f).next-2:])
	return int32(binary.NativeEndian.Uint32(policy[target+header:])) == dropped, nil
}
