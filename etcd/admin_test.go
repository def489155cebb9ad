package etcd

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tulle-net/tulle/subnet"
)

func TestConfigCompareAndSwap(t *testing.T) {
	n := newNetwork(t)
	c := n.client()
	_, _, err := c.Config(t.Context())
	if text := "no network config in etcd at " + n.options.Prefix + "/config: tulle config set FILE stores one"; !errors.Is(err, ErrNoConfig) || err.Error() != text {
		t.Errorf("error %q, want %q", err, text)
	}
	if err := c.SetConfig(t.Context(), wide, 0); err != nil {
		t.Fatal(err)
	}
	text, first, err := c.Config(t.Context())
	if err != nil || text != wide || !first.Usable() {
		t.Errorf("config %q, %+v, %v", text, first, err)
	}
	if err := c.SetConfig(t.Context(), narrow, first.Revision); err != nil {
		t.Fatal(err)
	}
	for _, seen := range []int64{0, first.Revision} {
		if err := c.SetConfig(t.Context(), wide, seen); err == nil || !strings.Contains(err.Error(), "somebody else changed the config meanwhile") {
			t.Errorf("with revision %d: %v", seen, err)
		}
	}
	if text, _, _ := c.Config(t.Context()); text != narrow {
		t.Errorf("config %q", text)
	}
}

func TestLeases(t *testing.T) {
	n := newNetwork(t)
	n.put("10.5.20.0-24", value("192.0.2.20"), clientv3.WithLease(n.grant()))
	n.put("10.5.3.0-24", value("192.0.2.3"), clientv3.WithLease(n.grant()))
	n.put("10.5.100.0-24", value("192.0.2.100"))
	n.put("nonsense", "x")
	n.put("10.5.1.0-24", "x")
	holders, err := n.client().Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, h := range holders {
		keys = append(keys, h.Key)
		left := time.Until(h.Expires)
		if reserved := h.Entry.Reserved; reserved != h.Expires.IsZero() || !reserved && (left < (LeaseTTL-3600)*time.Second || left > LeaseTTL*time.Second) {
			t.Errorf("%s: reserved %t, expires %s", h.Key, reserved, h.Expires)
		}
	}
	if sorted := []string{"10.5.3.0-24", "10.5.20.0-24", "10.5.100.0-24", "10.5.1.0-24", "nonsense"}; !slices.Equal(keys, sorted) {
		t.Errorf("keys %v, want %v", keys, sorted)
	}
}

func TestReserveRefuses(t *testing.T) {
	n := newNetwork(t)
	c := n.client()
	reserve := func(p, host string) error {
		return c.Reserve(t.Context(), prefixes(p), addresses(host))
	}
	if err := reserve("10.5.7.0/24", "192.0.2.1"); !errors.Is(err, ErrNoConfig) {
		t.Errorf("without config: %v", err)
	}
	n.config(`{"Network":"10.5.0.0"}`)
	if err := reserve("10.5.7.0/24", "192.0.2.1"); err == nil || !strings.HasPrefix(err.Error(), "the stored config can't be used: Network: ") {
		t.Errorf("with a bad config: %v", err)
	}
	n.config(wide)
	n.put("10.5.2.0-24", value("192.0.2.2"), clientv3.WithLease(n.grant()))
	n.put("10.5.3.0-25", value("192.0.2.3"), clientv3.WithLease(n.grant()))
	n.put("10.5.4.0-24", "x")
	if err := reserve("10.5.9.0/24", "192.0.2.9"); err != nil {
		t.Fatal(err)
	}
	subnets := " is not one of the network's subnets: they are the /24 ones from 10.5.1.0 to 10.5.255.0 in 10.5.0.0/16"
	for _, c := range []struct{ p, host, text string }{
		{"10.6.7.0/24", "192.0.2.1", "10.6.7.0/24" + subnets},
		{"10.5.0.0/24", "192.0.2.1", "10.5.0.0/24" + subnets},
		{"10.5.7.0/25", "192.0.2.1", "10.5.7.0/25" + subnets},
		{"10.5.7.1/24", "192.0.2.1", "10.5.7.1/24" + subnets},
		{"fd12::/64", "192.0.2.1", "fd12::/64: the network has no IPv6"},
		{"10.5.2.0/24", "192.0.2.1", "10.5.2.0/24 is held by 192.0.2.2: release it first (tulle lease release 10.5.2.0/24)"},
		{"10.5.3.0/24", "192.0.2.1", "10.5.3.0/25 is held by 192.0.2.3: release it first (tulle lease release 10.5.3.0/25)"},
		{"10.5.4.0/24", "192.0.2.1", "10.5.4.0/24 is held by nobody known: release it first (tulle lease release 10.5.4.0/24)"},
		{"10.5.7.0/24 fd12::/64", "192.0.2.1", "fd12::/64: the network has no IPv6"},
		{"10.5.7.0/24", "192.0.2.9 fd00::9", "192.0.2.9 already has 10.5.9.0/24 reserved: release that first (tulle lease release 10.5.9.0/24)"},
		{"10.5.7.0/24", "192.0.2.9", "192.0.2.9 already has 10.5.9.0/24 reserved: release that first (tulle lease release 10.5.9.0/24)"},
	} {
		if err := reserve(c.p, c.host); err == nil || err.Error() != c.text {
			t.Errorf("%s for %s: %v, want %s", c.p, c.host, err, c.text)
		}
	}
	before := n.keys()
	if err := reserve("10.5.9.0/24", "192.0.2.9"); err != nil || before["10.5.9.0-24"].value != n.keys()["10.5.9.0-24"].value {
		t.Errorf("the same reservation again: %v", err)
	}
}

