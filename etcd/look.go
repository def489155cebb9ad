package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/tulle-net/tulle/subnet"
)

// Look asks each of etcd's members, at once and over connections of its own, how it is, and the first that answers what is
// stored under key, a name below subnets/, unless that is "". Its error says why there is no answer at all.
func (s *Store) Look(ctx context.Context, key string) (subnet.Look, error) {
	return Look(ctx, s.options, key)
}

// Look is Store.Look without a Store.
func Look(ctx context.Context, o Options, key string) (subnet.Look, error) {
	looks := make([]subnet.Look, len(o.Endpoints))
	var calls errgroup.Group
	for i, endpoint := range o.Endpoints {
		calls.Go(func() error {
			looks[i] = lookAt(ctx, o, endpoint, key)
			return nil
		})
	}
	_ = calls.Wait() // each member has its own error
	var all subnet.Look
	var errs []error
	for _, l := range looks {
		if all.Revision == 0 {
			all.Revision, all.Entry, all.TTL = l.Revision, l.Entry, l.TTL
		}
		all.Members, errs = append(all.Members, l.Members...), append(errs, l.Members[0].Err)
	}
	if all.Revision == 0 {
		return all, errors.Join(errs...)
	}
	return all, nil
}

// lookAt asks one member.
func lookAt(ctx context.Context, o Options, endpoint, key string) subnet.Look {
	look := subnet.Look{Members: []subnet.Member{{URL: endpoint}}}
	m := &look.Members[0]
	o.Endpoints, o.Grace = []string{endpoint}, 0
	client, err := Dial(ctx, o)
	if err != nil {
		m.Err = err
		return look
	}
	defer client.Close()
	m.Clock, m.Version = client.options.date(ctx, endpoint)
	started := time.Now()
	m.Err = client.explain(client.look(ctx, key, &look))
	m.Took = time.Since(started)
	return look
}

// look reads what is stored under key, or else the config: a read that a majority has to agree to.
func (c *Client) look(ctx context.Context, key string, look *subnet.Look) error {
	ctx, cancel := call(ctx)
	defer cancel()
	path := c.configKey()
	if key != "" {
		path = c.subnetKey(key)
	}
	got, err := c.etcd.Get(ctx, path)
	if err != nil {
		return err
	}
	look.Revision = got.Header.Revision
	if key == "" || len(got.Kvs) == 0 {
		return nil
	}
	r := readRecord(key, got.Kvs[0])
	look.Entry = &r.entry
	if r.lease == clientv3.NoLease {
		return nil
	}
	left, err := c.etcd.TimeToLive(ctx, r.lease)
	if err == nil {
		look.TTL = time.Duration(left.TTL) * time.Second
	}
	return err
}

// date asks a member, by HTTP, for its version and for its clock: it says the time in each answer (RFC 9110, Date), rounded
// down to seconds. What it doesn't say is left out: some are set up to speak gRPC only.
func (o Options) date(ctx context.Context, endpoint string) (ahead time.Duration, version string) {
	ctx, cancel := call(ctx)
	defer cancel()
	tlsConfig, err := o.files.tls()
	if err != nil {
		return 0, ""
	}
	transport := &http.Transport{TLSClientConfig: tlsConfig, DisableKeepAlives: true}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(endpoint, "/")+"/version", nil)
	if err != nil {
		return 0, ""
	}
	started := time.Now()
	response, err := transport.RoundTrip(request)
	if err != nil {
		return 0, ""
	}
	defer response.Body.Close()
	var said struct{ Etcdserver string }
	if json.NewDecoder(io.LimitReader(response.Body, 1<<10)).Decode(&said) != nil {
		return 0, ""
	}
	at, err := http.ParseTime(response.Header.Get("Date"))
	if err != nil {
		return 0, said.Etcdserver
	}
	middle := started.Add(time.Since(started) / 2)
	return at.Add(time.Second / 2).Sub(middle), said.Etcdserver
}
