package main

import (
	"strings"
	"testing"
)

func TestReservation(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"10.5.7.0/24 192.0.2.7":                           "10.5.7.0/24 for 192.0.2.7",
		"10.5.7.0/24 fd12::/64 192.0.2.7 2001:db8::7":     "10.5.7.0/24 fd12::/64 for 192.0.2.7 2001:db8::7",
		"2001:db8::7 fd12::/64":                           "fd12::/64 for 2001:db8::7",
		"10.5.7.0/24 fd12::/64 192.0.2.7":                 "10.5.7.0/24 fd12::/64 for 192.0.2.7",
		"10.5.7.0/24":                                     "name a subnet and its host's address",
		"192.0.2.7":                                       "name a subnet and its host's address",
		"10.5.7.0/240 192.0.2.7":                          `"10.5.7.0/240" is not a subnet like 10.5.7.0/24`,
		"10.5.7.0/24 web-1":                               `"web-1" is not an address like 192.0.2.7`,
		"10.5.7.0/24 10.5.8.0/24 192.0.2.7":               "10.5.8.0/24 and 10.5.7.0/24 are both IPv4: a host has one of each family",
		"10.5.7.0/24 2001:db8::7 2001:db8::8":             "2001:db8::8 and 2001:db8::7 are both IPv6: a host has one of each family",
		"10.5.7.0/24 fd12::/64 192.0.2.7 192.0.2.8 extra": "192.0.2.8 and 192.0.2.7 are both IPv4: a host has one of each family",
	} {
		subnets, host, err := reservation(strings.Fields(args))
		got := words(subnets) + " for " + words(host)
		if err != nil {
			got = err.Error()
		}
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, want %s", args, got, want)
		}
	}
}
