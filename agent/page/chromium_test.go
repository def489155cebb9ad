package page

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/tulle-net/tulle/e2e/browser"
)

// serve serves pages as an agent does.
func serve(t *testing.T, data func() Data) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", Policy())
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		if err := Write(w, data()); err != nil {
			t.Log(err) // Chromium is gone
		}
	}))
	t.Cleanup(s.Close)
	return s.URL + "/"
}

// The page as it is seen: it fits, it complains of nothing, it asks for nothing but itself.
func TestChromium(t *testing.T) {
	chromium := browser.Start(t)
	dir := t.ArtifactDir()
	hostile := broken(9)
	hostile.Status.Host, hostile.Peers[1].Why = strings.Repeat("<b>host</b>", 30), strings.Repeat("<script>alert(1)</script>", 20)
	hostile.Status.Warnings = []string{strings.Repeat("w", 1000)}
	for name, d := range map[string]Data{"nothing": {Now: now}, "three": network(2), "broken": broken(9), "sixty-four": broken(63), "ten-thousand": broken(10000), "hostile": hostile} {
		d.Still = true
		url := serve(t, func() Data { return d })
		for _, w := range []browser.Window{{Width: 1240, Height: 900}, {Width: 1240, Height: 900, Dark: true}, {Width: 360, Height: 740}, {Width: 360, Height: 740, Dark: true}} {
			look := fmt.Sprintf("%s-%d-%v", name, w.Width, map[bool]string{false: "light", true: "dark"}[w.Dark])
			t.Run(look, func(t *testing.T) { testLook(t, chromium, url, w, filepath.Join(dir, look+".png"), d) })
		}
	}
}

func testLook(t *testing.T, chromium context.Context, url string, w browser.Window, picture string, d Data) {
	p := browser.Open(t, chromium, url, w)
	if over := p.Overflow(); over > 0 {
		t.Errorf("the page is %d pixels wider than its window", over)
	}
	if size := p.Screenshot(picture); size < 10<<10 {
		t.Errorf("the picture has %d bytes: there is hardly anything to see", size)
	}
	if c := p.Complaints(); len(c) > 0 {
		t.Errorf("Chromium complains: %q", c)
	}
	if asked := p.Asked(); len(asked) != 1 || asked[0] != url {
		t.Errorf("the page asks for %q", asked)
	}
	if dark := browser.Value[string](p, "getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"; dark != w.Dark {
		t.Errorf("dark is %v, want %v: is the style applied?", dark, w.Dark)
	}
	if rows := browser.Value[int](p, "document.querySelectorAll('.peers tbody tr').length"); rows != min(maxRows, len(d.Peers)) {
		t.Errorf("%d peers are listed", rows)
	}
	for _, peer := range d.Peers[:min(1, len(d.Peers))] {
		if !strings.Contains(p.Text(), peer.Subnets[0].String()) {
			t.Errorf("%s is not listed", peer.Subnets[0])
		}
	}
	if shown := browser.Value[bool](p, "[...document.querySelectorAll('.peers tr.unreachable .state')].some(c => c.innerText.startsWith(' unreachable') || c.innerText.startsWith('unreachable'))"); shown != (len(d.Status.Warnings) > 0) {
		t.Errorf("an unreachable peer is shown: %v", shown)
	}
}

// The page asks for itself again, and leaves its reader where he was.
func TestRefresh(t *testing.T) {
	var loads atomic.Int64
	url := serve(t, func() Data {
		d := broken(63)
		d.Status.Etcd.Revision = loads.Add(1)
		return d
	})
	p := browser.Open(t, browser.Start(t), url, browser.Window{Width: 1240, Height: 900})
	browser.Value[int](p, "window.scrollTo(0, 700), 0")
	p.Wait("!document.body.innerText.includes('revision 1\\n') && document.readyState == 'complete'")
	p.Wait("window.scrollY == 700")
	if n := loads.Load(); n < 2 {
		t.Errorf("loaded %d times", n)
	}
}
