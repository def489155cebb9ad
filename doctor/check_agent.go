package doctor

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tulle-net/tulle/subnet"
)

func noAgent(f Facts) []Finding {
	if f.Absent == "" {
		return nil
	}
	return one("no agent answers on this host: nothing is repaired, peers that join are not reached, and the lease expires", f.Absent,
		"systemctl start tulle, and if it does not stay up: journalctl -u tulle")
}

func notReady(f Facts) []Finding {
	if f.Status.Ready {
		return nil
	}
	return one("the agent is not ready: containers of this host may not be reached", f.Status.Reason,
		"do what the reason says, or see to the other findings; journalctl -u tulle tells more")
}

// warnings hands on what the agent warns of and no other check looks at.
func warnings(f Facts) (findings []Finding) {
	for _, w := range f.Status.Warnings {
		if bridge := f.Status.Docker.Bridge; bridge != "" && strings.HasPrefix(w, bridge+" has ") {
			continue // bridge-address, live-restore
		}
		what, fix, _ := strings.Cut(w, ": ")
		findings = append(findings, Finding{What: what, Evidence: "the agent's log and tulle status: " + w, Fix: cmp.Or(fix, "do what it says")})
	}
	return findings
}

func etcdLost(f Facts) []Finding {
	var silent, errs []string
	for _, e := range f.Etcd.Endpoints {
		if e.Error != "" {
			silent, errs = append(silent, e.URL), append(errs, e.URL+": "+e.Error)
		}
	}
	const fix = "start etcd on %s, or see why it is not reached: curl %s/health"
	switch {
	case f.Etcd.Error != "" && len(silent) == 0:
		return one("etcd does not answer: the network stays as it is, and no host can join", f.Etcd.Error, "start etcd, or name where it is: --etcd-endpoints")
	case len(silent) == 0:
		return nil
	case f.Etcd.Error != "":
		return one("etcd does not answer: the network stays as it is, and no host can join", strings.Join(errs, "\n"), fmt.Sprintf(fix, strings.Join(silent, ", "), silent[0]))
	}
	return one(fmt.Sprintf("%d of etcd's %d members do not answer: the others go on without them", len(silent), len(f.Etcd.Endpoints)), strings.Join(errs, "\n"),
		fmt.Sprintf(fix, strings.Join(silent, ", "), silent[0]))
}

// maxClock is how far clocks may be apart. NTP keeps them within milliseconds.
const maxClock = 5 * time.Second

func clocks(f Facts) (findings []Finding) {
	for _, e := range f.Etcd.Endpoints {
		ahead := time.Duration(e.Clock * float64(time.Second))
		if ahead.Abs() <= maxClock {
			continue
		}
		way := "ahead of"
		if ahead < 0 {
			way = "behind"
		}
		findings = append(findings, Finding{What: fmt.Sprintf("the clock of etcd at %s is %s %s this host's", e.URL, ahead.Abs(), way),
			Evidence: fmt.Sprintf("the Date that %s/version answers with", e.URL), Fix: "timedatectl set-ntp true, on both (timedatectl says which is wrong)"})
	}
	return findings
}

// leaseTTL is what agents ask etcd for (package etcd).
const leaseTTL = 24 * time.Hour

func leaseLost(f Facts) []Finding {
	self := f.Plan.Host().Self
	switch {
	case f.Etcd.Error != "" || self.Key() == "":
		return nil
	case f.Etcd.Lease == nil:
		return one(fmt.Sprintf("this host's lease %s is gone from etcd: another host may take the subnet", self.Key()), "etcd has no key subnets/"+self.Key(),
			"systemctl restart tulle: it takes the subnet again if it is free")
	}
	if now, err := subnet.ParseLease(self.Key(), []byte(f.Etcd.Lease.Value)); err == nil && now.PublicIP != self.PublicIP {
		return one(fmt.Sprintf("another host, %s, holds this host's lease %s", addresses(now), self.Key()),
			fmt.Sprintf("etcd's key subnets/%s: %s", self.Key(), f.Etcd.Lease.Value),
			"systemctl restart tulle for another subnet, and then Docker; if the other is a clone of this machine, give it an address of its own")
	}
	return nil
}

