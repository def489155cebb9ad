package etcd

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/subnet"
)

// Two hosts have one public address: clones, or both behind one NAT. The first keeps its lease, the second gets none, and
// both say so.
func TestTwoHostsOneAddress(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.options.Grace = time.Hour // with time to answer
	first := n.join(want("192.0.2.1", wide))
	key := first.key()
	before := n.keys()[key]
	second := n.node()
	second.Want(want("192.0.2.1", wide))
	second.until("refused", func() bool { return second.last.Own.Err != nil })
	if own := second.last.Own; own.Held() || !strings.HasPrefix(own.Err.Error(), "another host with our public address 192.0.2.1 holds "+key) {
		t.Errorf("the second's own is %+v", own)
	}
	first.until("warned", func() bool { return first.last.Own.Rival != "" })
	if own := first.last.Own; !own.Held() || own.Err != nil || !strings.Contains(own.Rival, second.name) || !strings.Contains(own.Rival, "192.0.2.1") {
		t.Errorf("the first's own is %+v", own)
	}
	if now := n.keys()[key]; now.value != before.value || now.lease != before.lease || len(n.keys()) != 1 {
		t.Errorf("stored is %+v, before %+v", n.keys(), before)
	}
	first.stop()
	n.release(strings.Replace(key, "-", "/", 1))
	second.held()
}

// An earlier life of which nothing is known but the key.
func TestEarlierLifeIsAsked(t *testing.T) {
	n := newNetwork(t)
	first := n.join(want("192.0.2.1", wide))
	key := first.key()
	first.stop()
	before := n.keys()[key]
	second := n.join(want("192.0.2.1", wide))
	after := n.keys()[key]
	if second.key() != key || after.value != before.value || after.createRev != before.createRev || after.lease == before.lease {
		t.Errorf("holds %s; stored is %+v, before %+v", second.key(), after, before)
	}
	if own := second.last.Own; own.Rival != "" || own.Revision != after.modified {
		t.Errorf("own is %+v", own)
	}
}

// A host that can be sure that its key is nobody else's doesn't ask, whatever became of the key; of another subnet it isn't sure.
func TestSureOfItsKey(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	first := n.join(want("192.0.2.1", wide))
	first.stop()
	own := first.last.Own
	own.Revision = subnet.AnyRevision
	for _, sure := range []bool{true, false} {
		second := prepare(t, n.options)
		second.answerWait = time.Hour
		second.run()
		second.listed()
		request := after(own, want("192.0.2.1", wide))
		if !sure {
			request.Previous.V4 = netip.MustParsePrefix("10.5.250.0/24")
		}
		second.Want(request)
		if sure {
			second.held()
		} else {
			second.until("asking", func() bool { return claimant(n.keys()[first.key()].value) != "" })
		}
		if second.last.Own.Held() != sure || sure && second.key() != first.key() {
			t.Errorf("sure %t: own is %+v", sure, second.last.Own)
		}
		second.stop()
	}
}

// A holder that is cut off can't answer, and comes back when its key is another's.
func TestHolderComesBack(t *testing.T) {
	t.Parallel()
	n, w := newNetwork(t), &wire{}
	n.options.Grace = time.Hour
	first := n.join(want("192.0.2.1", wide), w.dial())
	w.cut()
	first.until("out of reach", func() bool { return first.last.Err != nil })
	second := n.join(want("192.0.2.1", wide))
	key := second.key()
	taken := n.keys()[key]
	if first.key() != key {
		t.Fatalf("the first has %s, the second %s", first.key(), key)
	}
	w.mend()
	first.until("told", func() bool { return first.last.Own.Rival != "" })
	second.until("told", func() bool { return second.last.Own.Rival != "" })
	if now := n.keys()[key]; now.lease != taken.lease || now.value != taken.value {
		t.Errorf("stored is %+v, before %+v", now, taken)
	}
	if !first.last.Own.Held() || first.key() != key || !second.last.Own.Held() {
		t.Errorf("own is %+v and %+v", first.last.Own, second.last.Own)
	}
}

func TestClaimant(t *testing.T) {
	for value, name := range map[string]string{
		withClaimant(value("192.0.2.1"), "web-1 (0badcafe)"): "web-1 (0badcafe)",
		value("192.0.2.1"): "",
		`{"TulleClaim":7}`: "",
		`"TulleClaim"`:     "",
		`{"TulleClaim":"` + strings.Repeat("x", 1000) + `"}`: strings.Repeat("x", 100),
	} {
		if got := claimant(value); got != name {
			t.Errorf("%s: claimed by %q, want %q", value, got, name)
		}
	}
}
