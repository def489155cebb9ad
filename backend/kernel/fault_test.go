package kernel

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/backend"
)

// always fails requests of a kind.
func always(kind int, err error) func(int) error {
	return func(k int) error {
		if k == kind {
			return err
		}
		return nil
	}
}

// Of many peers some fail, for whatever the kernel has against them: the others are in place, the error is short, and as
// soon as the kernel lets us, what is missing is made and nothing else.
func TestSomePeersFail(t *testing.T) {
	for name, c := range map[string]struct {
		kind   int
		err    error
		tables []string
	}{
		"neighbours and FDB": {unix.RTM_NEWNEIGH, unix.ENOBUFS, []string{"neighbour", "fdb"}},
		"routes":             {unix.RTM_NEWROUTE, unix.EPERM, []string{"route"}},
		"nexthop objects":    {rtmNewNexthop, unix.ENOMEM, []string{"route"}},
	} {
		t.Run(name, func(t *testing.T) {
			eachMode(t, func(s *sandbox) {
				if c.kind == rtmNewNexthop && !s.objectsMode() {
					s.Skip("no nexthop objects")
				}
				k, want := s.open(), state(s, 1000)
				requests, failed := 0, 0
				k.conn.fault = func(kind int) error {
					if kind != c.kind {
						return nil
					}
					if requests++; requests%20 != 0 {
						return nil
					}
					failed++
					return c.err
				}
				_, err := k.Apply(s.Context(), want)
				wantError(s, err, c.err.Error(), fmt.Sprintf("and %d more", failed-5))
				if !errors.Is(err, c.err) || strings.Count(err.Error(), "\n") != 5 {
					s.Errorf("the error is\n%v", err)
				}
				counted := 0
				for table, n := range backend.Failed(err) {
					if !slices.Contains(c.tables, table) {
						s.Errorf("%d failures in table %s", n, table)
					}
					counted += n
				}
				if counted != failed {
					s.Errorf("%d failures are counted, %d requests failed", counted, failed)
				}
				if failed < 50 {
					s.Fatalf("%d requests failed, which is no test", failed)
				}
				now := slices.Concat(expected(want), s.before)
				if missing := without(now, s.objects()); len(missing) != failed {
					s.Errorf("%d entries are missing, %d requests failed", len(missing), failed)
				}
				s.nexthopsPaired()
				k.conn.fault = nil
				changed := 0
				for _, n := range s.apply(k, want).Count() {
					changed += n
				}
				if changed != failed {
					s.Errorf("%d entries changed, %d requests had failed", changed, failed)
				}
				s.converged(k, want)
			})
		})
	}
}

// listings are the requests that Apply looks at the kernel with.
var listings = map[string]int{"links": unix.RTM_GETLINK, "addresses": unix.RTM_GETADDR, "neighbours and FDB": unix.RTM_GETNEIGH,
	"routes": unix.RTM_GETROUTE, "nexthop objects": rtmGetNexthop}

// What can't be seen must not be taken for absent: nothing is swept. A listing that failed for what passes is repeated.
func TestListingFails(t *testing.T) {
	for name, kind := range listings {
		for cause, c := range map[string]struct {
			err    error
			passes bool
		}{
			"interrupted":          {netlink.ErrDumpInterrupted, true},
			"interrupted by EINTR": {unix.EINTR, true},
			"no buffers":           {unix.ENOBUFS, true},
			"not permitted":        {unix.EPERM, false},
		} {
			t.Run(name+"/"+cause, func(t *testing.T) {
				s := newSandbox(t)
				k, many, few := s.open(), state(t, 10), state(t, 3)
				s.apply(k, many)
				k.conn.fault = always(kind, c.err)
				if _, err := k.Apply(t.Context(), few); !errors.Is(err, c.err) {
					t.Errorf("%v, want %v", err, c.err)
				}
				s.has(expected(many)...)

				left := 2
				k.conn.fault = func(k int) error {
					if k != kind || left == 0 {
						return nil
					}
					left--
					return c.err
				}
				_, err := k.Apply(t.Context(), few)
				switch {
				case !c.passes && err != nil:
					s.has(expected(many)...)
				case c.passes && err == nil && left == 0:
					s.converged(k, few)
				default:
					t.Errorf("after two failures, less %d: %v", left, err)
				}
			})
		}
	}
}

// A listing that broke off is still going on in the kernel, which refuses another one until its rest has been read.
func TestListingAfterOneThatBrokeOff(t *testing.T) {
	s := newSandbox(t)
	k, want := s.open(), state(t, 1000)
	s.apply(k, want)
	request := request{kind: unix.RTM_GETROUTE, flags: unix.NLM_F_DUMP, message: newMessage(unix.SizeofRtMsg)}
	if err := k.conn.send(request.appendTo(nil, k.conn.next())); err != nil {
		t.Fatal(err)
	}
	s.converged(k, want)
}

func TestCleanupListingFails(t *testing.T) {
	for _, name := range []string{"links", "routes", "nexthop objects"} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			k, want := s.open(), state(t, 3)
			s.apply(k, want)
			k.conn.fault = always(listings[name], unix.EINTR)
			if removed, err := k.Cleanup(t.Context()); !errors.Is(err, unix.EINTR) || len(removed) > 0 {
				t.Errorf("removed %q, %v", removed, err)
			}
			s.has(expected(want)...)
		})
	}
}

func second[T any](_ T, err error) error { return err }

// With containers coming and going, no listing of the links may ever come to its end: what there is of one is not whole.
func TestLinksInterrupted(t *testing.T) {
	s := newSandbox(t)
	s.setup("ip route add default via 192.0.2.254")
	k, want := s.open(), state(t, 3)
	s.apply(k, want)
	devices := maps.Clone(k.devices)
	apply := func() error { return second(k.Apply(t.Context(), want)) }
	for name, look := range map[string]struct {
		f     func() error
		whole int // listings that aren't interrupted, before those that are
	}{
		"observeLinks":        {func() error { return second(k.observeLinks()) }, 0},
		"indexDevices":        {k.indexDevices, 0},
		"Underlay":            {func() error { return second(k.Underlay(backend.Choice{})) }, 0},
		"Apply's first look":  {apply, 0},
		"Apply's second look": {apply, 1 + len(want.Links)},
	} {
		for _, times := range []int{4, 5} {
			n := 0
			k.conn.fault = func(kind int) error {
				if kind != unix.RTM_GETLINK {
					return nil
				}
				if n++; n <= look.whole || n > look.whole+times {
					return nil
				}
				return netlink.ErrDumpInterrupted
			}
			if err := look.f(); errors.Is(err, netlink.ErrDumpInterrupted) != (times == 5) {
				t.Errorf("%s, interrupted %d times: %v", name, times, err)
			}
			if !maps.Equal(k.devices, devices) {
				t.Errorf("%s, interrupted %d times: knows the devices %v, before they were %v", name, times, k.devices, devices)
			}
		}
	}
	k.conn.fault = nil
	s.converged(k, want)
}