// addresses are those of a lease's host.
func addresses(l subnet.Lease) string {
	var all []string
	for _, a := range l.PublicIP.All() {
		all = append(all, a.String())
	}
	return strings.Join(all, ", ")
}

// leaseExpiring looks for less than a quarter left: agents renew when a quarter to a third is over. A reservation has no end.
func leaseExpiring(f Facts) []Finding {
	left, granted := time.Duration(f.Etcd.TTL*float64(time.Second)), leaseTTL
	if l := f.Status.Lease; l != nil && l.Expires != nil && l.Renewed != nil {
		granted = l.Expires.Sub(*l.Renewed)
		if left == 0 && !l.Reserved {
			left = l.Expires.Sub(f.Now)
		}
	}
	if f.Etcd.Error == "" && (f.Etcd.Lease == nil || f.Etcd.Lease.Reserved) || left == 0 || left >= granted/4 {
		return nil
	}
	return one(fmt.Sprintf("the lease expires in %s and is not renewed", left.Round(time.Minute)),
		fmt.Sprintf("%s: %s of %s are left (tulle lease ls)", f.Plan.Host().Self.Key(), left.Round(time.Second), granted),
		"see that the agent runs and reaches etcd: systemctl status tulle")
}

// duplicates makes a finding for each value that several leases share. A lease may have several: one for each family.
func duplicates[K comparable](f Facts, of func(subnet.Lease, subnet.Family) (K, bool), what string, fix func(keys []string) string) (findings []Finding) {
	keys := map[K][]string{}
	entries := f.Plan.Entries()
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		e := entries[key]
		if e.Err != nil || e.Reserved && e.Lease.Idle() { // a reservation that its host will change to
			continue
		}
		for _, family := range []subnet.Family{subnet.IPv4, subnet.IPv6} {
			if v, ok := of(e.Lease, family); ok && !slices.Contains(keys[v], key) {
				keys[v] = append(keys[v], key)
			}
		}
	}
	for v, list := range keys {
		if len(list) > 1 {
			slices.SortFunc(list, func(a, b string) int { return int(entries[a].Created - entries[b].Created) })
			var rows []string
			for _, key := range list {
				rows = append(rows, fmt.Sprintf("%s of %s", key, addresses(entries[key].Lease)))
			}
			findings = append(findings, Finding{What: fmt.Sprintf("%d leases have the %s %v", len(list), what, v),
				Evidence: "etcd has, the oldest first: " + strings.Join(rows, "; "), Fix: fix(list)})
		}
	}
	slices.SortFunc(findings, func(a, b Finding) int { return strings.Compare(a.What, b.What) })
	return findings
}

func duplicateAddresses(f Facts) []Finding {
	address := func(l subnet.Lease, f subnet.Family) (netip.Addr, bool) {
		return l.PublicIP.Of(f), l.PublicIP.Of(f).IsValid()
	}
	return duplicates(f, address, "public address", func(keys []string) string {
		own := f.Plan.Host().Self.Key()
		keys = slices.DeleteFunc(keys, func(key string) bool { return key == own })
		return fmt.Sprintf("if one host had them in turn, release what it no longer uses: tulle lease release SUBNET (%s); "+
			"if they are several hosts (clones, or behind one NAT), give each an address of its own with --public-ip", release(strings.Join(keys, " or ")))
	})
}

// release writes a key as tulle lease release takes it: a lease by the first of its subnets.
func release(key string) string {
	first, _, _ := strings.Cut(key, "&")
	return strings.ReplaceAll(first, "-", "/")
}

