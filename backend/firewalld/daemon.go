package firewalld

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/tulle-net/tulle/subnet"
)

// firewalld's names on the bus (firewalld.dbus(5)).
const (
	name         = "org.fedoraproject.FirewallD1"
	path         = "/org/fedoraproject/FirewallD1"
	ownerChanged = "org.freedesktop.DBus.NameOwnerChanged"
)

// losses are the signals after which firewalld may lack what it was told.
var losses = []string{name + ".Reloaded", name + ".zone.InterfaceRemoved", name + ".zone.SourceRemoved",
	name + ".zone.ZoneOfInterfaceChanged", name + ".zone.ZoneOfSourceChanged"}

// answerTime is how long firewalld may take for an answer. It gives none while it reloads, which takes a second or so.
const answerTime = 5 * time.Second

// matches are the signals to listen to: firewalld's, and of who is firewalld.
func matches() [][]dbus.MatchOption {
	return [][]dbus.MatchOption{
		{dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, name)},
		{dbus.WithMatchSender(name), dbus.WithMatchObjectPath(path)},
	}
}

// daemon is a firewalld that runs.
type daemon struct{ conn *dbus.Conn }

// call calls one of firewalld's methods, and never starts a firewalld to do so.
func (d *daemon) call(ctx context.Context, object dbus.ObjectPath, method string, args ...any) *dbus.Call {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return d.conn.Object(name, object).CallWithContext(ctx, name+"."+method, dbus.FlagNoAutoStart, args...)
}

// isGone reports whether a call got no answer because firewalld, or the bus, has ended.
func isGone(err error) bool {
	var answer dbus.Error
	if !errors.As(err, &answer) {
		return errors.Is(err, dbus.ErrClosed)
	}
	return slices.Contains([]string{"ServiceUnknown", "NameHasNoOwner", "NoReply"}, strings.TrimPrefix(answer.Name, "org.freedesktop.DBus.Error."))
}

// advice is what to do about an error: otherwise, unless firewalld takes no orders from the user that this process runs as. It asks
// polkit, and where there is none, it takes them from root alone.
func advice(err error, otherwise string) string {
	if answer := (dbus.Error{}); errors.As(err, &answer) && answer.Name == name+".NotAuthorizedException" {
		return "let the agent's user tell it: that takes polkit, and deploy/systemd/polkit/tulle.rules in /etc/polkit-1/rules.d"
	}
	return otherwise
}

// zones returns which zone each member is in.
func (d *daemon) zones(ctx context.Context) (map[member]string, error) {
	var active map[string]map[string][]string
	if err := d.call(ctx, path, "zone.getActiveZones").Store(&active); err != nil {
		return nil, fmt.Errorf("ask firewalld for its zones: %w: %s", err, advice(err, "is it well (firewall-cmd --state)?"))
	}
	zones := map[member]string{}
	for zone, lists := range active {
		for key, kind := range map[string]string{"interfaces": device, "sources": source} {
			for _, name := range lists[key] {
				zones[member{kind, name}] = zone
			}
		}
	}
	return zones, nil
}

// set puts members into the zone that are in none, and takes those out that are not among members and of which former says that they
// were. It goes on past a failure.
func (d *daemon) set(ctx context.Context, zones map[member]string, members map[member]struct{}, former func(member) bool) (added, removed []string, err error) {
	var errs []error
	for m := range members {
		if zones[m] != "" { // there already, or where the operator wants it
			continue
		}
		if err := d.call(ctx, path, "zone.add"+m.kind, zone, m.name).Err; err != nil {
			errs = append(errs, fmt.Errorf("put %s into firewalld's zone %s: %w: %s", m, zone, err, advice(err, "firewalld may reject the overlay's packets until it is there")))
			continue
		}
		added = append(added, m.name)
	}
	for m, in := range zones {
		if _, wanted := members[m]; wanted || in != zone || !former(m) || d.permanent(ctx, m) {
			continue
		}
		if err := d.call(ctx, path, "zone.remove"+m.kind, zone, m.name).Err; err != nil {
			errs = append(errs, fmt.Errorf("take %s out of firewalld's zone %s: %w", m, zone, err))
			continue
		}
		removed = append(removed, m.name)
	}
	return added, removed, errors.Join(errs...)
}

// permanent reports whether m is in the zone by firewalld's config: an operator's doing, for we never write that.
func (d *daemon) permanent(ctx context.Context, m member) bool {
	var object dbus.ObjectPath
	var there bool
	if d.call(ctx, path+"/config", "config.getZoneByName", zone).Store(&object) != nil {
		return false
	}
	return d.call(ctx, object, "config.zone.query"+m.kind, m.name).Store(&there) == nil && there
}

// Cleanup takes out of the zone what agents of this host have put there, for a network of this range. No firewalld, no work.
func Cleanup(ctx context.Context, network subnet.Pair[netip.Prefix]) (removed []string, err error) {
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		return nil, nil // there is no bus
	}
	defer conn.Close()
	return cleanup(ctx, conn, network)
}

func cleanup(ctx context.Context, conn *dbus.Conn, network subnet.Pair[netip.Prefix]) (removed []string, err error) {
	var runs bool
	if err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, name).Store(&runs); err != nil || !runs {
		return nil, err
	}
	d := daemon{conn}
	zones, err := d.zones(ctx)
	if err != nil {
		return nil, err
	}
	_, names, err := d.set(ctx, zones, nil, func(m member) bool { return ours(m, network) })
	for _, name := range names {
		removed = append(removed, name+" from firewalld's zone "+zone)
	}
	return removed, err
}
