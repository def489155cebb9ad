package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ErrAbsent says that no agent answers at all.
var ErrAbsent = errors.New("no agent answers")

// answerWait is how long an agent may take to answer what it knows.
const answerWait = 5 * time.Second

// Client asks an agent.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a Client for the agent with this run directory. It does not connect before it asks.
func NewClient(runDir string) *Client {
	socket := Socket(runDir)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", socket)
	}
	return &Client{socket, &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Status asks how the agent is.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.get(ctx, PathStatus, nil, &s)
}

// Peers asks for all peers.
func (c *Client) Peers(ctx context.Context) (p Peers, err error) {
	return p, c.get(ctx, PathPeers, nil, &p)
}

// Mesh asks for the round trips between all hosts.
func (c *Client) Mesh(ctx context.Context) (m Mesh, err error) {
	return m, c.get(ctx, PathMesh, nil, &m)
}

// Events asks for the events after the one numbered seq, and waits so long for one if there is none.
func (c *Client) Events(ctx context.Context, seq int64, wait time.Duration) (e Events, err error) {
	q := url.Values{"after": {strconv.FormatInt(seq, 10)}, "wait": {strconv.Itoa(int(wait.Seconds()))}}
	ctx, cancel := context.WithTimeout(ctx, wait+answerWait)
	defer cancel()
	return e, c.get(ctx, PathEvents, q, &e)
}

// View asks for what the agent plans from; of the leases, if address is not "", only for those that cover it.
func (c *Client) View(ctx context.Context, address string) (v View, err error) {
	q := url.Values{}
	if address != "" {
		q.Set("address", address)
	}
	return v, c.get(ctx, PathView, q, &v)
}

// Etcd has the agent ask etcd, also for what is stored under key unless that is "".
func (c *Client) Etcd(ctx context.Context, key string) (e Etcd, err error) {
	ctx, cancel := context.WithTimeout(ctx, 4*answerWait) // it asks all of etcd's members
	defer cancel()
	q := url.Values{}
	if key != "" {
		q.Set("key", key)
	}
	return e, c.get(ctx, PathEtcd, q, &e)
}

// get asks for path and decodes the answer into v. Its errors say what to do.
func (c *Client) get(ctx context.Context, path string, query url.Values, v any) error {
	if _, limited := ctx.Deadline(); !limited {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, answerWait)
		defer cancel()
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://tulle"+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return c.unreached(err)
	}
	defer response.Body.Close()
	return c.decode(response, v)
}

func (c *Client) decode(response *http.Response, v any) error {
	var head struct{ API int }
	var body json.RawMessage
	err := json.NewDecoder(response.Body).Decode(&body)
	switch {
	case response.StatusCode == http.StatusBadRequest:
		var refused struct{ Error string }
		_ = json.Unmarshal(body, &refused)
		return errors.New(refused.Error)
	case err == nil:
		err = json.Unmarshal(body, &head)
	}
	switch {
	case response.StatusCode == http.StatusNotFound, err == nil && head.API != Version:
		return fmt.Errorf("the agent at %s is of another version (it speaks API %d, this is %d): restart it (systemctl restart tulle), so that both are of the same", c.socket, head.API, Version)
	case err != nil:
		return fmt.Errorf("what answers at %s is no tulle agent: %w", c.socket, err)
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("the agent at %s answers %s", c.socket, response.Status)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("what answers at %s is no tulle agent: %w", c.socket, err)
	}
	return nil
}

// unreached says why the socket could not be reached, and what to do.
func (c *Client) unreached(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: there is no %s. Is it running (systemctl status tulle), with another --run-dir?", ErrAbsent, c.socket)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w at %s: it has ended. Start it (systemctl start tulle)", ErrAbsent, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s can't be opened: %w: ask as root", c.socket, unix.EACCES)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w at %s: it hangs, or is stopped. Look at it (systemctl status tulle)", ErrAbsent, c.socket)
	}
	return fmt.Errorf("%w at %s: %w", ErrAbsent, c.socket, err)
}
