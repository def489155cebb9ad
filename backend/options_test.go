package backend

import (
	"encoding/json"
	"testing"

	"github.com/tulle-net/tulle/subnet"
)

// What is shown of a config has no secret in it, however its keys are spelt, and is a config all the same.
func TestRedact(t *testing.T) {
	const psk = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="
	for text, want := range map[string]string{
		`{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard","PSK":"` + psk + `"}}`:           `{"Backend":{"Type":"wireguard"},"Network":"10.5.0.0/16"}`,
		`{"Network":"10.5.0.0/16","backend":{"psk":"` + psk + `","Type":"wireguard","PSK":"x"}}`: `{"Network":"10.5.0.0/16","backend":{"Type":"wireguard"}}`,
		`{"Network":"10.5.0.0/16", "Backend":{"Type":"vxlan"}}`:                                  `{"Network":"10.5.0.0/16", "Backend":{"Type":"vxlan"}}`,
		`{"Network":"10.5.0.0/16"}`: `{"Network":"10.5.0.0/16"}`,
		`{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard","PSK":"` + psk + `"},"Backend":{"Type":"vxlan"}}`: `{"Backend":{"Type":"vxlan"},"Network":"10.5.0.0/16"}`, // the last counts
		`{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard","PSK":"` + psk + `"},"Backend":{}`:                "",
		"": "",
	} {
		got := Redact(text, "")
		if got != want {
			t.Errorf("%s:\n%s, want\n%s", text, got, want)
		}
		if got == "" {
			continue
		}
		c, _, err := subnet.ParseConfig([]byte(got))
		if err == nil {
			_, err = New(c)
		}
		if err != nil {
			t.Errorf("%s is not a config: %v", got, err)
		}
	}
	got, want := Redact(`{"Backend":{"PSK":"`+psk+`"}}`, "(hidden)"), `{"Backend":{"PSK":"(hidden)"}}`
	if got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// An agent tells of its options in JSON, and whoever asks must be able to read them.
func TestOptionsInJSON(t *testing.T) {
	t.Parallel()
	for _, families := range []Families{Matching, OnlyIPv4, OnlyIPv6, Both} {
		o := Options{Bridge: "docker0", Masquerade: subnet.PairOf(subnet.IPv6, true), Families: families}
		text, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		var got Options
		if err := json.Unmarshal(text, &got); err != nil || got != o {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}
