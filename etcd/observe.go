package etcd

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// operation is the name that Options.Observe has for a method, which is given as in /etcdserverpb.KV/Range.
func operation(method string) string {
	switch strings.TrimPrefix(method, "/etcdserverpb.") {
	case "KV/Range":
		return "range"
	case "KV/Put":
		return "put"
	case "KV/DeleteRange":
		return "delete"
	case "KV/Txn":
		return "txn"
	case "Lease/LeaseGrant":
		return "lease-grant"
	case "Lease/LeaseKeepAlive":
		return "lease-keepalive"
	case "Lease/LeaseRevoke":
		return "lease-revoke"
	case "Lease/LeaseTimeToLive":
		return "lease-ttl"
	case "Watch/Watch":
		return "watch"
	case "Maintenance/Status":
		return "status"
	case "Auth/Authenticate":
		return "authenticate"
	}
	return "other"
}

// observing returns what makes a connection tell o.Observe of its calls.
func (o Options) observing() []grpc.DialOption {
	if o.Observe == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(o.observeCall), grpc.WithChainStreamInterceptor(o.observeStream)}
}

func (o Options) observeCall(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	started := time.Now()
	err := invoke(ctx, method, req, reply, conn, options...)
	o.Observe(operation(method), time.Since(started), fault(err))
	return err
}

// observeStream takes a stream for a call that lasts until its first answer: to open one alone asks nothing of etcd.
func (o Options) observeStream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
	started := time.Now()
	tell := func(err error) { o.Observe(operation(method), time.Since(started), fault(err)) }
	stream, err := open(ctx, desc, conn, method, options...)
	if err != nil {
		tell(err)
		return nil, err
	}
	return &observedStream{stream, tell}, nil
}

// observedStream tells of its first answer.
type observedStream struct {
	grpc.ClientStream
	tell func(error) // nil once it has
}

func (s *observedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if s.tell != nil {
		s.tell(err)
		s.tell = nil
	}
	return err
}

// fault is err unless that is an answer: what was asked for is compacted, or not there.
func fault(err error) error {
	switch status.Code(err) {
	case codes.OutOfRange, codes.NotFound:
		return nil
	}
	return err
}
