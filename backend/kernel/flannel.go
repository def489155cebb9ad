package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// flannelPrefix begins the names of flannel's devices, as backend.Prefix does ours: flannel.1, flannel-v6.1, flannel.ipip.
const flannelPrefix = "flannel"

// adopt marks as ours what flannel left in the place of a wanted device: the kernel has room for one. The mark is all: from then on it
// is a device of ours that has another's name, and gets its own with all that hangs on it. Addresses, neighbours and FDB entries are
// ours where the device is; a wanted route takes the place of the same one of flannel's. Its other routes go first: nobody would know
// later whose they were.
func (k *Kernel) adopt(want backend.State, have linkTable) error {
	var errs errorList
	for name, l := range want.Links {
		if _, exists := have.all[name]; exists {
			continue
		}
		for old, link := range have.all {
			if _, ours := have.own[old]; ours || !strings.HasPrefix(old, flannelPrefix) || !inPlaceOf(toLink(link, have.names()), l) {
				continue
			}
			if err := errors.Join(k.dropStale(link, want.Routes), k.links.LinkSetAlias(link, backend.Alias)); err != nil {
				errs.add("link", fmt.Errorf("take over %s: %w", old, err))
				continue
			}
			own, err := k.observeLink(link, have.names())
			errs.add("link", err)
			have.own[old] = own
		}
	}
	return errs.join()
}

// inPlaceOf reports whether the kernel can't have now beside want: of VXLAN, one network's number on a port and a family; of IPIP, an
// address.
func inPlaceOf(now, want backend.Link) bool {
	switch {
	case now.Kind != want.Kind:
		return false
	case want.Kind == backend.KindVXLAN:
		return now.VXLAN.VNI == want.VXLAN.VNI && now.VXLAN.Port == want.VXLAN.Port && now.VXLAN.Local.Is6() == want.VXLAN.Local.Is6()
	}
	return want.Kind == backend.KindIPIP && now.IPIP.Local == want.IPIP.Local
}

// names are the links' names by their ifindexes.
func (t linkTable) names() map[int]string {
	names := map[int]string{}
	for name, l := range t.all {
		names[l.Attrs().Index] = name
	}
	return names
}

// dropStale deletes the routes of flannel's by a device that are not wanted any more: to hosts that left while nobody looked.
func (k *Kernel) dropStale(link netlink.Link, want map[netip.Prefix]backend.Route) error {
	routes, err := k.conn.listRoutes(unix.RTPROT_BOOT, unix.AF_INET, unix.AF_INET6)
	var errs errorList
	errs.add("", err)
	for _, r := range routes {
		if _, wanted := want[r.dst]; wanted || r.index != link.Attrs().Index || !r.gateway.IsValid() {
			continue
		}
		m := rtmsg(r.dst, unix.RTN_UNICAST, 0).uint32(unix.RTA_OIF, uint32(r.index))
		m[5] = r.protocol
		errs.add("", gone(k.conn.do(unix.RTM_DELROUTE, 0, m)))
	}
	return errs.join()
}

// same reports whether somebody else's route to dst leads exactly where ours is to lead, so that ours may take its place: flannel's do,
// where it ran before. All of them are listed once.
func (k *Kernel) same(w *work, dst netip.Prefix, h hop) bool {
	if w.others == nil {
		list, err := k.conn.listForeignRoutes()
		if err != nil {
			return false
		}
		w.others = map[netip.Prefix]route{}
		for _, r := range list {
			if !r.stray() {
				w.others[r.dst] = r
			}
		}
	}
	r, exists := w.others[dst]
	return exists && r.kind == unix.RTN_UNICAST && !r.several && r.index == h.index && r.gateway == h.gateway
}

// HandOver makes flannel's what it can go on with: devices get the name that it looks for, and routes are made as it makes them. The
// bridge is nobody's then. It returns a line for each; what is left is what Cleanup removes.
func (k *Kernel) HandOver(ctx context.Context) ([]string, error) {
	have, err := k.observeLinks()
	if err != nil {
		return nil, err
	}
	w := &work{ctx: ctx, conn: k.conn}
	var done []string
	each(w, step{"hand over", "link"}, have.own, func(name string, l backend.Link) error {
		theirs := name
		switch l.Kind {
		case backend.KindVXLAN:
			theirs = flannelPrefix + strings.TrimPrefix(name, backend.Prefix)
		case backend.KindIPIP:
			theirs = flannelPrefix + ".ipip"
		case backend.KindBridge:
		default: // what stands behind it ends with the agent, or has its own key
			return nil
		}
		done = append(done, fmt.Sprintf("link %s as %s", name, theirs))
		if theirs != name {
			if err := k.rename(have.all[name], theirs); err != nil {
				return err
			}
		}
		return k.links.LinkSetAlias(have.all[name], "")
	})
	w.errs.add("", k.indexDevices())
	w.errs.add("", k.handOverAddrs(w))
	routes, err := k.handOverRoutes(w)
	w.errs.add("", err)
	return append(done, routes...), w.errs.join()
}

// handOverAddrs takes our mark from addresses.
func (k *Kernel) handOverAddrs(w *work) error {
	ours, err := k.compareAddrs(nil)
	each(w, step{"hand over", "address"}, ours.Del, func(a backend.Addr, _ struct{}) error {
		index, err := k.device(a.Dev)
		if err != nil {
			return err
		}
		m := addrOf(index, a.Prefix).attr(ifaProto, []byte{unix.RTPROT_UNSPEC})
		return k.conn.do(unix.RTM_NEWADDR, unix.NLM_F_REPLACE, m)
	})
	return err
}

// handOverRoutes puts a route as flannel makes it in the place of each of ours.
func (k *Kernel) handOverRoutes(w *work) (done []string, err error) {
	ours, err := k.compareRoutes(nil)
	if err != nil {
		return nil, err
	}
	bulk(w, step{"hand over", "route"}, ours.Del, func(dst netip.Prefix, r backend.Route) (request, error) {
		h, err := k.hop(r)
		if err != nil || !r.Via.IsValid() { // by a device that ends with the agent
			return request{}, err
		}
		m := rtmsg(dst, unix.RTN_UNICAST, h.flags).uint32(unix.RTA_OIF, uint32(h.index)).via(dst, h.gateway)
		m[5] = unix.RTPROT_BOOT
		done = append(done, fmt.Sprintf("route %s %s", dst, r))
		return k.insist(request{kind: unix.RTM_NEWROUTE, flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, message: m}, h), nil
	})
	k.routes = map[netip.Prefix]uint32{}
	if _, err := k.compareRoutes(nil); err != nil { // their nexthop objects are nobody's by now
		return done, err
	}
	return done, k.sweepNexthops()
}
