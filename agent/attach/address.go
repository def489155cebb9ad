package attach

import (
	"fmt"
	"net/netip"
	"slices"
)

// choose returns wish, or without one the lowest address of r that is free. The last address of r is the subnet's broadcast
// address if it is IPv4.
func choose(r netip.Prefix, taken []netip.Addr, wish netip.Addr) (netip.Addr, error) {
	switch {
	case wish.IsValid() && !usable(r, wish):
		return wish, fmt.Errorf("--ip %s is not among the addresses that are kept for attach: any of %s will do, but for the last", wish, r)
	case wish.IsValid() && slices.Contains(taken, wish):
		return wish, fmt.Errorf("--ip %s is taken: leave --ip out for a free one", wish)
	case wish.IsValid():
		return wish, nil
	}
	for a := r.Masked().Addr(); usable(r, a); a = a.Next() {
		if !slices.Contains(taken, a) {
			return a, nil
		}
	}
	return wish, fmt.Errorf("all addresses of %s are taken: detach a container, or give the network larger subnets", r)
}

func usable(r netip.Prefix, a netip.Addr) bool {
	return r.Contains(a) && (a.Is6() || r.Contains(a.Next()))
}
