package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/page"
)

// maxEventsWait is how long a client may wait for an event.
const maxEventsWait = time.Minute

// listen opens the status server's socket; nil for no address.
func listen(address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--listen %s: %w: is another agent running here? --listen= switches the status server off", address, err)
	}
	return l, nil
}

// listenLocal opens the unix socket that the commands of this host ask. Whoever holds the run directory's lock may take the
// place of one that an earlier life left behind; "" is for none. Anybody on this host may ask: nothing that is told is secret.
func listenLocal(path string) (net.Listener, error) {
	if path == "" {
		return nil, nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("status socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("status socket: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, fmt.Errorf("status socket: %w", err)
	}
	return l, nil
}

// serve answers on l until ctx ends.
func (a *Agent) serve(ctx context.Context, l net.Listener) error {
	if l == nil {
		return nil
	}
	server := &http.Server{Handler: crash(guard(l.Addr(), a.handler())), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: maxEventsWait + 30*time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
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

// guard refuses, if it listens on a loopback address, whoever comes from elsewhere, and whoever asks for another name: a page
// of anywhere, in a browser of this host, may have had its own name resolved to 127.0.0.1 (DNS rebinding).
func guard(listens net.Addr, h http.Handler) http.Handler {
	tcp, ok := listens.(*net.TCPAddr)
	if !ok || !tcp.IP.IsLoopback() {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !client.Addr().Unmap().IsLoopback() || !local(r.Host) {
			http.Error(w, "only for this host: --listen says from where the agent may be asked", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// local reports whether a Host header names this host, as nobody else's DNS can.
func local(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		status := a.Status()
		if !status.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintln(w, status.Reason)
	})
	mux.HandleFunc("GET "+api.PathStatus, func(w http.ResponseWriter, _ *http.Request) { answer(w, a.Status()) })
	mux.HandleFunc("GET "+api.PathPeers, func(w http.ResponseWriter, _ *http.Request) { answer(w, a.Peers()) })
	mux.HandleFunc("GET "+api.PathEvents, a.serveEvents)
	mux.HandleFunc("GET "+api.PathView, a.serveView)
	mux.HandleFunc("GET "+api.PathEtcd, func(w http.ResponseWriter, r *http.Request) { answer(w, a.Etcd(r.Context(), r.FormValue("key"))) })
	mux.HandleFunc("GET "+api.PathMesh, func(w http.ResponseWriter, _ *http.Request) { answer(w, a.Mesh()) })
	mux.HandleFunc("GET /{$}", a.servePage)
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{}))
	return mux
}

func (a *Agent) servePage(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", page.Policy())
	w.Header().Set("Cache-Control", "no-store")
	events, _ := a.journal.after(0)
	_ = page.Write(w, page.Data{Status: a.Status(), Peers: a.Peers().Peers, Mesh: a.Mesh(), Events: events, Now: time.Now(), Still: r.URL.Query().Has("still")})
}

func (a *Agent) serveView(w http.ResponseWriter, r *http.Request) {
	var address netip.Addr
	if text := r.FormValue("address"); text != "" {
		var err error
		if address, err = netip.ParseAddr(text); err != nil {
			refuse(w, fmt.Sprintf("address: %q is not an IP address", text))
			return
		}
	}
	answer(w, a.View(address))
}

func (a *Agent) serveEvents(w http.ResponseWriter, r *http.Request) {
	after, err := strconv.ParseInt("0"+r.FormValue("after"), 10, 64)
	wait, waitErr := strconv.ParseUint("0"+r.FormValue("wait"), 10, 16)
	if err := errors.Join(err, waitErr); err != nil {
		refuse(w, "after is an event's number, and wait a number of seconds")
		return
	}
	events, news := a.journal.after(after)
	if len(events) == 0 && wait > 0 {
		select {
		case <-news:
			events, _ = a.journal.after(after)
		case <-time.After(min(time.Duration(wait)*time.Second, maxEventsWait)):
		case <-r.Context().Done():
		}
	}
	answer(w, api.Events{API: api.Version, Events: append([]api.Event{}, events...)})
}

// answer writes v as JSON. Of a client that is gone there is nobody to tell.
func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v)
}

// refuse says what is wrong with a request.
func refuse(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": text})
}
