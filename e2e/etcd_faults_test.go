package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/e2e/lab"
)

// What etcd can do to its clients. Whatever it does, containers go on talking.

const (
	reportLimit = 30 * time.Second // until a host says that etcd is away
	returnLimit = 35 * time.Second // until a host makes use of an etcd that is back
	noticeLimit = time.Minute      // until a host notices what etcd does not tell of itself: an alarm, lost data

	subnets    = "/coreos.com/network/subnets/"
	outOfReach = "etcd is out of reach" // in the log
	pingEvery  = 10 * time.Millisecond
)

// TestEtcdCluster has etcd's members fail one by one, and then most of them.
func TestEtcdCluster(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3, Members: 3})
	flows := startTraffic(t, l.Nodes...)
	kill := func(m *lab.Member) error { return m.Stop(unix.SIGKILL) }
	start := func(m *lab.Member) error { return l.StartEtcd(t.Context(), m) }
	for _, fault := range []struct {
		what     string
		leader   bool
		do, undo func(m *lab.Member) error
	}{
		{"the leader killed", true, kill, start},
		{"a follower killed", false, kill, start},
		{"the leader hanging", true, (*lab.Member).Pause, (*lab.Member).Resume},
		{"the leader cut off", true,
			func(m *lab.Member) error { return l.Unplug(t.Context(), m) }, func(m *lab.Member) error { return l.Replug(t.Context(), m) }},
	} {
		m, followers := leader(t, l)
		if !fault.leader {
			m = followers[0]
		}
		began := time.Now()
		must(t, fault.do(m))
		took := wantNews(t, l)
		t.Logf("with %s: writes and all else after %s, of which hosts took %s", fault.what, since(began), took)
		began = time.Now()
		must(t, fault.undo(m))
		leader(t, l)
		took = wantNews(t, l)
		t.Logf("with all members again: after %s, of which hosts took %s", since(began), took)
	}
	lost, said := l.Others, sayings(t, l)
	began := time.Now()
	for _, m := range lost {
		must(t, kill(m))
	}
	wantReported(t, l.Nodes...)
	t.Logf("most members killed: reported after %s", since(began))
	for _, h := range l.Nodes {
		if n := strings.Count(logOf(t, l, h), outOfReach); n <= said[h] {
			t.Errorf("%s does not log that etcd is out of reach", h.Name)
		}
		must(t, h.Ready(t.Context()))
	}
	must(t, l.StartEtcd(t.Context(), lost...))
	began = time.Now()
	wantConnected(t, l.Nodes...)
	t.Logf("most members back: connected after %s", since(began))
	if _, err := l.AddHost(t.Context()); err != nil {
		t.Error(err)
	}
	flows.wantNoneLost(t)
}

// TestEtcdSlow has etcd half a second away.
func TestEtcdSlow(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3})
	flows := startTraffic(t, l.Nodes...)
	remove, err := l.Delay(t.Context(), l.Server, 500*time.Millisecond)
	must(t, err)
	wantNews(t, l) // those that run lose their connection, and come back through the proxy
	for _, h := range l.Nodes[:2] {
		stop(t, h)
		began := time.Now()
		must(t, l.StartAgent(t.Context(), h))
		t.Logf("%s restarts in %s", h.Name, since(began))
	}
	began := time.Now()
	if _, err = l.AddHost(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("a new host is programmed everywhere after %s", since(began))
	began = time.Now()
	wantNews(t, l)
	t.Logf("a peer comes and goes in %s", since(began))
	wantConnected(t, l.Nodes...)
	said := sayings(t, l)
	steadily(t, 20*time.Second, "etcd is slow, not away", func() error { return connected(t, l.Nodes...) })
	for _, h := range l.Nodes {
		if n := strings.Count(logOf(t, l, h), outOfReach); n > said[h] {
			t.Errorf("%s says that etcd is out of reach", h.Name)
		}
	}
	must(t, remove())
	wantNews(t, l)
	flows.wantNoneLost(t)
}

