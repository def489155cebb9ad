package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// What the log says is what tulle events shows (see journal): one line for each fact, when it is news.

// say logs a line unless it is what was last said about the topic.
func (a *Agent) say(topic string, level slog.Level, message string, args ...any) {
	text := fmt.Sprint(append([]any{message}, args...)...)
	if a.state.said[topic] == text {
		return
	}
	a.state.said[topic] = text
	a.log.Log(context.Background(), level, message, args...)
}

// warn notes what an operator should do something about, "" for nothing any more: in the log once, and in the status for as
// long as it lasts.
func (a *Agent) warn(topic, text string) {
	if text == "" {
		delete(a.state.warnings, topic)
		delete(a.state.said, topic)
		return
	}
	a.state.warnings[topic] = text
	a.say(topic, slog.LevelWarn, text)
}

func (a *Agent) sayEtcd() {
	if err := a.state.etcd; err != nil {
		a.say("etcd", slog.LevelWarn, "etcd is out of reach; the network stays as it is", "error", err)
	} else if a.state.said["etcd"] != "" {
		delete(a.state.said, "etcd")
		a.log.Info("etcd is in reach again")
	}
}

// sayFilter says how the packet filter's rules are made.
func (a *Agent) sayFilter() {
	name, why := a.firewall.Chosen()
	if name == "" { // nothing could be looked at yet, of which the failure tells
		return
	}
	a.say("packet filter", slog.LevelInfo, "packet filter", "by", name, "why", why)
}

func (a *Agent) sayConfig() {
	s := &a.state
	switch {
	case !s.listed:
	case s.stored.Revision == 0 && s.config.Revision == 0:
		a.say("config", slog.LevelWarn, "no network config in etcd: waiting for one", "store-one-with", a.setConfig(`{"Network":"10.5.0.0/16"}`))
	case s.stored.Revision == 0:
		a.say("config", slog.LevelWarn, "the network's config was deleted from etcd: going on with the one before", "store-it-with", a.setConfig(s.config.Text))
	case s.stored.Err != nil:
		a.say("config", slog.LevelError, "the network's config is not valid", "error", s.stored.Err)
	default:
		a.say("config", slog.LevelInfo, "network config", "network", networks(s.config.Config), "subnet-length", lengths(s.config.Config),
			"backend", backendName(s.config.Config))
	}
}

// networks writes a config's ranges.
func networks(c subnet.Config) string {
	return ofRanges(c, func(r subnet.Range) netip.Prefix { return r.Network })
}

// lengths writes how long the prefixes of its subnets are.
func lengths(c subnet.Config) string {
	return ofRanges(c, func(r subnet.Range) int { return r.SubnetLen })
}

func ofRanges[T comparable](c subnet.Config, of func(subnet.Range) T) string {
	var p subnet.Pair[T]
	for f, r := range c.Range.All() {
		*p.At(f) = of(r)
	}
	return each(p)
}

// sayChanged says what is new about the network's config: which is seldom, and for all hosts.
func (a *Agent) sayChanged(before, now subnet.StoredConfig) {
	if before.Revision != 0 && before.Text != now.Text {
		a.log.Info("the network's config has changed", "before", backend.Redact(before.Text, "(hidden)"), "now", backend.Redact(now.Text, "(hidden)"))
	}
}

// setConfig is the command that stores a config. What is secret of it has to be filled in: it does not work as it is.
func (a *Agent) setConfig(text string) string {
	text = backend.Redact(text, "(hidden)")
	return "echo '" + strings.ReplaceAll(text, "'", `'\''`) + "' | " + a.config.SetConfig
}

// backendName says which backend a config asks for, and that it is the default if it does not say.
func backendName(c subnet.Config) string {
	if c.Backend.Type == "" {
		return "vxlan (the default: the config names none)"
	}
	return c.Backend.Type
}

// sayWireGuard says who encrypts, and with which key.
func (a *Agent) sayWireGuard(f backend.Facts) {
	if f.Userspace {
		a.say("wireguard", slog.LevelInfo, "this kernel has no WireGuard: encrypting in this process")
	} else {
		a.say("wireguard", slog.LevelInfo, "WireGuard: in the kernel")
	}
	a.say("key", slog.LevelInfo, "this host's WireGuard key", "public-key", f.Key.Public())
}

func (a *Agent) sayLease(own subnet.Own) {
	before, l := a.state.own.Lease, own.Lease
	if own.Yielded != "" {
		a.say("yielded", slog.LevelWarn, own.Yielded)
	}
	switch {
	case a.state.own.Held() && before.Subnet != l.Subnet:
		a.sayRenumbered(before.Subnet, l.Subnet)
	case own.Err != nil:
		a.say("lease", slog.LevelWarn, "the lease is held, but can't be looked after", "error", own.Err)
	default:
		a.say("lease", slog.LevelInfo, "lease held", "subnet", each(l.Subnet), "public-ip", each(l.PublicIP), "reserved", own.Reserved)
	}
}

