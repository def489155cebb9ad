package server

import (
	"bytes"
	"maps"
	"net/http"
	"strconv"
	"time"
)

// work marks a request's connection as busy until the function that it returns is called.
func work(r *http.Request) (end func()) {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok {
		return func() {}
	}
	c.setBusy(true)
	return func() { c.setBusy(false) }
}

// Turn has h make its answers in memory, in their turn: one at a time for each that asks, few for all. They are written when the
// turn is over, so that who is slow to take one keeps nobody from the next.
func Turn(h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := r.Context().Value(connKey{}).(*conn)
		if !ok { // asked by no Server
			h(w, r)
			return
		}
		end, err := c.myTurn(r.Context())
		if err != nil {
			return // whoever asked is gone
		}
		d := draft{header: http.Header{}, code: http.StatusOK}
		h(&d, r)
		end()
		c.owe(d.body.Len())
		defer c.owe(0)
		d.send(w)
	})
}

// Wait lets the answer to a request that is yet to be waited for take so much longer.
func Wait(w http.ResponseWriter, d time.Duration) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(d + writeWait)) // a connection that is gone has none
}

// draft is an answer in memory.
type draft struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (d *draft) Header() http.Header         { return d.header }
func (d *draft) WriteHeader(code int)        { d.code = code }
func (d *draft) Write(p []byte) (int, error) { return d.body.Write(p) }

// send writes it. Of a client that is gone there is nobody to tell.
func (d *draft) send(w http.ResponseWriter) {
	maps.Copy(w.Header(), d.header)
	w.Header().Set("Content-Length", strconv.Itoa(d.body.Len()))
	w.WriteHeader(d.code)
	_, _ = w.Write(d.body.Bytes())
}