// TestEtcdBlackhole drops a host's packets to etcd on their way: nobody refuses a connection.
func TestEtcdBlackhole(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3})
	h := l.Nodes[0]
	flows := startTraffic(t, l.Nodes...)
	closeHole := blackhole(t, h, false)
	began := time.Now()
	wantReported(t, h)
	t.Logf("reported after %s", since(began))
	must(t, h.Ready(t.Context()))
	late, err := l.NewHost()
	must(t, err)
	must(t, l.StartAgent(t.Context(), late))
	must(t, l.NewContainer(late))
	closeHole()
	began = time.Now()
	eventually(t, returnLimit, "the host knows the peer that joined meanwhile", func() error { return peers(t, 3, h) })
	t.Logf("back after %s", since(began))
	ping(t, h.Container, late.Container, 84)
	wantConnected(t, h)
	if n := strings.Count(logOf(t, l, h), `msg="tulle agent"`); n != 1 {
		t.Errorf("the agent was started %d times", n)
	}
	flows.wantNoneLost(t)
}

// TestEtcdNoSpace fills etcd until it takes no more writes, and makes room again.
func TestEtcdNoSpace(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3, Quota: 8 << 20})
	flows := startTraffic(t, l.Nodes...)
	fill(t, l)
	began := time.Now()
	eventually(t, noticeLimit, "all agents report NOSPACE", func() error {
		return every(t, func(s api.Status) bool { return reports(s, "NOSPACE") }, l.Nodes...)
	})
	t.Logf("reported after %s", since(began))
	h := l.Nodes[0]
	stop(t, h)
	must(t, l.StartAgent(t.Context(), h)) // to take its lease over as it is needs no write
	late, err := l.NewHost()
	must(t, err)
	launch(t, l, late)
	eventually(t, reportLimit, "a new host says why it can't join", func() error {
		return errors.Join(logs(t, l, late, "NOSPACE"), logs(t, l, late, "alarm disarm"))
	})
	if late.Ready(t.Context()) == nil {
		t.Error("a new host joined although etcd takes no writes")
	}
	makeRoom(t, l)
	began = time.Now()
	eventually(t, noticeLimit, "the new host is ready", func() error { return late.Ready(t.Context()) })
	t.Logf("the new host is ready after %s", since(began))
	eventually(t, noticeLimit, "the report goes away", func() error {
		return every(t, func(s api.Status) bool { return s.Etcd.Connected && s.Peers.Total == 3 && !reports(s, "NOSPACE") }, l.Nodes...)
	})
	t.Logf("the report is gone after %s", since(began))
	flows.wantNoneLost(t)
}

// TestEtcdLongAway has etcd away for longer than anything waits for it.
func TestEtcdLongAway(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3})
	flows := startTraffic(t, l.Nodes...)
	must(t, l.Server.Stop(unix.SIGKILL))
	restarted, others := l.Nodes[0], l.Nodes[1:]
	stop(t, restarted)
	launch(t, l, restarted)
	wantReported(t, l.Nodes...)
	steadily(t, 40*time.Second, "agents that run stay ready", func() error {
		return every(t, func(s api.Status) bool { return s.Ready && s.Peers.Total == 2 }, others...)
	})
	must(t, l.StartEtcd(t.Context()))
	began := time.Now()
	eventually(t, returnLimit, "all are back", func() error { return errors.Join(connected(t, l.Nodes...), peers(t, 2, l.Nodes...)) })
	t.Logf("all are back after %s", since(began))
	wantNews(t, l)
	flows.wantNoneLost(t)
}

// TestEtcdWiped deletes all that etcd has stored. When hosts reach it again it has got further than any revision they know.
func TestEtcdWiped(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3})
	flows, before := startTraffic(t, l.Nodes...), keys(t, l.Nodes...)
	withdrawn := watchRoutes(t, l.Nodes...)
	var closeHoles []func()
	for _, h := range l.Nodes {
		closeHoles = append(closeHoles, blackhole(t, h, true))
	}
	must(t, l.Server.Stop(unix.SIGKILL))
	must(t, os.RemoveAll(l.Server.Data))
	must(t, l.StartEtcd(t.Context()))
	must(t, asEtcd(t, l, func(ctx context.Context, c *clientv3.Client) (err error) {
		for n := 0; n < 100 && err == nil; n++ {
			_, err = c.Put(ctx, "/another/application", strconv.Itoa(n))
		}
		return err
	}))
	for _, closeHole := range closeHoles {
		closeHole()
	}
	began := time.Now()
	wantStored(t, l, before)
	t.Logf("all keys are back after %s", since(began))
	eventually(t, noticeLimit, "all say which command stores the config", func() error {
		var errs []error
		for _, h := range l.Nodes {
			errs = append(errs, logs(t, l, h, "tulle config set"))
		}
		return errors.Join(errs...)
	})
	if err := errors.Join(peers(t, 2, l.Nodes...), connected(t, l.Nodes...)); err != nil {
		t.Error(err)
	}
	if routes := withdrawn(); len(routes) > 0 {
		t.Errorf("routes were withdrawn: %s", routes)
	}
	setConfig(t, l, plain)
	late, err := l.AddHost(t.Context())
	must(t, err)
	if slices.Contains(before, key(t, late)) {
		t.Errorf("a new host has %s, which is another's", key(t, late))
	}
	ping(t, l.Nodes[0].Container, late.Container, 84)
	flows.wantNoneLost(t)
}

