package e2e

import (
	"bytes"
	"cmp"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/browser"
	"github.com/tulle-net/tulle/e2e/lab"
)

// TestPage looks at a host's page with Chromium: its peers answer, then one is cut off.
func TestPage(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 3})
	p := browser.Open(t, browser.Start(t), pageOf(t, l.Nodes[0]), browser.Window{Width: 1240, Height: 900})
	p.Wait(peersAre("reachable", 2))
	p.Wait("document.querySelectorAll('.heatmap path[class^=q]').length == 6") // each host's to the two others
	text := p.Text()
	for _, peer := range l.Nodes[1:] {
		for _, want := range []string{peer.Address.String(), peer.Container.Subnet.String()} {
			if !strings.Contains(text, want) {
				t.Errorf("%s's %s is not on the page:\n%s", peer.Name, want, text)
			}
		}
	}
	if times := browser.Value[int](p, `[...document.querySelectorAll('.peers tbody td.n')].filter(c => /^\d+(\.\d+)? ms$/.test(c.innerText)).length`); times != 4 {
		t.Errorf("%d round trips are shown, want 2 over the overlay and 2 over the underlay:\n%s", times, text)
	}
	p.Screenshot(filepath.Join(t.ArtifactDir(), "reachable.png"))

	gone := l.Nodes[1]
	cut(t, gone)
	p.Wait(peersAre("unreachable", 1) + " && " + peersAre("reachable", 1))
	if !strings.Contains(p.Text(), "none since ") {
		t.Errorf("the page does not say since when %s is gone:\n%s", gone.Name, p.Text())
	}
	row := browser.Value[string](p, "document.querySelector('.peers tbody tr').innerText")
	if !strings.HasPrefix(row, gone.Container.Subnet.String()) || !strings.Contains(row, "unreachable") {
		t.Errorf("%s is gone, and the first peer of the table reads %q", gone.Name, row)
	}
	p.Wait("document.querySelector('.topology use.unreachable') && document.querySelector('.heatmap path.silent') != null")
	p.Screenshot(filepath.Join(t.ArtifactDir(), "unreachable.png"))
	if c := p.Complaints(); len(c) > 0 {
		t.Errorf("Chromium complains: %q", c)
	}
	for _, asked := range p.Asked() {
		if asked != p.Asked()[0] {
			t.Errorf("the page asks for %s", asked)
		}
	}
}

// TestPicture makes the picture that the README shows: TULLE_PICTURE says where to put it.
func TestPicture(t *testing.T) {
	path := os.Getenv("TULLE_PICTURE")
	if path == "" {
		t.Skip("make picture makes it")
	}
	l := newLab(t, lab.Options{Hosts: 6})
	p := browser.Open(t, browser.Start(t), pageOf(t, l.Nodes[0]), browser.Window{Width: 1160, Height: 700})
	p.Wait("document.querySelectorAll('.heatmap path[class^=q]').length == 30")
	cut(t, l.Nodes[3])
	p.Wait(peersAre("unreachable", 1) + " && document.querySelectorAll('.heatmap path.silent').length == 5") // all who are left see it
	p.Screenshot(path)
	if err := fewColours(path); err != nil {
		t.Fatal(err)
	}
	if file, err := os.Stat(path); err != nil || file.Size() > 150<<10 {
		t.Errorf("%v, %v: too large for a README", file, err)
	}
}

// fewColours writes a picture again with the 256 colours that it has most of, which is most of its edges' greys: it is a
// third as large then.
func fewColours(path string) error {
	file, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	picture, err := png.Decode(bytes.NewReader(file))
	if err != nil {
		return err
	}
	count, bounds := map[color.Color]int{}, picture.Bounds()
	for y := range bounds.Dy() {
		for x := range bounds.Dx() {
			count[picture.At(x, y)]++
		}
	}
	palette := slices.SortedFunc(maps.Keys(count), func(a, b color.Color) int { return cmp.Compare(count[b], count[a]) })
	small := image.NewPaletted(bounds, palette[:min(256, len(palette))])
	draw.Draw(small, bounds, picture, bounds.Min, draw.Src)
	var out bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, small); err != nil {
		return err
	}
	return os.WriteFile(path, out.Bytes(), 0o644)
}

// cut takes a host out of the network, as if its power had gone.
func cut(t *testing.T, h *lab.Host) {
	t.Helper()
	if err := h.Agent.Stop(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	in(t, h.Namespace, "ip", "link", "set", "eth0", "down")
}

// peersAre is true of a page whose table has so many peers in a state.
func peersAre(state string, n int) string {
	return fmt.Sprintf("document.querySelectorAll('.peers tbody tr.%s').length == %d", state, n)
}

// pageOf serves a host's page to a browser outside of the lab.
func pageOf(t *testing.T, h *lab.Host) string {
	target := &url.URL{Scheme: "http", Host: "127.0.0.1:9494"}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, Transport: &http.Transport{DialContext: h.Dial}}
	s := httptest.NewServer(proxy)
	t.Cleanup(s.Close)
	return s.URL + "/"
}
