package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/tulle-net/tulle/agent/docker"
)

// dockerOptsCmd stands in for flannel's mk-docker-opts.sh: the short flags are the script's.
type dockerOptsCmd struct {
	EnvFile    string `short:"f" default:"/run/tulle/subnet.env" help:"Env file to read, the agent's or flannel's (default ${default})." placeholder:"FILE"`
	Output     string `short:"d" help:"File to write, or - for standard output (default /run/docker_opts.env, and standard output for json)." placeholder:"FILE"`
	Individual bool   `short:"i" help:"Write one variable for each option."`
	Combined   bool   `short:"c" help:"Write one variable with all options. With neither -i nor -c, both are written."`
	Key        string `short:"k" default:"DOCKER_OPTS" help:"Name of the variable with all options (default ${default})." placeholder:"KEY"`
	NoIPMasq   bool   `short:"m" name:"no-ip-masq" help:"Leave out the option that turns Docker's masquerading off."`

	Format          string `default:"env" enum:"env,json" help:"env, or json: what belongs in daemon.json, to be used instead of the variables and not beside them (default ${default})." placeholder:"FORMAT"`
	FirewallBackend string `default:"auto" enum:"auto,iptables,nftables" help:"What dockerd makes its rules with; auto, iptables or nftables; auto is what daemon.json says (default ${default})." placeholder:"WHICH"`
	DaemonJSON      string `name:"daemon-json" default:"/etc/docker/daemon.json" help:"Docker's config, which must not set the same options; empty to not look (default ${default})." placeholder:"FILE"`
	Dockerd         string `help:"The dockerd that the options are for (default: the one in PATH, /usr/sbin or /usr/bin)." placeholder:"PATH"`
}

func (c *dockerOptsCmd) Run(ctx context.Context) error {
	if err := c.check(); err != nil {
		return err
	}
	env, err := docker.ReadEnv(c.EnvFile)
	if err != nil {
		return err
	}
	config, err := docker.ReadConfig(c.DaemonJSON)
	if err != nil {
		return err
	}
	env.Masquerade = env.Masquerade && !c.NoIPMasq
	options, err := c.options(ctx, env, config)
	if err != nil {
		return err
	}
	if c.Format == "json" {
		return c.writeJSON(options)
	}
	if both := config.Clashes(options); len(both) > 0 {
		return fmt.Errorf("%s sets %s, and so would the options: dockerd refuses to start if it is told the same thing in both. Remove it there, "+
			"or put all of it there (tulle docker-opts --format json) and start dockerd without the options", c.DaemonJSON, strings.Join(both, ", "))
	}
	return replaceFile(c.output("/run/docker_opts.env"), docker.Variables(options, c.style(), os.Environ()))
}

// check finds flags that don't go together.
func (c *dockerOptsCmd) check() error {
	if c.Format == "json" && (c.Individual || c.Combined) {
		return errors.New("-i and -c choose among variables, and --format json writes none: leave them out")
	}
	if !regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`).MatchString(c.Key) {
		return fmt.Errorf("-k %q can't be a variable's name: use letters, digits and underscores", c.Key)
	}
	return nil
}

// options returns what this dockerd must be told. It says so if it can't be sure of the version. The running dockerd isn't asked:
// Docker may be waiting for this command, and connecting to its socket would wait for Docker.
func (c *dockerOptsCmd) options(ctx context.Context, env docker.Env, config docker.Config) (known []docker.Option, err error) {
	d, err := docker.Installed(ctx, c.Dockerd)
	if err == nil && !d.Version.Tested() {
		err = fmt.Errorf("%s has version %s, and tulle knows 20.10 to 29", d.Path, d.Version)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "tulle: %v: the options are those that it is sure to know\n", err)
	}
	for _, o := range append(env.Options(), docker.Needs(d.Version, c.firewall(config)).Options...) {
		if ok, err := d.Knows(ctx, o); ok && err == nil { // an error is a no: a dockerd that can't say was reported above
			known = append(known, o)
		}
	}
	return known, env.Check(d.Version)
}

func (c *dockerOptsCmd) firewall(config docker.Config) docker.Firewall {
	if c.FirewallBackend == "auto" {
		return config.Firewall()
	}
	return docker.Firewall(c.FirewallBackend)
}

func (c *dockerOptsCmd) style() docker.Style {
	both := !c.Individual && !c.Combined
	style := docker.Style{Each: c.Individual || both}
	if c.Combined || both {
		style.Combined = c.Key
	}
	return style
}

func (c *dockerOptsCmd) writeJSON(options []docker.Option) error {
	text, err := docker.JSON(options)
	if err != nil {
		return err
	}
	return replaceFile(c.output("-"), text)
}

func (c *dockerOptsCmd) output(otherwise string) string {
	if c.Output == "" {
		return otherwise
	}
	return c.Output
}

// replaceFile writes a file in one piece, readable by all; - is standard output. What a link points to is replaced, and what is
// no regular file, like /dev/null, is written to instead.
func replaceFile(path string, text []byte) error {
	if path == "-" || path == "/dev/stdout" {
		_, err := os.Stdout.Write(text)
		return err
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return os.WriteFile(path, text, 0o644)
	}
	if err := replace(path, text); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// replace is renameio.WriteFile without its regard for the mode that a file of that name has.
func replace(path string, text []byte) error {
	f, err := renameio.NewPendingFile(path, renameio.WithStaticPermissions(0o644))
	if err != nil {
		return err
	}
	defer f.Cleanup()
	if _, err := f.Write(text); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}
