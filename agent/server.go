package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/page"
	"github.com/tulle-net/tulle/agent/server"
)

// maxEventsWait is how long a client may wait for an event.
const maxEventsWait = time.Minute

// listenLocal opens the unix socket that the commands of this host ask. Whoever holds the run directory's lock may take the
// place of one that an earlier life left behind; "" is for none. Anybody on this host may ask: nothing that is told is secret.
func listenLocal(path string, log *slog.Logger) (*server.Server, error) {
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
	return server.Local(l, log), nil
}

// handlers answer for a server. What looks at what the loop works on is made in its turn.
func (a *Agent) handlers() server.Handlers {
	mux, asking := http.NewServeMux(), make(chan struct{}, 4)
	turn := func(path string, h http.HandlerFunc) { mux.Handle("GET "+path, server.Turn(h)) }
	mux.HandleFunc("GET /healthz", alive)
	turn("/readyz", func(w http.ResponseWriter, _ *http.Request) { a.serveReady(w, true) })
	turn(api.PathStatus, func(w http.ResponseWriter, _ *http.Request) { answer(w, a.Status()) })
	turn(api.PathPeers, func(w http.ResponseWriter, _ *http.Request) { answer(w, a.Peers()) })
	turn(api.PathView, a.serveView)
	turn(api.PathMesh, func(w http.ResponseWriter, _ *http.Request) { answer(w, a.Mesh()) })
	turn("/{$}", a.servePage)
	turn("/metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{}).ServeHTTP)
	mux.HandleFunc("GET "+api.PathEvents, a.serveEvents)
	mux.HandleFunc("GET "+api.PathEtcd, func(w http.ResponseWriter, r *http.Request) {
		select {
		case asking <- struct{}{}: // few at a time: nobody is to have all hosts ask etcd without end
			defer func() { <-asking }()
			answer(w, a.Etcd(r.Context(), r.FormValue("key")))
		case <-r.Context().Done():
		}
	})
	return server.Handlers{Known: mux, Anyone: a.probes()}
}

// profiled adds to h what shows an agent from within.
func profiled(h server.Handlers) server.Handlers {
	mux := http.NewServeMux()
	mux.Handle("/", h.Known)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	h.Known = mux
	return h
}

// probes are for load balancers and the like, which may have no token: they tell whether, and not why.
func (a *Agent) probes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", alive)
	mux.Handle("GET /readyz", server.Turn(func(w http.ResponseWriter, _ *http.Request) { a.serveReady(w, false) }))
	return mux
}

func alive(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") }

func (a *Agent) serveReady(w http.ResponseWriter, why bool) {
	a.mu.Lock()
	ready, text := a.state.ready()
	a.mu.Unlock()
	if !ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	switch {
	case why:
	case ready:
		text = "ready"
	default:
		text = "not ready"
	}
	fmt.Fprintln(w, text)
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
	if events, news := a.journal.after(after); len(events) == 0 && wait > 0 {
		most := min(time.Duration(wait)*time.Second, maxEventsWait)
		server.Wait(w, most)
		select {
		case <-news:
		case <-time.After(most):
		case <-r.Context().Done():
			return
		}
	}
	server.Turn(func(w http.ResponseWriter, _ *http.Request) {
		events, _ := a.journal.after(after)
		answer(w, api.Events{API: api.Version, Events: append([]api.Event{}, events...)})
	}).ServeHTTP(w, r)
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
