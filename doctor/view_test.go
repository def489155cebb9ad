package doctor

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// unusual reports whether a config has another backend than vxlan.
func unusual(c subnet.Config) bool {
	return c.Backend.Type != "" && c.Backend.Type != "vxlan" && c.Backend.Type != "pigeon"
}

// view is what the agent of 192.0.2.1 plans from: its own lease 10.5.1.0/24, and 10.5.2.0/24 of 192.0.2.2.
func view(config string) api.View {
	lease := func(public, mac string) string {
		if parsed, _, err := subnet.ParseConfig([]byte(config)); err == nil && unusual(parsed) {
			return leased(public, parsed.Backend.Type)
		}
		return `{"PublicIP":"` + public + `","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"` + mac + `"}}`
	}
	if config == "" {
		config = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`
	}
	v := api.View{API: 1, Revision: 9, Config: config, Options: backend.Options{Bridge: "docker0", Masquerade: subnet.PairOf(subnet.IPv4, true), Forward: true},
		Self: api.StoredLease{Key: "10.5.1.0-24", Value: lease("192.0.2.1", "02:00:00:00:00:01"), Created: 3},
		Underlay: backend.Underlay{Device: "eth0", MTU: 1500, Local: subnet.PairOf(subnet.IPv4, netip.MustParseAddr("192.0.2.1")),
			Public: subnet.PairOf(subnet.IPv4, netip.MustParseAddr("192.0.2.1")), OnLink: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}}
	v.Leases = map[string]api.StoredLease{v.Self.Key: v.Self,
		"10.5.2.0-24": {Key: "10.5.2.0-24", Value: lease("192.0.2.2", "02:00:00:00:00:02"), Created: 4},
		"10.5.9.0-24": {Key: "10.5.9.0-24", Value: lease("192.0.2.9", "02:00:00:00:00:02"), Created: 5},
		"10.5.8.0-24": {Key: "10.5.8.0-24", Value: "{}", Created: 6}}
	return v
}

// A View leads to the agent's plan, rivals and unreadable leases included.
func TestPlan(t *testing.T) {
	t.Parallel()
	p, err := Plan(view(""))
	if err != nil {
		t.Fatal(err)
	}
	got, ok := rowFor(p, netip.MustParseAddr("10.5.2.7"))
	want := row{Prefix: netip.MustParsePrefix("10.5.2.0/24"), Public: netip.MustParseAddr("192.0.2.2"), Inside: netip.MustParseAddr("10.5.2.0"),
		Route: backend.Route{Via: netip.MustParseAddr("10.5.2.0"), Dev: "tulle.1", OnLink: true}, Outer: backend.Outer{Device: "tulle.1", Kind: backend.KindVXLAN, Port: 8472},
		MAC: backend.MAC{2, 0, 0, 0, 0, 2}}
	if !ok || got != want {
		t.Errorf("%+v, %t; want %+v", got, ok, want)
	}
	if _, ok := rowFor(p, netip.MustParseAddr("10.5.9.7")); ok || p.Rejected()["10.5.9.0-24"].Reason != subnet.Conflict || p.Rejected()["10.5.8.0-24"].Reason != subnet.BadAddress {
		t.Errorf("left out are %v", p.Rejected())
	}
	direct, err := Plan(view(`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`))
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := rowFor(direct, netip.MustParseAddr("10.5.2.7")); got.tunnelled() || got.Route.String() != "via 192.0.2.2 dev eth0" {
		t.Errorf("directly: %+v", got)
	}
}

func TestPlanRefused(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*api.View){
		"config: Network":   func(v *api.View) { v.Config = "{}" },
		"Backend.Type":      func(v *api.View) { v.Config = `{"Network":"10.5.0.0/16","Backend":{"Type":"pigeon"}}` },
		`own lease "x"`:     func(v *api.View) { v.Self.Key = "x" },
		"no IPv4 address":   func(v *api.View) { v.Underlay.Local = subnet.Pair[netip.Addr]{} },
		"the network's con": func(v *api.View) { v.Config = "" },
	} {
		v := view("")
		change(&v)
		if _, err := Plan(v); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