// TestEtcdWipedHostAway wipes etcd while one host's agent does not run. Its containers talk on, so nobody may get its subnet.
func TestEtcdWipedHostAway(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3})
	flows, before := startTraffic(t, l.Nodes...), keys(t, l.Nodes...)
	away := l.Nodes[0]
	stop(t, away)
	must(t, l.Server.Stop(unix.SIGKILL))
	must(t, os.RemoveAll(l.Server.Data))
	began := time.Now()
	must(t, l.StartEtcd(t.Context()))
	wantStored(t, l, before) // its peers see to that
	t.Logf("all keys are back after %s", since(began))
	setConfig(t, l, plain)
	must(t, l.StartAgent(t.Context(), away))
	must(t, l.Converge(t.Context()))
	wantStored(t, l, before)
	flows.wantNoneLost(t)
}

// TestEtcdRestored sets etcd back to a time before the third host joined. A fourth starts at that moment, and the subnets are
// so few that it will choose the third's.
func TestEtcdRestored(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 2, Config: `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.4.0"}`})
	backup := t.TempDir()
	must(t, l.Server.Stop(unix.SIGTERM))
	must(t, os.CopyFS(backup, os.DirFS(l.Server.Data)))
	must(t, l.StartEtcd(t.Context()))
	if _, err := l.AddHost(t.Context()); err != nil {
		t.Fatal(err)
	}
	flows, before := startTraffic(t, l.Nodes...), keys(t, l.Nodes...)
	withdrawn := watchRoutes(t, l.Nodes...)

	must(t, l.Server.Stop(unix.SIGKILL))
	must(t, os.RemoveAll(l.Server.Data))
	must(t, os.CopyFS(l.Server.Data, os.DirFS(backup)))
	late, err := l.NewHost()
	must(t, err)
	launch(t, l, late)
	began := time.Now()
	must(t, l.StartEtcd(t.Context()))
	wantStored(t, l, before)
	t.Logf("all keys are back after %s", since(began))
	if routes := withdrawn(); len(routes) > 0 {
		t.Errorf("routes were withdrawn: %s", routes)
	}
	flows.wantNoneLost(t)
	eventually(t, noticeLimit, "the new host has a subnet that nobody had", func() error {
		if err := late.Ready(t.Context()); err != nil {
			return err
		}
		if has := envKey(t, late); slices.Contains(before, has) {
			return fmt.Errorf("it has %s", has)
		}
		return nil
	})
	t.Logf("the new host has a subnet of its own after %s", since(began))
	must(t, l.NewContainer(late))
	must(t, l.Converge(t.Context()))
	ping(t, l.Nodes[2].Container, late.Container, 84)
}

// TestOwnKeyDeleted deletes a host's own key, as an operator may by mistake.
func TestOwnKeyDeleted(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3})
	h, before := l.Nodes[0], keys(t, l.Nodes...)
	flows := startTraffic(t, l.Nodes...)
	began := time.Now()
	etcdctl(t, l, "del", subnets+key(t, h))
	wantStored(t, l, before)
	t.Logf("the key is back after %s", since(began))
	must(t, l.Converge(t.Context()))
	if lost := flows.stop(t); lost > 0 {
		t.Errorf("%d packets lost, one each %s", lost, pingEvery)
	}
	if env := key(t, h); env != before[0] {
		t.Errorf("the host has %s now, not %s", env, before[0])
	}
}

