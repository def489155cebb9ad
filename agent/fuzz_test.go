package agent

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/agent/api"
)

// FuzzHeldBefore reads what is in the place of an env file.
func FuzzHeldBefore(f *testing.F) {
	for _, text := range []string{"FLANNEL_SUBNET=10.5.1.1/24\n", "FLANNEL_SUBNET='10.5.1.1/24'\nFLANNEL_IPV6_SUBNET=\"fd12:3456:0:1::1/64\"", "FLANNEL_SUBNET=\n", "FLANNEL_SUBNET", "FLANNEL_SUBNET=fd12::1/64", "FLANNEL_SUBNET=::ffff:10.5.1.1/120"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		held, err := heldBefore(text)
		if err != nil && strings.ContainsAny(err.Error(), "\x1b\n") {
			t.Errorf("the error is %q", err)
		}
		for f, p := range held.All() {
			if err != nil || !p.IsValid() || p != p.Masked() || p.Addr().BitLen() != f.Bits() || p.Addr().Is4In6() {
				t.Errorf("%s, %v", p, err)
			}
		}
	})
}

// FuzzAsk asks an agent whatever anybody may.
func FuzzAsk(f *testing.F) {
	for _, path := range []string{"/", "/v1/events", "/v1/view", "/v1/etcd", "/metrics", "/nothing"} {
		for _, query := range []string{"", "after=1&wait=1", "after=-1", "after=99999999999999999999", "wait=65536", "address=10.5.1.7", "address=fe80::1%25eth0", "address=%1b[2J", "key=../../config", "still", "a=%zz;b"} {
			f.Add(path, query)
		}
	}
	f.Fuzz(func(t *testing.T, path, query string) {
		r := newRig(t, "")
		r.agent.config.Socket = ""
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // nobody waits for an event
		request := httptest.NewRequest("GET", "http://127.0.0.1/", nil).WithContext(ctx)
		request.URL = &url.URL{Path: "/" + strings.TrimLeft(path, "/"), RawQuery: query}
		answer := httptest.NewRecorder()
		r.agent.handlers().Known.ServeHTTP(answer, request)
		switch code := answer.Code; {
		case code >= 500 && code != 503:
			t.Errorf("%s?%s: %d", path, query, code)
		case strings.HasPrefix(request.URL.Path, api.PathEvents) && code == 200 && answer.Body.Len() > 0 && !json.Valid(answer.Body.Bytes()):
			t.Errorf("%s?%s answers %q", path, query, answer.Body)
		}
	})
}
