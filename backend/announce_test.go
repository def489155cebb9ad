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
	mac := func(vni uint32) string { return vxlan{VNI: vni}.mac(h.Underlay).String() }
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
