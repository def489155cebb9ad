package docker

import (
	"encoding/json"
	"testing"
)

// FuzzParseConfig reads whatever is in the place of a daemon.json.
func FuzzParseConfig(f *testing.F) {
	for _, text := range []string{`{"bip":"10.5.1.1/24","mtu":1450,"firewall-backend":"nftables"}`, `{"firewall-backend":7,"bip":null}`, "{}", "null", "[]", "7", "", "{"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseConfig(text)
		if err != nil {
			return
		}
		for _, key := range c.Clashes([]Option{"--bip=10.5.1.1/24", "--mtu=1450", "--ip-masq=false"}) {
			if _, has := c[key]; !has {
				t.Errorf("%s clashes, and is not there", key)
			}
		}
		_ = c.Firewall()
		if _, err := json.Marshal(c); err != nil {
			t.Error(err)
		}
	})
}
