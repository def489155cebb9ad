package server

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/tulle-net/tulle/e2e/browser"
)

// A person gets in with a browser: with any user, and the token as password; and stays in when the page asks for itself again.
func TestBrowser(t *testing.T) {
	chromium := browser.Start(t)
	path := filepath.Join(t.TempDir(), "token")
	write(t, path, oldToken)
	s, err := Listen(Options{Address: "127.0.0.1:0", TokenFile: path}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	address := served(t, s, everything())
	for _, url := range []string{"http://anybody:" + oldToken + "@" + address + "/", "http://" + address + "/"} {
		p := browser.Open(t, chromium, url, browser.Window{Width: 600, Height: 400})
		if text := browser.Value[string](p, "document.body.innerText"); text != "all" {
			t.Errorf("the page says %q", text)
		}
	}
}
