package etcd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// write puts text into a file of a fresh directory.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCheck(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.issue(t, "client")
	empty, password := write(t, "empty", "\nsecret\n"), write(t, "password", "secret\n")
	const http, https = "http://192.0.2.1:2379", "https://192.0.2.1:2379"
	for _, c := range []struct {
		name   string
		change func(o *Options)
		text   string // "" if it can work
	}{
		{"as it is", func(o *Options) {}, ""},
		{"several", func(o *Options) {
			o.Endpoints = append(o.Endpoints, "http://[2001:db8::1]:2379", "http://etcd.example:2379")
		}, ""},
		{"all there is", func(o *Options) {
			*o = Options{Endpoints: []string{https}, Prefix: "/n", Username: "root", PasswordFile: password, CAFile: ca.file, CertFile: cert, KeyFile: key}
		}, ""},
		{"none", func(o *Options) { o.Endpoints = nil }, "--etcd-endpoints is empty: name at least one, as in http://192.0.2.1:2379"},
		{"no scheme", func(o *Options) { o.Endpoints[0] = "192.0.2.1:2379" }, `--etcd-endpoints: "192.0.2.1:2379" is not a URL like http://192.0.2.1:2379`},
		{"other scheme", func(o *Options) { o.Endpoints[0] = "ftp://192.0.2.1" }, `--etcd-endpoints: "ftp://192.0.2.1" is not a URL like http://192.0.2.1:2379`},
		{"password in it", func(o *Options) { o.Endpoints[0] = "http://root:secret@192.0.2.1:2379" },
			"--etcd-endpoints: a user and a password don't belong there, where every process can read them: use --etcd-username and --etcd-password-file"},
		{"password in what is no URL", func(o *Options) { o.Endpoints[0] = "http://root:%secret@192.0.2.1:2379" },
			"--etcd-endpoints: a user and a password don't belong there, where every process can read them: use --etcd-username and --etcd-password-file"},
		{"two schemes", func(o *Options) { o.Endpoints = append(o.Endpoints, https) },
			"--etcd-endpoints: http://192.0.2.1:2379 is http and https://192.0.2.1:2379 is https: all must be the same"},
		{"CA without TLS", func(o *Options) { o.CAFile = ca.file }, "--etcd-endpoints: http://192.0.2.1:2379 is not encrypted, but --etcd-cafile or --etcd-certfile is given: write https://"},
		{"certificate without TLS", func(o *Options) { o.CertFile, o.KeyFile = cert, key }, "--etcd-endpoints: http://192.0.2.1:2379 is not encrypted, but --etcd-cafile or --etcd-certfile is given: write https://"},
		{"relative prefix", func(o *Options) { o.Prefix = "network" }, `--etcd-prefix: "network" must begin with a slash and not end with one, as in /coreos.com/network`},
		{"prefix with a slash too many", func(o *Options) { o.Prefix = "/network/" }, `--etcd-prefix: "/network/" must begin with a slash and not end with one, as in /coreos.com/network`},
		{"certificate without key", func(o *Options) { o.Endpoints[0], o.CertFile = https, cert }, "--etcd-certfile and --etcd-keyfile go together: one of them is missing"},
		{"key without certificate", func(o *Options) { o.KeyFile = key }, "--etcd-certfile and --etcd-keyfile go together: one of them is missing"},
		{"user without password", func(o *Options) { o.Username = "root" }, "--etcd-username and --etcd-password-file go together: one of them is missing (and systemd gave no credential etcd-password)"},
		{"password without user", func(o *Options) { o.PasswordFile = password }, "--etcd-username and --etcd-password-file go together: one of them is missing (and systemd gave no credential etcd-password)"},
		{"no CA file", func(o *Options) { o.Endpoints[0], o.CAFile = https, "/nowhere" }, "--etcd-cafile: open /nowhere: no such file or directory"},
		{"CA file without certificates", func(o *Options) { o.Endpoints[0], o.CAFile = https, password }, "--etcd-cafile: no certificate in " + password},
		{"no certificate file", func(o *Options) { o.Endpoints[0], o.CertFile, o.KeyFile = https, "/nowhere", key },
			"--etcd-certfile, --etcd-keyfile: open /nowhere: no such file or directory"},
		{"no password file", func(o *Options) { o.Username, o.PasswordFile = "root", "/nowhere" }, "--etcd-password-file: open /nowhere: no such file or directory"},
		{"empty password file", func(o *Options) { o.Username, o.PasswordFile = "root", empty }, "--etcd-password-file: the first line of " + empty + " is empty"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := Options{Endpoints: []string{http}, Prefix: "/coreos.com/network"}
			c.change(&o)
			err := o.Check()
			if text := fmt.Sprint(err); c.text == "" && err != nil || c.text != "" && text != c.text {
				t.Errorf("got  %s\nwant %s", text, c.text)
			}
		})
	}
}

