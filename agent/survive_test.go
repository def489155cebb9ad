package agent

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/agent/server"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// What another host claims is no longer ours alone: nobody should be sent here, but nothing is taken down.
func TestRival(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.put(peer(2))
		r.log.take()
		applies, state := r.kernel.applies(), r.kernel.state()
		r.own(func(o *subnet.Own) { o.Rival = "192.0.2.9 claims it" })
		r.wantReady(false, "192.0.2.9 claims it")
		r.wantLog(`level=WARN msg="192.0.2.9 claims it"`)
		if w := r.agent.Status().Warnings; !slices.Contains(w, "192.0.2.9 claims it") {
			r.Errorf("warnings are %q", w)
		}
		if r.kernel.applies() != applies || r.kernel.state() != state {
			r.Error("a claim changed the kernel")
		}
		r.own(func(o *subnet.Own) { o.Rival = "" })
		r.wantReady(true, "10.5.1.0-24, 1 peers")
		if w := r.agent.Status().Warnings; len(w) != 0 {
			r.Errorf("warnings are %q", w)
		}
	})
}

func TestEtcdAlert(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.log.take()
		alert := func(text string) {
			r.store.publish(func(u *subnet.Update) { u.Alert = text })
			r.settle()
		}
		alert("no space")
		alert("no space")
		r.wantReady(true, "10.5.1.0-24, 0 peers")
		r.wantLog(`level=WARN msg="no space"`)
		if w := r.agent.Status().Warnings; !slices.Contains(w, "no space") {
			r.Errorf("warnings are %q", w)
		}
		alert("")
		if w := r.agent.Status().Warnings; len(w) != 0 {
			r.Errorf("warnings are %q", w)
		}
	})
}

// While etcd is out of reach for longer than the lease lives, nobody can know whose the subnet is.
func TestLeaseExpiresWhileEtcdIsAway(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.own(func(o *subnet.Own) { o.Renewed = time.Now() })
		r.store.publish(func(u *subnet.Update) { u.Err = errors.New(unreachable) })
		r.pass(23 * time.Hour)
		r.wantReady(true, "10.5.1.0-24, 0 peers; etcd out of reach, the network stays as it is: no connection to etcd")
		r.pass(2 * time.Hour)
		expired := "lease expired while etcd was out of reach, so another host may have the subnet by now: no connection to etcd"
		r.wantReady(false, expired)
		applies := r.kernel.applies()
		ring(r.kernel.doorbell)
		r.settle()
		if r.kernel.applies() != applies+1 {
			r.Error("a host whose lease has expired does not heal itself")
		}
		r.own(func(o *subnet.Own) { o.Reserved = true })
		r.wantReady(true, "10.5.1.0-24, 0 peers; etcd out of reach, the network stays as it is: no connection to etcd")
		r.own(func(o *subnet.Own) { o.Reserved, o.Renewed = false, time.Now() })
		r.wantReady(true, "10.5.1.0-24, 0 peers; etcd out of reach, the network stays as it is: no connection to etcd")
	})
}

// The next life knows the key as this one left it, but not that of another subnet.
func TestMark(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.own(func(o *subnet.Own) { o.Revision = 1234 })
		path := filepath.Join(r.agent.config.RunDir, "lease")
		if text, err := os.ReadFile(path); string(text) != "10.5.1.0-24 1234\n" || err != nil {
			r.Errorf("the mark is %q, %v", text, err)
		}
		next := func() int64 {
			r.agent.state.previous = r.agent.previous()
			return r.agent.marked()
		}
		if got := next(); got != 1234 {
			r.Errorf("the next life reads %d", got)
		}
		for _, text := range []string{"10.5.2.0-24 1234\n", "10.5.1.0-24\n", "10.5.1.0-24 x", ""} {
			write(t, path, text)
			if got := next(); got != 0 {
				r.Errorf("%q reads as %d", text, got)
			}
		}
	})
}

// A wiped etcd may have another config at the same revision.
func TestConfigOfAnotherHistory(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.store.publish(func(u *subnet.Update) {
			u.Config = parsed(`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}`, u.Config.Revision)
		})
		r.settle()
		if !strings.Contains(r.kernel.state(), "tulle.7") {
			r.Errorf("the state is\n%s", r.kernel.state())
		}
	})
}

