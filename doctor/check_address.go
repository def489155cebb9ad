package doctor

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// wanted are the addresses that the overlay's devices are to have, and the underlay's has.
func (f Facts) wanted() []backend.Addr {
	addrs := slices.Collect(maps.Keys(f.Plan.State().Addrs))
	u := f.Plan.Host().Underlay
	for family := range f.Plan.Host().Public().All() {
		addrs = append(addrs, backend.Addr{Dev: u.Device, Prefix: netip.PrefixFrom(u.Local.Of(family), family.Bits())})
	}
	slices.SortFunc(addrs, func(a, b backend.Addr) int { return cmp.Or(cmp.Compare(a.Dev, b.Dev), a.Prefix.Compare(b.Prefix)) })
	return addrs
}

// off reports whether a device takes no part in a family.
func (f Facts) off(device string, family subnet.Family) bool {
	return family == subnet.IPv6 && f.Sysctls[confOf(family, device, "disable_ipv6")] == "1"
}

// familyOff is about devices that IPv6 is switched off on, and that need it: they lose all such addresses and routes.
func familyOff(f Facts) []Finding {
	var rows, fixes []string
	for _, a := range f.wanted() {
		name := confOf(subnet.IPv6, a.Dev, "disable_ipv6")
		if row := name + " = 1"; f.off(a.Dev, subnet.FamilyOf(a.Prefix.Addr())) && !slices.Contains(rows, row) {
			rows, fixes = append(rows, row), append(fixes, "sysctl -w "+quote(name+"=0"))
		}
	}
	if len(rows) == 0 {
		return nil
	}
	return one("IPv6 is switched off on a device that the network needs it on", "sysctl: "+strings.Join(rows, ", "),
		strings.Join(fixes, "; ")+"; and see what switches it off (grep -r disable_ipv6 /etc/sysctl.conf /etc/sysctl.d)")
}

// overlayAddress is about addresses that are not there, or not in use. What the bridge lacks is bridge-address.
func overlayAddress(f Facts) (findings []Finding) {
	for _, a := range f.wanted() {
		d, ok := f.device(a.Dev)
		show := fmt.Sprintf("ip addr show %s: %s", d.Name, list(d.Addrs))
		i := slices.IndexFunc(d.Duplicate, func(p netip.Prefix) bool { return p.Addr() == a.Prefix.Addr() })
		_, planned := f.Plan.State().Addrs[a]
		switch {
		case i >= 0:
			findings = append(findings, Finding{What: fmt.Sprintf("another device on the segment of %s has its address %s, too: the kernel does not use it", d.Name, d.Duplicate[i]),
				Evidence: show + "; dadfailed", Fix: fmt.Sprintf("take it away from the other, and then: ip link set %s down; ip link set %s up; systemctl restart tulle", quote(d.Name), quote(d.Name))})
		case ok && d.Up && planned && d.Name != f.Plan.Host().Bridge && !d.has(a.Prefix.Addr()) && !f.off(d.Name, subnet.FamilyOf(a.Prefix.Addr())):
			findings = append(findings, Finding{What: fmt.Sprintf("%s lacks %s: peers don't reach this host inside the overlay", d.Name, a.Prefix), Evidence: show,
				Fix: "systemctl restart tulle; journalctl -u tulle says if it can't be set"})
		}
	}
	return findings
}

// routerLost is about a host that has its IPv6 address from a router, and does not listen to routers any more since it forwards: then it
// has no default route, and some day no address (accept_ra, Documentation/networking/ip-sysctl.rst).
func routerLost(f Facts) []Finding {
	var rows, fixes []string
	s, device := f.Plan.State(), f.Plan.Host().Underlay.Device
	want := map[string]string{}
	for name, value := range s.Sysctls {
		if name != forwards.V4 && name != forwards.V6 {
			want[name] = value
		}
	}
	if name := confOf(subnet.IPv6, device, "accept_ra"); len(want) == 0 && f.Sysctls[name] == "1" && f.Sysctls[forwards.V6] == "1" && f.routerless(device) {
		want[name] = "2"
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if have, ok := f.Sysctls[name]; ok && have != want[name] {
			rows, fixes = append(rows, name+" = "+have), append(fixes, "sysctl -w "+quote(name+"="+want[name]))
		}
	}
	if len(rows) == 0 {
		return nil
	}
	return one("this host forwards IPv6, and so does not listen to the router that it has its IPv6 address from: its default route is gone, or will be", "sysctl: "+strings.Join(rows, ", "),
		strings.Join(fixes, "; ")+"; for good: in /etc/sysctl.d")
}

// routerless reports whether a device has an IPv6 address from a router or a DHCP server, and the host no default route.
func (f Facts) routerless(device string) bool {
	d, _ := f.device(device)
	lent := slices.ContainsFunc(d.Lent, func(p netip.Prefix) bool { return p.Addr().Is6() && !p.Addr().IsLinkLocalUnicast() })
	return lent && !slices.ContainsFunc(f.Routes, func(r Route) bool { return r.Dst.Bits() == 0 && r.Dst.Addr().Is6() })
}
