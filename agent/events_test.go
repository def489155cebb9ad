package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tulle-net/tulle/agent/api"
)

func (r *rig) events(query string) []api.Event {
	r.Helper()
	code, text := r.get("GET", api.PathEvents+query)
	var e api.Events
	if err := json.Unmarshal([]byte(text), &e); err != nil || code != 200 {
		r.Fatalf("%d %s: %v", code, text, err)
	}
	return e.Events
}

// What is logged is what events tell.
func TestEvents(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		before := r.events("")
		last := before[len(before)-1].Seq
		r.put(peer(2))
		got := r.events("?after=4")
		if len(before) < 5 || got[0].Seq != 5 {
			r.Errorf("%d events; after the fourth comes %+v", len(before), got[0])
		}
		e := got[len(got)-1]
		if e.Seq != last+1 || e.Text != "peer 10.5.2.0/24 (192.0.2.2) joined" || e.Level != "INFO" || e.Fields["lease"] != "10.5.2.0-24" || e.Time.IsZero() {
			r.Errorf("the last event is %+v", e)
		}
		if got := r.events("?after=1000"); len(got) != len(before)+1 {
			r.Errorf("the number of an earlier life: %d events of %d", len(got), len(before)+1)
		}
		for _, query := range []string{"?after=x", "?after=-1", "?wait=x", "?after=99999999999999999999"} {
			if code, _ := r.get("GET", api.PathEvents+query); code != 400 {
				r.Errorf("%s: %d", query, code)
			}
		}
	})
}

func TestEventsWait(t *testing.T) {
	bubble(t, func(r *rig) {
		r.ready()
		all := r.events("")
		last := all[len(all)-1].Seq
		started := time.Now()
		if got := r.events("?wait=20&after=" + jsonOf(last)); len(got) != 0 || time.Since(started) != 20*time.Second {
			r.Errorf("after %s: %+v", time.Since(started), got)
		}
		got := make(chan []api.Event, 1)
		go func() { got <- r.events("?wait=20&after=" + jsonOf(last)) }()
		synctest.Wait()
		r.put(peer(2))
		if e := <-got; len(e) != 1 || e[0].Seq != last+1 {
			r.Errorf("%+v", e)
		}
	})
}

func jsonOf(v any) string {
	text, _ := json.Marshal(v)
	return string(text)
}

func TestJournalIsBounded(t *testing.T) {
	t.Parallel()
	j := newJournal()
	log := slog.New(recorder{slog.DiscardHandler, j, nil}).With("host", "h")
	for i := range 3 * eventsKept {
		log.Info("event", "n", i)
		log.Debug("not for operators")
	}
	events, _ := j.after(0)
	if n := len(events); n > eventsKept || n < eventsKept*3/4 {
		t.Errorf("%d events are kept", n)
	}
	e := events[len(events)-1]
	if e.Seq != 3*eventsKept || e.Fields["n"] != "2999" || e.Fields["host"] != "h" {
		t.Errorf("the last is %+v", e)
	}
	if !slog.New(recorder{slog.DiscardHandler, j, nil}).Enabled(context.Background(), slog.LevelInfo) {
		t.Error("nothing is kept of what is not logged")
	}
}
