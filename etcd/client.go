// Package etcd keeps the network's config and leases in etcd, in flannel's layout. A Store gives an agent its lease and
// holds it, and hands out everybody's as they change; a Client does what an operator does by hand; Server is etcd itself,
// embedded. What a lease means is package subnet's and package backend's business.
package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"

	"github.com/tulle-net/tulle/subnet"
)

const (
	// LeaseTTL is how long a lease outlives its host, in seconds: flannel's value. A host that is gone for longer may find
	// its subnet taken, and until then its peers keep their routes to it.
	LeaseTTL = 86400

	rpcTimeout = 10 * time.Second // for one call
	retryMax   = 15 * time.Second // between two tries, however many have failed
)

// Options say how to reach etcd.
type Options struct {
	Endpoints    []string // URLs, http or https
	Prefix       string   // of all keys, as in /coreos.com/network
	Username     string
	PasswordFile string // its first line is the password
	CAFile       string // PEM; the system's authorities if empty
	CertFile     string // PEM, with KeyFile: the client's own certificate
	KeyFile      string
	Grace        time.Duration     // how long peers stay in force that an etcd with another history does not know; 0: not at all
	DialOptions  []grpc.DialOption // for tests that count calls
	files        *files            // as they were read so far; nil for not yet

	// Observe is told of each call to etcd when it has ended, and of each stream at its first answer: how long that took, and what
	// went wrong, if anything. An answer that what was asked for is not there, or compacted, is none that went wrong. The
	// operation is one of range, put, delete, txn, lease-grant, lease-keepalive, lease-revoke, lease-ttl, watch, status,
	// authenticate and other. It is called from any goroutine; nil for nobody.
	Observe func(operation string, took time.Duration, err error)

	// Lag is told how far a Store's watch is behind etcd. Every 30 to 45 s etcd says which revision it is at; the lag is the time
	// from then until the stream that events come by has brought something from a member of etcd that has reached this revision.
	// (The Store opens a second watch on the stream for that, and closes it at once.) The question's own way is part of it, so
	// no event is later. While nothing has come, Lag is told every 30 to 45 s for how long by now. While etcd is out of reach, it
	// is told nothing. It is called from one goroutine at a time; nil for nobody.
	Lag func(time.Duration)
}

// Check refuses options that can't work, without asking etcd.
func (o Options) Check() error {
	if len(o.Endpoints) == 0 {
		return errors.New("--etcd-endpoints is empty: name at least one, as in http://192.0.2.1:2379")
	}
	for _, endpoint := range o.Endpoints {
		if strings.Contains(endpoint, "@") {
			return errors.New("--etcd-endpoints: a user and a password don't belong there, where every process can read them: use --etcd-username and --etcd-password-file")
		}
		u, err := url.Parse(endpoint)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("--etcd-endpoints: %q is not a URL like http://192.0.2.1:2379", endpoint)
		}
		if u.Scheme == "http" && o.CAFile+o.CertFile != "" {
			return fmt.Errorf("--etcd-endpoints: %s is not encrypted, but --etcd-cafile or --etcd-certfile is given: write https://", endpoint)
		}
		if first, _, _ := strings.Cut(o.Endpoints[0], ":"); u.Scheme != first {
			return fmt.Errorf("--etcd-endpoints: %s is %s and %s is %s: all must be the same", o.Endpoints[0], first, endpoint, u.Scheme)
		}
	}
	switch {
	case !strings.HasPrefix(o.Prefix, "/") || strings.HasSuffix(o.Prefix, "/"):
		return fmt.Errorf("--etcd-prefix: %q must begin with a slash and not end with one, as in /coreos.com/network", o.Prefix)
	case (o.CertFile == "") != (o.KeyFile == ""):
		return errors.New("--etcd-certfile and --etcd-keyfile go together: one of them is missing")
	case (o.Username == "") != (o.PasswordFile == ""):
		return errors.New("--etcd-username and --etcd-password-file go together: one of them is missing (and systemd gave no credential etcd-password)")
	}
	return newFiles(o).read()
}

// Client is a connection to etcd.
type Client struct {
	etcd    *clientv3.Client
	options Options
	files   *files
	prefix  string
	refused atomic.Value // string: why the last call found no connection; "" if it found one
	denied  atomic.Value // string: what etcd did not let us do last
	open    atomic.Bool  // we are a user, and etcd has none
	failing func()       // told when refused is set; may be nil
}

// Dial returns a Client. Without a user name it returns at once, and the connection is made in the background.
func Dial(ctx context.Context, o Options) (*Client, error) {
	if o.files == nil {
		o.files = newFiles(o)
	}
	tlsConfig, err := o.files.tls()
	if err != nil {
		return nil, err
	}
	password, err := o.files.secret()
	if err != nil {
		return nil, err
	}
	c := &Client{options: o, files: o.files, prefix: o.Prefix}
	dial := []grpc.DialOption{grpc.WithChainUnaryInterceptor(c.note), grpc.WithChainStreamInterceptor(c.noteStream),
		// gRPC's own would let a host be without etcd for two minutes after a long outage has ended.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: rpcTimeout,
			Backoff: backoff.Config{BaseDelay: 250 * time.Millisecond, Multiplier: 2, Jitter: 0.5, MaxDelay: retryMax}})}
	if tlsConfig != nil {
		dial = append(dial, grpc.WithTransportCredentials(handshake{credentials.NewTLS(tlsConfig), o.files}))
	}
	c.etcd, err = clientv3.New(clientv3.Config{
		Endpoints: o.Endpoints, TLS: tlsConfig, Username: o.Username, Password: password, Context: ctx, Logger: zap.NewNop(),
		DialTimeout: rpcTimeout, DialOptions: slices.Concat(dial, o.observing(), o.DialOptions),
		// A server that answers no more, its packets dropped on the way, is noticed within the sum of these.
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second,
	})
	if err != nil {
		return nil, c.explain(err)
	}
	return c, nil
}

// Close ends the connection. What hangs on etcd leases stays until they expire.
func (c *Client) Close() error { return c.etcd.Close() }

func (c *Client) network() string             { return c.prefix + "/" } // which all keys begin with
func (c *Client) configKey() string           { return c.network() + "config" }
func (c *Client) subnetKey(key string) string { return c.network() + subnet.Path(key) }

// leaseKey is a lease's name, and false for what is none.
func (c *Client) leaseKey(kv *mvccpb.KeyValue) (string, bool) {
	return subnet.KeyAt(string(bytes.TrimPrefix(kv.Key, []byte(c.network()))))
}

// leases are those among stored keys, by their names.
func (c *Client) leases(kvs []*mvccpb.KeyValue) iter.Seq2[string, *mvccpb.KeyValue] {
	return func(yield func(string, *mvccpb.KeyValue) bool) {
		for _, kv := range kvs {
			if key, ok := c.leaseKey(kv); ok && !yield(key, kv) {
				return
			}
		}
	}
}

// call bounds one call's time.
func call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, rpcTimeout)
}
