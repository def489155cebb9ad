package main

import (
	"context"
	"encoding/json"
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

func subnetText(l subnet.Lease) string {
	text := ""
	for _, p := range l.Subnet.All() {
		if text != "" {
			text += " "
		}
		text += p.String()
	}
	return text
}

// publicIP is where a lease's host is reached.
func publicIP(l subnet.Lease) string {
	for _, a := range l.PublicIP.All() {
		return a.String()
	}
	return ""
}

type leaseReserveCmd struct {
	etcdFlags `embed:""`
	Subnet    netip.Prefix `arg:"" help:"As in 10.5.7.0/24."`
	PublicIP  netip.Addr   `arg:"" name:"public-ip" help:"The host's address on the underlay."`
}

func (c *leaseReserveCmd) Run(ctx context.Context) error {
	client, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Reserve(ctx, c.Subnet, c.PublicIP); err != nil {
		return err
	}
	fmt.Printf("%s is reserved for %s; a host that holds another subnet takes it when its agent starts next\n", c.Subnet, c.PublicIP)
	return nil
}

type leaseReleaseCmd struct {
	etcdFlags `embed:""`
	Subnet    netip.Prefix `arg:"" help:"As in 10.5.7.0/24."`
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
	fmt.Printf("%s is released; it was %s's, which takes it again if its agent still runs\n", c.Subnet, dash(publicIP(l)))
	return nil
}
