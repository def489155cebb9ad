package etcd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// asRoot has others write as root, once etcd asks who one is.
func (n *network) asRoot() {
	n.t.Helper()
	root, err := clientv3.New(clientv3.Config{Endpoints: n.options.Endpoints, Username: "root", Password: "secret-of-root", Logger: zap.NewNop()})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { root.Close() })
	n.raw = root
}

// agents makes etcd ask who one is, and know a user whose role is an agent's: to read the network, and to write leases.
func (n *network) agents(user string) {
	n.t.Helper()
	n.enableUsers("root", user)
	n.asRoot()
	ctx := n.t.Context()
	_, err := n.raw.RoleAdd(ctx, "agent")
	n.must(err)
	n.mayRead()
	n.mayWrite()
	_, err = n.raw.UserGrantRole(ctx, user, "agent")
	n.must(err)
	n.options.Username, n.options.PasswordFile = user, write(n.t, "password", "secret-of-"+user+"\n")
}

func (n *network) mayRead() {
	n.t.Helper()
	key := n.client().network()
	_, err := n.raw.RoleGrantPermission(n.t.Context(), "agent", key, clientv3.GetPrefixRangeEnd(key), clientv3.PermissionType(clientv3.PermRead))
	n.must(err)
}

func (n *network) mayWrite() {
	n.t.Helper()
	key := n.client().network() + "subnets/"
	_, err := n.raw.RoleGrantPermission(n.t.Context(), "agent", key, clientv3.GetPrefixRangeEnd(key), clientv3.PermissionType(clientv3.PermReadWrite))
	n.must(err)
}

func (n *network) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// often runs a Store that asks etcd all the time whether all is as it was.
func (n *network) often(w *wire) *node {
	n.t.Helper()
	o := n.options
	o.DialOptions = append(o.DialOptions, w.dial())
	h := prepare(n.t, o)
	h.probeWait = func() time.Duration { return 200 * time.Millisecond }
	h.run()
	return h
}

// What etcd's operator takes from a host that runs is told once, in one line that says what to do, changes nothing of what is
// held, and is over by itself when it is put right.
func TestRightsLost(t *testing.T) {
	t.Parallel()
	url := freeURL()
	serveConfig(t, url, t.TempDir(), quickHash)
	n := networkAt(t, url)
	n.config(wide)
	n.agents("host1")
	h := n.often(&wire{})
	h.listed()
	h.Want(want("192.0.2.1", wide))
	key := h.held()
	password := n.options.PasswordFile
	unknown := "etcd does not know user host1 with this password: check --etcd-username, and the first line of " + password
	for _, c := range []struct {
		name       string
		take, give func() error
		text       string
	}{
		{"role revoked",
			func() error { _, err := n.raw.UserRevokeRole(t.Context(), "host1", "agent"); return err },
			func() error { _, err := n.raw.UserGrantRole(t.Context(), "host1", "agent"); return err },
			"etcd does not let user host1 read " + n.options.Prefix + "/: grant it a role that may (docs/security.md has the roles)"},
		{"no writing",
			func() error {
				path := n.client().network() + "subnets/"
				_, err := n.raw.RoleRevokePermission(t.Context(), "agent", path, clientv3.GetPrefixRangeEnd(path))
				r := want("192.0.2.1", wide)
				r.Data.V4 = `{"VNI":2,"VtepMAC":"02:00:00:00:00:09"}`
				h.Want(r)
				return err
			},
			func() error { n.mayWrite(); return nil },
			"etcd does not let user host1 write "}, // the lease's renewal, or its key: what comes first
		{"user deleted",
			func() error { _, err := n.raw.UserDelete(t.Context(), "host1"); return err },
			func() error {
				_, err := n.raw.UserAdd(t.Context(), "host1", "secret-of-host1")
				n.must(err)
				_, err = n.raw.UserGrantRole(t.Context(), "host1", "agent")
				return err
			}, unknown},
		{"password changed",
			func() error { _, err := n.raw.UserChangePassword(t.Context(), "host1", "another"); return err },
			func() error { return os.WriteFile(password, []byte("another\n"), 0o600) },
			unknown},
	} {
		h.errs = nil
		n.must(c.take())
		h.until(c.name, func() bool { return h.last.Err != nil || h.last.Own.Err != nil })
		n.must(c.give())
		h.until(c.name+", no more", func() bool { return h.last.Err == nil && h.last.Own.Err == nil })
		if len(h.errs) != 1 || !strings.HasPrefix(h.errs[0], c.text) {
			t.Errorf("%s:\ngot  %q\nwant %q", c.name, h.errs, c.text)
		}
		h.holds(key)
	}
}

