package docker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// Config is Docker's daemon.json: each key's value, unread.
type Config map[string]json.RawMessage

// ReadConfig reads a daemon.json. No path, no file and an empty file all are an empty Config.
func ReadConfig(path string) (Config, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(text)) == 0 {
		return nil, nil
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("daemon.json: %w: let the agent's user read it (chmod o+r %s)", err, path)
	}
	if err != nil {
		return nil, fmt.Errorf("daemon.json: %w", err)
	}
	c, err := parseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("%s is not a JSON object, and dockerd won't start with it: %w", path, err)
	}
	return c, nil
}

func parseConfig(text []byte) (c Config, err error) {
	err = json.Unmarshal(text, &c)
	return c, err
}

// Clashes returns the keys that are also among options, sorted. With any such key dockerd refuses to start, even if the
// values are the same: "the following directives are specified both as a flag and in the configuration file".
func (c Config) Clashes(options []Option) []string {
	var keys []string
	for _, o := range options {
		if _, both := c[o.Key()]; both {
			keys = append(keys, o.Key())
		}
	}
	slices.Sort(keys)
	return keys
}

// Firewall is the backend that the config asks for.
func (c Config) Firewall() Firewall {
	var name string
	_ = json.Unmarshal(c["firewall-backend"], &name) // not there, or nothing that dockerd takes: iptables
	return firewallOf(name)
}
