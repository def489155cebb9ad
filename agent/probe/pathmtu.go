package probe

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// What PathMTU allows itself, which together stays below 3 s: two tries in the first round, and two in each of the four more that
// a limit of 65,535 bytes takes. Later rounds know how long an answer takes, and mostly need far less.
const (
	firstTry = 450 * time.Millisecond
	laterTry = 250 * time.Millisecond
	shortTry = 50 * time.Millisecond // a host that is busy is not a hole
	tries    = 2
	perRound = 16 // sizes tried at once
)

// PathMTU finds the longest IP packet, in bytes and at most limit, that comes back from to when nothing may fragment it on its
// way there. It takes less than 3 s, and one round trip where limit itself gets through. What the kernel believes to know of the
// path is not asked: a router that drops silently is found like one that says so. Round trips may take 400 ms.
//
// The error is an ErrNoAnswer if not even short packets are answered, an *ICMPError if somebody says why, or says why there
// could be no probe.
func PathMTU(ctx context.Context, from, to netip.Addr, limit int) (int, error) {
	p, err := openPinger(ctx, from, to, true)
	if err != nil {
		return 0, err
	}
	defer p.Close()
	s := search{pinger: p, wait: firstTry, high: limit + 1, size: map[int]int{}, hopeless: map[int]error{}}
	err = s.round(ctx, append([]int{limit}, p.family.floors...))
	for err == nil && s.low > 0 && s.high-s.low > 1 {
		err = s.round(ctx, between(s.low, s.high))
	}
	if err == nil && s.low == 0 {
		err = s.silence()
	}
	if err != nil {
		return 0, fmt.Errorf("path MTU to %s: %w", to, err)
	}
	return s.low, nil
}

// search narrows down the longest packet that gets through.
type search struct {
	*pinger
	wait      time.Duration // for answers to one try
	low, high int           // packets of low bytes are answered, those of high are not
	size      map[int]int   // of the packets sent, by sequence number
	hopeless  map[int]error // sizes that an error came back for
}

// round sends packets of all these sizes at once, again what was not answered, and moves low and high.
func (s *search) round(ctx context.Context, sizes []int) error {
	start := time.Now()
	for range tries {
		for _, n := range sizes {
			if err := s.try(n); err != nil {
				return err
			}
		}
		if err := s.collect(ctx, sizes, start); err != nil {
			return err
		}
	}
	for _, n := range sizes {
		if n > s.low {
			s.high = min(s.high, n)
		}
	}
	return nil
}

// undecided tells whether it is worth while to wait for an answer to a packet of so many bytes.
func (s *search) undecided(size int) bool {
	return size > s.low && size < s.high && s.hopeless[size] == nil
}

func (s *search) try(size int) error {
	if !s.undecided(size) {
		return nil
	}
	seq := len(s.size)
	s.size[seq] = size
	err := s.send(seq, size)
	if long := (*TooLongError)(nil); errors.As(err, &long) {
		s.hopeless[size] = err
		return nil
	}
	return err
}

// collect takes answers until there won't be more. The round began at start.
func (s *search) collect(ctx context.Context, sizes []int, start time.Time) error {
	deadline := time.Now().Add(s.wait)
	for slices.ContainsFunc(sizes, s.undecided) {
		a, err := s.next(ctx, deadline)
		switch {
		case errors.Is(err, ErrNoAnswer):
			return ctx.Err()
		case err != nil:
			return err
		case a.err != nil:
			s.hopeless[s.size[a.seq]] = a.err
			continue
		}
		if s.low == 0 { // the first answer of all
			s.wait = min(laterTry, max(shortTry, 2*time.Since(start)))
			deadline = time.Now().Add(s.wait)
		}
		s.low = max(s.low, s.size[a.seq])
	}
	return nil
}

// silence is the error when no packet was answered, however short.
func (s *search) silence() error {
	shortest := slices.Min(slices.Collect(maps.Values(s.size)))
	if err := s.hopeless[shortest]; err != nil {
		return err
	}
	return fmt.Errorf("%w, not even to packets of %d bytes", ErrNoAnswer, shortest)
}

// between spreads sizes over those strictly between low and high.
func between(low, high int) (sizes []int) {
	for i := range perRound {
		if n := low + (high-low)*(i+1)/(perRound+1); n > low {
			sizes = append(sizes, n)
		}
	}
	return slices.Compact(sizes)
}
