package server

import (
	"net"
	"net/http"
	"net/netip"
)

// enter lets requests in, or says why not.
func (s *Server) enter(h Handlers) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "nothing can be changed here: GET or HEAD", http.StatusMethodNotAllowed)
		case r.ContentLength != 0: // or -1: some
			w.Header().Set("Connection", "close") // or it would be read before the next request
			http.Error(w, "no request here has a body", http.StatusRequestEntityTooLarge)
		case s.host && !fromHost(r):
			http.Error(w, "only for this host: --listen says from where the agent may be asked", http.StatusForbidden)
		case s.tokens == nil || s.tokens.shown(r):
			defer work(r)()
			h.Known.ServeHTTP(w, r)
		default:
			s.askToken(w, r, h)
		}
	})
}

// askToken answers who has shown no token, but for what anyone may know.
func (s *Server) askToken(w http.ResponseWriter, r *http.Request, h Handlers) {
	if _, pattern := h.Anyone.Handler(r); pattern != "" {
		h.Anyone.ServeHTTP(w, r)
		return
	}
	w.Header().Add("WWW-Authenticate", `Bearer realm="tulle"`)
	w.Header().Add("WWW-Authenticate", `Basic realm="tulle: any user, the token as password", charset="UTF-8"`)
	http.Error(w, "a token is needed: Authorization: Bearer TOKEN, or any user and the token as password", http.StatusUnauthorized)
}

// fromHost refuses whoever comes from elsewhere, and whoever asks for another name: a page of anywhere, in a browser of this host,
// may have had its own name resolved to 127.0.0.1 (DNS rebinding).
func fromHost(r *http.Request) bool {
	client, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && client.Addr().Unmap().IsLoopback() && local(r.Host)
}

// local reports whether a Host header names this host, as nobody else's DNS can.
func local(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}
