package netfilter

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// Whatever somebody does to our rules rings the doorbell, whichever makes them.
func TestDoorbell(t *testing.T) {
	for name, command := range map[string]string{
		"chain flushed":      "iptables -w -F TULLE-FORWARD",
		"IPv6 chain flushed": "ip6tables -w -F TULLE-FORWARD",
		"jump deleted":       "iptables -w -t nat -D POSTROUTING -j TULLE-POSTROUTING",
		"rule before ours":   "iptables -w -t nat -I POSTROUTING -s 172.17.0.0/16 -j MASQUERADE",
		"raw table flushed":  "iptables -w -t raw -F",
	} {
		t.Run(name, func(t *testing.T) {
			eachVariant(t, func(s sandbox) { s.rings(command) })
		})
	}
	for name, command := range map[string]string{
		"ruleset flushed": "nft flush ruleset",
		"table deleted":   "nft delete table inet tulle",
		"chain flushed":   "nft flush chain inet tulle postrouting",
	} {
		t.Run("nftables/"+name, func(t *testing.T) {
			s := newSandbox(t)
			s.way = NFTables
			s.rings(command)
		})
	}
}

// rings checks that a command rings the doorbell.
func (s sandbox) rings(command string) {
	s.Helper()
	s.apply(dual(besideDocker()))
	b, err := newBell()
	if err != nil {
		s.Fatal(err)
	}
	s.watch(b)
	ctx, cancel := context.WithCancel(s.Context())
	done := make(chan error, 1)
	go func() { done <- b.listen(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			s.Error(err)
		}
	}()
	s.run("%s", command)
	select {
	case <-b.c:
	case <-time.After(2 * legacyPoll):
		s.Error("the doorbell was silent")
	}
}

// A host that is left alone is not rung for.
func TestDoorbellIsQuiet(t *testing.T) {
	eachVariant(t, func(s sandbox) {
		s.apply(dual(besideDocker()))
		b, err := newBell()
		if err != nil {
			s.Fatal(err)
		}
		defer b.close()
		s.watch(b)
		before := b.legacy.tables()
		s.apply(dual(besideDocker())) // looks, and changes nothing
		after := b.legacy.tables()
		if fmt.Sprint(before) != fmt.Sprint(after) {
			s.Errorf("a look changed the tables: %v, then %v", before, after)
		}
	})
}
