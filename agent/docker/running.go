package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
)

// Socket is where dockerd listens unless it is told otherwise.
const Socket = "/var/run/docker.sock"

// Running is a dockerd that answers.
type Running struct {
	Version  Version
	Firewall Firewall
}

// Ask asks the dockerd behind a unix socket what it is (Docker Engine API, /version and /info; the latter names the firewall
// backend from API 1.49 on). On error, what was learned before is returned with it. Under systemd's socket activation
// asking starts Docker: nothing that Docker waits for may do it.
func Ask(ctx context.Context, socket string) (Running, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	transport := unixTransport(socket)
	var version struct{ Version string }
	var info struct{ FirewallBackend struct{ Driver string } }
	versionErr := get(ctx, transport, "version", &version)
	if versionErr != nil { // no answer to this, none to the other
		return Running{Firewall: IPTables}, fmt.Errorf("dockerd at %s: %w", socket, versionErr)
	}
	v, versionErr := ParseVersion(version.Version)
	infoErr := get(ctx, transport, "info", &info)
	r := Running{Version: v, Firewall: firewallOf(info.FirewallBackend.Driver)}
	if err := errors.Join(versionErr, infoErr); err != nil {
		return r, fmt.Errorf("dockerd at %s: %w", socket, err)
	}
	return r, nil
}

func unixTransport(socket string) *http.Transport {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
}

// errAbsent is the API's answer that there is no such object.
var errAbsent = errors.New("404 Not Found")

// get reads one of the API's objects.
func get(ctx context.Context, transport http.RoundTripper, name string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/"+name, nil)
	if err != nil {
		return err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return fmt.Errorf("/%s: %w", name, err)
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusNotFound {
		return fmt.Errorf("/%s: %w", name, errAbsent)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("/%s: %s", name, response.Status)
	}
	const most = 4 << 20 // bytes; /info is some 5 kB
	if err := json.NewDecoder(io.LimitReader(response.Body, most)).Decode(into); err != nil {
		return fmt.Errorf("/%s: %w", name, err)
	}
	return nil
}
