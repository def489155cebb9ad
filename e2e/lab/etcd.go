package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Member is one of etcd's servers. Alone, it is at the underlay's gateway; each of a cluster has a namespace of its own.
type Member struct {
	Name      string
	Namespace string
	Address   netip.Addr // on the underlay
	Data      string     // its data directory: to be copied, replaced or deleted while it does not run
	Scheme    string     // https; "" for http
	*Process             // nil until it is started
}

// maxMembers is what the underlay has room for below the hosts.
const maxMembers = 7

// URL is where the member serves clients, from any host of the lab.
func (m *Member) URL() string {
	return cmp.Or(m.Scheme, "http") + "://" + netip.AddrPortFrom(m.Address, 2379).String()
}

func (m *Member) peerURL() string { return "http://" + netip.AddrPortFrom(m.Address, 2380).String() }

// Cluster returns all members of etcd, running or not.
func (l *Lab) Cluster() []*Member {
	if l.Server == nil {
		return nil
	}
	return append([]*Member{l.Server}, l.Others...)
}

// Endpoint is etcd's URL, from any host of the lab; of a cluster, its first member's.
func (l *Lab) Endpoint() string { return l.Server.URL() }

// Endpoints are the URLs of all members, with commas between them.
func (l *Lab) Endpoints() string {
	var urls []string
	for _, m := range l.Cluster() {
		urls = append(urls, m.URL())
	}
	return strings.Join(urls, ",")
}

func (l *Lab) scheme() string {
	if slices.Contains(l.EtcdArgs, "--cert-file") {
		return "https"
	}
	return ""
}

// makeMembers makes the places that etcd is to run in.
func (l *Lab) makeMembers() error {
	if l.Members <= 1 {
		l.Server = &Member{Name: "etcd", Namespace: l.Underlay(), Address: segments[l.Families][0].gateway, Data: filepath.Join(l.Dir(), "etcd"), Scheme: l.scheme()}
		return nil
	}
	for n := range l.Members {
		name := fmt.Sprintf("etcd%d", n+1)
		ends := l.ends(2 + n)
		m := &Member{Name: name, Namespace: l.namespace(name), Address: ends[0].address.Addr(), Data: filepath.Join(l.Dir(), name), Scheme: l.scheme()}
		if err := newNamespace(m.Namespace); err != nil {
			return err
		}
		if err := plug(l.Underlay(), "underlay", name, m.Namespace, 1500, ends...); err != nil {
			return fmt.Errorf("plug %s into the underlay: %w", name, err)
		}
		if n == 0 {
			l.Server = m
		} else {
			l.Others = append(l.Others, m)
		}
	}
	return nil
}

// StartEtcd starts those members that do not run, all if none are named, and waits until they answer. A cluster answers
// only with most of its members.
func (l *Lab) StartEtcd(ctx context.Context, members ...*Member) error {
	if len(members) == 0 {
		members = l.Cluster()
	}
	for _, m := range members {
		if err := l.launchMember(m); err != nil {
			return err
		}
	}
	for _, m := range members {
		err := Wait(ctx, readyWait, m.Name+" answers", m.alive(func() error {
			_, err := l.tulle(ctx, m.URL(), "", "lease", "ls")
			return err
		}))
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) launchMember(m *Member) error {
	if m.running() {
		return nil
	}
	path, args := l.Etcd, l.etcdArgs(m)
	if path == "" {
		path, args = l.Binary, append([]string{"etcd"}, args...)
	}
	p, err := startProcess(m.Namespace, filepath.Join(l.Dir(), m.Name+".log"), path, args...)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	m.Process = p
	return l.save()
}

// etcdArgs returns a member's arguments: etcd's own flags.
func (l *Lab) etcdArgs(m *Member) []string {
	args := []string{"--data-dir", m.Data, "--listen-client-urls", m.URL(), "--advertise-client-urls", m.URL()}
	args = append(args, l.EtcdArgs...)
	if l.Quota > 0 {
		args = append(args, "--quota-backend-bytes", strconv.Itoa(l.Quota))
	}
	if len(l.Others) == 0 {
		return args
	}
	var cluster []string
	for _, other := range l.Cluster() {
		cluster = append(cluster, other.Name+"="+other.peerURL())
	}
	return append(args, "--name", m.Name, "--listen-peer-urls", m.peerURL(), "--initial-advertise-peer-urls", m.peerURL(),
		"--initial-cluster", strings.Join(cluster, ","))
}

// Pause keeps the member from running: its machine accepts connections, and nobody answers.
func (m *Member) Pause() error { return unix.Kill(m.PID, unix.SIGSTOP) }

// Resume lets a paused member run again.
func (m *Member) Resume() error { return unix.Kill(m.PID, unix.SIGCONT) }

// Unplug takes a cluster's member off the underlay.
func (l *Lab) Unplug(ctx context.Context, m *Member) error { return l.setPort(ctx, m, "down") }

// Replug brings it back.
func (l *Lab) Replug(ctx context.Context, m *Member) error { return l.setPort(ctx, m, "up") }

func (l *Lab) setPort(ctx context.Context, m *Member, state string) error {
	_, err := Output(ctx, l.Underlay(), "ip", "link", "set", m.Name, state)
	return err
}

// Delay puts a proxy before a member, which holds back for a time what passes it, in each direction. Hosts that have a
// connection lose it, and come back through the proxy. It is this process's: remove takes it away.
func (l *Lab) Delay(ctx context.Context, m *Member, by time.Duration) (remove func() error, err error) {
	var listener net.Listener
	err = In(m.Namespace, func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(m.Address, 0).String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen before %s: %w", m.Name, err)
	}
	// Nobody is told of the proxy: packets to etcd are led to it. Its own never come in from outside.
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	redirect := func(change string) error {
		_, err := Output(context.WithoutCancel(ctx), m.Namespace, "iptables", "-t", "nat", change, "PREROUTING",
			"-p", "tcp", "-d", m.Address.String(), "--dport", "2379", "-j", "REDIRECT", "--to-ports", port)
		return err
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed
			}
			go l.delayConn(serving, m, conn, by)
		}
	}()
	remove = func() error {
		defer stop()
		return errors.Join(redirect("-D"), listener.Close())
	}
	if err := redirect("-A"); err != nil {
		stop()
		return nil, errors.Join(err, listener.Close())
	}
	return remove, nil
}

// delayConn leads one connection on to a member, until it or ctx ends.
func (l *Lab) delayConn(ctx context.Context, m *Member, conn net.Conn, by time.Duration) {
	defer conn.Close()
	var onward net.Conn
	err := In(m.Namespace, func() (err error) {
		onward, err = net.Dial("tcp4", netip.AddrPortFrom(m.Address, 2379).String())
		return err
	})
	if err != nil {
		return // the member does not run: its clients see the connection closed
	}
	defer context.AfterFunc(ctx, func() { conn.Close(); onward.Close() })()
	go relay(onward, conn, by)
	relay(conn, onward, by)
}

// relay copies, each byte later by a time, until from ends; then it ends to.
func relay(from, to net.Conn, by time.Duration) {
	defer to.Close()
	type chunk struct {
		due  time.Time
		data []byte
	}
	chunks := make(chan chunk, 1024)
	go func() {
		defer close(chunks)
		for {
			data := make([]byte, 32<<10)
			n, err := from.Read(data)
			if err != nil {
				return
			}
			chunks <- chunk{time.Now().Add(by), data[:n]}
		}
	}()
	for c := range chunks {
		<-time.After(time.Until(c.due))
		_, _ = to.Write(c.data) // if it has ended, the relay in the other direction ends from
	}
}
