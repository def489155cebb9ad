package e2e

import (
	"context"
	"net"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tulle-net/tulle/e2e/lab"
)

// etcdctl does to a lab's etcd what an operator, or an enemy, could do with etcdctl: put KEY VALUE, or del KEY --prefix.
func etcdctl(t *testing.T, l *lab.Lab, command string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	dial := func(ctx context.Context, address string) (conn net.Conn, err error) {
		err = lab.In(l.Underlay(), func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
			return err
		})
		return conn, err
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{l.Endpoint()}, Context: ctx,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials())}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	switch command {
	case "put":
		_, err = client.Put(ctx, args[0], args[1])
	case "del":
		_, err = client.Delete(ctx, args[0], clientv3.WithPrefix())
	default:
		t.Fatalf("etcdctl %s", command)
	}
	if err != nil {
		t.Fatal(err)
	}
}
