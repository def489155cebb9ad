package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/e2e/lab"
)

// firewalled is a lab of two hosts, each with a real firewalld.
type firewalled struct {
	*lab.Lab
	daemons []*lab.Firewalld
}

// newFirewalled makes such a lab. Its agents start anew when firewalld runs, so that they find its bus.
func newFirewalled(t *testing.T, o lab.Options, backend string) *firewalled {
	t.Helper()
	root, err := filepath.Abs("../bin/firewalld")
	if err != nil {
		t.Fatal(err)
	}
	o.Hosts = 2
	l := &firewalled{Lab: newLab(t, o)}
	for _, h := range l.Nodes {
		stop(t, h)
		d, err := l.NewFirewalld(t.Context(), h, root, backend)
		if d != nil {
			t.Cleanup(func() {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		if err != nil {
			t.Fatal(err)
		}
		l.daemons = append(l.daemons, d)
	}
	if r := l.new(t); r.Answered > 0 {
		t.Errorf("firewalld does not reject what is forwarded: this test shows nothing")
	}
	for i, h := range l.Nodes {
		t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", l.daemons[i].Bus())
		launch(t, l.Lab, h)
	}
	l.reached(t)
	return l
}

// new asks for an answer with what no connection tracking knows of yet.
func (l *firewalled) new(t *testing.T) lab.Result {
	t.Helper()
	one, other := l.Nodes[0].Container, l.Nodes[1].Container
	sum := lab.Result{}
	for _, to := range other.Addresses {
		r, err := lab.Ping(t.Context(), one.Namespace, to, 1, 84)
		if err != nil {
			t.Fatal(err)
		}
		sum.Sent, sum.Answered = sum.Sent+r.Sent, sum.Answered+r.Answered
	}
	return sum
}

func (l *firewalled) reached(t *testing.T) {
	t.Helper()
	eventually(t, 20*time.Second, "the containers answer through firewalld", func() error {
		if r := l.new(t); r.Lost() > 0 {
			return fmt.Errorf("%d of %d lost", r.Lost(), r.Sent)
		}
		return nil
	})
}

// TestFirewalld has hosts whose firewalld rejects what is forwarded, but for the overlay's packets. A reload or a restart costs a running
// flow less than a second: firewalld drops what is new to it while it loads, as a tunnel's packets are, and flushes our iptables rules.
func TestFirewalld(t *testing.T) {
	for _, test := range []struct {
		name, backend string
		options       lab.Options
	}{
		{"nftables", "nftables", lab.Options{}},
		{"iptables", "iptables", lab.Options{}},
		{"packets as they are", "nftables", lab.Options{Config: `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`}},
		{"both families", "nftables", lab.Options{Families: "both", Config: `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd12:3456::/48","Backend":{"Type":"vxlan"}}`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newFirewalled(t, test.options, test.backend)
			l.interrupt(t, "reload", func(d *lab.Firewalld) error {
				_, err := d.Do(t.Context(), "--reload")
				return err
			})
			l.interrupt(t, "restart", func(d *lab.Firewalld) error {
				if err := d.Stop(); err != nil {
					return err
				}
				return d.Start(t.Context())
			})
		})
	}
}

// interrupt does something to each firewalld under a running flow, and then asks for an answer that no connection tracking lets in.
// What is lost of the flow is told: it is as much as firewalld takes to load, which on a busy machine may be seconds.
func (l *firewalled) interrupt(t *testing.T, name string, f func(*lab.Firewalld) error) {
	t.Helper()
	one, other := l.Nodes[0].Container, l.Nodes[1].Container
	pace := unhurried(5 * time.Millisecond)
	flow, err := lab.StartFlow(one.Namespace, other.Address, pace)
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range l.daemons {
		if err := f(d); err != nil {
			t.Fatal(err)
		}
		started := time.Now()
		l.reached(t)
		t.Logf("%s of %s: new flows pass again %v after it", name, l.Nodes[i].Name, time.Since(started).Round(time.Millisecond))
	}
	flows := map[string]*lab.Flow{name: flow}
	more(t, flows, 30)
	for _, r := range stopAll(t, flows) {
		cut := time.Duration(r.Lost()) * pace
		t.Logf("%s of %d firewallds: a running flow lost %d packets, %v of it", name, len(l.daemons), r.Lost(), cut)
		if cut > time.Duration(len(l.daemons)*5)*time.Second {
			t.Errorf("%s: a running flow lost %v", name, cut)
		}
	}
	for i, d := range l.daemons {
		if members, err := d.Do(t.Context(), "--zone=trusted", "--list-all"); err != nil || !strings.Contains(members, "tulle") && !strings.Contains(members, "10.5.0.0/16") {
			t.Errorf("%s: %s: %v\n%s", name, l.Nodes[i].Name, err, members)
		}
	}
}
