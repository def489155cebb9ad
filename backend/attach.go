package backend

import (
	"fmt"
	"math"
	"net/netip"
)

// AttachPrefix is what the names of the interfaces that tulle attach makes begin with, and AttachAlias their ifalias. A restarted
// agent leaves them alone: only their containers' end or an operator takes them away.
const (
	AttachPrefix = Prefix + "-a"
	AttachAlias  = Alias + " attach "
)

// Split divides a lease's subnet p between Docker, which gets the lower half, and tulle attach. Docker hands out addresses of
// one block only (--fixed-cidr), and the largest block that is not all of p is half of it. The error says why attach can't have
// as many addresses as it is to have; Docker keeps all of p then. With none asked for, no part is valid.
func (o Options) Split(p netip.Prefix) (docker, attach netip.Prefix, err error) {
	if o.Attach <= 0 {
		return docker, attach, nil
	}
	hostBits := p.Addr().BitLen() - p.Bits()
	room := math.MaxInt // addresses in half a subnet, without the last one: it is the broadcast address
	if hostBits < 32 {
		room = 1<<max(hostBits-1, 0) - 1
	}
	if hostBits < 3 || o.Attach > room { // Docker's half of a /30 has the bridge's address and none for a container
		return docker, attach, fmt.Errorf("half of %s is what Docker can leave, and it does not have %d addresses: ask for fewer with --attach-addresses, or give the network a smaller SubnetLen", p, o.Attach)
	}
	docker = netip.PrefixFrom(p.Masked().Addr(), p.Bits()+1)
	first := docker.Addr().AsSlice()
	first[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	upper, _ := netip.AddrFromSlice(first)
	return docker, netip.PrefixFrom(upper, p.Bits()+1), nil
}