// An etcd that asks nobody who they are is no place for a password: whoever has one is told.
func TestUsersSwitched(t *testing.T) {
	t.Parallel()
	url, w := freeURL(), &wire{}
	serveConfig(t, url, t.TempDir(), quickHash)
	n := networkAt(t, url)
	n.config(wide)
	n.options.Username, n.options.PasswordFile = "root", write(t, "password", "secret-of-root\n")
	h := n.often(w)
	h.until("a warning", func() bool {
		return h.last.Err == nil && strings.HasPrefix(h.last.Alert, "etcd asks nobody who they are, though --etcd-username is given")
	})
	n.enableUsers("root")
	h.until("no warning", func() bool { return h.last.Err == nil && h.last.Alert == "" })
	n.asRoot()
	if _, err := n.raw.AuthDisable(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.cut()
	w.mend()
	h.until("a warning again", func() bool { return h.last.Err == nil && h.last.Alert != "" })
}

// A host without a user is told that it needs one, and goes on when it is needed no more.
func TestUserAsked(t *testing.T) {
	t.Parallel()
	url := freeURL()
	serveConfig(t, url, t.TempDir(), quickHash)
	n := networkAt(t, url)
	n.config(wide)
	h := n.often(&wire{})
	h.Want(want("192.0.2.1", wide))
	key := h.held()
	h.errs = nil
	n.enableUsers("root")
	h.until("an error", func() bool { return h.last.Err != nil })
	n.asRoot()
	if _, err := n.raw.AuthDisable(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.until("no error", func() bool { return h.last.Err == nil })
	h.holds(key)
	if want := []string{"etcd asks who we are: give --etcd-username and --etcd-password-file"}; !slices.Equal(h.errs, want) {
		t.Errorf("told %q, want %q", h.errs, want)
	}
}

// A signed token can't be prolonged, and the watch goes on with the one that it began with.
func TestSignedTokenExpires(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	url := freeURL()
	serveConfig(t, url, t.TempDir(), quickHash+fmt.Sprintf("auth-token: jwt,pub-key=%s,priv-key=%s,sign-method=ES256,ttl=%s\n",
		write(t, "jwt.pub", encode("PUBLIC KEY", public)), write(t, "jwt.key", encode("EC PRIVATE KEY", secret)), ttl))
	n := networkAt(t, url)
	n.config(wide)
	n.agents("host1")
	var mu sync.Mutex
	var lags []time.Duration
	n.options.Lag = func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		lags = append(lags, d)
	}
	h := n.often(&wire{})
	h.Want(want("192.0.2.1", wide))
	key := h.held()
	h.errs = nil
	for i := range 3 {
		<-time.After(ttl + ttl/2) // which no token lives
		n.put(fmt.Sprintf("10.5.%d.0-24", 200+i), value(fmt.Sprintf("192.0.2.%d", 200+i)))
		h.sees(n)
		r := want("192.0.2.1", wide)
		r.Data.V4 = fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:00:01:%02d"}`, i)
		h.Want(r)
		h.until("the new data", func() bool { return h.last.Own.Lease.Data == r.Data })
	}
	h.holds(key)
	if len(h.errs) > 0 {
		t.Errorf("told of errors: %q", h.errs)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(lags) == 0 || slices.Max(lags) > 2*ttl {
		t.Errorf("lags %v: of a watch that is not behind", lags)
	}
}

// What an agent's credentials can do besides an agent's work, on our etcd and on Debian's: docs/security.md says it.
func TestAgentsRole(t *testing.T) {
	t.Parallel()
	url := freeURL()
	serveConfig(t, url, t.TempDir(), quickHash)
	networkAt(t, url).testAgentsRole(false)
}

// Debian 12's etcd does not look into a transaction within another (GHSA-rfx7-8w68-q57q). If this fails, Debian has mended it.
func TestAgentsRoleDebian(t *testing.T) {
	t.Parallel()
	networkAt(t, debianEtcd(t)).testAgentsRole(true)
}

// debianEtcd runs Debian's etcd, and returns its URL.
func debianEtcd(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../bin/debian/usr/bin/etcd")
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Skip("no etcd of Debian's: e2e/prepare test unpacks one")
	}
	url := freeURL()
	cmd := exec.Command(path, "--data-dir", t.TempDir(), "--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", "http://127.0.0.1:0", "--bcrypt-cost", "4")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return url
}

func (n *network) testAgentsRole(nested bool) {
	t := n.t
	n.config(wide)
	n.agents("host1")
	o := n.options
	agent, err := Dial(t.Context(), o)
	n.must(err)
	defer agent.Close()
	ctx, path := t.Context(), agent.configKey()
	put := clientv3.OpPut(path, narrow)
	for name, do := range map[string]func() error{
		"config":              func() error { _, err := agent.etcd.Put(ctx, path, narrow); return err },
		"config deleted":      func() error { _, err := agent.etcd.Delete(ctx, path); return err },
		"all deleted":         func() error { _, err := agent.etcd.Delete(ctx, agent.network(), clientv3.WithPrefix()); return err },
		"config in a txn":     func() error { _, err := agent.etcd.Txn(ctx).Then(put).Commit(); return err },
		"config elsewhere":    func() error { _, err := agent.etcd.Txn(ctx).Else(put).Commit(); return err },
		"outside the network": func() error { _, err := agent.etcd.Put(ctx, "/other", "x"); return err },
		"read outside":        func() error { _, err := agent.etcd.Get(ctx, "/", clientv3.WithPrefix()); return err },
		"a user":              func() error { _, err := agent.etcd.UserAdd(ctx, "mallory", "x"); return err },
	} {
		if err := do(); !isForbidden(err) {
			t.Errorf("%s: %v, want permission denied", name, err)
		}
	}
	_, stored, err := agent.Config(ctx)
	n.must(err)
	want := fmt.Sprintf("etcd does not let user host1 write %s: that takes an operator's user (--etcd-username) (docs/security.md has the roles)", path)
	if err := agent.SetConfig(ctx, narrow, stored.Revision); err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	_, err = agent.etcd.Txn(ctx).Then(clientv3.OpTxn(nil, []clientv3.Op{put}, nil)).Commit()
	if nested == isForbidden(err) {
		t.Errorf("a transaction within another: %v", err)
	}
	if text, _, err := agent.Config(ctx); err != nil || (text == narrow) != nested {
		t.Errorf("the config is %s, %v", text, err)
	}
}

func TestPasswordInTheClear(t *testing.T) {
	for url, exposed := range map[string]bool{"http://127.0.0.1:2379": false, "http://[::1]:2379": false, "http://localhost:2379": false,
		"https://192.0.2.1:2379": false, "http://192.0.2.1:2379": true, "http://etcd.example:2379": true} {
		o := Options{Endpoints: []string{url}, Username: "host1"}
		c := &Client{options: o, files: newFiles(o)}
		if told := strings.Contains(strings.Join(c.doubts(), ""), "the password goes to "+url); told != exposed {
			t.Errorf("%s: told %t", url, told)
		}
	}
	o := Options{Endpoints: []string{"http://192.0.2.1:2379"}}
	if c := (&Client{options: o, files: newFiles(o)}); len(c.doubts()) > 0 {
		t.Errorf("without a password: %q", c.doubts())
	}
}

// New files that are broken, or half written, take nothing from a host that runs, and from one that connects anew.
func TestBrokenFiles(t *testing.T) {
	t.Parallel()
	ours, url, w := newAuthority(t), strings.Replace(freeURL(), "http", "https", 1), &wire{}
	serveConfig(t, url, t.TempDir(), ours.transport(t, true))
	cert, key := ours.issue(t, "client")
	_, otherKey := ours.issue(t, "other")
	half := func(path string) []byte {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return append(text, text[:len(text)/2]...) // a second one is being written
	}
	other, err := os.ReadFile(otherKey)
	if err != nil {
		t.Fatal(err)
	}
	password := write(t, "password", "secret\n")
	n := &network{t, Options{Endpoints: []string{url}, Prefix: "/n", CAFile: ours.file, CertFile: cert, KeyFile: key, Username: "root", PasswordFile: password}, nil}
	h := n.often(w)
	h.listed()
	for _, c := range []struct {
		path  string
		text  []byte
		fault string
	}{
		{ours.file, half(ours.file), "--etcd-cafile: " + ours.file + " ends in the middle of a certificate"},
		{ours.file, nil, "--etcd-cafile: no certificate in " + ours.file},
		{key, other, "--etcd-certfile, --etcd-keyfile: tls: private key does not match public key"},
		{cert, []byte("-----BEGIN CERTIFICATE-----\nMIIB"), "--etcd-certfile, --etcd-keyfile: tls: failed to find any PEM data in certificate input"},
		{password, []byte("\n"), "--etcd-password-file: the first line of " + password + " is empty"},
	} {
		before, err := os.ReadFile(c.path)
		if err != nil {
			t.Fatal(err)
		}
		n.must(os.WriteFile(c.path, c.text, 0o600))
		want := c.fault + ": what was read before stays in use until this is mended"
		h.until("a warning: "+want, func() bool { return h.last.Err == nil && strings.HasPrefix(h.last.Alert, want) })
		w.cut()
		h.until("out of reach", func() bool { return h.last.Err != nil })
		w.mend()
		h.until("in reach, and warned", func() bool { return h.last.Err == nil && strings.HasPrefix(h.last.Alert, want) })
		n.must(os.WriteFile(c.path, before, 0o600))
		h.until("no warning", func() bool { return !strings.Contains(h.last.Alert, "stays in use") })
	}
}
