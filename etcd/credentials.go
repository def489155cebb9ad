package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// files are those that prove to etcd who we are, and to us who etcd is. They are read anew for each connection, so that what is
// rotated on disk is used from the next one on. One that can't be used, as it is only half written, takes nothing away: what was
// read before stays in use, and faults tells of it.
type files struct {
	options Options

	mu       sync.Mutex
	roots    latest[*x509.CertPool]
	cert     latest[*tls.Certificate]
	password latest[string]
}

// latest is what was last read in good order.
type latest[T any] struct {
	value T
	whole bool  // it was, once
	fault error // why what is there now is not used
}

// renew takes what was read now, unless that went wrong, and returns what is to be used.
func (k *latest[T]) renew(value T, err error) (T, error) {
	if k.fault = err; err == nil {
		k.value, k.whole = value, true
	}
	if k.whole {
		err = nil
	}
	return k.value, err
}

func newFiles(o Options) *files { return &files{options: o} }

// read looks at all files. Its error says what can't be used and was never read before.
func (f *files) read() error {
	if _, err := f.tls(); err != nil {
		return err
	}
	_, err := f.secret()
	return err
}

// tls returns the TLS settings of a connection that is made now, nil if no endpoint has https.
func (f *files) tls() (*tls.Config, error) {
	o := f.options
	if !o.secure() {
		return nil, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		roots, err := f.roots.renew(o.readRoots())
		if err != nil {
			return nil, err
		}
		config.RootCAs = roots
	}
	if o.CertFile != "" {
		cert, err := f.cert.renew(o.readCert())
		if err != nil {
			return nil, err
		}
		// Not Certificates: of those, none is shown to a server that names other authorities, and that would tell nothing of ours.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return config, nil
}

// secret returns the password that a connection made now is to log in with.
func (f *files) secret() (string, error) {
	if f.options.PasswordFile == "" {
		return "", nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.password.renew(f.options.readPassword())
}

// faults says which files can't be used as they are now.
func (f *files) faults() (faults []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, err := range []error{f.roots.fault, f.cert.fault, f.password.fault} {
		if err != nil {
			faults = append(faults, err.Error()+": what was read before stays in use until this is mended")
		}
	}
	return faults
}

// own is this host's certificate, nil if it has none.
func (f *files) own() *x509.Certificate {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cert.value == nil {
		return nil
	}
	return f.cert.value.Leaf
}

func (o Options) secure() bool { return strings.HasPrefix(o.Endpoints[0], "https://") }

// readRoots reads the authorities. A file that ends within one is not whole: crypto/x509 would take it without that one.
func (o Options) readRoots() (*x509.CertPool, error) {
	text, err := os.ReadFile(o.CAFile)
	if err != nil {
		return nil, fmt.Errorf("--etcd-cafile: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("--etcd-cafile: no certificate in %s", o.CAFile)
	}
	for block := (&pem.Block{}); block != nil; {
		block, text = pem.Decode(text)
	}
	if bytes.Contains(text, []byte("-----BEGIN")) {
		return nil, fmt.Errorf("--etcd-cafile: %s ends in the middle of a certificate", o.CAFile)
	}
	return roots, nil
}

func (o Options) readCert() (*tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("--etcd-certfile, --etcd-keyfile: %w", err)
	}
	return &cert, nil
}

func (o Options) readPassword() (string, error) {
	text, err := os.ReadFile(o.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("--etcd-password-file: %w", err)
	}
	password, _, _ := strings.Cut(string(text), "\n")
	if password = strings.TrimSuffix(password, "\r"); password == "" {
		return "", fmt.Errorf("--etcd-password-file: the first line of %s is empty", o.PasswordFile)
	}
	return password, nil
}

// handshake makes each connection by the files as they are then: a tls.Config has no way to change its authorities.
type handshake struct {
	credentials.TransportCredentials // as they were at first: for whoever asks what they are
	files                            *files
}

// Clone returns what shares the files.
func (h handshake) Clone() credentials.TransportCredentials { return h }

func (h handshake) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	config, err := h.files.tls()
	if err != nil {
		return nil, nil, err
	}
	conn, info, err := credentials.NewTLS(config).ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, err
	}
	return &candid{Conn: conn, ended: make(chan struct{})}, info, nil
}

// candid is a connection that tells why it was ended. With TLS 1.3 a server looks at our certificate when we may send already
// (RFC 8446, section 2). If it refuses that, what we write fails, and why is only said to who reads.
type candid struct {
	net.Conn
	end   sync.Once
	ended chan struct{} // closed when a read has failed
	why   error         // by then
}

const lastWord = time.Second // for what was said before a write failed: it is here already

func (c *candid) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.end.Do(func() {
			c.why = err
			close(c.ended)
		})
	}
	return n, err
}

func (c *candid) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err == nil {
		return n, nil
	}
	select {
	case <-c.ended:
		if strings.Contains(c.why.Error(), alert) {
			return n, c.why
		}
	case <-time.After(lastWord):
	}
	return n, err
}
