package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tulle-net/tulle/e2e/lab"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// stored is what etcd has under the key of a subnet, and the revision that wrote it.
func stored(t *testing.T, l *lab.Lab, key string) (value string, modified int64) {
	t.Helper()
	err := asEtcd(t, l, func(ctx context.Context, c *clientv3.Client) error {
		r, err := c.Get(ctx, subnets+key)
		for _, kv := range r.Kvs {
			value, modified = string(kv.Value), kv.ModRevision
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return value, modified
}

// junk is what must never reach the kernel: a key, its value, and why it is left out.
type junk struct{ key, value, reason string }

// octets are the third octets of subnets that no host of the lab has: the odd ones, for peers that do not exist, and from 200 on
// the even ones, for leases that make no sense. The others are left to hosts that join.
func octets(t *testing.T, l *lab.Lab) (odd, even []int) {
	t.Helper()
	taken := map[int]bool{}
	for _, h := range l.Nodes {
		taken[int(h.Container.Address.As4()[2])] = true
	}
	for n := 1; n < 255; n++ {
		switch {
		case taken[n]:
		case n%2 == 1:
			odd = append(odd, n)
		case n >= 200:
			even = append(even, n)
		}
	}
	return odd, even
}

// phantoms are leases that are as they should be, of hosts that do not exist: each with an address and a MAC of its own, and
// then one host with two subnets, and two MACs on one host.
func phantoms(odd, even []int) map[string]string {
	leases := map[string]string{}
	for _, n := range odd {
		leases[fmt.Sprintf("10.5.%d.0-24", n)] = lease(fmt.Sprintf("198.18.0.%d", n), phantomMAC(n), 1)
	}
	leases[fmt.Sprintf("10.5.%d.0-24", even[0])] = lease(fmt.Sprintf("198.18.0.%d", odd[0]), phantomMAC(odd[0]), 1)
	leases[fmt.Sprintf("10.5.%d.0-24", even[1])] = lease(fmt.Sprintf("198.18.0.%d", odd[1]), phantomMAC(300), 1)
	return leases
}

func phantomMAC(n int) string { return fmt.Sprintf("0a:00:00:00:%02x:%02x", n>>8, n&0xff) }

// badNames are keys that are no subnets of the network, to be made different by a number.
var badNames = []junk{
	{"", "", "bad-key"},
	{"not-a-subnet", "", "bad-key"},
	{"10.5.7.7-24 ", "", "bad-key"},
	{"10.5.7.0-33 ", "", "bad-key"},
	{"10.5.7.0/24 ", "", "bad-key"},
	{"010.5.7.0-24 ", "", "bad-key"},
	{"::ffff:10.5.7.0-120 ", "", "bad-key"},
	{"10.5.7.0-24&10.5.9.0-24 ", "", "bad-key"},
	{"10.5.7.0-24/config/", "", "bad-key"},
	{"10.5.7.0-24\n", "", "bad-key"},
	{"\r\nlevel=ERROR msg=\"this is forged\" n=", "", "bad-key"},
	{"\x1b[2J\x1b]0;this is a title\x07", "", "bad-key"},
	{"\x00\x00", "", "bad-key"},
	{"\x7f\x9b31m", "", "bad-key"},
	{"\xff\xfe", "", "bad-key"},
	{"\u202e\u2028", "", "bad-key"},
	{"\"'`${HOME}$(reboot);--", "", "bad-key"},
	{"%s%n%d", "", "bad-key"},
	{"../../config", "", "bad-key"},
	{strings.Repeat("long", 1000), "", "bad-key"},
}

// badValues are no leases, or not such as this network has. MAC and ADDRESS stand for those of a host of their own.
var badValues = []junk{
	{"", ``, "bad-value"},
	{"", `not JSON`, "bad-value"},
	{"", "\x00\x1b[2J", "bad-value"},
	{"", `null`, "bad-address"},
	{"", `[]`, "bad-value"},
	{"", `{"PublicIP":7}`, "bad-value"},
	{"", `{"PublicIP":"999.1.1.1"}`, "bad-value"},
	{"", `{"PublicIP":"\u001b[2J\u0000\n"}`, "bad-value"},
	{"", `{"PublicIP":"127.0.0.1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"MAC"}}`, "bad-address"},
	{"", `{"PublicIP":"224.0.0.1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"MAC"}}`, "bad-address"},
	{"", `{"PublicIP":"0.0.0.0","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"MAC"}}`, "bad-address"},
	{"", `{"PublicIP":"ADDRESS","PublicIPv6":"fe80::1%\u001b[2J\n","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"MAC"}}`, "bad-address"},
	{"", `{"PublicIP":"ADDRESS","BackendType":"vxlan","BackendData":{"VNI":-1,"VtepMAC":"MAC"}}`, "bad-value"},
	{"", `{"PublicIP":"ADDRESS","BackendType":"vxlan","BackendData":{"VNI":4294967297,"VtepMAC":"MAC"}}`, "bad-value"},
	{"", `{"PublicIP":"ADDRESS","BackendType":"vxlan","BackendData":{"VNI":1e400,"VtepMAC":"MAC"}}`, "bad-value"},
	{"", `{"PublicIP":"ADDRESS","BackendType":"vxlan","BackendData":"\u001b[2J\n"}`, "bad-value"},
	{"", `{"PublicIP":"ADDRESS","BackendType":"vxlan","BackendData":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`, "bad-value"},
	{"", strings.Repeat("[", 15000), "bad-value"},
	{"", strings.Repeat(`{"PublicIP":`, 1300), "bad-value"},
	{"", `{"PublicIP":"ADDRESS","BackendType":"vxlan","BackendData":{"VNI":2,"VtepMAC":"MAC"}}`, "wrong-vni"},
	{"", `{"PublicIP":"ADDRESS","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"\u001b[2J\u0000\n"}}`, "bad-mac"},
	{"", `{"PublicIP":"ADDRESS","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}}`, "bad-mac"},
	{"", `{"PublicIP":"ADDRESS","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}}`, "bad-mac"},
	{"", `{"PublicIP":"ADDRESS","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:00:00:01"}}`, "bad-mac"},
	{"", `{"PublicIP":"ADDRESS","BackendType":"vxlan","BackendData":{"VNI":1}}`, "bad-mac"},
	{"", `{"PublicIP":"ADDRESS","BackendType":"vxlan","BackendData":null}`, "bad-value"},
	{"", `{"PublicIP":"ADDRESS","BackendType":"host-gw"}`, "wrong-backend"},
	{"", `{"PublicIP":"ADDRESS","BackendType":"\u001b]0;this is a title\u0007\u0000","BackendData":{}}`, "wrong-backend"},
	{"", `{"PublicIP":"ADDRESS","BackendType":"` + strings.Repeat("x", 10000) + `"}`, "wrong-backend"},
}

// malformed makes n keys that must all be left out.
func malformed(n int, l *lab.Lab, odd, even []int) []junk {
	own := l.Nodes[0]
	victim := fmt.Sprintf("10.5.%d", odd[0])
	all := []junk{
		{"10.5.0.0-16", lease("198.19.0.1", "0a:00:00:01:00:01", 1), "outside-network"},
		{"10.9.0.0-24", lease("198.19.0.1", "0a:00:00:01:00:01", 1), "outside-network"},
		{"0.0.0.0-1", lease("198.19.0.1", "0a:00:00:01:00:01", 1), "outside-network"},
		{"fd00::-64", lease("198.19.0.1", "0a:00:00:01:00:01", 1), "bad-key"},
		{victim + ".0-25", lease("198.19.0.1", "0a:00:00:01:00:01", 1), "overlap"},
		{fmt.Sprintf("%s-32", own.Container.Address), lease("198.19.0.1", "0a:00:00:01:00:01", 1), "overlap"},
		{fmt.Sprintf("%s-32", l.Nodes[1].Container.Address), lease("198.19.0.1", "0a:00:00:01:00:01", 1), "overlap"},
		{fmt.Sprintf("10.5.%d.0-25", even[2]), lease("198.19.0.2", phantomMAC(odd[0]), 1), "conflict"},
		{fmt.Sprintf("10.5.%d.0-25", even[3]), lease(own.Address.String(), "0a:00:00:01:00:03", 1), "own-address"},
		{fmt.Sprintf("10.5.%d.0-25", even[4]), strings.Repeat("x", 1<<20), "bad-value"},
		{strings.Repeat("very long", 2000), lease("198.19.0.1", "0a:00:00:01:00:01", 1), "bad-key"},
	}
	for i := len(all); i < n; i++ {
		address, mac := fmt.Sprintf("198.19.%d.%d", 1+i/250, 1+i%250), fmt.Sprintf("0a:00:00:02:%02x:%02x", i>>8, i&0xff)
		if i%2 == 0 {
			j := badNames[i/2%len(badNames)]
			all = append(all, junk{fmt.Sprint(j.key, i), lease(address, mac, 1), j.reason})
			continue
		}
		j := badValues[i/2%len(badValues)]
		j.key = fmt.Sprintf("10.5.%d.%d-32", even[5+i/256], i%256)
		j.value = strings.NewReplacer("MAC\"", mac+"\"", "ADDRESS", address).Replace(j.value)
		all = append(all, j)
	}
	return all
}

// TestJunk fills etcd with what somebody must have meant badly, and with leases of a hundred hosts that don't exist. The hosts
// that do exist go on, and one that joins amid all this is reached at once.
func TestJunk(t *testing.T) {
	l := newLab(t, lab.Options{Hosts: 2})
	h := l.Nodes[0]
	odd, even := octets(t, l)
	valid, bad := phantoms(odd, even), malformed(1000, l, odd, even)
	want := map[string]int{}
	for _, j := range bad {
		want[j.reason]++
	}
	flows := startFlows(t, l)
	for key, value := range valid {
		etcdctl(t, l, "put", subnets+key, value)
	}
	late, err := l.NewHost()
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() {
		written <- asEtcd(t, l, func(ctx context.Context, c *clientv3.Client) error { return write(ctx, c, bad) })
	}()
	t.Run("a host joins", func(t *testing.T) { testJoinsAmidJunk(t, l, late) })
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	t.Run("left out", func(t *testing.T) {
		eventually(t, 10*time.Second, "all junk is counted", func() error {
			status, err := h.Status(t.Context())
			if err == nil && !maps.Equal(status.LeftOut, want) {
				err = fmt.Errorf("left out are %v, want %v", status.LeftOut, want)
			}
			return err
		})
		for reason, n := range want {
			if got := metric(t, h, fmt.Sprintf("tulle_leases_rejected{reason=%q}", reason)); int(got) != n {
				t.Errorf("tulle_leases_rejected has %g for %s, want %d", got, reason, n)
			}
		}
		routes := []string{l.Nodes[1].Container.Subnet.String(), late.Container.Subnet.String()}
		for key := range valid {
			routes = append(routes, strings.Replace(key, "-", "/", 1))
		}
		onlyRoutes(t, h, routes)
	})
	t.Run("log", func(t *testing.T) { testJunkLog(t, logOf(t, l, h), len(bad)) })
	t.Run("text for people", func(t *testing.T) { testJunkText(t, l, h) })
	t.Run("deleted", func(t *testing.T) {
		var keys []string
		for key := range valid {
			keys = append(keys, key)
		}
		for _, j := range bad {
			keys = append(keys, j.key)
		}
		if err := asEtcd(t, l, func(ctx context.Context, c *clientv3.Client) error { return remove(ctx, c, keys) }); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "nothing is left out any more", func() error {
			status, err := h.Status(t.Context())
			if err == nil && (len(status.LeftOut) > 0 || status.Peers.Total != 2) {
				err = fmt.Errorf("%d peers; left out are %v", status.Peers.Total, status.LeftOut)
			}
			return err
		})
		onlyRoutes(t, h, []string{l.Nodes[1].Container.Subnet.String(), late.Container.Subnet.String()})
		unchanging(t, h)
	})
	stopFlows(t, flows)
	ping(t, h.Container, late.Container, 1450)
}

// testJoinsAmidJunk starts a host's agent and waits until it has a lease, and then until another host has programmed it.
func testJoinsAmidJunk(t *testing.T, l *lab.Lab, late *lab.Host) {
	var subnet string
	err := asEtcd(t, l, func(ctx context.Context, c *clientv3.Client) error {
		events := c.Watch(ctx, subnets, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		<-events // from here on
		launch(t, l, late)
		for r := range events {
			for _, e := range r.Events {
				if strings.Contains(string(e.Kv.Value), `"PublicIP":"`+late.Address.String()+`"`) {
					subnet = strings.Replace(strings.TrimPrefix(string(e.Kv.Key), subnets), "-", "/", 1)
					return nil
				}
			}
		}
		return errors.New("it has no lease")
	})
	if err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	eventually(t, 10*time.Second, "the other host has a route to it", func() error {
		if routes := look(t, l.Nodes[0], "ip route"); !strings.Contains(routes, subnet) {
			return errors.New("it has none")
		}
		return nil
	})
	took := time.Since(started)
	if t.Logf("programmed %d ms after its key appeared", took.Milliseconds()); took > 2*time.Second {
		t.Errorf("that took more than 2 s")
	}
	if err := late.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.NewContainer(late); err != nil {
		t.Fatal(err)
	}
	firstAnswer(t, 5*time.Second, l.Nodes[0], late)
}

// write stores junk, as many keys in one transaction as etcd takes.
func write(ctx context.Context, etcd *clientv3.Client, all []junk) error {
	for chunk := range slices.Chunk(all, 20) {
		var puts []clientv3.Op
		for _, j := range chunk {
			puts = append(puts, clientv3.OpPut(subnets+j.key, j.value))
		}
		if _, err := etcd.Txn(ctx).Then(puts...).Commit(); err != nil {
			return err
		}
	}
	return nil
}

func remove(ctx context.Context, etcd *clientv3.Client, keys []string) error {
	for chunk := range slices.Chunk(keys, 100) {
		var deletes []clientv3.Op
		for _, key := range chunk {
			deletes = append(deletes, clientv3.OpDelete(subnets+key))
		}
		if _, err := etcd.Txn(ctx).Then(deletes...).Commit(); err != nil {
			return err
		}
	}
	return nil
}

// onlyRoutes waits until a host has routes of ours to exactly these subnets, and as many of what belongs to each.
func onlyRoutes(t *testing.T, h *lab.Host, subnets []string) {
	t.Helper()
	slices.Sort(subnets)
	eventually(t, 5*time.Second, h.Name+" has the right routes", func() error {
		var have []string
		for line := range strings.Lines(look(t, h, "ip route show proto 84")) {
			have = append(have, strings.Fields(line)[0])
		}
		slices.Sort(have)
		if !slices.Equal(have, subnets) {
			return difference(strings.Join(subnets, "\n"), strings.Join(have, "\n"))
		}
		return nil
	})
	for what, command := range map[string]string{"neighbours": "ip neigh show dev tulle.1 nud permanent", "nexthop objects": "ip nexthop show proto 84"} {
		if n := strings.Count(look(t, h, command)+"\n", "\n"); n != len(subnets) {
			t.Errorf("%s has %d %s, want %d", h.Name, n, what, len(subnets))
		}
	}
}

// testJunkLog fails if junk has got the better of a log.
func testJunkLog(t *testing.T, log string, bad int) {
	n := strings.Count(log, " left out\"")
	if t.Logf("%d lines about %d bad leases", n, bad); n == 0 || n > bad {
		t.Errorf("%d lines for %d bad leases", n, bad)
	}
	tame(t, "the log", log)
}

// testJunkText fails if junk gets at an operator's terminal.
func testJunkText(t *testing.T, l *lab.Lab, h *lab.Host) {
	list, err := l.Tulle(t.Context(), "", "lease", "ls")
	if err != nil {
		t.Fatal(err)
	}
	tame(t, "tulle lease ls", list)
	tame(t, "tulle status", in(t, h.Namespace, binary, "status", "--wide", "--run-dir", h.RunDir))
	tame(t, "tulle events", in(t, h.Namespace, binary, "events", "--run-dir", h.RunDir))
}

// tame fails if a text has control characters in it, or others that a terminal acts upon, or very long lines.
func tame(t *testing.T, what, text string) {
	t.Helper()
	hostile := func(r rune) bool { return r != '\n' && (r == utf8.RuneError || !unicode.IsGraphic(r)) }
	if i := strings.IndexFunc(text, hostile); i >= 0 {
		t.Errorf("%s has control characters: …%q…", what, text[max(0, i-40):min(len(text), i+40)])
	}
	longest := ""
	for line := range strings.Lines(text) {
		if len(line) > len(longest) {
			longest = line
		}
	}
	if t.Logf("%s: the longest line has %d bytes", what, len(longest)); len(longest) > 4<<10 {
		t.Errorf("%s has a line of %d bytes: %.100q…", what, len(longest), longest)
	}
}
