package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// explained is an error in words for an operator: what, why, and what to do. While its cause lasts it is the same, word for
// word, so that it is logged once.
type explained struct {
	text  string
	cause error
}

func (e explained) Error() string { return e.text }
func (e explained) Unwrap() error { return e.cause }

// note remembers of a call that failed what the client library hides: why it found no connection, which only gRPC's error tells,
// and what etcd did not let us do.
func (c *Client) note(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, conn, o...)
	if login := operation(method) == "authenticate"; login && (err == nil || errors.Is(rpctypes.Error(err), rpctypes.ErrAuthNotEnabled)) {
		c.open.Store(err != nil)
	}
	if isForbidden(err) {
		c.denied.Store(c.deed(method, req))
	}
	_, why, _ := strings.Cut(status.Convert(err).Message(), "latest balancer error: ")
	if _, quoted, ok := strings.Cut(why, "desc = "); ok {
		if text, err := strconv.Unquote(quoted); err == nil {
			why = text
		}
	}
	if c.refused.Store(why); why != "" && c.failing != nil {
		c.failing()
	}
	return err
}

// isForbidden reports whether etcd's roles are in the way. Of a watch only the text says so.
func isForbidden(err error) bool {
	return err != nil && strings.Contains(err.Error(), rpctypes.ErrPermissionDenied.Error())
}

// noteStream does the same for a stream.
func (c *Client) noteStream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := open(ctx, desc, conn, method, o...)
	if err != nil {
		return nil, err
	}
	return notedStream{stream, func() { c.denied.Store(c.deed(method, nil)) }}, nil
}

// notedStream tells when etcd does not let us do what it is for.
type notedStream struct {
	grpc.ClientStream
	denied func()
}

func (s notedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	watched, _ := m.(*etcdserverpb.WatchResponse)
	if isForbidden(err) || isForbidden(errors.New(watched.GetCancelReason())) {
		s.denied()
	}
	return err
}

// deed says what a call would have done: write, if it is a transaction or about an etcd lease, for who renews one must be
// allowed to write what hangs on it.
func (c *Client) deed(method string, req any) string {
	name := operation(method)
	if name != "txn" && !strings.HasPrefix(name, "lease") {
		return "read " + c.network()
	}
	txn, _ := req.(*etcdserverpb.TxnRequest)
	for _, op := range txn.GetSuccess() {
		key := op.GetRequestPut().GetKey()
		if key == nil {
			key = op.GetRequestDeleteRange().GetKey()
		}
		if key != nil {
			return "write " + string(key)
		}
	}
	return "write leases below " + c.network()
}

// who is how etcd knows us.
func (c *Client) who() string {
	own := c.files.own()
	switch {
	case c.options.Username != "":
		return "user " + c.options.Username
	case own != nil:
		return "user " + own.Subject.CommonName + ", the name in " + c.options.CertFile + ","
	}
	return "us"
}

// forbidden says what etcd's roles don't let us do.
func (c *Client) forbidden() string {
	deed, _ := c.denied.Load().(string)
	remedy := "grant it a role that may"
	switch {
	case deed == "":
		deed = "read " + c.network()
	case deed == "write "+c.configKey():
		remedy = "that takes an operator's user (--etcd-username)"
	}
	return fmt.Sprintf("etcd does not let %s %s: %s (docs/security.md has the roles)", c.who(), deed, remedy)
}

// explain puts an error of the client library into words that name what is unreachable, and what to do.
func (c *Client) explain(err error) error {
	if text := c.inWords(err); text != "" {
		return explained{text, err}
	}
	return err
}

func (c *Client) inWords(err error) string {
	o := c.options
	endpoints := strings.Join(o.Endpoints, ", ")
	switch why, _ := c.refused.Load().(string); {
	case err == nil:
		return ""
	case errors.Is(err, rpctypes.ErrAuthFailed):
		return fmt.Sprintf("etcd does not know user %s with this password: check --etcd-username, and the first line of %s", o.Username, o.PasswordFile)
	case errors.Is(err, rpctypes.ErrUserEmpty):
		return "etcd asks who we are: give --etcd-username and --etcd-password-file"
	case isForbidden(err):
		return c.forbidden()
	case errors.Is(err, rpctypes.ErrNoSpace):
		return errNoSpace
	case errors.Is(err, rpctypes.ErrNoLeader), errors.Is(err, rpctypes.ErrTimeout), errors.Is(err, rpctypes.ErrTimeoutDueToLeaderFail), errors.Is(err, rpctypes.ErrTimeoutDueToConnectionLost):
		return fmt.Sprintf("etcd at %s has no leader, as when most of its members are away", endpoints)
	case !errors.Is(err, context.DeadlineExceeded):
		return ""
	case why == "":
		return fmt.Sprintf("no answer from etcd at %s within %s", endpoints, rpcTimeout)
	default:
		return fmt.Sprintf("no connection to etcd at %s: %s", endpoints, c.diagnose(why))
	}
}

