package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tulle-net/tulle/subnet"
)

type leaseCmd struct {
	Ls      leaseLsCmd      `cmd:"" help:"Show who holds which subnet, and until when."`
	Reserve leaseReserveCmd `cmd:"" help:"Keep a subnet for a host, whether or not it runs."`
	Release leaseReleaseCmd `cmd:"" help:"Give a subnet back, leased or reserved: for a host that won't return."`
}

// printable makes text that anybody may have written fit for a table on a terminal.
func printable(text string) string {
	const longest = 60 // bytes
	if len(text) > longest {
		text = text[:longest] + "…"
	}
	if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsGraphic(r) }) {
		return strconv.Quote(text)
	}
	return text
}

type leaseLsCmd struct {
	etcdFlags `embed:""`
	JSON      bool `name:"json" help:"Print JSON."`
}

// leaseRow is a line of the list.
type leaseRow struct {
	Subnet   string     `json:"subnet"`
	PublicIP string     `json:"public_ip"`
	Backend  string     `json:"backend"`
	State    string     `json:"state"` // leased, reserved, or why it can't be read
	Expires  *time.Time `json:"expires,omitempty"`
}

func (c *leaseLsCmd) Run(ctx context.Context) error {
	client, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	holders, err := client.Leases(ctx)
	if err != nil {
		return err
	}
	rows := []leaseRow{}
	for _, h := range holders {
		row := leaseRow{Subnet: subnetText(h.Lease), PublicIP: publicIP(h.Lease), Backend: h.Lease.Backend, State: "leased"}
		switch {
		case h.Err != nil:
			row = leaseRow{Subnet: h.Key, State: h.Err.Error()}
		case h.Reserved:
			row.State = "reserved"
		default:
			expires := h.Expires.UTC().Truncate(time.Second)
			row.Expires = &expires
		}
		rows = append(rows, row)
	}
	if c.JSON {
		return json.NewEncoder(os.Stdout).Encode(rows)
	}
	if len(rows) == 0 {
		fmt.Println("no leases")
		return nil
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SUBNET\tPUBLIC IP\tBACKEND\tSTATE\tEXPIRES")
	for _, r := range rows {
		expires := "never"
		if r.Expires != nil {
			expires = fmt.Sprintf("in %s", time.Until(*r.Expires).Round(time.Minute))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", printable(r.Subnet), dash(r.PublicIP), dash(printable(r.Backend)), r.State, expires)
	}
	return w.Flush()
}

func subnetText(l subnet.Lease) string { return words(l.Subnet) }

// publicIP is where a lease's host is reached.
func publicIP(l subnet.Lease) string { return words(l.PublicIP) }

// words are a pair's values, apart by a space.
func words[T comparable](p subnet.Pair[T]) string { return p.Join(" ") }

type leaseReserveCmd struct {
	etcdFlags `embed:""`
	What      []string `arg:"" name:"subnet-and-public-ip" help:"A subnet, as in 10.5.7.0/24, and its host's address on the underlay; or one of each family."`
}

func (c *leaseReserveCmd) Run(ctx context.Context) error {
	subnets, host, err := reservation(c.What)
	if err != nil {
		return err
	}
	client, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Reserve(ctx, subnets, host); err != nil {
		return err
	}
	fmt.Printf("%s is reserved for %s; a host that holds another subnet takes it when its agent starts next\n", words(subnets), words(host))
	return nil
}

// reservation reads what is to be reserved, and for which host: what has a slash is a subnet.
func reservation(texts []string) (subnets subnet.Pair[netip.Prefix], host subnet.Pair[netip.Addr], err error) {
	for _, text := range texts {
		if strings.Contains(text, "/") {
			err = put(&subnets, text, "a subnet like 10.5.7.0/24", netip.ParsePrefix, netip.Prefix.Addr)
		} else {
			err = put(&host, text, "an address like 192.0.2.7", netip.ParseAddr, netip.Addr.Unmap)
		}
		if err != nil {
			return subnets, host, err
		}
	}
	if words(subnets) == "" || words(host) == "" {
		err = errors.New("name a subnet and its host's address on the underlay, or one of each family, as in 10.5.7.0/24 fd12:3456:0:7::/64 192.0.2.7 2001:db8::7")
	}
	return subnets, host, err
}

// put parses a text into the place of its family, which must be empty.
func put[T comparable](p *subnet.Pair[T], text, like string, parse func(string) (T, error), addr func(T) netip.Addr) error {
	v, err := parse(text)
	if err != nil {
		return fmt.Errorf("%q is not %s", text, like)
	}
	f := subnet.FamilyOf(addr(v))
	if already := p.Of(f); already != *new(T) {
		return fmt.Errorf("%s and %v are both %s: a host has one of each family", text, already, f)
	}
	*p.At(f) = v
	return nil
}

type leaseReleaseCmd struct {
	etcdFlags `embed:""`
	Subnet    string `arg:"" help:"As in 10.5.7.0/24: any of its subnets, or its key in etcd."`
}

func (c *leaseReleaseCmd) Run(ctx context.Context) error {
	client, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	l, err := client.Release(ctx, c.Subnet)
	if err != nil {
		return err
	}
	fmt.Printf("%s is released; it was %s's, which takes it again if its agent still runs\n", cmp.Or(subnetText(l), c.Subnet), dash(publicIP(l)))
	return nil
}
