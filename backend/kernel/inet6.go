package kernel

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inet6 is how IPv6 treats a device. The zero inet6 is that of one without IPv6.
type inet6 struct {
	present    bool
	genMode    uint8 // IN6_ADDR_GEN_MODE_…: how link-local addresses are made
	acceptRA   uint32
	forwarding uint32
}

// What is in a link's IFLA_AF_SPEC for AF_INET6 (linux/if_link.h, linux/ipv6.h), which x/sys/unix doesn't name.
const (
	inet6Conf        = 2 // an array of 32 bits each
	inet6AddrGenMode = 8
	confForwarding   = 0
	confAcceptRA     = 3

	genModeNone = 1
)

// parseInet6 reads it from a link as the kernel lists it.
func parseInet6(entry []byte) (i inet6) {
	conf := nested(entry, unix.SizeofIfInfomsg, unix.IFLA_AF_SPEC, unix.AF_INET6, inet6Conf)
	mode := nested(entry, unix.SizeofIfInfomsg, unix.IFLA_AF_SPEC, unix.AF_INET6, inet6AddrGenMode)
	if len(conf) < 4*(confAcceptRA+1) || len(mode) == 0 {
		return inet6{}
	}
	return inet6{true, mode[0], number(conf[4*confAcceptRA:]), number(conf[4*confForwarding:])}
}

// autoconf reports whether a device may get addresses by itself: of its own making, or by a router's word.
func (i inet6) autoconf() bool { return i.present && (i.genMode != genModeNone || i.acceptRA != 0) }

// listens reports whether a device takes routers' word now (ipv6_accept_ra, net/ipv6/ndisc.c).
func (i inet6) listens() bool {
	const evenIfForwarding = 2
	return i.acceptRA == evenIfForwarding || i.acceptRA != 0 && i.forwarding == 0
}

// stopAutoconf keeps a link from getting IPv6 addresses by itself. Without a link-local one it solicits no routers in the overlay, and
// nobody in there is one whose advertisements count. A kernel without IPv6 has nothing to switch off, nor has it for a device
// below 1280 bytes: it throws such a device's settings away (IPV6_MIN_MTU, addrconf_notify in net/ipv6/addrconf.c).
func (k *Kernel) stopAutoconf(link netlink.Link, name string) error {
	_ = k.links.LinkSetIP6AddrGenMode(link, genModeNone)
	if !k.sysctls {
		return nil
	}
	if err := setSysctl("net/ipv6/conf/"+name+"/accept_ra", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("switch off router advertisements: %w", err)
	}
	return nil
}
