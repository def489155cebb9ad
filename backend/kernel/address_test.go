package kernel

import (
	"maps"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// An address whose connected route somebody deleted gets it back as the kernel had made it, and is itself left alone.
func TestConnectedRoute(t *testing.T) {
	for name, commands := range map[string]string{
		"ours":          "",
		"another's":     "ip addr del 10.5.1.1/24 dev docker0\nip addr add 10.5.1.1/24 dev docker0",
		"with a second": "ip addr add 10.5.1.200/24 dev docker0",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			k, want := s.open(), state(t, 3)
			s.apply(k, want)
			s.setupBeside(want, commands)
			s.settle(k, want)
			addrs, _ := k.conn.listAddrs()
			routes := s.run("ip -d route show dev docker0")
			s.run("ip route del 10.5.1.0/24 dev docker0")
			changed := count{}
			for _, m := range s.notifications(func() { changed = s.apply(k, want).Count() }) {
				if m.Header.Type == unix.RTM_NEWADDR || m.Header.Type == unix.RTM_DELADDR {
					t.Error("the address was touched")
				}
			}
			if !maps.Equal(changed, count{"address": 1}) {
				t.Errorf("changed %v, want one address", changed)
			}
			if now := s.run("ip -d route show dev docker0"); now != routes {
				t.Errorf("the routes are\n%s, they were\n%s", now, routes)
			}
			if now, err := k.conn.listAddrs(); err != nil || !slices.Equal(now, addrs) {
				t.Errorf("the addresses are %v, they were %v; %v", now, addrs, err)
			}
			s.converged(k, want)
		})
	}
}

// Who sets an address without a route wants none.
func TestAddressWithoutRoute(t *testing.T) {
	s := newSandbox(t)
	k, want := s.open(), state(t, 3)
	s.apply(k, want)
	s.run("ip addr del 10.5.1.1/24 dev docker0")
	s.run("ip addr add 10.5.1.1/24 dev docker0 noprefixroute")
	s.converged(k, want)
	if routes := s.run("ip route show dev docker0"); routes != "" {
		t.Errorf("it has %s", routes)
	}
}

// A route of somebody else's to the bridge's prefix is not the connected one, and stays where it is.
func TestConnectedRouteBesideAnother(t *testing.T) {
	for name, command := range map[string]string{
		"of another device":   "ip route replace 10.5.1.0/24 dev eth0",
		"of another protocol": "ip route replace 10.5.1.0/24 dev docker0 proto static scope link",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			k, want := s.open(), state(t, 3)
			s.apply(k, want)
			s.setupBeside(want, command)
			if changed := s.apply(k, want).Count(); !maps.Equal(changed, count{"address": 1}) {
				t.Errorf("changed %v, want one address", changed)
			}
			s.converged(k, want)
		})
	}
}