func TestPasswordFile(t *testing.T) {
	for text, want := range map[string]string{"secret": "secret", "secret\n": "secret", "secret\r\nmore": "secret", " a b \n": " a b "} {
		got, err := Options{PasswordFile: write(t, "password", text)}.readPassword()
		if got != want || err != nil {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

func TestUser(t *testing.T) {
	t.Parallel()
	url := freeURL()
	serveConfig(t, url, t.TempDir(), quickHash)
	n := networkAt(t, url)
	n.config(wide)
	n.enableUsers("root", "nobody")
	for _, c := range []struct{ user, password, text string }{
		{"root", "secret-of-nobody", "etcd does not know user root with this password: check --etcd-username, and the first line of FILE"},
		{"stranger", "secret-of-nobody", "etcd does not know user stranger with this password: check --etcd-username, and the first line of FILE"},
		{"nobody", "secret-of-nobody", "etcd does not let user nobody read " + n.options.Prefix + "/: grant it a role that may (docs/security.md has the roles)"},
		{"", "", "etcd asks who we are: give --etcd-username and --etcd-password-file"},
	} {
		o := n.options
		if o.Username = c.user; c.user != "" {
			o.PasswordFile = write(t, "password", c.password+"\n")
		}
		h := start(t, o)
		h.until("an error", func() bool { return h.last.Err != nil })
		if text, want := h.last.Err.Error(), strings.Replace(c.text, "FILE", o.PasswordFile, 1); text != want || strings.Contains(text, "secret-of") {
			t.Errorf("%s: error %q, want %q", c.user, text, want)
		}
		h.stop()
	}
	o := n.options
	o.Username, o.PasswordFile = "root", write(t, "password", "secret-of-root\n")
	h := start(t, o)
	h.listed()
	h.Want(want("192.0.2.1", wide))
	h.held()
}

// quickHash is for etcd's config: passwords cost it 60 ms of a core otherwise, and a second with the race detector.
const quickHash = "bcrypt-cost: 4\n"

// enableUsers makes etcd ask who one is. The first user may do everything.
func (n *network) enableUsers(users ...string) {
	n.t.Helper()
	ctx := n.t.Context()
	for _, user := range users {
		if _, err := n.raw.UserAdd(ctx, user, "secret-of-"+user); err != nil {
			n.t.Fatal(err)
		}
	}
	if _, err := n.raw.RoleAdd(ctx, "root"); err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.raw.UserGrantRole(ctx, users[0], "root"); err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.raw.AuthEnable(ctx); err != nil {
		n.t.Fatal(err)
	}
}

func TestUserOfAnEtcdWithoutUsers(t *testing.T) {
	n := newNetwork(t)
	n.options.Username, n.options.PasswordFile = "root", write(t, "password", "secret\n")
	n.node().listed()
}

func TestUserWithoutEtcd(t *testing.T) {
	t.Parallel()
	url := freeURL()
	h := start(t, Options{Endpoints: []string{url}, Prefix: "/n", Username: "root", PasswordFile: write(t, "password", "secret\n")})
	h.until("an error", func() bool { return h.last.Err != nil })
	if text := h.last.Err.Error(); !strings.HasPrefix(text, "no connection to etcd at "+url+": dial tcp ") || strings.Contains(text, "secret") {
		t.Errorf("error %q", text)
	}
}

// Times that a certificate was, or will be, valid.
var (
	longAgo = time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	someDay = time.Date(2120, 1, 2, 3, 4, 5, 0, time.UTC)
)

func expired(c *x509.Certificate)   { c.NotAfter = longAgo }
func premature(c *x509.Certificate) { c.NotBefore, c.NotAfter = someDay, someDay.Add(time.Hour) }
func misnamed(c *x509.Certificate)  { c.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 9)} }
func nameless(c *x509.Certificate)  { c.IPAddresses = nil }

func TestTLS(t *testing.T) {
	t.Parallel()
	ours, theirs := newAuthority(t), newAuthority(t)
	url := serveTLS(t, ours, false)
	mutual := serveTLS(t, ours, true)
	cert, key := ours.issue(t, "client")
	wrongCert, wrongKey := theirs.issue(t, "client")
	oldCert, oldKey := ours.issue(t, "old", expired)
	plain := strings.Replace(url, "https", "http", 1)
	cases := []struct {
		name string
		o    Options
		text string // "" if it works
	}{
		{"authority alone", Options{Endpoints: []string{url}, CAFile: ours.file}, ""},
		{"mutual", Options{Endpoints: []string{mutual}, CAFile: ours.file, CertFile: cert, KeyFile: key}, ""},
		{"wrong authority", Options{Endpoints: []string{url}, CAFile: theirs.file},
			`x509: certificate signed by unknown authority (possibly because of "x509: ECDSA verification failure" while trying to verify candidate authority certificate "test authority"): name the authority that signed etcd's certificate with --etcd-cafile`},
		{"no authority", Options{Endpoints: []string{url}}, "x509: certificate signed by unknown authority: name the authority that signed etcd's certificate with --etcd-cafile"},
		{"mutual without certificate", Options{Endpoints: []string{mutual}, CAFile: ours.file},
			"remote error: tls: certificate required: it wants a certificate of this host, see --etcd-certfile and --etcd-keyfile"},
		{"mutual with another's certificate", Options{Endpoints: []string{mutual}, CAFile: ours.file, CertFile: wrongCert, KeyFile: wrongKey},
			"remote error: tls: unknown certificate authority: this host's certificate " + wrongCert + " (--etcd-certfile) must be signed by an authority of etcd's --trusted-ca-file, for clients"},
		{"mutual with an expired certificate", Options{Endpoints: []string{mutual}, CAFile: ours.file, CertFile: oldCert, KeyFile: oldKey},
			"remote error: tls: expired certificate: this host's certificate " + oldCert + " expired at 2020-01-02T03:04:05Z: renew it"},
		{"etcd's certificate expired", Options{Endpoints: []string{serveTLS(t, ours, false, expired)}, CAFile: ours.file},
			"etcd's certificate expired at 2020-01-02T03:04:05Z: renew it, if this host's clock is right"},
		{"etcd's certificate of tomorrow", Options{Endpoints: []string{serveTLS(t, ours, false, premature)}, CAFile: ours.file},
			"etcd's certificate is not valid before 2120-01-02T03:04:05Z: is this host's clock right?"},
		{"another's name", Options{Endpoints: []string{serveTLS(t, ours, false, misnamed)}, CAFile: ours.file},
			"x509: certificate is valid for 192.0.2.9, not 127.0.0.1: have that put into etcd's certificate, or name etcd in --etcd-endpoints as its certificate does"},
		{"no name", Options{Endpoints: []string{serveTLS(t, ours, false, nameless)}, CAFile: ours.file},
			"x509: cannot validate certificate for 127.0.0.1 because it doesn't contain any IP SANs: have that put into etcd's certificate, or name etcd in --etcd-endpoints as its certificate does"},
		{"TLS 1.1", Options{Endpoints: []string{serveOldTLS(t, ours)}, CAFile: ours.file},
			"remote error: tls: protocol version not supported: etcd, or what stands in front of it, has no TLS 1.2 or newer: update it"},
		{"TLS where there is none", Options{Endpoints: []string{strings.Replace(shared, "http", "https", 1)}},
			"etcd hung up, it may serve without TLS: give it a certificate (--cert-file, --key-file), or write http://"},
		{"no TLS where there is", Options{Endpoints: []string{plain}}, "etcd hung up, it may want https://"},
	}
	nodes := make([]*node, len(cases))
	for i, c := range cases { // all at once: those that can't connect wait as long as a call may take
		c.o.Prefix = "/n"
		if err := c.o.Check(); err != nil {
			t.Fatal(err)
		}
		nodes[i] = start(t, c.o)
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			h := nodes[i]
			if h.t = t; c.text == "" {
				h.listed()
				return
			}
			h.until("an error", func() bool { return h.last.Err != nil })
			text, want := h.last.Err.Error(), "no connection to etcd at "+c.o.Endpoints[0]+": "+c.text
			if text != want {
				t.Errorf("got  %s\nwant %s", text, want)
			}
		})
	}
}