// sayRenumbered says that this host's subnets are others now, or more: as when a network that has IPv4 gets IPv6, too.
func (a *Agent) sayRenumbered(before, now subnet.Pair[netip.Prefix]) {
	delete(a.state.said, "lease")
	kept := true
	for f, p := range before.All() {
		kept = kept && now.Of(f) == p
	}
	if kept {
		a.log.Warn("this host has a subnet of another family, too: restart Docker, so that its containers get addresses of it", "subnet", each(now), "before", each(before))
	} else {
		a.log.Error("this host has another subnet now: restart Docker, or its containers stay cut off", "subnet", each(now), "before", each(before))
	}
	a.state.warnings["renumbered"] = fmt.Sprintf("this host's subnet changed from %s to %s while the agent ran: if Docker was not restarted since, restart it", each(before), each(now))
}

// happening is what became of a peer.
type happening struct {
	key  string
	ip   string
	what string
}

// news says who comes, goes and changes with u, if they are few. It must be asked before u is merged.
func (a *Agent) news(u subnet.Update) (events []happening) {
	if u.Reset || len(u.Leases) > talkative {
		return nil
	}
	for key, e := range u.Leases {
		before, known := a.state.entries[key]
		_, left := a.state.rejected[key]
		switch {
		case key == a.state.own.Lease.Key() || subnet.SameHost(before.Lease.PublicIP, a.state.own.Lease.PublicIP) || e.Err != nil:
		case e == (subnet.Entry{}) && (left || !known): // it never was a peer
		case e == (subnet.Entry{}):
			events = append(events, happening{key, each(before.Lease.PublicIP), "left"})
		case known:
			events = append(events, happening{key, each(e.Lease.PublicIP), difference(before.Lease, e.Lease)})
		default:
			events = append(events, happening{key, each(e.Lease.PublicIP), "joined"})
		}
	}
	return events
}

// difference says what is new about a peer.
func difference(before, now subnet.Lease) string {
	switch {
	case before.PublicIP != now.PublicIP:
		return "has come from " + each(before.PublicIP)
	case before.Backend != now.Backend:
		return fmt.Sprintf("has changed its backend from %q to %q", before.Backend, now.Backend)
	case before.Data != now.Data:
		return cmp.Or(map[string]string{"vxlan": "has another VTEP", "l2": "has another VNI", "wireguard": "has another key, or port"}[now.Backend], "has other data")
	}
	return "has renewed its key"
}

// sayPeers logs what happened to peers, those aside that are left out.
func (a *Agent) sayPeers(u subnet.Update, events []happening) {
	switch {
	case u.Reset:
		a.log.Info("leases listed", "count", len(u.Leases), "revision", u.Revision)
	case len(u.Leases) > talkative:
		a.log.Info("leases changed", "count", len(u.Leases), "revision", u.Revision)
	}
	for _, e := range events {
		if _, left := a.state.rejected[e.key]; !left {
			a.log.Info(fmt.Sprintf("peer %s (%s) %s", subnetName(e.key), e.ip, e.what), "lease", e.key, "public-ip", e.ip)
		}
	}
}

// subnetName is how people write what a key names.
func subnetName(key string) string {
	subnets, err := subnet.ParseKey(key)
	if err != nil {
		return abridged(key)
	}
	var names []string
	for _, p := range subnets.All() {
		names = append(names, p.String())
	}
	return strings.Join(names, ", ")
}

// sayRejected logs each lease that is left out once; of many at a time, how many.
func (a *Agent) sayRejected() {
	s := &a.state
	if s.plan == nil {
		return
	}
	rejected, said, more := s.plan.Rejected(), 0, map[subnet.Reason]int{}
	for key, r := range rejected {
		if s.rejected[key] == r {
			continue
		}
		s.rejected[key] = r
		a.aimAt(key)
		if said++; said > talkative {
			more[r.Reason]++
			continue
		}
		a.log.Warn("lease left out", "lease", abridged(key), "reason", r.Reason, "detail", r.Detail)
	}
	if said > talkative {
		a.log.Warn("more leases left out", "count", said-talkative, "reasons", fmt.Sprint(more))
	}
	if len(s.rejected) > len(rejected) {
		maps.DeleteFunc(s.rejected, func(key string, _ subnet.Reject) bool {
			_, still := rejected[key]
			if !still {
				a.aimAt(key)
			}
			return !still
		})
	}
}

// abridged keeps a key that anybody may have written from filling the log.
func abridged(key string) string {
	const longest = 100 // bytes
	if len(key) > longest {
		return strings.ToValidUTF8(key[:longest], "") + "…"
	}
	return key
}

// sayDrift logs what somebody else had done to what is ours: each entry, or of many at a time how many.
func (a *Agent) sayDrift(done outcome, count map[string]int) {
	for table, n := range count {
		a.state.drift[table] += n
		a.metrics.drifted(table, n)
		if n > talkative {
			a.log.Warn(fmt.Sprintf("%d entries of table %s were deleted or changed by someone else, restored", n, table), "table", table, "entries", n)
		}
	}
	var lines []string
	for d := range done.Deviations() {
		if count[d.Table] <= talkative {
			lines = append(lines, drifted(d))
		}
	}
	if done.chains > 0 {
		lines = append(lines, fmt.Sprintf("the packet filter's rules were changed by someone else, restored (chains: %d)", done.chains))
	}
	slices.Sort(lines)
	for _, line := range lines {
		a.log.Warn(line)
	}
}

func drifted(d backend.Deviation) string {
	if d.Was == "added" {
		return d.Object + " was added in our name by someone else, removed"
	}
	return fmt.Sprintf("%s was %s by someone else, restored", d.Object, d.Was)
}