// Of many bad leases at once a few are named, and all are counted.
func TestManyRejected(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.log.take()
		var bad []subnet.Entry
		for n := range 100 {
			e := peer(n + 2)
			e.Lease.Data.V4 = `{"VNI":9,"VtepMAC":"02:00:00:00:00:01"}`
			bad = append(bad, e)
		}
		r.put(bad...)
		log := r.log.take()
		if n := strings.Count(log, "lease left out"); n != talkative {
			r.Errorf("%d lines:\n%s", n, log)
		}
		if !strings.Contains(log, `msg="more leases left out" count=92 reasons=map[wrong-vni:92]`) {
			r.Errorf("logged:\n%s", log)
		}
		if n := r.metric("tulle_leases_rejected wrong-vni"); n != 100 {
			r.Errorf("%v are counted", n)
		}
		long := strings.Repeat("x", 1<<20)
		r.store.publish(func(u *subnet.Update) {
			u.Leases[long] = subnet.Entry{Err: subnet.Rejectf(subnet.BadKey, "%q is not a subnet", long)}
		})
		r.settle()
		if log := r.log.take(); len(log) > 600 || !strings.Contains(log, "reason=bad-key") {
			r.Errorf("logged %d bytes: %.300s", len(log), log)
		}
	})
}

// A supervisor that reads nothing holds nothing up.
func TestDeafSupervisor(t *testing.T) {
	supervise(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 13 { // the socket holds ten (net.unix.max_dgram_qlen)
			send("STATUS=as it was")
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("still waiting for it")
	}
}

// panicking is a part of the agent that panics.
type panicking struct{ *fakeKernel }

func (panicking) Underlay(backend.Choice) (backend.Underlay, error) { panic("the loop's") }

func (panicking) Listen(context.Context) error { panic("a task's") }

// TestPanic runs itself: a panic anywhere must end the process, with a stack trace.
func TestPanic(t *testing.T) {
	if where := os.Getenv("TULLE_TEST_PANIC"); where != "" {
		panicIn(t, where)
		return
	}
	for where, message := range map[string]string{"loop": "panic: the loop's", "task": "panic: a task's", "handler": "panic: a handler's"} {
		cmd := exec.Command(os.Args[0], "-test.run", "TestPanic")
		cmd.Env = append(os.Environ(), "TULLE_TEST_PANIC="+where)
		out, err := cmd.CombinedOutput()
		exit := (*exec.ExitError)(nil)
		if !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Errorf("%s: %v\n%s", where, err, out)
		}
		if !strings.Contains(string(out), message) || !strings.Contains(string(out), "survive_test.go") {
			t.Errorf("%s: no message or no stack:\n%s", where, out)
		}
	}
}

func panicIn(t *testing.T, where string) {
	r := newRig(t, "")
	switch where {
	case "task":
		r.agent.kernel = panicking{r.kernel}
		_ = r.agent.Run(t.Context())
	case "loop":
		r.agent.kernel = panicking{r.kernel}
		r.store.publish(func(u *subnet.Update) { u.Reset, u.Revision, u.Config = true, 1, parsed(vxlan, 1) })
		_ = r.agent.loop(t.Context())
	case "handler":
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("a handler's") })
		go func() { _ = server.Local(l, r.agent.log).Serve(t.Context(), server.Handlers{Known: h}) }()
		client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}}}
		_, _ = client.Get("http://tulle/")
	}
}

// A config that this host can't run is not published as if it did: the lease stays as it is, like the kernel.
func TestConfigIsNeverHalfApplied(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		r.kernel.setMTU(600)
		state, asked := r.kernel.state(), r.store.lastWant()
		r.setConfig(`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}`)
		if ready, reason := r.agent.Status().Ready, r.agent.Status().Reason; ready || !strings.Contains(reason, "MTU 600") {
			r.Errorf("ready %t: %s", ready, reason)
		}
		if r.kernel.state() != state || !r.store.lastWant().Equal(asked) {
			r.Errorf("asked for %+v, applied\n%s", r.store.lastWant(), r.kernel.state())
		}
		r.kernel.setMTU(1500)
		r.pass(time.Minute)
		if !strings.Contains(r.kernel.state(), "tulle.7") || !strings.Contains(r.store.lastWant().Data.V4, `"VNI":7`) {
			r.Errorf("asked for %+v, applied\n%s", r.store.lastWant(), r.kernel.state())
		}
	})
}
