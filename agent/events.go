package agent

import (
	"context"
	"log/slog"
	"sync"

	"github.com/tulle-net/tulle/agent/api"
)

// eventsKept is how many events are remembered. They are for whoever looks now: the log has them all.
const eventsKept = 1000

// journal remembers what was logged lately: what tulle events shows and the log has is the same, by construction.
type journal struct {
	mu     sync.Mutex
	events []api.Event   // the oldest first
	last   int64         // number of the last
	news   chan struct{} // closed at the next event
}

func newJournal() *journal { return &journal{news: make(chan struct{})} }

func (j *journal) add(e api.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last++
	e.Seq = j.last
	if len(j.events) >= eventsKept {
		j.events = append(j.events[:0], j.events[len(j.events)-eventsKept+eventsKept/8:]...)
	}
	j.events = append(j.events, e)
	close(j.news)
	j.news = make(chan struct{})
}

// after returns the events after the one numbered seq, and what is closed when there is another. A number that is yet to come
// is another agent's, before it was started again: all are news then.
func (j *journal) after(seq int64) ([]api.Event, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if seq > j.last {
		seq = 0
	}
	for i, e := range j.events {
		if e.Seq > seq {
			return append([]api.Event(nil), j.events[i:]...), j.news
		}
	}
	return nil, j.news
}

// recorder is a slog.Handler that passes records on, and notes those in the journal that an operator cares about.
type recorder struct {
	slog.Handler
	journal *journal
	attrs   []slog.Attr
}

// Enabled is more than the log may be: events are kept however little is logged.
func (r recorder) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo || r.Handler.Enabled(ctx, level)
}

func (r recorder) Handle(ctx context.Context, record slog.Record) error {
	if record.Level >= slog.LevelInfo {
		r.journal.add(r.event(record))
	}
	if !r.Handler.Enabled(ctx, record.Level) {
		return nil
	}
	return r.Handler.Handle(ctx, record)
}

func (r recorder) event(record slog.Record) api.Event {
	e := api.Event{Time: record.Time.UTC(), Level: record.Level.String(), Text: record.Message}
	note := func(a slog.Attr) bool {
		if e.Fields == nil {
			e.Fields = map[string]string{}
		}
		e.Fields[a.Key] = a.Value.String()
		return true
	}
	for _, a := range r.attrs {
		note(a)
	}
	record.Attrs(note)
	return e
}

func (r recorder) WithAttrs(attrs []slog.Attr) slog.Handler {
	return recorder{r.Handler.WithAttrs(attrs), r.journal, append(r.attrs[:len(r.attrs):len(r.attrs)], attrs...)}
}

func (r recorder) WithGroup(name string) slog.Handler {
	return recorder{r.Handler.WithGroup(name), r.journal, r.attrs}
}
