package etcd

import (
	"fmt"
	"strings"
	"testing"
)

func TestServerSecure(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		change func(o *ServerOptions)
		text   string
	}{
		{func(o *ServerOptions) { o.CertFile = "a" }, "--cert-file and --key-file go together: one of them is missing"},
		{func(o *ServerOptions) { o.PeerKeyFile = "a" }, "--peer-cert-file and --peer-key-file go together: one of them is missing"},
		{func(o *ServerOptions) { o.CertFile, o.KeyFile = "a", "b" },
			"--listen-client-urls: http://127.0.0.1:2379: https:// goes with --cert-file and --key-file, and http:// without"},
		{func(o *ServerOptions) { o.ListenPeerUrls[0] = "https://127.0.0.1:2380" },
			"--listen-peer-urls: https://127.0.0.1:2380: https:// goes with --peer-cert-file and --peer-key-file, and http:// without"},
		{func(o *ServerOptions) { o.ClientCertAuth = true }, "--client-cert-auth and --trusted-ca-file go together: one of them is missing"},
		{func(o *ServerOptions) { o.TrustedCAFile = "a" }, "--client-cert-auth and --trusted-ca-file go together: one of them is missing"},
		{func(o *ServerOptions) { o.ClientCertAuth, o.TrustedCAFile = true, "a" }, "--client-cert-auth needs TLS: give --cert-file and --key-file"},
	} {
		o := ServerOptions{Name: "a", DataDir: t.TempDir(), ListenClientUrls: []string{"http://127.0.0.1:2379"}, ListenPeerUrls: []string{"http://127.0.0.1:2380"}}
		c.change(&o)
		if _, err := o.config(); fmt.Sprint(err) != c.text {
			t.Errorf("got  %v\nwant %s", err, c.text)
		}
	}
}

func TestServerExposed(t *testing.T) {
	for url, exposed := range map[string]bool{"http://127.0.0.1:2379": false, "https://[::1]:2379": false, "http://localhost:2379": false,
		"http://192.0.2.1:2379": true, "https://0.0.0.0:2379": true} {
		if got := (ServerOptions{ListenClientUrls: []string{url}}).Exposed() != ""; got != exposed {
			t.Errorf("%s: exposed %t", url, got)
		}
	}
	if url := (ServerOptions{ListenClientUrls: []string{"https://192.0.2.1:2379"}, ClientCertAuth: true}).Exposed(); url != "" {
		t.Errorf("%s is exposed, though it asks for certificates", url)
	}
}

// A cluster of one serves with TLS by flags alone, and lets in who has a certificate.
func TestServerTLS(t *testing.T) {
	t.Parallel()
	ours, url := newAuthority(t), strings.Replace(freeURL(), "http", "https", 1)
	cert, key := ours.issue(t, "server")
	serveFor(t, ServerOptions{DataDir: t.TempDir(), ListenClientUrls: []string{url}, CertFile: cert, KeyFile: key, ClientCertAuth: true, TrustedCAFile: ours.file})
	clientCert, clientKey := ours.issue(t, "client")
	o := Options{Endpoints: []string{url}, Prefix: "/n", CAFile: ours.file}
	stranger := start(t, o)
	o.CertFile, o.KeyFile = clientCert, clientKey
	start(t, o).listed()
	stranger.until("refused", func() bool {
		return stranger.last.Err != nil && strings.Contains(stranger.last.Err.Error(), "it wants a certificate of this host")
	})
}