func TestReserveOfBothFamilies(t *testing.T) {
	n := newNetwork(t)
	n.config(dual)
	c := n.client()
	live := n.join(want(both, dual))
	v4, v6 := live.last.Own.Lease.Subnet.V4.String(), live.last.Own.Lease.Subnet.V6.String()
	for _, r := range []struct{ subnets, host, key, text string }{
		{"10.5.201.0/24 fd12:0:0:301::/64", "192.0.2.7 fd00::7", "10.5.201.0-24&fd12:0:0:301::-64", ""},
		{"10.5.222.0/24", "192.0.2.8", "10.5.222.0-24", ""},
		{"fd12:0:0:303::/64", "fd00::9", "fd12:0:0:303::-64", ""},
		{v6, "192.0.2.1", live.key(), ""}, // of what it holds, one is enough
		{v4 + " " + v6, both, live.key(), ""},
		{"10.5.204.0/24 fd12:0:0:301::/64", "192.0.2.10", "", "fd12:0:0:301::/64 is held by 192.0.2.7: release it first (tulle lease release fd12:0:0:301::/64)"},
		{"10.5.222.0/24 fd12:0:0:304::/64", "192.0.2.10", "", "10.5.222.0/24 is held by 192.0.2.8: release it first (tulle lease release 10.5.222.0/24)"},
		{"10.5.205.0/24 fd12:0:0:305::/56", "192.0.2.10", "", "fd12:0:0:305::/56 is not one of the network's subnets"},
		{"10.5.206.0/24 fd12:0:0:306::/64", "fd00::7", "", "fd00::7 already has 10.5.201.0/24 reserved: release that first (tulle lease release 10.5.201.0/24)"},
	} {
		before := len(n.keys())
		err := c.Reserve(t.Context(), prefixes(r.subnets), addresses(r.host))
		if (err == nil) != (r.text == "") || err != nil && !strings.HasPrefix(err.Error(), r.text) {
			t.Errorf("%s for %s: %v, want %q", r.subnets, r.host, err, r.text)
		}
		if now, ok := n.keys()[r.key]; r.text == "" && (!ok || now.lease != 0) || r.text != "" && len(n.keys()) != before {
			t.Errorf("%s for %s: stored is %v", r.subnets, r.host, n.keys())
		}
	}
	live.until("reserved", func() bool { return live.last.Own.Reserved && live.last.Own.Err == nil })
	for _, name := range []string{"fd12:0:0:301::/64", "10.5.222.0-24", "fd12:0:0:303::-64", live.key()} {
		if _, err := c.Release(t.Context(), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReserveOfALiveLease(t *testing.T) {
	n := newNetwork(t)
	n.config(wide)
	h := n.join(want("192.0.2.1", wide))
	key, before := h.key(), n.keys()[h.key()]
	if err := n.client().Reserve(t.Context(), h.last.Own.Lease.Subnet, addresses("192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	h.until("reserved", func() bool { return h.last.Own.Reserved })
	h.sees(n)
	if after := n.keys()[key]; h.key() != key || h.last.Own.Err != nil || after.value != before.value || after.lease != 0 {
		t.Errorf("own %+v; stored is %+v, before %+v", h.last.Own, after, before)
	}
	if _, err := n.raw.Revoke(t.Context(), clientv3.LeaseID(before.lease)); err != nil {
		t.Fatal(err)
	}
	h.sees(n)
	h.holds(key)
	if _, left := n.keys()[key]; !left {
		t.Error("the reservation went with the etcd lease it had before")
	}
}

// prefixes and addresses are pairs of what texts say, apart by spaces.
func prefixes(texts string) (p subnet.Pair[netip.Prefix]) {
	for _, text := range strings.Fields(texts) {
		prefix := netip.MustParsePrefix(text)
		*p.At(subnet.FamilyOf(prefix.Addr())) = prefix
	}
	return p
}

func addresses(texts string) (p subnet.Pair[netip.Addr]) {
	for _, text := range strings.Fields(texts) {
		a := netip.MustParseAddr(text)
		*p.At(subnet.FamilyOf(a)) = a
	}
	return p
}

func TestRelease(t *testing.T) {
	n := newNetwork(t)
	c := n.client()
	n.put("10.5.2.0-24&fd12:0:0:2::-64", value("192.0.2.2"))
	n.put("10.5.3.0-24", "x")
	for _, p := range []string{"10.5.9.0/24", "10.5.2.0/25", "fd12::/64"} {
		if _, err := c.Release(t.Context(), p); !errors.Is(err, ErrNotHeld) || err.Error() != p+": nobody holds it" {
			t.Errorf("%s: %v", p, err)
		}
	}
	l, err := c.Release(t.Context(), "fd12:0:0:2::/64")
	if err != nil || l.PublicIP.V4.String() != "192.0.2.2" {
		t.Errorf("released %+v, %v", l, err)
	}
	if _, err := c.Release(t.Context(), "10.5.3.0/24"); err != nil {
		t.Errorf("an unreadable one: %v", err)
	}
	if keys := n.keys(); len(keys) != 0 {
		t.Errorf("stored is still %v", keys)
	}
}
