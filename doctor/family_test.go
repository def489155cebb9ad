package doctor

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// Networks with IPv6, inside or on the underlay.
const (
	dualStack    = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12:3456::/48","Backend":{"Type":"vxlan"}}`
	onlyIPv6     = `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd12:3456::/48","Backend":{"Type":"vxlan"}}`
	overIPv6     = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":6}}`
	bothOverIPv4 = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12:3456::/48","Backend":{"Type":"vxlan","VNI":4}}`
	dualGW       = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12:3456::/48","Backend":{"Type":"host-gw"}}`
)

// underlays are the families that hosts have on the underlay of these.
var underlays = map[string][]subnet.Family{dualStack: {subnet.IPv4, subnet.IPv6}, onlyIPv6: {subnet.IPv4}, overIPv6: {subnet.IPv6}, bothOverIPv4: {subnet.IPv4}, dualGW: {subnet.IPv4, subnet.IPv6}}

// sixView is what host 1 of such a network plans from, with two peers. Host N has N in its addresses.
func sixView(config string) api.View {
	parsed, _, err := subnet.ParseConfig([]byte(config))
	if err != nil {
		panic(err)
	}
	b, err := backend.New(parsed)
	if err != nil {
		panic(err)
	}
	v := api.View{API: 1, Revision: 9, Config: config, Leases: map[string]api.StoredLease{}}
	for n := 3; n > 0; n-- {
		h := backend.Host{Config: parsed, Options: backend.Options{Bridge: "docker0", Masquerade: subnet.PairOf(subnet.IPv4, true), Forward: true},
			Underlay: backend.Underlay{Device: "eth0", MTU: 1500, OnLink: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")}}}
		for _, f := range underlays[config] {
			*h.Underlay.Local.At(f) = netip.MustParseAddr(fmt.Sprintf([]string{"192.0.2.%d", "2001:db8::%d"}[f], n))
		}
		h.Underlay.Public = h.Underlay.Local
		for f := range parsed.Range.All() {
			*h.Self.Subnet.At(f) = netip.MustParsePrefix(fmt.Sprintf([]string{"10.5.%d.0/24", "fd12:3456:0:%d::/64"}[f], n))
		}
		lease, _ := h.Announce(b)
		v.Self = api.StoredLease{Key: lease.Key(), Value: string(lease.MarshalValue()), Created: int64(n)}
		v.Leases[v.Self.Key] = v.Self
		v.Underlay, v.Options = h.Underlay, h.Options
	}
	return v
}

// A sysctl's name may have dots within a device's, in either spelling of sysctl(8).
func TestReadSysctl(t *testing.T) {
	t.Parallel()
	want, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		t.Skip(err)
	}
	for _, name := range []string{"net.ipv4.ip_forward", "net/ipv4/ip_forward"} {
		if got, err := readSysctl(name); err != nil || got+"\n" != string(want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := readSysctl(confOf(subnet.IPv6, "eth0.7", "accept_ra")); err == nil || filepath.Base(err.(*os.PathError).Path) != "accept_ra" || filepath.Base(filepath.Dir(err.(*os.PathError).Path)) != "eth0.7" {
		t.Errorf("%v", err)
	}
}
