package server

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// issue writes a certificate for 127.0.0.1, which is its own authority, and its key.
func issue(t *testing.T, dir, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
	return certFile, keyFile
}

// TLS has the certificate that is in the files now, and what can't be used there changes nothing.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	o := Options{Address: "127.0.0.1:0"}
	o.CertFile, o.KeyFile = issue(t, dir, "first")
	var log bytes.Buffer
	s, err := Listen(o, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	address := served(t, s, everything())
	shown := func() string {
		t.Helper()
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
		if text, err := io.ReadAll(conn); err != nil || !strings.HasSuffix(string(text), "\r\n\r\nall") {
			t.Errorf("%q, %v", text, err)
		}
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	if name := shown(); name != "first" {
		t.Errorf("shown is %s", name)
	}
	if _, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}); err == nil {
		t.Error("TLS 1.1 will do")
	}
	write(t, o.CertFile, "half a cert")
	if name := shown(); name != "first" || strings.Count(log.String(), "level=WARN") != 1 {
		t.Errorf("shown is %s; logged:\n%s", name, &log)
	}
	issue(t, dir, "second")
	if name := shown(); name != "second" || shown() != "second" || strings.Count(log.String(), "level=WARN") != 1 {
		t.Errorf("shown is %s; logged:\n%s", name, &log)
	}
}

// Only who has a certificate of the right authority gets in.
func TestClientCertificate(t *testing.T) {
	o := Options{Address: "127.0.0.1:0"}
	o.CertFile, o.KeyFile = issue(t, t.TempDir(), "agent")
	var clientKey, strangerKey string
	o.ClientCAFile, clientKey = issue(t, t.TempDir(), "client")
	stranger, strangerKey := issue(t, t.TempDir(), "stranger")
	s, err := Listen(o, discard())
	if err != nil {
		t.Fatal(err)
	}
	address := served(t, s, everything())
	for name, c := range map[string]struct {
		cert, key string
		in        bool
	}{"client": {o.ClientCAFile, clientKey, true}, "stranger": {stranger, strangerKey, false}, "nobody": {}} {
		config := &tls.Config{InsecureSkipVerify: true}
		if c.cert != "" {
			pair, err := tls.LoadX509KeyPair(c.cert, c.key)
			if err != nil {
				t.Fatal(err)
			}
			config.Certificates = []tls.Certificate{pair}
		}
		transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
		answer, err := (&http.Client{Transport: transport}).Get("https://" + address + "/healthz")
		if in := err == nil && answer.StatusCode == 200; in != c.in {
			t.Errorf("%s is in: %t, %v", name, in, err)
		}
		if err == nil {
			answer.Body.Close()
		}
	}
}

// What can't work is said, and what is unwise is warned of.
func TestOptions(t *testing.T) {
	dir := t.TempDir()
	cert, key := issue(t, dir, "agent")
	token, short := filepath.Join(dir, "token"), filepath.Join(dir, "short")
	write(t, token, oldToken)
	write(t, short, "\nswordfish\n")
	for name, c := range map[string]struct {
		o    Options
		want string // of the error, or the warnings; "" for neither
	}{
		"default":         {Options{Address: "127.0.0.1:0"}, ""},
		"profiles":        {Options{Address: "127.0.0.1:0", Pprof: true}, ""},
		"all":             {Options{Address: "0.0.0.0:0", CertFile: cert, KeyFile: key, TokenFile: token, Pprof: true}, ""},
		"certificates":    {Options{Address: "0.0.0.0:0", CertFile: cert, KeyFile: key, ClientCAFile: cert}, ""},
		"open":            {Options{Address: "0.0.0.0:0"}, "--listen-token-file keeps others out"},
		"open, encrypted": {Options{Address: "0.0.0.0:0", CertFile: cert, KeyFile: key}, "--listen-token-file keeps others out"},
		"clear":           {Options{Address: "0.0.0.0:0", TokenFile: token}, "the token goes over the network in clear text"},
		"open profiles":   {Options{Address: "0.0.0.0:0", Pprof: true}, "--pprof: anybody who reaches 0.0.0.0:0 could keep this agent busy"},
		"nowhere":         {Options{}, ""},
		"half nowhere":    {Options{Pprof: true}, "--listen is empty"},
		"no key":          {Options{Address: "127.0.0.1:0", CertFile: cert}, "one of them is missing"},
		"no TLS":          {Options{Address: "127.0.0.1:0", ClientCAFile: cert}, "--listen-client-cafile: only TLS has certificates"},
		"not a CA":        {Options{Address: "127.0.0.1:0", CertFile: cert, KeyFile: key, ClientCAFile: key}, "--listen-client-cafile: no certificate in "},
		"not a cert":      {Options{Address: "127.0.0.1:0", CertFile: token, KeyFile: key}, "--listen-certfile, --listen-keyfile: "},
		"short token":     {Options{Address: "127.0.0.1:0", TokenFile: short}, "the token in line 2 is shorter than 16 characters"},
		"no token":        {Options{Address: "127.0.0.1:0", TokenFile: os.DevNull}, "no file with tokens"},
		"no file":         {Options{Address: "127.0.0.1:0", TokenFile: dir + "/none"}, "--listen-token-file: stat "},
		"no such host":    {Options{Address: "198.51.100.1:0"}, "--listen= switches the status server off"},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			s, err := Listen(c.o, slog.New(slog.NewTextHandler(&log, nil)))
			said := log.String()
			if err != nil {
				said += err.Error()
			}
			if s != nil {
				s.listener.Close()
			}
			if (c.want == "") != (said == "") || !strings.Contains(said, c.want) || strings.Contains(said, "swordfish") {
				t.Errorf("said %q, want %q", said, c.want)
			}
		})
	}
	if err := os.Chmod(token, 0o644); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s, err := Listen(Options{Address: "127.0.0.1:0", TokenFile: token}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	s.listener.Close()
	if !strings.Contains(log.String(), "any user of this host can read the token") {
		t.Errorf("of a file that all can read: %q", &log)
	}
}
