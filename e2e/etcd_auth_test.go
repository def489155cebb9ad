package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/doctor"
	"github.com/tulle-net/tulle/e2e/lab"
)

// TestEtcdRoles gives etcd users and roles by the very commands of docs/security.md, and sees what each may do, and what agents make
// of it when it is taken from them.
func TestEtcdRoles(t *testing.T) {
	t.Parallel()
	debian, err := filepath.Abs("../bin/debian/usr/bin")
	must(t, err)
	if _, err := os.Stat(filepath.Join(debian, "etcdctl")); err != nil {
		t.Fatalf("no etcdctl of Debian's: %v (e2e/prepare test unpacks one)", err)
	}
	for _, way := range []struct {
		name, etcd string
		flags      func(dir, user string) []string // of who is to be user
	}{
		{"passwords", filepath.Join(debian, "etcd"), func(dir, user string) []string {
			return []string{"--etcd-username", user, "--etcd-password-file", filepath.Join(dir, user+".password")}
		}},
		{"certificates", "", func(dir, user string) []string {
			return []string{"--etcd-certfile", filepath.Join(dir, user+".pem"), "--etcd-keyfile", filepath.Join(dir, user+".key")}
		}},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			r := newRegime(t, way.etcd, way.name == "certificates")
			r.path, r.flags = debian, way.flags
			r.test(t, way.name)
		})
	}
}

// regime is a lab whose etcd serves with TLS, and is to ask who one is.
type regime struct {
	*lab.Lab
	dir   string // the operator's, with certificates
	path  string // of etcdctl
	flags func(dir, user string) []string
	env   []string // what the document's commands have exported so far
}

func newRegime(t *testing.T, etcd string, mutual bool) *regime {
	dir := t.TempDir()
	issue(t, dir, "ca", "server", "root", "operator", "agent", "reader", "host1")
	in := func(name string) string { return filepath.Join(dir, name) }
	o := lab.Options{Hosts: 2, Etcd: etcd, EtcdArgs: []string{"--cert-file", in("server.pem"), "--key-file", in("server.key")},
		Client: []string{"--etcd-cafile", in("ca.pem")}}
	if mutual {
		o.EtcdArgs = append(o.EtcdArgs, "--client-cert-auth", "--trusted-ca-file", in("ca.pem"))
		o.Client = append(o.Client, "--etcd-certfile", in("operator.pem"), "--etcd-keyfile", in("operator.key"))
	}
	return &regime{Lab: newLab(t, o), dir: dir}
}

// as makes user of who asks etcd from now on.
func (r *regime) as(user string) {
	r.Client = append([]string{"--etcd-cafile", filepath.Join(r.dir, "ca.pem")}, r.flags(r.dir, user)...)
}

// can fails the test unless the command works for user.
func (r *regime) can(t *testing.T, user, stdin string, args ...string) string {
	t.Helper()
	r.as(user)
	out, err := r.Tulle(t.Context(), stdin, args...)
	if err != nil {
		t.Fatalf("%s can't %v: %v", user, args, err)
	}
	return out
}

// cannot fails the test unless the command is refused to user, for the reason, in one line.
func (r *regime) cannot(t *testing.T, user, reason, stdin string, args ...string) {
	t.Helper()
	r.as(user)
	_, err := r.Tulle(t.Context(), stdin, args...)
	if err == nil || !strings.Contains(err.Error(), reason) {
		t.Errorf("%s, %v: %v; want %q", user, args, err, reason)
	}
}

// follow runs one of the document's commands.
func (r *regime) follow(t *testing.T, name string) {
	t.Helper()
	text, err := os.ReadFile("../docs/security.md")
	must(t, err)
	block := regexp.MustCompile(`(?s)<!-- TestEtcdRoles: ` + name + ` -->\n\n(    .*?)\n\n[^ \n]`).FindSubmatch(text)
	if block == nil {
		t.Fatalf("docs/security.md has no commands named %q", name)
	}
	r.run(t, string(block[1]))
}