// TestLeaseExpired has a host's lease expire while the host can't reach etcd. It comes back to the same subnet, or to another
// if somebody else has it by then.
func TestLeaseExpired(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3})
	h, others := l.Nodes[0], l.Nodes[1:]
	before := keys(t, l.Nodes...)
	flows := startTraffic(t, others...)

	closeHole := blackhole(t, h, true)
	expire(t, l, h)
	eventually(t, 5*time.Second, "its peers drop it", func() error { return peers(t, 1, others...) })
	wantReported(t, h)
	must(t, h.Ready(t.Context())) // it can't know
	closeHole()
	began := time.Now()
	wantStored(t, l, before)
	t.Logf("the same subnet again after %s", since(began))
	must(t, l.Converge(t.Context()))
	ping(t, h.Container, others[0].Container, 84)
	ping(t, others[1].Container, h.Container, 84)

	closeHole = blackhole(t, h, false) // so that it hears of the loss, but can do nothing about it
	expire(t, l, h)
	etcdctl(t, l, "put", subnets+before[0], lease("192.0.2.66", "0a:00:00:00:00:66", 1))
	began = time.Now()
	wantReported(t, h)
	t.Logf("reported after %s", since(began))
	closeHole()
	began = time.Now()
	var now string
	eventually(t, returnLimit, "the host has another subnet", func() error {
		now = envKey(t, h)
		if now == before[0] {
			return errors.New("it has not")
		}
		return nil
	})
	t.Logf("another subnet after %s", since(began))
	eventually(t, 10*time.Second, "all know it", func() error { return peers(t, 3, l.Nodes...) })
	if slices.Contains(before, now) {
		t.Errorf("the host has %s, which is another's", now)
	}
	named := func(text string) bool {
		return strings.Contains(text, strings.Replace(before[0], "-", "/", 1)) && strings.Contains(text, strings.Replace(now, "-", "/", 1))
	}
	if log := grep(logOf(t, l, h), "level=ERROR"); !named(log) {
		t.Errorf("no error in the log names %s and %s:\n%s", before[0], now, log)
	}
	if status, err := h.Status(t.Context()); err != nil || !named(strings.Join(status.Warnings, "\n")) {
		t.Errorf("the warnings don't name %s and %s: %q, %v", before[0], now, status.Warnings, err)
	}
	if text := grep(in(t, h.Namespace, binary, "status", "--run-dir", h.RunDir), "WARNING"); !named(text) {
		t.Errorf("tulle status does not warn that %s is %s now:\n%s", before[0], now, text)
	}
	flows.wantNoneLost(t)
}

// traffic is a ring of pings.
type traffic []*lab.Flow

// startTraffic has each host's container ping the next host's.
func startTraffic(t *testing.T, hosts ...*lab.Host) traffic {
	t.Helper()
	var flows traffic
	for i, h := range hosts {
		flow, err := lab.StartFlow(h.Container.Namespace, hosts[(i+1)%len(hosts)].Container.Address, pingEvery)
		must(t, err)
		flows = append(flows, flow)
	}
	return flows
}

// stop returns how many packets were lost on the worst way.
func (f traffic) stop(t *testing.T) (lost int) {
	t.Helper()
	for _, flow := range f {
		r := flow.Stop(t.Context())
		if r.Refused != nil {
			t.Errorf("a packet was refused: %v", r.Refused)
		}
		lost = max(lost, r.Lost())
	}
	return lost
}

