// Package server is how an agent is asked: who may ask, over TLS or not, and what strangers can take of it at most, be they slow,
// many or both. It knows nothing of what is answered, logs no request, and keeps no state on disk.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"time"
)

// Options say where an agent listens, and who may ask there.
type Options struct {
	Address      string // host:port; "" for nowhere
	CertFile     string // PEM, with KeyFile: TLS. Read anew when they change
	KeyFile      string
	ClientCAFile string // PEM: only who has a certificate of one of these authorities is let in. Read anew when it changes
	TokenFile    string // each line a token, by one of which whoever asks shows that he may. Read anew for each request
	Pprof        bool   // the agent is to be profiled
}

// writeWait is how long an answer may take to be taken.
const writeWait = 30 * time.Second

// Handlers answer. None of them sees another method than GET and HEAD, or a body.
type Handlers struct {
	Known  http.Handler   // answers who may ask
	Anyone *http.ServeMux // answers others, where it has the path
}

// Server answers at one listener.
type Server struct {
	listener net.Listener
	gate     *gate
	tokens   *tokens // nil: all may ask
	host     bool    // only this host may
	log      *slog.Logger
}

// Check finds what can't work without listening.
func (o Options) Check() error {
	switch {
	case o.Address == "" && o != Options{}:
		return errors.New("--listen is empty, so nobody is listened to: leave out the other --listen flags and --pprof, or say where to listen")
	case (o.CertFile == "") != (o.KeyFile == ""):
		return errors.New("--listen-certfile and --listen-keyfile go together: one of them is missing")
	case o.ClientCAFile != "" && o.CertFile == "":
		return errors.New("--listen-client-cafile: only TLS has certificates: give --listen-certfile and --listen-keyfile, too")
	}
	if o.CertFile != "" {
		if _, err := o.load(); err != nil {
			return err
		}
	}
	if o.TokenFile != "" {
		if _, err := readTokens(o.TokenFile); err != nil {
			return fmt.Errorf("--listen-token-file: %w", err)
		}
	}
	return nil
}

// closed reports whether not everybody who reaches the address may ask.
func (o Options) closed() bool { return o.TokenFile != "" || o.ClientCAFile != "" }

// Listen opens a Server by o, nil for no address. What is unwise about it is logged.
func Listen(o Options, log *slog.Logger) (*Server, error) {
	if err := o.Check(); err != nil || o.Address == "" {
		return nil, err
	}
	l, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("--listen %s: %w: is another agent running here? --listen= switches the status server off", o.Address, err)
	}
	host := l.Addr().(*net.TCPAddr).IP.IsLoopback()
	if o.Pprof && !host && !o.closed() {
		l.Close()
		return nil, fmt.Errorf("--pprof: anybody who reaches %s could keep this agent busy: give --listen-token-file, or listen on 127.0.0.1", o.Address)
	}
	o.warn(host, log)
	s := newServer(l, log)
	s.host = host
	if o.TokenFile != "" {
		s.tokens = &tokens{path: o.TokenFile, log: log}
	}
	if o.CertFile != "" {
		s.listener = tls.NewListener(s.gate, &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: (&rotating{options: o, log: log}).config})
	}
	return s, nil
}

// Local is a Server for whoever reaches l, a unix socket.
func Local(l net.Listener, log *slog.Logger) *Server { return newServer(l, log) }

func newServer(l net.Listener, log *slog.Logger) *Server {
	g := newGate(l, log)
	return &Server{listener: g, gate: g, log: log}
}

// warn tells what an operator may not have meant.
func (o Options) warn(host bool, log *slog.Logger) {
	if !host && !o.closed() {
		log.Warn("anybody who reaches this address can read the network's config, leases and hosts, and this host's metrics: --listen-token-file keeps others out", "listen", o.Address)
	}
	if !host && o.TokenFile != "" && o.CertFile == "" {
		log.Warn("the token goes over the network in clear text: --listen-certfile and --listen-keyfile encrypt it", "listen", o.Address)
	}
	if info, err := os.Stat(o.TokenFile); err == nil && info.Mode().Perm()&0o007 != 0 {
		log.Warn("any user of this host can read the token: chmod o= "+o.TokenFile, "mode", info.Mode().Perm().String())
	}
}

// Serve answers until ctx ends. A nil Server has nothing to do.
func (s *Server) Serve(ctx context.Context, h Handlers) error {
	if s == nil {
		return nil
	}
	server := &http.Server{Handler: crash(s.enter(h)), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: writeWait,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ConnContext: remember, Protocols: new(http.Protocols),
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // strangers are not to fill the log
		BaseContext: func(net.Listener) context.Context { return ctx }}
	server.Protocols.SetHTTP1(true) // one request at a time for a connection: so limits on connections limit all
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("status server: %w", err)
	}
	return nil
}

// crash makes a handler's panic end the process, as it does anywhere else: net/http would log it and go on, with who knows
// what lock held.
func crash(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil {
				stack := debug.Stack()
				go func() { panic(fmt.Sprintf("%v\n%s", p, stack)) }()
				select {}
			}
		}()
		h.ServeHTTP(w, r)
	})
}
