package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// memory measures what of the agent is resident: of a fresh one some time after it was ready, and of one that has seen many
// peers come and go.
func (b *bench) memory(ctx context.Context) error {
	c := b.curve("memory", fmt.Sprintf("Resident %s after ready (MB = 10⁶ bytes)", b.settled), "peers", "MB")
	for _, n := range b.sizes {
		b.say("memory with %s peers: a fresh agent, then %s of nothing", thousands(n), b.settled)
		if err := b.memoryOf(ctx, c, n); err != nil {
			return err
		}
	}
	last := c.last("VmRSS")
	b.add(figure{Name: fmt.Sprintf("resident with %s peers", thousands(last.N)), Unit: "MB", Value: last.Value, Bar: b.unlessQuick(45),
		Note: "at most " + amount(c.last("VmHWM").Value, "MB") + " until then"})
	return b.memoryChurned(ctx)
}

func (b *bench) memoryOf(ctx context.Context, c *curve, n int) error {
	if err := b.wipe(ctx); err != nil {
		return err
	}
	if err := b.settle(ctx, n); err != nil {
		return err
	}
	if err := idleFor(ctx, b.settled); err != nil {
		return err
	}
	for _, field := range []string{"VmRSS", "VmHWM"} {
		value, err := b.agent.memory(field)
		if err != nil {
			return err
		}
		c.point(field, n, value, nil)
	}
	return nil
}

// churnRate is how many of the peers are replaced a second: of ten thousand a fifth. Much more, and what an agent holds grows with
// those that have left but a moment ago.
const churnRate = 2000

// memoryChurned replaces peers, each by another in one transaction.
func (b *bench) memoryChurned(ctx context.Context) error {
	done, started := 0, time.Now()
	err := b.many(ctx, b.churn, func() []clientv3.Op {
		if done%(b.churn/10) == 0 {
			b.say("churn, %s of %s", thousands(done), thousands(b.churn))
		}
		due := started.Add(time.Duration(done) * time.Second / churnRate)
		_ = idleFor(ctx, time.Until(due)) // or else the call fails
		done++
		return []clientv3.Op{b.peers.leave(), b.peers.join()}
	})
	if err != nil {
		return err
	}
	rate := float64(b.churn) / time.Since(started).Seconds()
	if err := b.settle(ctx, b.most()); err != nil {
		return err
	}
	b.say("memory after churn: %s of nothing", b.churned)
	if err := idleFor(ctx, b.churned); err != nil {
		return err
	}
	resident, err := b.agent.memory("VmRSS")
	if err != nil {
		return err
	}
	most, err := b.agent.memory("VmHWM")
	b.add(figure{Name: fmt.Sprintf("resident after %s churned leases", thousands(b.churn)), Unit: "MB", Value: resident, Bar: b.unlessQuick(45),
		Note: fmt.Sprintf("%s later; at most %s; %s replaced a second", b.churned, amount(most, "MB"), rounded(rate))})
	return err
}

// idle measures what an agent costs when nothing happens.
func (b *bench) idle(ctx context.Context) error {
	if err := b.settle(ctx, b.most()); err != nil {
		return err
	}
	b.say("idle with %s peers: first %s for what came before", thousands(b.most()), b.settled)
	if err := idleFor(ctx, b.settled); err != nil {
		return err
	}
	before, err := b.use(ctx)
	if err != nil {
		return err
	}
	b.say("idle with %s peers: %s", thousands(b.most()), b.quiet)
	if err := idleFor(ctx, b.quiet); err != nil {
		return err
	}
	after, err := b.use(ctx)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("idle for %.0f s, %s peers, ", b.quiet.Seconds(), thousands(b.most()))
	b.add(figure{Name: name + "CPU", Unit: "% of a core", Value: (after.cpu - before.cpu).Seconds() / b.quiet.Seconds() * 100, Bar: b.unlessQuick(0.1)})
	executed := 0.0
	if after.children != before.children {
		executed = 1
	}
	b.add(figure{Name: name + "children executed", Value: executed, Bar: always(0), Note: "0: none, 1: some"})
	b.add(figure{Name: name + "messages to etcd", Value: after.messages - before.messages})
	return nil
}

// use is what the agent has used so far.
type use struct {
	cpu      time.Duration
	children [4]string
	messages float64 // that etcd got, from all its clients
}

func (b *bench) use(ctx context.Context) (u use, err error) {
	if u.children, err = b.agent.children(); err != nil {
		return u, err
	}
	if u.messages, err = b.etcdMessages(ctx); err != nil {
		return u, err
	}
	u.cpu, err = b.agent.cpu()
	return u, err
}

// etcdMessages is how many messages of gRPC etcd has received so far.
func (b *bench) etcdMessages(ctx context.Context) (float64, error) {
	l := b.agent.lab
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		return connect(ctx, l.Underlay(), address)
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, l.Endpoint()+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err
	}
	return sumOf(string(text), "grpc_server_msg_received_total")
}
