package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tulle-net/tulle/subnet"
)

// A key with our public address is an earlier life's of this host, or that of another host that has our address too: a
// cloned machine, or one behind the same NAT. We ask: by a mark in the key's value, which flannel ignores and a holder that
// lives takes out at once. Silence means that nobody holds it. A life that knows the key as it was left needs not ask.
type claim struct {
	key      string
	modified int64     // revision of the question
	until    time.Time // when silence is an answer
}

// contest is that another host claims what is ours, or holds what we claim.
type contest struct {
	text  contestError
	until time.Time // when it is as good as over, unless it shows again
	asked bool      // we hold it, and answered: the other will ask again
}

type contestError string

func (e contestError) Error() string { return string(e) }

// contested notes a contest for a while.
func (s *session) contested(d time.Duration, format string, args ...any) error {
	s.contest = contest{text: contestError(fmt.Sprintf(format, args...)), until: time.Now().Add(d)}
	return s.contest.text
}

const (
	answerWait  = 3 * time.Second // for a holder to answer: it takes one event and one transaction
	askAgain    = time.Minute     // after an answer
	contestLast = 3 * askAgain    // a claimant that stays will have asked again by then
)

// errAsking says that the question was put, and that there was time for no answer yet.
var errAsking = errors.New("asking whether another host holds our lease")

// ask takes over a key with our public address unless its holder lives.
func (s *session) ask(ctx context.Context, key string, want subnet.Request) error {
	r, now := s.records[key], time.Now()
	asked := s.claim.key == key
	switch {
	case asked && s.claim.modified != r.modified:
		s.claim = claim{}
		return s.contested(askAgain, "another host with our public address %s holds %s, and answers: give each host an address of its own (--public-ip), or stop the other's agent",
			publicOf(want), key)
	case asked && now.Before(s.claim.until):
		return errAsking
	case asked:
		s.claim = claim{}
		t, err := s.leaseLike(ctx, r)
		if err != nil {
			return err
		}
		return s.adopt(ctx, key, want, t)
	case now.Before(s.contest.until):
		return s.contest.text
	}
	r.value = withClaimant(r.text(), s.store.name)
	revision, err := s.rewrite(ctx, key, r.modified, r.value, r.lease)
	if err != nil {
		return err
	}
	r.modified = revision
	s.records[key] = r
	s.claim = claim{key, revision, now.Add(s.store.answerWait)}
	return errAsking
}

func publicOf(want subnet.Request) string {
	for _, a := range want.PublicIP.All() {
		return a.String()
	}
	return "unknown"
}

// claimantField is the mark's name in the value.
const claimantField = "TulleClaim"

func withClaimant(value, name string) string {
	fields := map[string]json.RawMessage{}
	_ = json.Unmarshal([]byte(value), &fields) // it was read before
	fields[claimantField], _ = json.Marshal(name)
	marked, _ := json.Marshal(fields) // what was just parsed
	return string(marked)
}

// claimant is who asks for a key; "" if nobody does.
func claimant(value string) string {
	if !strings.Contains(value, claimantField) {
		return ""
	}
	var marked struct{ TulleClaim string }
	_ = json.Unmarshal([]byte(value), &marked)
	return marked.TulleClaim[:min(len(marked.TulleClaim), 100)]
}