// serveOldTLS accepts connections with TLS 1.1 at most. No etcd does, by now: but what stands in front of one may.
func serveOldTLS(t *testing.T, ca authority) string {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(ca.issue(t, "old server"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			_ = conn.(*tls.Conn).Handshake() // what the client makes of it is tested
			conn.Close()
		}
	}()
	return "https://" + l.Addr().String()
}

func serveTLS(t *testing.T, ca authority, mutual bool, change ...func(*x509.Certificate)) string {
	url := strings.Replace(freeURL(), "http", "https", 1)
	serveConfig(t, url, t.TempDir(), ca.transport(t, mutual, change...))
	return url
}

// serveConfig runs an etcd that is set up by its own config file.
func serveConfig(t *testing.T, url, dir, more string) (stop func()) {
	const peer = "http://127.0.0.1:0"
	return serveFor(t, ServerOptions{ConfigFile: write(t, "etcd.yaml", fmt.Sprintf(`
name: default
data-dir: %s
log-level: error
listen-client-urls: %s
advertise-client-urls: %s
listen-peer-urls: %s
initial-advertise-peer-urls: %s
initial-cluster: default=%s
%s`, dir, url, url, peer, peer, peer, more))})
}

// transport is the part of etcd's config that makes it serve with a certificate of a's, and want one.
func (a authority) transport(t *testing.T, mutual bool, change ...func(*x509.Certificate)) string {
	cert, key := a.issue(t, "server", change...)
	config := fmt.Sprintf("client-transport-security:\n  cert-file: %s\n  key-file: %s\n", cert, key)
	if mutual {
		config += "  client-cert-auth: true\n  trusted-ca-file: " + a.file + "\n"
	}
	return config
}

// authority signs certificates.
type authority struct {
	file string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{write(t, "ca.pem", encode("CERTIFICATE", der)), cert, key}
}

// issue returns the files of a certificate for this host, and of its key.
func (a authority) issue(t *testing.T, name string, change ...func(*x509.Certificate)) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, change := range change {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, private.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, name+".pem", encode("CERTIFICATE", der)), write(t, name+".key", encode("PRIVATE KEY", encoded))
}

func encode(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
