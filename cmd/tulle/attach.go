package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/tulle-net/tulle/agent/attach"
	"github.com/tulle-net/tulle/agent/docker"
)

// targetFlags say which container, or which other network namespace.
type targetFlags struct {
	Container  string `arg:"" optional:"" help:"Name or ID of a Docker container."`
	PID        int    `name:"pid" help:"Instead: whatever network namespace this process is in." placeholder:"PID"`
	Netns      string `help:"Instead: a network namespace by its name, as ip netns has it, or its path." placeholder:"NAME|PATH"`
	DockerHost string `default:"unix:///var/run/docker.sock" help:"Where this host's dockerd listens (default ${default})." placeholder:"URL"`
}

// socket is the path in --docker-host; "" if Docker isn't concerned.
func (f targetFlags) socket() (string, error) {
	if f.Container == "" {
		return "", nil
	}
	path, ok := strings.CutPrefix(f.DockerHost, "unix://")
	if !ok {
		return "", fmt.Errorf("--docker-host %s: the container must be on this host, so its dockerd listens on a unix socket: give unix://PATH", f.DockerHost)
	}
	return path, nil
}

// target finds the network namespace. That of a container that doesn't run is attach.Gone.
func (f targetFlags) target(ctx context.Context, socket string) (attach.Target, error) {
	switch {
	case f.Container != "" && f.PID == 0 && f.Netns == "":
		c, err := docker.Find(ctx, socket, f.Container)
		target := attach.Gone(c.ID)
		if err == nil && c.PID != 0 {
			target, err = attach.Open(c.ID, procNetns(c.PID))
		}
		target.Name = f.Container
		return target, err
	case f.PID > 0 && f.Container == "" && f.Netns == "":
		return attach.Open(fmt.Sprintf("process %d", f.PID), procNetns(f.PID))
	case f.Netns != "" && f.Container == "" && f.PID == 0:
		if strings.Contains(f.Netns, "/") {
			return attach.Open(f.Netns, f.Netns)
		}
		return attach.Open(f.Netns, filepath.Join("/run/netns", f.Netns))
	}
	return attach.Target{}, errors.New("name one thing: a container, or --pid PID, or --netns NAME")
}

func procNetns(pid int) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }

type attachCmd struct {
	targetFlags `embed:""`

	IP           netip.Addr `name:"ip" help:"Address to give it (default: the lowest that is free)." placeholder:"IP"`
	Ifname       string     `default:"tulle0" help:"Name of the interface in the container (default ${default})." placeholder:"NAME"`
	DefaultRoute bool       `help:"Send everything through the overlay, even if the container has a default route."`
	Bridge       string     `default:"docker0" help:"The containers' bridge: the agent's --bridge (default ${default})." placeholder:"NAME"`
	RunDir       string     `default:"/run/tulle" help:"The agent's --run-dir (default ${default})." placeholder:"DIR"`
	SubnetFile   string     `default:"subnet.env" help:"The agent's --subnet-file (default ${default})." placeholder:"FILE"`
}

func (c *attachCmd) Run(ctx context.Context) error {
	if err := needAdmin(); err != nil {
		return err
	}
	request, err := c.request()
	if err != nil {
		return err
	}
	socket, err := c.socket()
	if err != nil {
		return err
	}
	target, err := c.target(ctx, socket)
	if err != nil {
		return err
	}
	defer target.Close()
	if socket != "" {
		if target.IsGone() {
			return fmt.Errorf("container %s does not run, so it has no network to attach: docker start it first", c.Container)
		}
		if request.Taken, err = docker.Taken(ctx, socket, request.Range); err != nil {
			return err
		}
	}
	address, err := attach.Attach(target, request)
	if err != nil {
		return err
	}
	_, err = fmt.Printf("attached: %s on %s\n", address, c.Ifname)
	return err
}

// request is what the agent's env file and the flags say.
func (c *attachCmd) request() (attach.Request, error) {
	path := c.SubnetFile
	if !filepath.IsAbs(path) {
		path = filepath.Join(c.RunDir, path)
	}
	env, err := docker.ReadEnv(path)
	switch {
	case err != nil:
		return attach.Request{}, err
	case !env.Subnet.V4.IsValid():
		return attach.Request{}, errors.New("attach gives IPv4 addresses, of which this network has none")
	case !env.Attach.V4.IsValid():
		return attach.Request{}, fmt.Errorf("this host keeps no addresses from Docker, says %s: start the agent with --attach-addresses N, which gives Docker the lower half "+
			"of the lease and attach the upper, and then restart Docker", path)
	case !env.Network.V4.IsValid() || env.MTU == 0:
		return attach.Request{}, fmt.Errorf("env file %s lacks FLANNEL_NETWORK or FLANNEL_MTU: let the agent write it again", path)
	}
	return attach.Request{Bridge: c.Bridge, Gateway: env.Bridge.V4, Network: env.Network.V4, MTU: env.MTU, Range: env.Attach.V4,
		Wish: c.IP, Name: c.Ifname, DefaultRoute: c.DefaultRoute, RunDir: c.RunDir}, nil
}

type detachCmd struct {
	targetFlags `embed:""`
}

func (c *detachCmd) Run(ctx context.Context) error {
	if err := needAdmin(); err != nil {
		return err
	}
	socket, err := c.socket()
	if err != nil {
		return err
	}
	target, err := c.target(ctx, socket)
	if err != nil {
		return err
	}
	defer target.Close()
	a, err := attach.Detach(target)
	if err != nil {
		return err
	}
	_, err = fmt.Printf("detached: %s is free\n", a.Address)
	return err
}