// run runs a script in the operator's directory, where etcd is in reach, and keeps what it exports. etcdctl tries for ever.
func (r *regime) run(t *testing.T, script string) {
	t.Helper()
	cmd := exec.Command("timeout", "60", "ip", "netns", "exec", r.Underlay(), "bash", "-euc", script+"\nexport -p >exports")
	cmd.Dir = r.dir
	cmd.Env = append([]string{"ETCDCTL_API=3", "PATH=" + r.path + ":" + r.bin(t) + ":/usr/sbin:/usr/bin:/sbin:/bin"}, r.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s\n%s", err, out, script)
	}
	exports, err := os.ReadFile(filepath.Join(r.dir, "exports"))
	must(t, err)
	r.env = nil
	for _, v := range regexp.MustCompile(`declare -x (ETCDCTL_\w+|TULLE_\w+)="(.*)"`).FindAllStringSubmatch(string(exports), -1) {
		r.env = append(r.env, v[1]+"="+v[2])
	}
}

// bin is a directory with tulle in it.
func (r *regime) bin(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Symlink(binary, filepath.Join(dir, "tulle")))
	return dir
}

// restart gives a host's agent the credentials of user.
func (r *regime) restart(t *testing.T, user string, hosts ...*lab.Host) {
	t.Helper()
	for _, h := range hosts {
		if h.Agent != nil {
			stop(t, h)
		}
		r.as(user)
		launch(t, r.Lab, h)
		must(t, h.WaitReady(t.Context()))
	}
}