func duplicateMACs(f Facts) []Finding {
	mac := func(l subnet.Lease, f subnet.Family) (string, bool) {
		var data struct{ VtepMAC string }
		err := json.Unmarshal([]byte(l.Data.Of(f)), &data)
		return strings.ToLower(data.VtepMAC), err == nil && data.VtepMAC != ""
	}
	return duplicates(f, mac, "VTEP MAC", func(keys []string) string {
		return fmt.Sprintf("give the hosts VTEP MACs of their own: restart the clone's agent; or release what nobody uses: tulle lease release %s",
			release(keys[len(keys)-1]))
	})
}

func duplicateKeys(f Facts) []Finding {
	key := func(l subnet.Lease, f subnet.Family) (string, bool) {
		var data struct{ PublicKey string }
		err := json.Unmarshal([]byte(l.Data.Of(f)), &data)
		return data.PublicKey, l.Backend == "wireguard" && err == nil && data.PublicKey != ""
	}
	return duplicates(f, key, "WireGuard key", func(keys []string) string {
		return fmt.Sprintf("give the clone a key of its own: delete wireguard.key from its agent's state directory, and restart the agent; or release what nobody uses: tulle lease release %s",
			release(keys[len(keys)-1]))
	})
}

// remedies say what to do about a lease that is left out.
var remedies = map[subnet.Reason]string{
	subnet.BadKey:       "delete the key from etcd: it is nobody's lease",
	subnet.BadValue:     "delete the key from etcd, or restart the agent of its host, which writes it anew",
	subnet.BadAddress:   "restart its host's agent with a --public-ip on the underlay, or release it",
	subnet.OutOfNetwork: "restart its host's agent, so that it takes a subnet of the network as it is now",
	subnet.OnUnderlay:   "release it, and keep the underlay's range out of the network's (SubnetMin, SubnetMax)",
	subnet.Overlap:      "release it, or the older one that it overlaps",
	subnet.Conflict:     "see duplicate-mac and duplicate-key",
	subnet.OwnAddress:   "see duplicate-public-ip",
	subnet.BadMAC:       "restart its host's agent",
	subnet.WrongVNI:     "restart its host's agent, or set its config's VNI to the network's",
	subnet.NotOnLink:    "put its host on this host's segment, or take a backend that does not need that: vxlan with DirectRouting",
	subnet.OtherFamily:  "give both hosts a family in common: on the underlay by --underlay-family both where a host has both, inside by the network's config (EnableIPv6), which each host follows once it holds a subnet of that family",
	subnet.WrongBackend: "look at its agent there (tulle status): it takes the network's backend as soon as it is in touch with etcd; restart flanneld, which reads the config once",
}

func leftOut(f Facts) (findings []Finding) {
	rows := map[subnet.Reason][]string{}
	rejected := f.Plan.Rejected()
	for _, key := range slices.Sorted(maps.Keys(rejected)) {
		r := rejected[key]
		of := ""
		if hosts := addresses(f.Plan.Entries()[key].Lease); hosts != "" {
			of = " of " + hosts
		}
		rows[r.Reason] = append(rows[r.Reason], fmt.Sprintf("%.60q%s: %s", key, of, r.Detail))
	}
	for _, reason := range slices.Sorted(maps.Keys(rows)) {
		what := fmt.Sprintf("%s left out (%s): this host sends nothing there", count(len(rows[reason]), "lease"), reason)
		if reason == subnet.WrongBackend {
			what = fmt.Sprintf("%s still on another backend than the network's, which is %s: this host sends nothing there", count(len(rows[reason]), "host"), carriage(f.Plan))
		}
		findings = append(findings, Finding{What: what,
			Evidence: some(rows[reason]), Fix: remedies[reason] + " (tulle lease ls shows all, tulle lease release SUBNET releases one)"})
	}
	return findings
}

// some are the first of many lines.
func some(lines []string) string {
	const most = 5
	if len(lines) <= most {
		return strings.Join(lines, "\n")
	}
	return strings.Join(lines[:most], "\n") + fmt.Sprintf("\nand %d more", len(lines)-most)
}
