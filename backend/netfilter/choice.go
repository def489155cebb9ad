package netfilter

import (
	"slices"

	"github.com/google/nftables"

	"github.com/tulle-net/tulle/backend"
)

// Choice is an operator's, of how the rules are made.
type Choice string

// Auto takes what Docker and the host use.
const (
	Auto     Choice = "auto"
	IPTables Choice = "iptables"
	NFTables Choice = "nftables"
)

// chosen is how the rules are made, and why.
type chosen struct {
	name string // iptables-nft, iptables-legacy, iptables or nftables
	why  string
}

func (c chosen) nftables() bool { return c.name == string(NFTables) }

// Chosen is what the last Apply has chosen, and why.
func (t *Filter) Chosen() (name, why string) { return t.chosen.name, t.chosen.why }

// choose says how f is put in force on this host, given whether a Docker has rules in iptables.
func (t *Filter) choose(f backend.Firewall, docker bool) chosen {
	c, nftables, iptables := t.choice, string(NFTables), installed()
	switch {
	case c == NFTables:
		return chosen{nftables, "--firewall"}
	case c == IPTables && iptables == "":
		return chosen{string(IPTables), "--firewall"} // and an error, soon
	case c == IPTables:
		return chosen{iptables, "--firewall"}
	case f.NFTables:
		return chosen{nftables, "EnableNFTables in the network's config"}
	case f.Mark != 0:
		return chosen{nftables, "Docker's firewall backend is nftables" + t.firewalld()}
	case iptables == "":
		return chosen{nftables, "iptables is not installed" + t.firewalld()}
	case docker:
		return chosen{iptables, "Docker's rules are there" + t.firewalld()}
	}
	return chosen{iptables, "it is installed, and Docker will use it" + t.firewalld()}
}

// firewalld adds that there is one, whose rules no other table lifts.
func (t *Filter) firewalld() string {
	tables, _ := t.nft.ListTablesOfFamily(nftables.TableFamilyINet) // an error is Apply's to tell
	if slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == "firewalld" }) {
		return ", beside firewalld"
	}
	return ""
}
