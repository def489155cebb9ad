package backend

import (
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
		`{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard","PSK":"` + psk + `"},"Backend":{}`: "",
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
