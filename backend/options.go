package backend

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"github.com/tulle-net/tulle/subnet"
)

// options is a Backend object as it stands in the network's config; no text if there is none.
type options struct{ text string }

// read decodes the object into v, a pointer to a struct whose fields are the keys that the type knows. A key beside those is an
// error: whoever wrote it expects something of it, and would learn only from packets that nothing came of it.
func (o options) read(v any) error {
	if o.text == "" {
		return nil
	}
	if err := subnet.DecodeObject("Backend", []byte(o.text), v); err != nil {
		return err
	}
	known := []string{"Type"}
	for field := range reflect.TypeOf(v).Elem().Fields() {
		known = append(known, field.Name)
	}
	if unknown := subnet.UnknownKeys([]byte(o.text), known); len(unknown) > 0 {
		return &subnet.ConfigError{Key: "Backend." + unknown[0], Reason: fmt.Sprintf("not a key of this type, which knows %s: leave it out, or write it as it is written there", strings.Join(known, ", "))}
	}
	return nil
}

// secret is the key of a Backend object that nobody is shown who can't read etcd itself.
const secret = "PSK"

// Redact returns the text of a network's config without its secrets: in their place is as, or nothing, not even the key, if that is
// "". A text without secrets is as it was; one that can't be read is not shown at all.
func Redact(text, as string) string {
	var config map[string]json.RawMessage
	if json.Unmarshal([]byte(text), &config) != nil {
		return ""
	}
	found := mentions(text, secret)
	for name, value := range config {
		var object map[string]json.RawMessage
		if !strings.EqualFold(name, "Backend") || json.Unmarshal(value, &object) != nil {
			continue
		}
		for key := range object {
			if !strings.EqualFold(key, secret) {
				continue
			}
			if as == "" {
				delete(object, key)
			} else {
				object[key], _ = json.Marshal(as) // a string
			}
		}
		config[name], _ = json.Marshal(object) // which it was read from
	}
	if !found {
		return text
	}
	redacted, _ := json.Marshal(config)
	return string(redacted)
}

// mentions reports whether a word is anywhere in a JSON text, also where something of the same name follows, which alone counts.
func mentions(text, word string) bool {
	for d := json.NewDecoder(strings.NewReader(text)); ; {
		token, err := d.Token()
		if err != nil {
			return false // the end: the text is JSON
		}
		if s, ok := token.(string); ok && strings.EqualFold(s, word) {
			return true
		}
	}
}

// limit is the range that a key's value must be in, 0 aside where that stands for a default.
type limit struct {
	key             string
	value, min, max int
	hint            string
}

// within checks limits.
func within(limits ...limit) error {
	for _, l := range limits {
		if l.value < l.min || l.value > l.max {
			return &subnet.ConfigError{Key: "Backend." + l.key, Reason: fmt.Sprintf("%d is not within %d and %d%s", l.value, l.min, l.max, l.hint)}
		}
	}
	return nil
}

// outerMTU is the limit of a key that says what the underlay's MTU is; left out, it is the device's.
func outerMTU(value, overhead int) limit {
	if value == 0 {
		value = maxMTU
	}
	return limit{"MTU", value, minMTU + overhead, maxMTU, " (it is the underlay's MTU; leave it out to take the device's)"}
}
