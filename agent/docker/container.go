package docker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
)

// Container is one that a dockerd knows.
type Container struct {
	ID  string // in full
	PID int    // of its first process; 0 if it does not run
}

// Find asks the dockerd behind a unix socket for a container, by name or ID (Docker Engine API, /containers/NAME/json).
func Find(ctx context.Context, socket, name string) (Container, error) {
	var answer struct {
		ID    string `json:"Id"`
		State struct{ Pid int }
	}
	switch err := ask(ctx, socket, "containers/"+url.PathEscape(name)+"/json", &answer); {
	case errors.Is(err, errAbsent):
		return Container{}, fmt.Errorf("dockerd has no container %q: docker ps -a lists those that it has", name)
	case err != nil:
		return Container{}, err
	}
	return Container{ID: answer.ID, PID: answer.State.Pid}, nil
}

// Taken returns which addresses of p containers on Docker's default network have. It is an error if Docker may hand out more of
// them: if it was not started with a --fixed-cidr that leaves p out.
func Taken(ctx context.Context, socket string, p netip.Prefix) (taken []netip.Addr, err error) {
	var network struct {
		IPAM struct {
			Config []struct{ Subnet, IPRange string }
		}
		Containers map[string]struct{ IPv4Address, IPv6Address string }
	}
	if err := ask(ctx, socket, "networks/bridge", &network); errors.Is(err, errAbsent) { // dockerd --bridge=none
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	for _, c := range network.IPAM.Config {
		pool := c.IPRange
		if pool == "" {
			pool = c.Subnet
		}
		if has, err := netip.ParsePrefix(pool); err == nil && has.Overlaps(p) {
			return nil, fmt.Errorf("dockerd hands out addresses of %s itself: restart it with the DOCKER_OPTS of the agent's env file, whose --fixed-cidr keeps it from that", p)
		}
	}
	for _, c := range network.Containers {
		for _, text := range []string{c.IPv4Address, c.IPv6Address} {
			if a, err := netip.ParsePrefix(text); err == nil && p.Contains(a.Addr()) { // kept from before the restart (--live-restore)
				taken = append(taken, a.Addr())
			}
		}
	}
	return taken, nil
}

// ask reads one of the API's objects, and says what to do if no dockerd answers.
func ask(ctx context.Context, socket, name string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	err := get(ctx, unixTransport(socket), name, into)
	if err == nil || errors.Is(err, errAbsent) {
		return err
	}
	return fmt.Errorf("dockerd at %s: %w: start Docker, say with --docker-host where it listens, or name the container's network namespace with --pid or --netns", socket, err)
}
