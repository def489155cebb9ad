package e2e

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/e2e/lab"
)

// listenToken lets in whoever shows it.
const listenToken = "a-token-that-nobody-guesses-1234"

// listenFiles makes what agents need for TLS and a token, as files in a new directory: ca.pem, cert.pem for all hosts, key.pem, token.
func listenFiles(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tulle"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true}
	for n := byte(1); n < 255; n++ {
		template.IPAddresses = append(template.IPAddresses, net.IPv4(192, 0, 2, n))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, content := range map[string][]byte{"ca.pem": certificate, "cert.pem": certificate, "token": []byte(listenToken + "\n"),
		"key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// listenArgs have an agent serve other hosts with these files.
func listenArgs(dir string) []string {
	return []string{"--listen", "0.0.0.0:9494", "--listen-certfile", dir + "/cert.pem", "--listen-keyfile", dir + "/key.pem", "--listen-token-file", dir + "/token"}
}

// ask asks the agent at a URL from another host, by a new connection.
func ask(ctx context.Context, from *lab.Host, url, token string) (code int, body string, err error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: from.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // Prometheus's scrape_timeout
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(text), err
}

// kinds of those who are slow, by what they send first and then, a byte a second.
var slowKinds = map[string]struct{ first, then string }{
	"headers":    {"GET /metrics HTTP/1.1\r\nHost: a\r\nX-Slow: ", "a"},
	"readers":    {strings.Repeat("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 4), "G"}, // more than the kernels take for one that reads nothing
	"handshakes": {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "\x00"},             // a ClientHello (RFC 8446, 4.1.2) of 512 bytes, to come
}

// TestSlowConnections has ten thousand connections to an agent that are slow in every way, from 250 addresses, and as many again to one
// with TLS. Neither loop is slower than without, or takes more than it should; and who means it gets an answer.
func TestSlowConnections(t *testing.T) {
	if spec := os.Getenv("TULLE_TEST_CROWD"); spec != "" {
		beCrowd(t, spec)
		return
	}
	t.Parallel()
	l := newLab(t, lab.Options{Hosts: 1, Agent: []string{"--listen", "0.0.0.0:9494"}})
	l.Agent = listenArgs(listenFiles(t))
	for range 2 {
		if _, err := l.AddHost(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	open, closed, asking := l.Nodes[0], l.Nodes[1], l.Nodes[2]
	calm := measureLoop(t, l, open, asking)
	files, memory := map[*lab.Host]int{}, map[*lab.Host]int{}
	for _, h := range []*lab.Host{open, closed} {
		files[h], memory[h] = openFiles(t, h), resident(t, h)
		// What more than the status server may take is the loop's and etcd's.
		limit := unix.Rlimit{Cur: uint64(files[h] + 300), Max: uint64(files[h] + 300)}
		if err := unix.Prlimit(h.Agent.PID, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
			t.Fatal(err)
		}
	}
	in(t, l.Underlay(), "ip", "addr", "add", "203.0.113.0/24", "dev", "lo")
	crowd(t, l, "headers", open, 9950)
	crowd(t, l, "readers", open, 50)
	crowd(t, l, "handshakes", closed, 10_000)

	slow := measureLoop(t, l, open, asking)
	t.Logf("repair, leave, join without: %v; with: %v", calm, slow)
	for i, what := range []string{"repair", "leave", "join"} {
		if slow[i] > 4*calm[i]+2*time.Second {
			t.Errorf("a %s took %s, and %s without the crowd", what, slow[i], calm[i])
		}
	}
	for h, url := range map[*lab.Host]string{open: "http://" + instance(open), closed: "https://" + instance(closed)} {
		n := openFiles(t, h)
		t.Logf("%s: %d open files, %d before; %d KiB resident, %d before", h.Name, n, files[h], resident(t, h), memory[h])
		if n > files[h]+260+10 || n < files[h]+100 {
			t.Errorf("%s has %d open files, and %d without the crowd", h.Name, n, files[h])
		}
		if more := resident(t, h) - memory[h]; more > 64<<10 && !raceEnabled || more > 512<<10 {
			t.Errorf("%s has %d KiB more than without the crowd", h.Name, more)
		}
		failed := 0
		for range 20 {
			if code, text, err := ask(t.Context(), asking, url+"/metrics", listenToken); err != nil || code != 200 || !strings.Contains(text, "\ntulle_ready 1\n") {
				t.Logf("%s/metrics: %d, %v", url, code, err)
				failed++
			}
			started := time.Now()
			if err := h.Ready(t.Context()); err != nil {
				t.Errorf("%s at its socket, after %s: %v", h.Name, time.Since(started), err)
			}
		}
		if failed > 1 {
			t.Errorf("%s has not answered %d of 20 times", url, failed)
		}
		if n := strings.Count(logOf(t, l, h), "more connections"); n != 1 {
			t.Errorf("%s has logged %d times that there are too many", h.Name, n)
		}
	}
}

// crowd opens slow connections to a host from many addresses, in another process, which has files of its own. It returns when all have
// been opened; each that is closed is opened again, until the test ends.
func crowd(t *testing.T, l *lab.Lab, kind string, h *lab.Host, n int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestSlowConnections$", "-test.timeout", "10m")
	cmd.Env = append(os.Environ(), "TULLE_TEST_BINARY="+binary, fmt.Sprintf("TULLE_TEST_CROWD=%s %s %d", kind, instance(h), n))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.In(l.Underlay(), cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	started := time.Now()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "all were there\n" {
		t.Fatalf("the crowd says %q, %v", line, err)
	}
	t.Logf("%d %s were there after %s", n, kind, time.Since(started).Round(time.Millisecond))
	go func() { _, _ = io.Copy(io.Discard, out) }()
}

// beCrowd is the other process. It ends by being killed.
func beCrowd(t *testing.T, spec string) {
	var kind, address string
	var n int
	if _, err := fmt.Sscan(spec, &kind, &address, &n); err != nil {
		t.Fatal(err)
	}
	const group = 500
	first := make(chan error)
	groups := (n + group - 1) / group
	for g := range groups {
		go beGroup(kind, address, g*group, min(n, (g+1)*group), first)
	}
	for range groups {
		if err := <-first; err != nil {
			t.Fatal(err)
		}
	}
	fmt.Println("all were there")
	select {}
}

// beGroup keeps connections open, and sends a byte by each every second. Of those that are gone it makes up to 25 a second anew.
func beGroup(kind, address string, from, to int, first chan<- error) {
	conns := make([]net.Conn, to-from)
	tick := time.NewTicker(time.Second)
	for round := 0; ; round++ {
		left := 25
		for i, c := range conns {
			if c != nil {
				_ = c.SetWriteDeadline(time.Now().Add(time.Millisecond))
				if _, err := io.WriteString(c, slowKinds[kind].then); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					c.Close()
					conns[i] = nil
				}
				continue
			}
			if left--; left < 0 && round > 0 {
				continue
			}
			source := &net.TCPAddr{IP: net.IPv4(203, 0, 113, byte(1+(from+i)%250))}
			c, err := (&net.Dialer{LocalAddr: source, Timeout: 20 * time.Second, Control: smallBuffer}).Dial("tcp", address)
			if err != nil {
				if round == 0 {
					first <- err
					return
				}
				continue
			}
			_, _ = io.WriteString(c, slowKinds[kind].first)
			conns[i] = c
		}
		if round == 0 {
			first <- nil
		}
		<-tick.C
	}
}

// smallBuffer is a net.Dialer's Control: who is slow takes little at a time.
func smallBuffer(_, _ string, raw syscall.RawConn) (err error) {
	controlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 2048) })
	return errors.Join(controlErr, err)
}

// measureLoop returns how long it takes a host's agent to repair a route, the median of some, to see a peer leave, and join.
func measureLoop(t *testing.T, l *lab.Lab, h, peer *lab.Host) (took [3]time.Duration) {
	t.Helper()
	subnet := peer.Container.Subnet.String()
	has := func(want bool) error {
		out, err := lab.Output(t.Context(), h.Namespace, "ip", "route", "show", subnet)
		if err == nil && (out != "") != want {
			err = fmt.Errorf("the route to %s is %q", subnet, out)
		}
		return err
	}
	until := func(want bool) time.Duration {
		t.Helper()
		started := time.Now()
		eventually(t, 30*time.Second, "the route is as it should be", func() error { return has(want) })
		return time.Since(started)
	}
	until(true)
	var repairs []time.Duration
	for range 9 {
		in(t, h.Namespace, "ip", "route", "del", subnet)
		repairs = append(repairs, until(true))
	}
	slices.Sort(repairs)
	stop(t, peer)
	if _, err := l.Tulle(t.Context(), "", "lease", "release", subnet); err != nil {
		t.Fatal(err)
	}
	left := until(false)
	launch(t, l, peer)
	joined := until(true)
	if err := peer.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return [3]time.Duration{repairs[len(repairs)/2], left, joined}
}

// openFiles counts an agent's.
func openFiles(t *testing.T, h *lab.Host) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", h.Agent.PID))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// resident is an agent's memory, KiB.
func resident(t *testing.T, h *lab.Host) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.Agent.PID))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
