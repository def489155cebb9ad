package doctor

import "testing"

// FuzzParseForeign reads what may be said to be nft's.
func FuzzParseForeign(f *testing.F) {
	f.Add([]byte(`{"nftables":[{"chain":{"family":"inet","table":"mine","name":"forward","hook":"forward","policy":"drop"}},{"rule":{"family":"ip","table":"x","expr":[{"drop":null}]}}]}`))
	f.Add([]byte(`{"nftables":[{"chain":null,"rule":{"expr":7}}]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, c := range parseForeign(text) {
			if c.hook == "" || c.text == "" {
				t.Errorf("%+v", c)
			}
		}
	})
}