func (f traffic) wantNoneLost(t *testing.T) {
	t.Helper()
	if lost := f.stop(t); lost > 0 {
		t.Errorf("%d packets lost, one each %s", lost, pingEvery)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func since(began time.Time) time.Duration { return time.Since(began).Round(10 * time.Millisecond) }

// steadily fails the test unless condition holds for as long as is asked.
func steadily(t *testing.T, span time.Duration, what string, condition func() error) {
	t.Helper()
	end, tick := time.After(span), time.NewTicker(200*time.Millisecond)
	defer tick.Stop()
	for {
		if err := condition(); err != nil {
			t.Fatalf("%s: not any more: %v", what, err)
		}
		select {
		case <-end:
			return
		case <-tick.C:
		}
	}
}

// every fails unless all hosts' status is as asked.
func every(t *testing.T, asked func(api.Status) bool, hosts ...*lab.Host) error {
	t.Helper()
	for _, h := range hosts {
		status, err := h.Status(t.Context())
		if err != nil {
			return err
		}
		if !asked(status) {
			return fmt.Errorf("%s: ready %t, %s; etcd %s; %d peers; warnings %q", h.Name, status.Ready, status.Reason, status.Etcd.Error, status.Peers.Total, status.Warnings)
		}
	}
	return nil
}

func connected(t *testing.T, hosts ...*lab.Host) error {
	t.Helper()
	return every(t, func(s api.Status) bool { return s.Etcd.Connected }, hosts...)
}

func wantConnected(t *testing.T, hosts ...*lab.Host) {
	t.Helper()
	eventually(t, returnLimit, "etcd is in reach", func() error { return connected(t, hosts...) })
}

func wantReported(t *testing.T, hosts ...*lab.Host) {
	t.Helper()
	eventually(t, reportLimit, "hosts report that etcd is out of reach", func() error {
		return every(t, func(s api.Status) bool { return !s.Etcd.Connected }, hosts...)
	})
}

// peers fails unless all hosts are ready and have programmed n peers.
func peers(t *testing.T, n int, hosts ...*lab.Host) error {
	t.Helper()
	return every(t, func(s api.Status) bool { return s.Ready && s.Peers.Total == n }, hosts...)
}

// reports tells whether a status speaks of something.
func reports(s api.Status, what string) bool {
	return strings.Contains(strings.Join(append(s.Warnings, s.Etcd.Error), "\n"), what)
}

// sayings is how often each host has logged that etcd is out of reach.
func sayings(t *testing.T, l *lab.Lab) map[*lab.Host]int {
	t.Helper()
	said := map[*lab.Host]int{}
	for _, h := range l.Nodes {
		said[h] = strings.Count(logOf(t, l, h), outOfReach)
	}
	return said
}

// wantNews has a peer come and go in etcd, and waits until all hosts have followed. It returns how long that took them.
func wantNews(t *testing.T, l *lab.Lab) (took time.Duration) {
	t.Helper()
	name := subnets + "10.5.200.0-24"
	change := func(peersThen int, op clientv3.Op) {
		t.Helper()
		eventually(t, returnLimit, "etcd takes a write", func() error {
			return asEtcd(t, l, func(ctx context.Context, c *clientv3.Client) error {
				_, err := c.Do(ctx, op)
				return err
			})
		})
		began := time.Now()
		eventually(t, returnLimit, "all hosts know of it", func() error { return peers(t, peersThen, l.Nodes...) })
		took += since(began)
	}
	change(len(l.Nodes), clientv3.OpPut(name, lease("192.0.2.250", "0a:00:00:00:02:50", 1)))
	change(len(l.Nodes)-1, clientv3.OpDelete(name))
	return took
}

// leader waits until all members know one leader.
func leader(t *testing.T, l *lab.Lab) (leader *lab.Member, followers []*lab.Member) {
	t.Helper()
	eventually(t, reportLimit, "etcd's members have a leader", func() error {
		leader, followers = nil, nil
		for _, m := range l.Cluster() {
			err := asEtcd(t, l, func(ctx context.Context, c *clientv3.Client) error {
				status, err := c.Status(ctx, m.URL())
				switch {
				case err != nil:
					return err
				case status.Leader == 0:
					return fmt.Errorf("%s knows none", m.Name)
				case status.Leader == status.Header.MemberId:
					leader = m
				default:
					followers = append(followers, m)
				}
				return nil
			}, m)
			if err != nil {
				return err
			}
		}
		if leader == nil || len(followers) != len(l.Others) {
			return errors.New("they do not agree")
		}
		return nil
	})
	return leader, followers
}

// blackhole drops a host's packets to etcd, or those from there, too. What it returns ends that.
func blackhole(t *testing.T, h *lab.Host, bothWays bool) (closeHole func()) {
	t.Helper()
	rules := [][]string{{"OUTPUT", "-p", "tcp", "--dport", "2379", "-j", "DROP"}}
	if bothWays {
		rules = append(rules, []string{"INPUT", "-p", "tcp", "--sport", "2379", "-j", "DROP"})
	}
	change := func(how string) {
		for _, rule := range rules {
			in(t, h.Namespace, append([]string{"iptables", "-w", how}, rule...)...)
		}
	}
	change("-I")
	return func() { change("-D") }
}

// expire ends a host's lease in etcd.
func expire(t *testing.T, l *lab.Lab, h *lab.Host) {
	t.Helper()
	must(t, asEtcd(t, l, func(ctx context.Context, c *clientv3.Client) error {
		got, err := c.Get(ctx, subnets+key(t, h))
		if err != nil {
			return err
		}
		_, err = c.Revoke(ctx, clientv3.LeaseID(got.Kvs[0].Lease))
		return err
	}))
}

// fill stores things that are nobody's business until etcd takes no more.
func fill(t *testing.T, l *lab.Lab) {
	t.Helper()
	err := asEtcd(t, l, func(ctx context.Context, c *clientv3.Client) error {
		for n := range l.Quota >> 20 * 2 {
			if _, err := c.Put(ctx, fmt.Sprint("/filler/", n), strings.Repeat("x", 1<<20)); err != nil {
				return err
			}
		}
		return nil
	})
	if !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Fatalf("etcd filled: %v; want %v", err, rpctypes.ErrNoSpace)
	}
}

// makeRoom does what etcd's manual says to do about that.
func makeRoom(t *testing.T, l *lab.Lab) {
	t.Helper()
	must(t, asEtcd(t, l, func(ctx context.Context, c *clientv3.Client) error {
		deleted, err := c.Delete(ctx, "/filler/", clientv3.WithPrefix())
		if err != nil {
			return err
		}
		_, compactErr := c.Compact(ctx, deleted.Header.Revision, clientv3.WithCompactPhysical())
		_, defragErr := c.Defragment(ctx, l.Endpoint())
		_, alarmErr := c.AlarmDisarm(ctx, &clientv3.AlarmMember{})
		return errors.Join(compactErr, defragErr, alarmErr)
	}))
}

// envKey is the key of the subnet that a host's env file names.
func envKey(t *testing.T, h *lab.Host) string {
	t.Helper()
	env, err := h.Env()
	must(t, err)
	return strings.Replace(env["FLANNEL_SUBNET"], ".1/", ".0-", 1)
}

// keys are those of hosts' leases.
func keys(t *testing.T, hosts ...*lab.Host) (keys []string) {
	t.Helper()
	for _, h := range hosts {
		keys = append(keys, envKey(t, h))
	}
	return keys
}

// wantStored waits until etcd has the leases of the lab's first hosts under these keys, and checks that their env files agree.
func wantStored(t *testing.T, l *lab.Lab, want []string) {
	t.Helper()
	hosts := l.Nodes[:len(want)]
	eventually(t, noticeLimit, "the hosts' leases are in etcd", func() error {
		return asEtcd(t, l, func(ctx context.Context, c *clientv3.Client) error {
			got, err := c.Get(ctx, subnets, clientv3.WithPrefix())
			if err != nil {
				return err
			}
			have := map[string]string{}
			for _, kv := range got.Kvs {
				have[strings.TrimPrefix(string(kv.Key), subnets)] = string(kv.Value)
			}
			for i, h := range hosts {
				if !strings.Contains(have[want[i]], fmt.Sprintf(`"PublicIP":%q`, h.Address)) {
					return fmt.Errorf("%s of %s is %q", want[i], h.Name, have[want[i]])
				}
			}
			return nil
		})
	})
	if have := keys(t, hosts...); !slices.Equal(have, want) {
		t.Errorf("hosts have %s, not %s", have, want)
	}
}

// watchRoutes watches hosts' routes from now on. What it returns ends that, and returns which were withdrawn.
func watchRoutes(t *testing.T, hosts ...*lab.Host) (withdrawn func() []string) {
	t.Helper()
	var watches sync.WaitGroup
	var mu sync.Mutex
	var routes []string
	done := make(chan struct{})
	for _, h := range hosts {
		ns, err := netns.GetFromName(h.Namespace)
		must(t, err)
		updates := make(chan netlink.RouteUpdate, 1024)
		must(t, netlink.RouteSubscribeAt(ns, updates, done))
		watches.Go(func() {
			defer ns.Close()
			for u := range updates {
				if u.Type == unix.RTM_DELROUTE && u.Table == unix.RT_TABLE_MAIN {
					mu.Lock()
					routes = append(routes, h.Name+": "+u.Route.String())
					mu.Unlock()
				}
			}
		})
	}
	return func() []string {
		close(done)
		watches.Wait()
		return routes
	}
}
