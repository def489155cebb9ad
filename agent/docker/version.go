// Package docker knows what each version of dockerd needs from its surroundings before containers on an overlay reach each
// other: packet filter rules, and options that dockerd is started with. What the versions need is pure data (Needs, Version,
// Option); finding out which one is installed or running is apart from it (Installed, Ask). It changes nothing on the host:
// making the rules is the agent's work.
package docker

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Version is a dockerd's. The zero Version is an unknown one.
type Version struct{ Major, Minor, Patch int }

// The versions whose needs were measured.
var (
	oldest = Version{Major: 20, Minor: 10}
	newest = Version{Major: 29} // with all of its minor versions
)

// ParseVersion reads what dockerd and the Engine API call their version, as in "20.10.24+dfsg1", and the line that
// dockerd --version prints. What a packager or a pre-release appends is left out: options don't change with it.
func ParseVersion(text string) (Version, error) {
	word := strings.TrimPrefix(strings.TrimSpace(text), "Docker version ")
	if i := strings.IndexAny(word, "+-~, \n"); i >= 0 {
		word = word[:i]
	}
	parts := strings.Split(word, ".")
	var n [3]int
	if len(parts) < 2 || len(parts) > len(n) {
		return Version{}, fmt.Errorf("%.80q is not a Docker version", text)
	}
	for i, part := range parts {
		u, err := strconv.ParseUint(part, 10, 16)
		if err != nil {
			return Version{}, fmt.Errorf("%.80q is not a Docker version", text)
		}
		n[i] = int(u)
	}
	return Version{n[0], n[1], n[2]}, nil
}

// Compare is negative if v is older than w, and positive if it is newer.
func (v Version) Compare(w Version) int {
	return cmp.Or(cmp.Compare(v.Major, w.Major), cmp.Compare(v.Minor, w.Minor), cmp.Compare(v.Patch, w.Patch))
}

// Tested says whether v is one of the versions whose needs were measured, 20.10 to 29.
func (v Version) Tested() bool { return v.Compare(oldest) >= 0 && v.Major <= newest.Major }

func (v Version) String() string {
	if v == (Version{}) {
		return "unknown"
	}
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
}