func (r *regime) test(t *testing.T, way string) {
	h1, h2 := r.Nodes[0], r.Nodes[1]
	r.follow(t, "endpoint")
	if way == "certificates" {
		r.follow(t, "certificate")
	}
	r.follow(t, "roles")
	r.follow(t, way)
	r.restart(t, "agent", h1, h2)
	must(t, r.Converge(t.Context()))
	ping(t, h1.Container, h2.Container, 56)

	const other = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}`
	refused := "etcd does not let user agent"
	r.cannot(t, "agent", " write /coreos.com/network/config: that takes an operator's user (--etcd-username)", other, "config", "set", "-")
	r.cannot(t, "reader", " write /coreos.com/network/subnets/"+envKey(t, h1), "", "lease", "release", envKey(t, h1))
	if out := r.can(t, "reader", "", "lease", "ls"); !strings.Contains(out, h2.Address.String()) {
		t.Errorf("tulle lease ls as reader:\n%s", out)
	}
	r.can(t, "operator", other, "config", "set", "-")
	eventually(t, 20*time.Second, "agents follow the config", func() error {
		env, err := h1.Env()
		if err == nil && env["FLANNEL_MTU"] != "1350" {
			err = fmt.Errorf("MTU is %s", env["FLANNEL_MTU"])
		}
		return err
	})
	held := envKey(t, h1)
	r.can(t, "operator", "", "lease", "release", held)
	eventually(t, 20*time.Second, "the agent registers again", func() error {
		if out := r.can(t, "operator", "", "lease", "ls"); !strings.Contains(out, h1.Address.String()) {
			return fmt.Errorf("leases:\n%s", out)
		}
		return nil
	})
	if envKey(t, h1) != held {
		t.Errorf("the subnet was %s and is %s", held, envKey(t, h1))
	}
	r.testRevoked(t, refused)
	r.testOneHost(t, way)
}

// testRevoked takes the agents' role away while they run, and gives it back.
func (r *regime) testRevoked(t *testing.T, refused string) {
	h1, h2 := r.Nodes[0], r.Nodes[1]
	flows := startTraffic(t, h1, h2)
	r.run(t, "etcdctl user revoke-role agent tulle-agent")
	r.as("operator")
	must(t, r.Server.Stop(unix.SIGTERM)) // they notice at the next connection, or within 45 s
	must(t, r.StartEtcd(t.Context()))
	eventually(t, reportLimit, "hosts say what they may not", func() error {
		for _, h := range r.Nodes {
			if s, err := h.Status(t.Context()); err != nil || !strings.HasPrefix(s.Etcd.Error, refused) {
				return fmt.Errorf("%s: etcd: %s; %v", h.Name, s.Etcd.Error, err)
			}
		}
		return nil
	})
	if out := in(t, h1.Namespace, binary, "status", "--run-dir", h1.RunDir); !strings.Contains(out, refused) {
		t.Errorf("tulle status does not say %q:\n%s", refused, out)
	}
	if report := r.doctor(t, h1); !strings.Contains(report, refused) {
		t.Errorf("tulle doctor does not say %q:\n%s", refused, report)
	}
	steadily(t, 5*time.Second, "said once", func() error { // they try again several times meanwhile
		if n := strings.Count(logOf(t, r.Lab, h1), refused); n != 1 {
			return fmt.Errorf("said %d times", n)
		}
		return nil
	})
	r.run(t, "etcdctl user grant-role agent tulle-agent")
	wantConnected(t, h1, h2)
	flows.wantNoneLost(t)
}

// doctor is what tulle doctor finds on a host.
func (r *regime) doctor(t *testing.T, h *lab.Host) string {
	t.Helper()
	out, _ := lab.Output(t.Context(), h.Namespace, append([]string{binary, "doctor", "--json", "--run-dir", h.RunDir, "--etcd-endpoints", r.Endpoints()}, r.Client...)...)
	var report doctor.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		return out
	}
	return fmt.Sprint(report.Findings, report.Unchecked)
}

// testOneHost narrows a host to its own lease.
func (r *regime) testOneHost(t *testing.T, way string) {
	h1, h2 := r.Nodes[0], r.Nodes[1]
	stop(t, h1)
	r.can(t, "operator", "", "lease", "release", envKey(t, h1))
	r.env = append(r.env, "TULLE_ETCD_ENDPOINTS="+r.Endpoints(), "TULLE_ETCD_CAFILE=ca.pem")
	for i, flags := 0, r.flags(r.dir, "operator"); i < len(flags); i += 2 {
		r.env = append(r.env, "TULLE_"+strings.ReplaceAll(strings.ToUpper(strings.TrimPrefix(flags[i], "--")), "-", "_")+"="+flags[i+1])
	}
	r.follow(t, "one host")
	if way == "passwords" {
		r.run(t, "umask 077; echo secret-of-host1 >host1.password; etcdctl user add host1 --interactive=false <host1.password; etcdctl user grant-role host1 tulle-host1")
	} else {
		r.run(t, "etcdctl user add host1 --no-password; etcdctl user grant-role host1 tulle-host1")
	}
	r.as("host1")
	launch(t, r.Lab, h1)
	must(t, h1.WaitReady(t.Context()))
	if held := envKey(t, h1); held != "10.5.7.0-24" {
		t.Errorf("host1 holds %s, and 10.5.7.0-24 is reserved for it", held)
	}
	must(t, r.Converge(t.Context()))
	r.cannot(t, "host1", "etcd does not let user host1", "", "lease", "release", envKey(t, h2))
	r.can(t, "host1", "", "lease", "ls")
}

// issue writes an authority NAME.pem, and certificates NAME.pem, NAME.key that it signed for the names, into dir.
func issue(t *testing.T, dir, authority string, names ...string) {
	t.Helper()
	var parent *x509.Certificate
	var signer *ecdsa.PrivateKey
	for i, name := range append([]string{authority}, names...) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		c := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		if name == authority {
			c = &x509.Certificate{SerialNumber: c.SerialNumber, Subject: c.Subject, NotBefore: c.NotBefore, NotAfter: c.NotAfter, IsCA: true,
				BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
			parent, signer = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
		must(t, err)
		private, err := x509.MarshalPKCS8PrivateKey(key)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
		must(t, os.WriteFile(filepath.Join(dir, name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	}
}
