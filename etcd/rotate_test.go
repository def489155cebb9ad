package etcd

import (
	"os"
	"strings"
	"testing"
	"time"
)

// Credentials that are replaced on disk, as certificates and passwords are, serve from the next connection on.
func TestCertificatesRotate(t *testing.T) {
	t.Parallel()
	before, after, dir := newAuthority(t), newAuthority(t), t.TempDir()
	url := strings.Replace(freeURL(), "http", "https", 1)
	stop := serveConfig(t, url, dir, before.transport(t, true))
	cert, key := before.issue(t, "client")
	o := Options{Endpoints: []string{url}, Prefix: "/n", CAFile: before.file, CertFile: cert, KeyFile: key}
	h := start(t, o)
	h.Want(want("192.0.2.1", wide))
	held := h.held()
	stop()
	h.until("out of reach", func() bool { return h.last.Err != nil })
	serveConfig(t, url, dir, after.transport(t, true))
	h.until("refused", func() bool { return h.last.Err != nil && strings.Contains(h.last.Err.Error(), "x509") })
	newCert, newKey := after.issue(t, "client")
	for from, to := range map[string]string{after.file: before.file, newCert: cert, newKey: key} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	h.until("in reach", func() bool { return h.last.Err == nil })
	h.holds(held)
}

// A token that has expired is asked for anew, and a changed password is read again.
func TestTokenExpires(t *testing.T) {
	t.Parallel()
	url, w := freeURL(), &wire{}
	serveConfig(t, url, t.TempDir(), quickHash+"auth-token-ttl: 1")
	n := networkAt(t, url)
	n.config(wide)
	n.enableUsers("root")
	n.asRoot()
	n.options.Username, n.options.PasswordFile = "root", write(t, "password", "secret-of-root\n")
	h := n.join(want("192.0.2.1", wide), w.dial())
	key := h.key()

	<-time.After(3 * time.Second) // which the token does not live
	r := want("192.0.2.1", wide)
	r.Data.V4 = `{"VNI":2,"VtepMAC":"02:00:00:00:00:09"}`
	h.Want(r)
	h.until("the new data", func() bool { return h.last.Own.Lease.Data == r.Data })
	n.put("10.5.2.0-24", value("192.0.2.2"))
	h.until("a peer", func() bool { return h.entries["10.5.2.0-24"].Created != 0 })

	if _, err := n.raw.UserChangePassword(t.Context(), "root", "another"); err != nil {
		t.Fatal(err)
	}
	w.cut()
	h.until("out of reach", func() bool { return h.last.Err != nil })
	w.mend()
	h.until("refused", func() bool {
		return h.last.Err != nil && strings.Contains(h.last.Err.Error(), "does not know user root")
	})
	if err := os.WriteFile(n.options.PasswordFile, []byte("another\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.until("in reach", func() bool { return h.last.Err == nil })
	h.holds(key)
	n.raw.Password = "another"
	n.put("10.5.3.0-24", value("192.0.2.3"))
	h.until("another peer", func() bool { return h.entries["10.5.3.0-24"].Created != 0 })
}
