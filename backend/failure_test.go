package backend

import (
	"errors"
	"fmt"
	"maps"
	"testing"
)

func TestFailed(t *testing.T) {
	why := errors.New("no room")
	routes := &Failure{map[string]int{"route": 2, "fdb": 1}, why}
	links := &Failure{map[string]int{"link": 1, "route": 1}, errors.Join(why, errors.New("no module"))}
	for _, c := range []struct {
		err  error
		want map[string]int
	}{
		{nil, nil},
		{why, nil},
		{routes, map[string]int{"route": 2, "fdb": 1}},
		{fmt.Errorf("apply: %w", routes), map[string]int{"route": 2, "fdb": 1}},
		{&Failure{map[string]int{"sysctl": 1}, errors.Join(why, routes)}, map[string]int{"route": 2, "fdb": 1, "sysctl": 1}},
		{errors.Join(why, routes, nil, fmt.Errorf("apply: %w and %w", links, why)), map[string]int{"route": 3, "fdb": 1, "link": 1}},
	} {
		if got := Failed(c.err); !maps.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
	if routes.Error() != "no room" || !errors.Is(routes, why) {
		t.Errorf("%q is not what it wraps", routes)
	}
}
