package e2e

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tulle-net/tulle/e2e/lab"
)

// asEtcd gives f a client of a lab's etcd, from the underlay: of one member, or of all if none is named.
func asEtcd(t *testing.T, l *lab.Lab, f func(ctx context.Context, c *clientv3.Client) error, members ...*lab.Member) error {
	t.Helper()
	if len(members) == 0 {
		members = l.Cluster()
	}
	var endpoints []string
	for _, m := range members {
		endpoints = append(endpoints, m.URL())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	dial := func(ctx context.Context, address string) (conn net.Conn, err error) {
		err = lab.In(l.Underlay(), func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
			return err
		})
		return conn, err
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Context: ctx, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials())}})
	if err != nil {
		return err
	}
	defer client.Close()
	return f(ctx, client)
}

// etcdctl does to a lab's etcd what an operator, or an enemy, could do with etcdctl: put KEY VALUE, or del KEY --prefix.
func etcdctl(t *testing.T, l *lab.Lab, command string, args ...string) {
	t.Helper()
	err := asEtcd(t, l, func(ctx context.Context, c *clientv3.Client) (err error) {
		switch command {
		case "put":
			_, err = c.Put(ctx, args[0], args[1])
		case "del":
			_, err = c.Delete(ctx, args[0], clientv3.WithPrefix())
		default:
			err = errors.New("etcdctl can put and del")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
