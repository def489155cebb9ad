package etcd

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/transport"
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
	CertFile                 string   `help:"Certificate to serve clients with, on https:// URLs; it is read anew for each connection." placeholder:"FILE"`
	KeyFile                  string   `help:"The key of that certificate." placeholder:"FILE"`
	ClientCertAuth           bool     `help:"Serve only clients with a certificate that is signed by an authority of --trusted-ca-file; its CN is the user's name (default no)."`
	TrustedCAFile            string   `name:"trusted-ca-file" help:"Authorities that clients' certificates are checked with; read at the start." placeholder:"FILE"`
	PeerCertFile             string   `help:"Certificate for the other members, on https:// URLs: to serve them, and to be let in by them." placeholder:"FILE"`
	PeerKeyFile              string   `help:"The key of that certificate." placeholder:"FILE"`
	PeerClientCertAuth       bool     `help:"Serve only members with a certificate that is signed by an authority of --peer-trusted-ca-file (default no)."`
	PeerTrustedCAFile        string   `name:"peer-trusted-ca-file" help:"Authorities that the other members' certificates are checked with." placeholder:"FILE"`
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
	if err := o.secure(config); err != nil {
		return nil, err
	}
	config.InitialCluster = o.InitialCluster
	if o.InitialCluster == "" {
		config.InitialCluster = o.Name + "=" + strings.Join(o.InitialAdvertisePeerUrls, ","+o.Name+"=")
	}
	// No agent asks for history: one that was away for longer lists anew.
	config.AutoCompactionMode, config.AutoCompactionRetention = "periodic", "1h"
	return config, nil
}

// secure sets up TLS. What etcd would serve without it, though it is asked for, is refused: etcd itself only warns.
func (o ServerOptions) secure(config *embed.Config) error {
	config.ClientTLSInfo = transport.TLSInfo{CertFile: o.CertFile, KeyFile: o.KeyFile, ClientCertAuth: o.ClientCertAuth, TrustedCAFile: o.TrustedCAFile}
	config.PeerTLSInfo = transport.TLSInfo{CertFile: o.PeerCertFile, KeyFile: o.PeerKeyFile, ClientCertAuth: o.PeerClientCertAuth, TrustedCAFile: o.PeerTrustedCAFile}
	for _, side := range []struct {
		prefix, listen string
		info           transport.TLSInfo
		urls           []url.URL
	}{
		{"--", "--listen-client-urls", config.ClientTLSInfo, config.ListenClientUrls},
		{"--peer-", "--listen-peer-urls", config.PeerTLSInfo, config.ListenPeerUrls},
	} {
		switch has := side.info; {
		case (has.CertFile == "") != (has.KeyFile == ""):
			return fmt.Errorf("%[1]scert-file and %[1]skey-file go together: one of them is missing", side.prefix)
		case has.ClientCertAuth != (has.TrustedCAFile != ""):
			return fmt.Errorf("%[1]sclient-cert-auth and %[1]strusted-ca-file go together: one of them is missing", side.prefix)
		case has.ClientCertAuth && has.CertFile == "":
			return fmt.Errorf("%[1]sclient-cert-auth needs TLS: give %[1]scert-file and %[1]skey-file", side.prefix)
		}
		for _, u := range side.urls {
			if tls := side.info.CertFile != ""; tls != (u.Scheme == "https") {
				return fmt.Errorf("%s: %s: https:// goes with %[3]scert-file and %[3]skey-file, and http:// without", side.listen, u.String(), side.prefix)
			}
		}
	}
	return nil
}

// Exposed is the first URL at which whoever reaches it can read and write all that etcd has, unless it asks for users; "" for none.
func (o ServerOptions) Exposed() string {
	if o.ClientCertAuth || o.ConfigFile != "" {
		return ""
	}
	for _, text := range o.ListenClientUrls {
		if u, err := url.Parse(text); err == nil && !isLoopback(u.Hostname()) {
			return text
		}
	}
	return ""
}

// isLoopback reports whether a host is this one, seen from itself.
func isLoopback(host string) bool { return host == "localhost" || net.ParseIP(host).IsLoopback() }
