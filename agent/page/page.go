// Package page is what an agent serves at / for people: how its host is, the peers, the round trips between all hosts, what
// happened last. It is one HTML document, with its style and its pictures in it: it loads nothing, runs no script, and asks for
// itself again. What others wrote (names, reasons, events) is escaped by html/template, and cut where it is long.
package page

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"slices"
	"time"

	"github.com/tulle-net/tulle/agent/api"
)

//go:embed page.html
var document string

//go:embed page.css
var style string

const (
	refresh   = 5  // seconds until the page asks for itself again
	maxEvents = 30 // the page shows
	maxLines  = 20 // of warnings
)

// Data is what the page shows: what the agent answers at the paths of api, at one time.
type Data struct {
	Status api.Status
	Peers  []api.Peer // by subnet
	Mesh   api.Mesh
	Events []api.Event // the oldest first
	Now    time.Time
	Still  bool // the page does not reload itself: what to do for a query of ?still, which the page links to
}

// Policy is the Content-Security-Policy to send with the page: nothing may be loaded or run, but for its own style.
func Policy() string {
	sum := sha256.Sum256([]byte(style))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}

// view is what the template sees.
type view struct {
	Data
	Style    template.CSS
	Refresh  int
	Warnings []string
	Table    table
	Topology topology
	Heatmap  heatmap
	Latest   []api.Event // the newest first
}

// Write writes the page, of at most about 1 MB. Its errors are w's, after which half a page may be written.
func Write(w io.Writer, d Data) error {
	// Parsed each time: people look rarely, and the agent keeps no memory for it meanwhile.
	t, err := template.New("page").Funcs(words(d.Now)).Parse(document)
	if err != nil {
		return fmt.Errorf("page: %w", err)
	}
	latest := slices.Clone(d.Events[max(0, len(d.Events)-maxEvents):])
	slices.Reverse(latest)
	v := view{Data: d, Style: template.CSS(style), Refresh: refresh, Warnings: d.Status.Warnings[:min(maxLines, len(d.Status.Warnings))],
		Table: newTable(d.Peers), Topology: newTopology(d.Peers), Heatmap: newHeatmap(d.Mesh), Latest: latest}
	if err := t.Execute(w, v); err != nil {
		return fmt.Errorf("page: %w", err)
	}
	return nil
}
