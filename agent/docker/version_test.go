package docker

import (
	"slices"
	"testing"
)

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]Version{
		"20.10.24+dfsg1": {20, 10, 24},
		"Docker version 20.10.24+dfsg1, build 297e128\n": {20, 10, 24},
		"Docker version 27.5.1, build 4c9b3b0":           {27, 5, 1},
		"28.5.2":                                         {28, 5, 2},
		"24.0.7-0ubuntu4.1":                              {24, 0, 7},
		"29.0.0-rc.1":                                    {29, 0, 0},
		"28.2":                                           {28, 2, 0},
		"26.1.5~ds1":                                     {26, 1, 5},
		"Docker version 28.2.2, build 45873be\nWARNING: this": {28, 2, 2},
	} {
		if got, err := ParseVersion(text); err != nil || got != want {
			t.Errorf("ParseVersion(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "dev", "library-import", "Docker version dev, build unknown", "28", "28.", "28.x.1", "-1.2.3", "1.2.3.4", "99999.1.1", "podman version 4.3.1"} {
		if got, err := ParseVersion(text); err == nil || got != (Version{}) {
			t.Errorf("ParseVersion(%q) = %v, %v; want an error", text, got, err)
		}
	}
}

func TestVersionOrder(t *testing.T) {
	sorted := []Version{{}, {19, 3, 15}, {20, 10, 0}, {20, 10, 24}, {24, 0, 0}, {28, 0, 4}, {28, 2, 0}, {29, 0, 0}}
	if got := slices.SortedFunc(slices.Values([]Version{sorted[5], sorted[3], sorted[7], sorted[0], sorted[6], sorted[2], sorted[4], sorted[1]}), Version.Compare); !slices.Equal(got, sorted) {
		t.Errorf("sorted: %v", got)
	}
	for v, want := range map[Version]bool{{}: false, {19, 3, 15}: false, {20, 9, 9}: false, {20, 10, 0}: true, {29, 7, 3}: true, {30, 0, 0}: false} {
		if got := v.Tested(); got != want {
			t.Errorf("%s.Tested() = %t", v, got)
		}
	}
}

func FuzzParseVersion(f *testing.F) {
	f.Add("Docker version 20.10.24+dfsg1, build 297e128")
	f.Fuzz(func(t *testing.T, text string) {
		v, err := ParseVersion(text)
		if err != nil || v == (Version{}) { // the latter is "0.0", unknown like the error's
			return
		}
		if again, err := ParseVersion(v.String()); err != nil || again != v {
			t.Errorf("%q is %s, which reads as %s (%v)", text, v, again, err)
		}
	})
}
