package etcd

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"go.etcd.io/etcd/server/v3/embed"
)

// ServerOptions are etcd's own flags, of those a lab or a small cluster needs.
type ServerOptions struct {
	Name                     string   `default:"tulle" help:"This member's name."`
	DataDir                  string   `default:"tulle.etcd" help:"Directory for the data (default ${default})." placeholder:"DIR"`
	ListenClientUrls         []string `default:"http://127.0.0.1:2379" help:"URLs to serve clients on (default ${default})." placeholder:"URL"`
	AdvertiseClientUrls      []string `help:"URLs that clients reach this member by (default: those it listens on)." placeholder:"URL"`
	ListenPeerUrls           []string `default:"http://127.0.0.1:2380" help:"URLs to serve the other members on (default ${default})." placeholder:"URL"`
	InitialAdvertisePeerUrls []string `help:"URLs that the other members reach this one by (default: those it listens on)." placeholder:"URL"`
	InitialCluster           string   `help:"All members, as NAME=PEER-URL,… (default: this one alone)." placeholder:"MEMBERS"`
	InitialClusterState      string   `default:"new" enum:"new,existing" help:"Whether the cluster is new or existing."`
	InitialClusterToken      string   `default:"tulle" help:"What tells this cluster from others (default ${default})." placeholder:"TOKEN"`
	QuotaBackendBytes        int64    `help:"Size at which etcd refuses writes and raises the alarm NOSPACE (0: etcd's own default, 2 GiB)." placeholder:"BYTES"`
	ConfigFile               string   `help:"etcd's own config file; it takes the place of all other flags." placeholder:"FILE"`
}

// Serve runs etcd in this process until ctx ends, and calls ready once it serves.
func Serve(ctx context.Context, o ServerOptions, ready func(clientURLs []string)) error {
	config, err := o.config()
	if err != nil {
		return err
	}
	e, err := embed.StartEtcd(config)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	defer e.Close()
	select {
	case <-e.Server.ReadyNotify():
		var urls []string
		for _, u := range config.ListenClientUrls {
			urls = append(urls, u.String())
		}
		ready(urls)
	case err := <-e.Err():
		return fmt.Errorf("etcd: %w", err)
	case <-ctx.Done():
		return nil
	}
	select {
	case err := <-e.Err():
		return fmt.Errorf("etcd: %w", err)
	case <-ctx.Done():
		return nil
	}
}

func (o ServerOptions) config() (*embed.Config, error) {
	if o.ConfigFile != "" {
		config, err := embed.ConfigFromFile(o.ConfigFile)
		if err != nil {
			return nil, fmt.Errorf("--config-file: %w", err)
		}
		return config, nil
	}
	config := embed.NewConfig()
	config.Name, config.Dir, config.LogLevel = o.Name, o.DataDir, "warn"
	config.QuotaBackendBytes = o.QuotaBackendBytes
	config.ClusterState, config.InitialClusterToken = o.InitialClusterState, o.InitialClusterToken
	if len(o.AdvertiseClientUrls) == 0 {
		o.AdvertiseClientUrls = o.ListenClientUrls
	}
	if len(o.InitialAdvertisePeerUrls) == 0 {
		o.InitialAdvertisePeerUrls = o.ListenPeerUrls
	}
	for _, f := range []struct {
		flag string
		from []string
		to   *[]url.URL
	}{
		{"listen-client-urls", o.ListenClientUrls, &config.ListenClientUrls},
		{"advertise-client-urls", o.AdvertiseClientUrls, &config.AdvertiseClientUrls},
		{"listen-peer-urls", o.ListenPeerUrls, &config.ListenPeerUrls},
		{"initial-advertise-peer-urls", o.InitialAdvertisePeerUrls, &config.AdvertisePeerUrls},
	} {
		*f.to = nil
		for _, text := range f.from {
			u, err := url.Parse(text)
			if err != nil || u.Host == "" {
				return nil, fmt.Errorf("--%s: %q is not a URL like http://127.0.0.1:2379", f.flag, text)
			}
			*f.to = append(*f.to, *u)
		}
	}
	config.InitialCluster = o.InitialCluster
	if o.InitialCluster == "" {
		config.InitialCluster = o.Name + "=" + strings.Join(o.InitialAdvertisePeerUrls, ","+o.Name+"=")
	}
	// No agent asks for history: one that was away for longer lists anew.
	config.AutoCompactionMode, config.AutoCompactionRetention = "periodic", "1h"
	return config, nil
}
