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
