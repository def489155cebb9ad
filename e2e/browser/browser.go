// Package browser looks at pages with a headless Chromium, for tests: what a page asks for, what it complains of, whether it
// fits its window, and what it looks like.
package browser

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// wait is how long Chromium may take for one thing.
const wait = time.Minute

// Window is what a page is seen in.
type Window struct {
	Width, Height int // CSS pixels
	Dark          bool
}

// Start starts a Chromium that ends with the test. Without one installed the test is skipped, unless TULLE_TEST_ROOT says that
// everything is there.
func Start(t *testing.T) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("TULLE_TEST_ROOT") != "" {
			t.Fatalf("%v: e2e/prepare test installs it", err)
		}
		t.Skip(err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, // it refuses to be root's with one
		chromedp.UserDataDir(t.TempDir()), chromedp.Flag("disable-component-update", true))
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits until it has ended: it writes to its directory until then
		cancel()
		stop()
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start Chromium: %v", err)
	}
	return ctx
}

// Page is a page in a window of its own.
type Page struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	asked    []string
	complain []string
}

// Open opens a page in a Chromium that Start started, and waits until it is loaded.
func Open(t *testing.T, browser context.Context, url string, w Window) *Page {
	t.Helper()
	p := &Page{t: t}
	ctx, cancel := chromedp.NewContext(browser, chromedp.WithListener(p.hear))
	t.Cleanup(cancel)
	p.ctx = ctx
	if err := chromedp.Do(ctx); err != nil { // without a time limit: the window lives as long as this context
		t.Fatalf("Chromium: a new window: %v", err)
	}
	look := func(ctx context.Context, window *chromedp.Target) error {
		scheme := map[bool]string{false: "light", true: "dark"}[w.Dark]
		_, noLog := cdp.Call(ctx, window, log.Enable, cdp.Empty{})
		_, noNetwork := cdp.Call(ctx, window, network.Enable, network.EnableParams{})
		_, noScheme := cdp.Call(ctx, window, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		return errors.Join(noLog, noNetwork, noScheme)
	}
	do(p, "open "+url, chromedp.Steps(chromedp.Func(look), chromedp.EmulateViewport(int64(w.Width), int64(w.Height)), chromedp.Navigate(url)))
	return p
}

// hear notes what the page asks for and complains of.
func (p *Page) hear(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		if !strings.HasPrefix(e.Request.URL, "data:") {
			p.asked = append(p.asked, e.Request.URL)
		}
	case *log.EventEntryAdded:
		p.complain = append(p.complain, e.Entry.Text)
	case *runtime.EventConsoleAPICalled:
		p.complain = append(p.complain, "console."+string(e.Type))
	case *runtime.EventExceptionThrown:
		p.complain = append(p.complain, e.ExceptionDetails.Text)
	}
}

// Asked is what the page has asked for, itself included: URLs.
func (p *Page) Asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string{}, p.asked...)
}

// Complaints are what the console shows: errors, and what a Content-Security-Policy has stopped.
func (p *Page) Complaints() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string{}, p.complain...)
}

// Value returns what an expression of JavaScript is in the page.
func Value[T any](p *Page, expression string) T {
	p.t.Helper()
	return do(p, expression, chromedp.Evaluate[T](expression))
}

// Wait waits until an expression of JavaScript is true in the page, which may be another by then.
func (p *Page) Wait(expression string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, wait)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		holds, err := chromedp.Run(ctx, chromedp.Evaluate[bool](expression))
		if holds {
			return
		}
		select {
		case <-ctx.Done():
			p.t.Fatalf("waited %s until %s (%v) on a page that reads\n%s", wait, expression, err, p.Text())
		case <-tick.C: // an error, too, may be one of a page that goes while it is asked
		}
	}
}

// Text is what the page reads, without what is only in pictures.
func (p *Page) Text() string {
	p.t.Helper()
	return Value[string](p, "document.body.innerText")
}

// Overflow is by how many pixels the page is wider than its window.
func (p *Page) Overflow() int {
	p.t.Helper()
	return Value[int](p, "document.documentElement.scrollWidth - document.documentElement.clientWidth")
}

// Screenshot writes a picture of the whole page, PNG, and returns its size in bytes.
func (p *Page) Screenshot(path string) int {
	p.t.Helper()
	picture := do(p, "screenshot", chromedp.FullScreenshot(100))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, picture, 0o644); err != nil {
		p.t.Fatal(err)
	}
	return len(picture)
}

// do does something with the page, or fails the test.
func do[T any](p *Page, what string, action chromedp.Action[T]) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, wait)
	defer cancel()
	value, err := chromedp.Run(ctx, action)
	if err != nil {
		p.t.Fatalf("Chromium: %s: %v", what, err)
	}
	return value
}
