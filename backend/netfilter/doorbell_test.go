package netfilter

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Whatever somebody does to our chains rings the doorbell, with either iptables.
func TestDoorbell(t *testing.T) {
	for name, command := range map[string]string{
		"chain flushed":     "iptables -w -F TULLE-FORWARD",
		"jump deleted":      "iptables -w -t nat -D POSTROUTING -j TULLE-POSTROUTING",
		"rule before ours":  "iptables -w -t nat -I POSTROUTING -s 172.17.0.0/16 -j MASQUERADE",
		"raw table flushed": "iptables -w -t raw -F",
	} {
		t.Run(name, func(t *testing.T) {
			eachVariant(t, func(s sandbox) {
				s.apply(besideDocker())
				b, err := newBell()
				if err != nil {
					s.Fatal(err)
				}
				// The bell's goroutines run on other threads, in other namespaces: this thread's tables are those to watch.
				b.names = fmt.Sprintf("/proc/self/task/%d/net/ip_tables_names", unix.Gettid())
				b.last = b.legacyTables()
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
			})
		})
	}
}

// A host that is left alone is not rung for.
func TestDoorbellIsQuiet(t *testing.T) {
	eachVariant(t, func(s sandbox) {
		s.apply(besideDocker())
		b, err := newBell()
		if err != nil {
			s.Fatal(err)
		}
		defer b.nft.Close()
		defer unix.Close(b.legacy)
		b.names = fmt.Sprintf("/proc/self/task/%d/net/ip_tables_names", unix.Gettid())
		before := b.legacyTables()
		s.apply(besideDocker()) // looks, and changes nothing
		after := b.legacyTables()
		if fmt.Sprint(before) != fmt.Sprint(after) {
			s.Errorf("a look changed the tables: %v, then %v", before, after)
		}
	})
}
