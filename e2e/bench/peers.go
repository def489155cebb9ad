package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/e2e/lab"
	"github.com/tulle-net/tulle/etcd"
	"github.com/tulle-net/tulle/subnet"
)

// peers are hosts that exist in etcd only.
type peers struct {
	client *clientv3.Client
	lease  clientv3.LeaseID // etcd's, of all their keys
	live   []subnet.Lease   // the oldest first
	made   int              // so far
	agent  netip.Prefix     // the subnet of the agent that is measured
}

func newPeers(ctx context.Context, l *lab.Lab) (*peers, error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{l.Endpoint()}, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{dialIn(l.Underlay())}})
	if err != nil {
		return nil, err
	}
	granted, err := client.Grant(ctx, etcd.LeaseTTL)
	if err != nil {
		client.Close()
		return nil, fmt.Errorf("grant the peers' lease: %w", err)
	}
	return &peers{client: client, lease: granted.ID}, nil
}

// dialIn makes gRPC connect from inside a namespace: it dials on threads of its own.
func dialIn(namespace string) grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		return connect(ctx, namespace, address)
	})
}

// connect connects from inside a namespace.
func connect(ctx context.Context, namespace, address string) (conn net.Conn, err error) {
	err = lab.In(namespace, func() error {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", address)
		return err
	})
	return conn, err
}

// nth returns the n-th peer. Its subnet is taken again 65,534 peers later, its address 131,070 later (198.18.0.0/15, RFC 2544),
// its MAC never.
func nth(n int) subnet.Lease {
	mac := backend.MAC{0x02, 0xbe}
	binary.BigEndian.PutUint32(mac[2:], uint32(n))
	return subnet.Lease{
		Subnet:   subnet.PairOf(subnet.IPv4, netip.PrefixFrom(offset("10.0.0.0", (1+n%65534)<<8), 24)),
		PublicIP: subnet.PairOf(subnet.IPv4, offset("198.18.0.0", 1+n%131070)),
		Backend:  "vxlan", Data: subnet.PairOf(subnet.IPv4, fmt.Sprintf(`{"VNI":1,"VtepMAC":%q}`, mac)),
	}
}

// offset is the n-th address from one.
func offset(from string, n int) netip.Addr {
	a := netip.MustParseAddr(from).As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+uint32(n))
	return netip.AddrFrom4(a)
}

// join makes another peer, and returns what puts it into etcd.
func (p *peers) join() clientv3.Op {
	l := nth(p.made)
	if p.made++; l.Subnet.V4 == p.agent {
		return p.join()
	}
	p.live = append(p.live, l)
	return clientv3.OpPut(key(l), string(l.MarshalValue()), clientv3.WithLease(p.lease))
}

// leave forgets the oldest peer, and returns what takes it out of etcd.
func (p *peers) leave() clientv3.Op {
	oldest := p.live[0]
	p.live = p.live[1:]
	return clientv3.OpDelete(key(oldest))
}

func key(l subnet.Lease) string { return prefix + "/subnets/" + l.Key() }

// set makes as many join or leave as it takes until there are n.
func (p *peers) set(ctx context.Context, n int) error {
	var ops []clientv3.Op
	for len(p.live) < n {
		ops = append(ops, p.join())
	}
	for len(p.live) > n {
		ops = append(ops, p.leave())
	}
	return commit(ctx, p.client, ops)
}

// commit does all of ops, a hundred in a transaction: etcd takes 128 at most.
func commit(ctx context.Context, client *clientv3.Client, ops []clientv3.Op) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for chunk := range slices.Chunk(ops, 100) {
		if _, err := client.Txn(ctx).Then(chunk...).Commit(); err != nil {
			return fmt.Errorf("write peers: %w", err)
		}
	}
	return nil
}

// release revokes the lease of who holds a subnet, which deletes its key.
func (p *peers) release(ctx context.Context, held netip.Prefix) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	got, err := p.client.Get(ctx, key(subnet.Lease{Subnet: subnet.PairOf(subnet.IPv4, held)}))
	if err != nil || len(got.Kvs) == 0 {
		return err
	}
	_, err = p.client.Revoke(ctx, clientv3.LeaseID(got.Kvs[0].Lease))
	return err
}

// patience is how long something may take before it counts as broken.
const patience = time.Minute
