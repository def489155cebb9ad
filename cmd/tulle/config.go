package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/etcd"
	"github.com/tulle-net/tulle/subnet"
)

type configCmd struct {
	Set      configSetCmd      `cmd:"" help:"Store a config, if it is valid and orphans nobody."`
	Get      configGetCmd      `cmd:"" help:"Print the stored config."`
	Validate configValidateCmd `cmd:"" help:"Check a config without storing it, and print what it means."`
}

type configSetCmd struct {
	etcdFlags `embed:""`
	File      string `arg:"" help:"File with the config in JSON, or - for standard input."`
	Force     bool   `help:"Store it even if live leases are outside the new range: their hosts lease anew, and their containers must be restarted."`
}

func (c *configSetCmd) Run(ctx context.Context) error {
	text, config, err := readConfig(c.File)
	if err != nil {
		return err
	}
	sayWarnings(text, config)
	client, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	_, before, err := client.Config(ctx)
	if err != nil && !errors.Is(err, etcd.ErrNoConfig) {
		return err
	}
	if !c.Force {
		if err := orphans(ctx, client, config); err != nil {
			return err
		}
	}
	if err := client.SetConfig(ctx, text, before.Revision); err != nil {
		return err
	}
	fmt.Printf("stored at %s/config: %s\n", c.EtcdPrefix, summary(config))
	return nil
}

// orphans fails if live leases don't fit config.
func orphans(ctx context.Context, client *etcd.Client, config subnet.Config) error {
	holders, err := client.Leases(ctx)
	if err != nil {
		return err
	}
	var orphaned []string
	for _, h := range holders {
		if h.Err != nil {
			continue // unreadable: orphaned already
		}
		for f, p := range h.Lease.Subnet.All() {
			if !config.Range.Of(f).Contains(p) {
				orphaned = append(orphaned, fmt.Sprintf("%s (%s)", p, publicIP(h.Lease)))
				break
			}
		}
	}
	if len(orphaned) == 0 {
		return nil
	}
	shown := orphaned[:min(5, len(orphaned))]
	if len(shown) < len(orphaned) {
		shown = append(shown, fmt.Sprintf("%d more", len(orphaned)-len(shown)))
	}
	return fmt.Errorf("refused: %s would orphan %s; --force stores it all the same, and these hosts lease anew", summary(config), strings.Join(shown, ", "))
}

type configGetCmd struct {
	etcdFlags `embed:""`
	Secrets   bool `help:"Show a preshared key, too, which is hidden otherwise (default: no)."`
}

func (c *configGetCmd) Run(ctx context.Context) error {
	client, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	text, stored, err := client.Config(ctx)
	if err != nil {
		return err
	}
	if !c.Secrets {
		text = withoutSecrets(text)
	}
	fmt.Println(escape(strings.TrimSpace(text)))
	if stored.Err == nil {
		_, stored.Err = backend.New(stored.Config)
	}
	if stored.Err != nil {
		complain("tulle: agents can't use it: %v\n", stored.Err)
		return exitCode(1)
	}
	return nil
}

// withoutSecrets is a config that can be shown to anybody. It says how to see what is left out.
func withoutSecrets(text string) string {
	shown := backend.Redact(text, "(hidden)")
	if shown != text {
		complain("tulle: what is secret of it is hidden, and config set does not take it so: --secrets shows it\n")
	}
	return cmp.Or(shown, "(not JSON)")
}

type configValidateCmd struct {
	File string `arg:"" help:"File with the config in JSON, or - for standard input."`
}

func (c *configValidateCmd) Run() error {
	text, config, err := readConfig(c.File)
	if err != nil {
		return err
	}
	sayWarnings(text, config)
	fmt.Printf("valid: %s\n", summary(config))
	return nil
}

// readConfig reads and checks a config. What an agent would only warn of is an error here: a misspelt key.
func readConfig(path string) (string, subnet.Config, error) {
	text, err := read(path)
	if err != nil {
		return "", subnet.Config{}, err
	}
	config, unknown, err := subnet.ParseConfig(text)
	if err != nil {
		return "", subnet.Config{}, fmt.Errorf("config: %w", err)
	}
	if _, err := backend.New(config); err != nil {
		return "", subnet.Config{}, fmt.Errorf("config: %w", err)
	}
	if len(unknown) > 0 {
		return "", subnet.Config{}, fmt.Errorf("config: unknown key %s: misspelt? (docs/config.md lists them)", strings.Join(unknown, ", "))
	}
	return strings.TrimSpace(string(text)), config, nil
}

// sayWarnings says what of a valid config is hardly meant.
func sayWarnings(text string, c subnet.Config) {
	for _, warning := range warnings(text, c) {
		complain("tulle: warning: %s\n", warning)
	}
}

func warnings(text string, c subnet.Config) (all []string) {
	for _, key := range unused(text, c) {
		all = append(all, key+" is given, but its family is switched off: see EnableIPv4 and EnableIPv6")
	}
	if v4, v6 := c.Range.V4.Len(), c.Range.V6.Len(); c.Range.V4 != (subnet.Range{}) && c.Range.V6 != (subnet.Range{}) && v4 > v6 {
		all = append(all, fmt.Sprintf("there are %d IPv4 subnets, but %d IPv6 subnets only, and a host needs one of each: take a larger IPv6Network, or a longer IPv6SubnetLen", v4, v6))
	}
	return all
}

// unused are the networks that a config names, of families that it has switched off.
func unused(text string, c subnet.Config) (keys []string) {
	var named struct{ Network, IPv6Network string }
	_ = json.Unmarshal([]byte(text), &named) // it was read before
	if named.Network != "" && c.Range.V4 == (subnet.Range{}) {
		keys = append(keys, "Network")
	}
	if named.IPv6Network != "" && c.Range.V6 == (subnet.Range{}) {
		keys = append(keys, "IPv6Network")
	}
	return keys
}

// summary says in a line what a config means.
func summary(c subnet.Config) string {
	var parts []string
	for _, r := range c.Range.All() {
		parts = append(parts, fmt.Sprintf("%s, /%d subnets from %s to %s (%d hosts)", r.Network, r.SubnetLen, r.Min, r.Max, r.Len()))
	}
	name := c.Backend.Type
	if name == "" {
		name = "vxlan"
	}
	return strings.Join(append(parts, "backend "+name), ", ")
}