// alert is how crypto/tls begins what the other side said.
const alert = "remote error: tls: "

var (
	from    = regexp.MustCompile(`tcp \S+->`)                               // our port, another one each time
	atTime  = regexp.MustCompile(`current time \S+ is (after|before) (.*)`) // likewise
	wordier = strings.NewReplacer("transport: ", "", "Error while dialing: ", "", "error reading server preface: ", "",
		"authentication handshake failed: ", "", "tls: failed to verify certificate: ", "", "failed to write client preface: ", "",
		"failed to write initial settings frame: ", "")
)

// diagnose says why a connection fails before the first call, and what may help.
func (c *Client) diagnose(why string) string {
	why = from.ReplaceAllString(wordier.Replace(why), "tcp ")
	has := func(texts ...string) bool {
		for _, text := range texts {
			if strings.Contains(why, text) {
				return true
			}
		}
		return false
	}
	switch {
	case has("certificate signed by unknown authority"):
		return why + ": name the authority that signed etcd's certificate with --etcd-cafile"
	case has("certificate has expired or is not yet valid"):
		return outdated(why)
	case has("certificate is valid for", "cannot validate certificate for", "certificate is not valid for any names", "legacy Common Name"):
		return why + ": have that put into etcd's certificate, or name etcd in --etcd-endpoints as its certificate does"
	case has("protocol version not supported", "unsupported protocol version"):
		return why + ": etcd, or what stands in front of it, has no TLS 1.2 or newer: update it"
	case has(alert):
		return why + ": " + c.stranger()
	case !has("EOF", "broken pipe", "connection reset by peer", "first record does not look like a TLS handshake"):
		return why
	case c.options.secure():
		return "etcd hung up, it may serve without TLS: give it a certificate (--cert-file, --key-file), or write http://"
	}
	return "etcd hung up, it may want https://"
}

// outdated says when etcd's certificate is or was valid.
func outdated(why string) string {
	bound := atTime.FindStringSubmatch(why)
	switch {
	case bound == nil:
		return why + ": renew etcd's certificate"
	case bound[1] == "before":
		return "etcd's certificate is not valid before " + bound[2] + ": is this host's clock right?"
	}
	return "etcd's certificate expired at " + bound[2] + ": renew it, if this host's clock is right"
}

// stranger says what etcd may have against our certificate.
func (c *Client) stranger() string {
	own := c.files.own()
	switch file := c.options.CertFile; {
	case own == nil:
		return "it wants a certificate of this host, see --etcd-certfile and --etcd-keyfile"
	case time.Now().After(own.NotAfter):
		return fmt.Sprintf("this host's certificate %s expired at %s: renew it", file, own.NotAfter.UTC().Format(time.RFC3339))
	default:
		return fmt.Sprintf("this host's certificate %s (--etcd-certfile) must be signed by an authority of etcd's --trusted-ca-file, for clients", file)
	}
}

// doubts are what an operator should know of a connection that works.
func (c *Client) doubts() []string {
	doubts := c.files.faults()
	if endpoint := c.options.exposed(); endpoint != "" {
		doubts = append(doubts, "--etcd-username: the password goes to "+endpoint+" for everybody on the way to read: give etcd TLS, and write https://")
	}
	if c.open.Load() {
		doubts = append(doubts, "etcd asks nobody who they are, though --etcd-username is given: whoever reaches it can change the network (etcdctl auth enable)")
	}
	return doubts
}

// exposed is the first endpoint to which the password goes readably over a network; "" for none.
func (o Options) exposed() string {
	if o.Username == "" || o.secure() {
		return ""
	}
	for _, endpoint := range o.Endpoints {
		if u, err := url.Parse(endpoint); err == nil && !isLoopback(u.Hostname()) {
			return endpoint
		}
	}
	return ""
}
