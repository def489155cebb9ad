package main

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/tulle-net/tulle/agent/api"
	"github.com/tulle-net/tulle/agent/docker"
	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/backend/file"
	"github.com/tulle-net/tulle/backend/kernel"
	"github.com/tulle-net/tulle/etcd"
	"github.com/tulle-net/tulle/subnet"
)

// direct is a doctor.Source for a host whose agent does not answer: etcd, and what the agent has left on the host. The agent's
// options are taken to be the usual ones, and the underlay's device to be chosen by the operator: it is the one that the lease names.
type direct struct {
	options etcd.Options
	runDir  string
}

func (d direct) View(ctx context.Context, _ string) (api.View, error) {
	key, err := d.key()
	if err != nil {
		return api.View{}, err
	}
	client, err := etcd.Dial(ctx, d.options)
	if err != nil {
		return api.View{}, err
	}
	defer client.Close()
	v := api.View{API: api.Version, Version: version, Chosen: true, Leases: map[string]api.StoredLease{},
		Options: backend.Options{Bridge: "docker0", Masquerade: subnet.PairOf(subnet.IPv4, true), Forward: true}}
	if v.Config, _, err = client.Config(ctx); err != nil {
		return v, err
	}
	entries, err := client.Entries(ctx)
	if err != nil {
		return v, err
	}
	for key, e := range entries {
		v.Leases[key] = api.Stored(key, e)
	}
	self := entries[key].Lease
	if v.Underlay, err = underlayOf(self.PublicIP); err != nil {
		return v, err
	}
	if v.Userspace, err = inUserspace(); err != nil {
		return v, err
	}
	v.Options.Families = familiesOf(v, self.PublicIP)
	v.Self = v.Leases[key]
	if self == (subnet.Lease{}) { // released meanwhile: this host still goes by it
		v.Self, err = formerLease(key, v)
	}
	return v, err
}

// Etcd is what an agent answers.
func (d direct) Etcd(ctx context.Context, key string) (api.Etcd, error) {
	look, err := etcd.Look(ctx, d.options, key)
	return api.Looked(look, key, err), nil
}

// key is that of the lease that this host held when its agent ended: as its mark says, or else its env file.
func (d direct) key() (string, error) {
	text, err := file.Read(filepath.Join(d.runDir, "lease"), 4<<10)
	if key, _, _ := strings.Cut(strings.TrimSpace(string(text)), " "); err == nil && key != "" {
		return key, nil
	}
	env, err := docker.ReadEnv(filepath.Join(d.runDir, "subnet.env"))
	if err != nil {
		return "", fmt.Errorf("this host holds no lease: %w", err)
	}
	var held subnet.Pair[netip.Prefix]
	for f, p := range env.Subnet.All() {
		*held.At(f) = p.Masked()
	}
	return subnet.FormatKey(held), nil
}

// underlayOf finds the device that peers send to: the one with the public address, or where a NAT in front has that, the usual one.
func underlayOf(public subnet.Pair[netip.Addr]) (backend.Underlay, error) {
	k, err := kernel.Open()
	if err != nil {
		return backend.Underlay{}, err
	}
	defer k.Close()
	choice := backend.Choice{Public: public}
	for _, a := range public.All() {
		choice.Ifaces = append(choice.Ifaces, a.String())
	}
	u, err := k.Underlay(choice)
	if err != nil {
		u, err = k.Underlay(backend.Choice{Public: public})
	}
	return u, err
}

// familiesOf is what an agent was told of the underlay's families, if its lease has these addresses; the usual if nothing explains them.
func familiesOf(v api.View, public subnet.Pair[netip.Addr]) backend.Families {
	config, _, _ := subnet.ParseConfig([]byte(v.Config)) // an error is told by whoever plans with it
	for _, f := range []backend.Families{backend.Matching, backend.OnlyIPv4, backend.OnlyIPv6, backend.Both} {
		told := (backend.Host{Config: config, Underlay: v.Underlay, Options: backend.Options{Families: f}}).Public()
		if told == public && told != (subnet.Pair[netip.Addr]{}) { // of a lease that is gone nothing is known
			return f
		}
	}
	return backend.Matching
}

// inUserspace reports whether an agent has left a device for WireGuard that it stands behind itself.
func inUserspace() (bool, error) {
	k, err := kernel.Open()
	if err != nil {
		return false, err
	}
	defer k.Close()
	link, ours, err := k.Device(backend.Prefix + "-wg")
	return ours && link.Kind == backend.KindTUN, err
}

// formerLease is the lease that an agent of this host would hold under key.
func formerLease(key string, v api.View) (api.StoredLease, error) {
	subnets, err := subnet.ParseKey(key)
	if err != nil {
		return api.StoredLease{}, fmt.Errorf("this host's lease %q: %w", key, err)
	}
	config, _, err := subnet.ParseConfig([]byte(v.Config))
	if err != nil {
		return api.StoredLease{}, fmt.Errorf("the network's config: %w", err)
	}
	b, err := backend.New(config)
	if err != nil {
		return api.StoredLease{}, fmt.Errorf("the network's config: %w", err)
	}
	l, _ := backend.Host{Config: config, Self: subnet.Lease{Subnet: subnets}, Underlay: v.Underlay}.Announce(b)
	return api.StoredLease{Key: key, Value: string(l.MarshalValue())}, nil
}
