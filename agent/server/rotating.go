package server

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// rotating is what TLS needs, as it is in the files now. What can't be used there is told once, and what was there before holds.
type rotating struct {
	options Options
	log     *slog.Logger

	mu     sync.Mutex
	stamps [3]unix.Stat_t
	last   *tls.Config
}

// config is a tls.Config's GetConfigForClient.
func (r *rotating) config(*tls.ClientHelloInfo) (*tls.Config, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.options.stamps()
	if r.last != nil && now == r.stamps {
		return r.last, nil
	}
	config, err := r.options.load()
	switch {
	case err == nil:
		r.last = config
	case r.last == nil:
		return nil, err
	default:
		r.log.Warn("what was replaced can't be used: the certificate of before is shown", "error", err)
	}
	r.stamps = now
	return r.last, nil
}

// stamps tell whether a file is what it was.
func (o Options) stamps() (stamps [3]unix.Stat_t) {
	for i, path := range []string{o.CertFile, o.KeyFile, o.ClientCAFile} {
		if path != "" {
			_ = unix.Stat(path, &stamps[i]) // what is missing has the zero one
			stamps[i].Atim = unix.Timespec{}
		}
	}
	return stamps
}

// load reads the files.
func (o Options) load() (*tls.Config, error) {
	certificate, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("--listen-certfile, --listen-keyfile: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}}
	if o.ClientCAFile == "" {
		return config, nil
	}
	pem, err := os.ReadFile(o.ClientCAFile)
	if err != nil {
		return nil, fmt.Errorf("--listen-client-cafile: %w", err)
	}
	config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
	if !config.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--listen-client-cafile: no certificate in %s", o.ClientCAFile)
	}
	return config, nil
}
