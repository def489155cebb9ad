package backend

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/subnet"
)

// TestLeaseFormats holds each type's lease, as it is stored in etcd, against flannel's own, byte for byte. What flannel makes up at
// random is ours: the VTEP's MAC, and the key. Flannel has no l2.
func TestLeaseFormats(t *testing.T) {
	t.Parallel()
	h := Host{Config: mustConfig(t, `{"Network":"10.5.0.0/16"}`), Self: subnet.Lease{Subnet: subnet.PairOf(subnet.IPv4, netip.MustParsePrefix("10.5.65.0/24"))},
		Underlay: Underlay{Public: subnet.PairOf(subnet.IPv4, netip.MustParseAddr("192.168.50.11"))},
		Facts:    Facts{Key: Secret{1}, Printed: "what \"it\" printed,\n<all> of it"}}
	mac := func(vni uint32) string { return vxlan{VNI: vni}.mac(h, subnet.IPv4).String() }
	key := h.Facts.Key.Public().String()
	for backend, want := range map[string]string{
		`{"Type":"vxlan"}`:                                   `{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"` + mac(1) + `"}}`,
		`{"Type":"vxlan","VNI":42}`:                          `{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":42,"VtepMAC":"` + mac(42) + `"}}`,
		`{"Type":"vxlan","DirectRouting":true}`:              `{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"` + mac(1) + `"}}`,
		`{"Type":"host-gw"}`:                                 `{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"host-gw"}`,
		`{"Type":"ipip"}`:                                    `{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"ipip"}`,
		`{"Type":"udp"}`:                                     `{"PublicIP":"192.168.50.11","PublicIPv6":null}`,
		`{"Type":"alloc"}`:                                   `{"PublicIP":"192.168.50.11","PublicIPv6":null}`,
		`{"Type":"wireguard"}`:                               `{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"` + key + `","Port":51820}}`,
		`{"Type":"wireguard","ListenPort":9}`:                `{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"` + key + `","Port":9}}`,
		`{"Type":"extension"}`:                               `{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"extension"}`,
		`{"Type":"extension","PreStartupCommand":"cat key"}`: `{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"extension","BackendData":"what \"it\" printed,\n\u003call\u003e of it"}`,
		`{"Type":"l2"}`:                                      `{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"l2","BackendData":{"VNI":1}}`,
	} {
		b := mustBackend(t, mustConfig(t, `{"Network":"10.5.0.0/16","Backend":`+backend+`}`))
		l, _ := h.Announce(b)
		if got := string(l.MarshalValue()); got != want {
			t.Errorf("%s: the lease is\n%s\nwant\n%s", backend, got, want)
		}
		if read, err := subnet.ParseLease(h.Self.Key(), []byte(want)); err != nil || read != l {
			t.Errorf("%s: the lease is read as %+v, %v", backend, read, err)
		}
	}
}

// TestDualStackLeaseFormats holds the leases of a dual-stack network against flannel's, byte for byte, and of an IPv6 one.
func TestDualStackLeaseFormats(t *testing.T) {
	t.Parallel()
	const dual, alone = `"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12:3456::/48"`, `"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd12:3456::/48"`
	both := subnet.Pair[netip.Addr]{V4: netip.MustParseAddr("192.168.50.11"), V6: netip.MustParseAddr("fd00:50::11")}
	subnets := subnet.Pair[netip.Prefix]{V4: netip.MustParsePrefix("10.5.85.0/24"), V6: netip.MustParsePrefix("fd12:3456:0:34::/64")}
	facts := Facts{Key: Secret{1}}
	mac := func(f subnet.Family) string {
		return vxlan{VNI: 42}.mac(Host{Underlay: Underlay{Public: both}}, f).String()
	}
	vtep4, vtep6, key := mac(subnet.IPv4), mac(subnet.IPv6), facts.Key.Public().String()
	for _, test := range []struct{ network, backend, key, value string }{
		{dual, `{"Type":"vxlan","VNI":42}`, "10.5.85.0-24&fd12:3456:0:34::-64", `{"PublicIP":"192.168.50.11","PublicIPv6":"fd00:50::11","BackendType":"vxlan",` +
			`"BackendData":{"VNI":42,"VtepMAC":"` + vtep4 + `"},"BackendV6Data":{"VNI":42,"VtepMAC":"` + vtep6 + `"}}`},
		{dual, `{"Type":"host-gw"}`, "10.5.85.0-24&fd12:3456:0:34::-64", `{"PublicIP":"192.168.50.11","PublicIPv6":"fd00:50::11","BackendType":"host-gw"}`},
		{dual, `{"Type":"udp"}`, "10.5.85.0-24&fd12:3456:0:34::-64", `{"PublicIP":"192.168.50.11","PublicIPv6":"fd00:50::11"}`},
		{dual, `{"Type":"wireguard"}`, "10.5.85.0-24&fd12:3456:0:34::-64", `{"PublicIP":"192.168.50.11","PublicIPv6":"fd00:50::11","BackendType":"wireguard",` +
			`"BackendData":{"PublicKey":"` + key + `","Port":51820},"BackendV6Data":{"PublicKey":"` + key + `","Port":51821}}`},
		{dual, `{"Type":"wireguard","Mode":"ipv4"}`, "10.5.85.0-24&fd12:3456:0:34::-64", `{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"wireguard",` +
			`"BackendData":{"PublicKey":"` + key + `","Port":51820},"BackendV6Data":{"PublicKey":"` + key + `","Port":51820}}`},
		{alone, `{"Type":"vxlan","VNI":42}`, "fd12:3456:0:34::-64", `{"PublicIP":null,"PublicIPv6":"fd00:50::11","BackendType":"vxlan","BackendV6Data":{"VNI":42,"VtepMAC":"` + vtep6 + `"}}`},
	} {
		c := mustConfig(t, "{"+test.network+`,"Backend":`+test.backend+"}")
		h := Host{Config: c, Underlay: Underlay{Public: both}, Facts: facts}
		for f := range c.Range.All() {
			*h.Self.Subnet.At(f) = subnets.Of(f)
		}
		l, _ := h.Announce(mustBackend(t, c))
		if got := string(l.MarshalValue()); l.Key() != test.key || got != test.value {
			t.Errorf("%s: the lease is %s\n%s\nwant %s\n%s", test.backend, l.Key(), got, test.key, test.value)
		}
		if read, err := subnet.ParseLease(test.key, []byte(test.value)); err != nil || read != l {
			t.Errorf("%s: the lease is read as %+v, %v", test.backend, read, err)
		}
	}
}

// TestCheckPrinted looks at what a lease has room for: what is longer in JSON than it looks counts as it is there.
func TestCheckPrinted(t *testing.T) {
	t.Parallel()
	for text, fits := range map[string]bool{
		"":                                  true,
		"two lines\nand a\ttab, ü":          true,
		strings.Repeat("x", MaxPrinted-2):   true,
		strings.Repeat("x", MaxPrinted-1):   false,
		strings.Repeat("<", MaxPrinted/6):   true,
		strings.Repeat("<", MaxPrinted/6+1): false,
		"a\x00b":                            false,
		"a\x1b[31mb":                        false,
		"a\xffb":                            false,
	} {
		if err := CheckPrinted(text); (err == nil) != fits {
			t.Errorf("%.20q, %d bytes: %v", text, len(text), err)
		}
	}
}
