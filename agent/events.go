package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/tulle-net/tulle/agent/api"
)

// eventsKept is how many events are remembered. They are for whoever looks now: the log has them all.
const eventsKept = 1000

// journal remembers what was logged lately: what tulle events shows and the log has is the same, by construction.
type journal struct {
	mu     sync.Mutex
	events []event       // the oldest first
	last   int64         // number of the last
	news   chan struct{} // closed at the next event
}

func newJournal() *journal { return &journal{news: make(chan struct{})} }

// event is a record as it is kept: a record of slog's own takes three times the room.
type event struct {
	seq     int64
	time    time.Time
	level   slog.Level
	message string
	attrs   []slog.Attr
}

func (e event) told() api.Event {
	t := api.Event{Seq: e.seq, Time: e.time.UTC(), Level: e.level.String(), Text: e.message}
	if len(e.attrs) > 0 {
		t.Fields = make(map[string]string, len(e.attrs))
	}
	for _, a := range e.attrs {
		t.Fields[a.Key] = a.Value.String()
	}
	return t
}

func (j *journal) add(e event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last++
	e.seq = j.last
	if len(j.events) >= eventsKept {
		j.events = append(j.events[:0], j.events[len(j.events)-eventsKept+eventsKept/8:]...)
	}
	j.events = append(j.events, e)
	close(j.news)
	j.news = make(chan struct{})
}

// after returns the events after the one numbered seq, and what is closed when there is another. A number that is yet to come
// is another agent's, before it was started again: all are news then.
func (j *journal) after(seq int64) (events []api.Event, news <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if seq > j.last {
		seq = 0
	}
	for _, e := range j.events {
		if e.seq > seq {
			events = append(events, e.told())
		}
	}
	return events, j.news
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

func (r recorder) event(record slog.Record) event {
	e := event{time: record.Time, level: record.Level, message: record.Message}
	if n := len(r.attrs) + record.NumAttrs(); n > 0 {
		e.attrs = append(make([]slog.Attr, 0, n), r.attrs...)
	}
	record.Attrs(func(a slog.Attr) bool {
		if _, plain := a.Value.Any().(string); !plain { // what it is now: an error, or a map, may hold or become anything
			a.Value = slog.StringValue(a.Value.String())
		}
		e.attrs = append(e.attrs, a)
		return true
	})
	return e
}

func (r recorder) WithAttrs(attrs []slog.Attr) slog.Handler {
	return recorder{r.Handler.WithAttrs(attrs), r.journal, append(r.attrs[:len(r.attrs):len(r.attrs)], attrs...)}
}

func (r recorder) WithGroup(name string) slog.Handler {
	return recorder{r.Handler.WithGroup(name), r.journal, r.attrs}
}
