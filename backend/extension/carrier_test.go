package extension

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// rig is a Carrier with commands that write down what they are told.
type rig struct {
	*testing.T
	*Carrier
	dir string
}

func newRig(t *testing.T, options ...func(*Options)) *rig {
	r := &rig{T: t, dir: t.TempDir()}
	r.live(options...)
	return r
}

// live begins a new life, that ends with the test or by the function that it returns.
func (r *rig) live(options ...func(*Options)) (stop func()) {
	o := Options{File: filepath.Join(r.dir, "extension.json"), Log: slog.New(slog.DiscardHandler)}
	for _, option := range options {
		option(&o)
	}
	r.Carrier = New(o)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	carrier := r.Carrier
	go func() { ended <- carrier.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		<-ended
	})
	r.Cleanup(stop)
	return stop
}

// write is a command that adds a line to the log: a word, and what it is told.
func (r *rig) write(word string) string {
	return fmt.Sprintf(`echo "%s $NETWORK $SUBNET $PUBLIC_IP $TULLE_SUBNET $TULLE_PUBLIC_IP ${TULLE_PEER_KEY--} ${TULLE_PEER_SUBNET--} ${TULLE_PEER_PUBLIC_IP--} ${TULLE_PEER_DATA:--} <$(cat)>" >>%s/log`, word, r.dir)
}

// log is what was written since it was last read.
func (r *rig) log() []string {
	path := filepath.Join(r.dir, "log")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		r.Fatal(err)
	}
	_ = os.Remove(path)
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// says compares the log.
func (r *rig) says(want ...string) {
	r.Helper()
	if got := r.log(); !slices.Equal(got, want) {
		r.Errorf("commands were run:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// writing is an extension whose commands write the log.
func (r *rig) writing() backend.Extension {
	return backend.Extension{PostStartup: r.write("post"), SubnetAdd: r.write("add"), SubnetRemove: r.write("remove"), Shutdown: r.write("shutdown"),
		Network: subnet.PairOf(subnet.IPv4, netip.MustParsePrefix("10.5.0.0/16")), Self: peer(1, "")}
}

// peer is the lease of host i.
func peer(i int, data string) subnet.Lease {
	l := subnet.Lease{Subnet: subnet.PairOf(subnet.IPv4, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(i), 0}), 24)),
		PublicIP: subnet.PairOf(subnet.IPv4, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})), Backend: "extension"}
	if data != "" {
		l.Data.V4 = strconv.Quote(data)
	}
	return l
}

// want is a State with an extension and peers.
func want(e backend.Extension, peers ...subnet.Lease) backend.State {
	s := backend.NewState()
	s.Extension = e
	for _, l := range peers {
		s.Hooks[l.Key()] = l
	}
	return s
}

// pass is what the loop does of a pass.
func (r *rig) pass(s backend.State) error {
	if err := r.Open(r.Context(), s); err != nil {
		r.Fatal(err)
	}
	changes, err := r.Apply(r.Context(), s)
	if n := changes.Count(); len(n) > 0 {
		r.Errorf("Apply reports changes: %v", n)
	}
	return err
}

// until passes whenever the doorbell rings, until done.
func (r *rig) until(s backend.State, done func(err error) bool) error {
	r.Helper()
	for deadline := time.After(20 * time.Second); ; {
		err := r.pass(s)
		if done(err) {
			return err
		}
		select {
		case <-r.Doorbell():
		case <-deadline:
			r.Fatalf("not done after 20 s: %v", err)
		}
	}
}

// apply passes until nothing is left to do.
func (r *rig) apply(s backend.State) {
	r.Helper()
	_ = r.until(s, func(err error) bool { return err == nil })
}

// fails passes until a command has failed.
func (r *rig) fails(s backend.State) error {
	r.Helper()
	return r.until(s, func(err error) bool { return len(backend.Failed(err)) > 0 })
}

func TestLife(t *testing.T) {
	r := &rig{T: t, dir: t.TempDir()}
	stop := r.live()
	s := want(r.writing(), peer(2, "two"), peer(3, ""))
	if err := r.pass(s); err == nil || !strings.Contains(err.Error(), "waiting for the extension's commands") {
		t.Errorf("before the commands have run: %v", err)
	}
	r.apply(s)
	r.says("post 10.5.0.0/16 10.5.1.0/24 192.0.2.1 10.5.1.0/24 192.0.2.1 - - - - <>",
		"add 10.5.0.0/16 10.5.2.0/24 192.0.2.2 10.5.1.0/24 192.0.2.1 10.5.2.0-24 10.5.2.0/24 192.0.2.2 two <two>",
		"add 10.5.0.0/16 10.5.3.0/24 192.0.2.3 10.5.1.0/24 192.0.2.1 10.5.3.0-24 10.5.3.0/24 192.0.2.3 - <>")
	r.apply(s)
	r.says("")

	delete(s.Hooks, "10.5.3.0-24")
	s.Hooks["10.5.2.0-24"], s.Hooks["10.5.4.0-24"] = peer(2, "another"), peer(4, "")
	changes := backend.Changes{Hooks: backend.Delta[string, subnet.Lease]{Set: map[string]subnet.Lease{"10.5.2.0-24": peer(2, "another"), "10.5.4.0-24": peer(4, "")},
		Del: map[string]subnet.Lease{"10.5.3.0-24": peer(3, "")}}}
	if err := r.Change(t.Context(), changes); err != nil {
		t.Fatal(err)
	}
	<-r.Doorbell()
	r.says("remove 10.5.0.0/16 10.5.3.0/24 192.0.2.3 10.5.1.0/24 192.0.2.1 10.5.3.0-24 10.5.3.0/24 192.0.2.3 - <>",
		"remove 10.5.0.0/16 10.5.2.0/24 192.0.2.2 10.5.1.0/24 192.0.2.1 10.5.2.0-24 10.5.2.0/24 192.0.2.2 two <two>",
		"add 10.5.0.0/16 10.5.2.0/24 192.0.2.2 10.5.1.0/24 192.0.2.1 10.5.2.0-24 10.5.2.0/24 192.0.2.2 another <another>",
		"add 10.5.0.0/16 10.5.4.0/24 192.0.2.4 10.5.1.0/24 192.0.2.1 10.5.4.0-24 10.5.4.0/24 192.0.2.4 - <>")
	r.apply(s)
	r.says("")
	stop()
	r.says("shutdown 10.5.0.0/16 10.5.1.0/24 192.0.2.1 10.5.1.0/24 192.0.2.1 - - - - <>")

	r.live() // the next life tells of all, and takes back who left meanwhile
	delete(s.Hooks, "10.5.2.0-24")
	r.apply(s)
	r.says("post 10.5.0.0/16 10.5.1.0/24 192.0.2.1 10.5.1.0/24 192.0.2.1 - - - - <>",
		"remove 10.5.0.0/16 10.5.2.0/24 192.0.2.2 10.5.1.0/24 192.0.2.1 10.5.2.0-24 10.5.2.0/24 192.0.2.2 another <another>",
		"add 10.5.0.0/16 10.5.4.0/24 192.0.2.4 10.5.1.0/24 192.0.2.1 10.5.4.0-24 10.5.4.0/24 192.0.2.4 - <>")
}

// TestFamilies tells of networks and hosts with other families than IPv4: each has its variables, and what there is not is empty.
func TestFamilies(t *testing.T) {
	both := func(n int) subnet.Lease {
		l := peer(n, fmt.Sprint("data ", n))
		l.Subnet.V6, l.PublicIP.V6 = netip.MustParsePrefix(fmt.Sprintf("fd12:3456:0:%d::/64", n)), netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", n))
		return l
	}
	onIPv4, alone := both(3), both(4)
	onIPv4.PublicIP.V6 = netip.Addr{}
	alone.Subnet.V4, alone.PublicIP.V4 = netip.Prefix{}, netip.Addr{}
	network := subnet.Pair[netip.Prefix]{V4: netip.MustParsePrefix("10.5.0.0/16"), V6: netip.MustParsePrefix("fd12:3456::/48")}
	for name, test := range map[string]struct {
		network subnet.Pair[netip.Prefix]
		want    []string
	}{
		"both": {network, []string{
			"post 10.5.0.0/16 fd12:3456::/48 10.5.1.0/24 fd12:3456:0:1::/64 192.0.2.1 2001:db8::1 fd12:3456:0:1::/64 2001:db8::1 / / / / / <>",
			"add 10.5.0.0/16 fd12:3456::/48 10.5.2.0/24 fd12:3456:0:2::/64 192.0.2.2 2001:db8::2 fd12:3456:0:1::/64 2001:db8::1 10.5.2.0/24 fd12:3456:0:2::/64 192.0.2.2 2001:db8::2 10.5.2.0-24&fd12:3456:0:2::-64 <data 2>",
			"add 10.5.0.0/16 fd12:3456::/48 10.5.3.0/24 fd12:3456:0:3::/64 192.0.2.3 / fd12:3456:0:1::/64 2001:db8::1 10.5.3.0/24 fd12:3456:0:3::/64 192.0.2.3 / 10.5.3.0-24&fd12:3456:0:3::-64 <data 3>",
			"add 10.5.0.0/16 fd12:3456::/48 / fd12:3456:0:4::/64 / 2001:db8::4 fd12:3456:0:1::/64 2001:db8::1 / fd12:3456:0:4::/64 / 2001:db8::4 fd12:3456:0:4::-64 <data 4>"}},
		"IPv6": {subnet.PairOf(subnet.IPv6, network.V6), []string{
			"post / fd12:3456::/48 / fd12:3456:0:1::/64 192.0.2.1 2001:db8::1 fd12:3456:0:1::/64 2001:db8::1 / / / / / <>",
			"add / fd12:3456::/48 / fd12:3456:0:2::/64 192.0.2.2 2001:db8::2 fd12:3456:0:1::/64 2001:db8::1 / fd12:3456:0:2::/64 192.0.2.2 2001:db8::2 10.5.2.0-24&fd12:3456:0:2::-64 <data 2>",
			"add / fd12:3456::/48 / fd12:3456:0:3::/64 192.0.2.3 / fd12:3456:0:1::/64 2001:db8::1 / fd12:3456:0:3::/64 192.0.2.3 / 10.5.3.0-24&fd12:3456:0:3::-64 <data 3>",
			"add / fd12:3456::/48 / fd12:3456:0:4::/64 / 2001:db8::4 fd12:3456:0:1::/64 2001:db8::1 / fd12:3456:0:4::/64 / 2001:db8::4 fd12:3456:0:4::-64 <data 4>"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			write := func(word string) string {
				return fmt.Sprintf(`for v in "$NETWORK" "$IPV6_NETWORK" "$SUBNET" "$IPV6_SUBNET" "$PUBLIC_IP" "$IPV6_PUBLIC_IP" "$TULLE_IPV6_SUBNET" "$TULLE_IPV6_PUBLIC_IP" `+
					`"${TULLE_PEER_SUBNET-}" "${TULLE_PEER_IPV6_SUBNET-}" "${TULLE_PEER_PUBLIC_IP-}" "${TULLE_PEER_IPV6_PUBLIC_IP-}" "${TULLE_PEER_KEY-}"; do all="$all ${v:-/}"; done; echo "%s$all <$(cat)>" >>%s/log`, word, r.dir)
			}
			r.apply(want(backend.Extension{PostStartup: write("post"), SubnetAdd: write("add"), Network: test.network, Self: both(1)}, both(2), onIPv4, alone))
			r.says(test.want...)
		})
	}
}

// words are the first words of log lines and the subnets they are about.
func (r *rig) words() (words []string) {
	for _, line := range r.log() {
		fields := strings.Fields(line + " - - -")
		words = append(words, strings.TrimSpace(fields[0]+" "+fields[2]))
	}
	return words
}

func (r *rig) ran(want ...string) {
	r.Helper()
	if got := r.words(); !slices.Equal(got, want) {
		r.Errorf("commands were run: %q, want %q", got, want)
	}
}

// TestOtherType turns to a type that has no commands, in a life and between two.
func TestOtherType(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint(restart), func(t *testing.T) {
			r := &rig{T: t, dir: t.TempDir()}
			stop := r.live()
			r.apply(want(r.writing(), peer(2, ""), peer(3, "")))
			r.ran("post 10.5.1.0/24", "add 10.5.2.0/24", "add 10.5.3.0/24")
			if info, err := os.Stat(r.File); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("the memory is %v, %v; want a file that only root can read", info, err)
			}
			if restart {
				stop()
				r.ran("shutdown 10.5.1.0/24")
				r.live()
			}
			r.apply(want(backend.Extension{}))
			r.ran("remove 10.5.2.0/24", "remove 10.5.3.0/24", "shutdown 10.5.1.0/24")
			if _, err := os.Stat(r.File); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the memory is still there: %v", err)
			}
			if err := r.pass(want(backend.Extension{})); err != nil {
				t.Error(err)
			}
			r.apply(want(r.writing(), peer(2, "")))
			r.ran("post 10.5.1.0/24", "add 10.5.2.0/24")
		})
	}
}

// TestOtherCommands changes commands, and what they are told of this host.
func TestOtherCommands(t *testing.T) {
	r := newRig(t)
	e := r.writing()
	r.apply(want(e, peer(2, "")))
	r.ran("post 10.5.1.0/24", "add 10.5.2.0/24")
	e.SubnetAdd = r.write("add-anew")
	r.apply(want(e, peer(2, "")))
	r.ran("remove 10.5.2.0/24", "add-anew 10.5.2.0/24")
	e.PostStartup, e.Shutdown = r.write("post-anew"), r.write("shutdown-anew")
	r.apply(want(e, peer(2, "")))
	r.ran("post-anew 10.5.1.0/24")
	e.Self.Data.V4 = `"told by myself"`
	r.apply(want(e, peer(2, "")))
	r.says("")
	e.Self = peer(9, "")
	r.apply(want(e, peer(2, "")))
	r.ran("post-anew 10.5.9.0/24", "add-anew 10.5.2.0/24")
	r.apply(want(backend.Extension{}))
	r.ran("remove 10.5.2.0/24", "shutdown-anew 10.5.9.0/24")
}

// TestFailure lets a command fail for one of three peers. It is tried once for each time that the loop comes back, and no more.
func TestFailure(t *testing.T) {
	r := newRig(t)
	mended := filepath.Join(r.dir, "mended")
	e := r.writing()
	e.SubnetAdd += fmt.Sprintf(`; [ $SUBNET != 10.5.3.0/24 ] || [ -e %s ] || { echo "no way" >&2; exit 3; }`, mended)
	s := want(e, peer(2, ""), peer(3, ""), peer(4, ""))
	err := r.fails(s)
	for _, words := range []string{"Backend.SubnetAddCommand for 10.5.3.0-24", "exit status 3: no way", "Mend the command"} {
		if !strings.Contains(err.Error(), words) {
			t.Errorf("the error lacks %q: %v", words, err)
		}
	}
	if n := backend.Failed(err); !reflect.DeepEqual(n, map[string]int{"hook": 1}) {
		t.Errorf("failed: %v", n)
	}
	r.ran("post 10.5.1.0/24", "add 10.5.2.0/24", "add 10.5.3.0/24", "add 10.5.4.0/24")
	for range 3 {
		if err := r.pass(s); len(backend.Failed(err)) == 0 { // the loop comes back
			t.Errorf("while it is tried again: %v", err)
		}
		<-r.Doorbell()
		if err := r.pass(s); len(backend.Failed(err)) == 0 { // the doorbell's
			t.Errorf("after it was tried again: %v", err)
		}
		r.ran("add 10.5.3.0/24")
	}
	if err := os.WriteFile(mended, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.apply(s)
	r.ran("add 10.5.3.0/24")

	// one that leaves while it fails is removed, and nobody asks for it any more
	if err := os.Remove(mended); err != nil {
		t.Fatal(err)
	}
	s.Hooks["10.5.3.0-24"] = peer(3, "new")
	_ = r.fails(s)
	delete(s.Hooks, "10.5.3.0-24")
	r.apply(s)
	r.log()
	r.apply(want(backend.Extension{}))
	r.ran("remove 10.5.2.0/24", "remove 10.5.4.0/24", "shutdown 10.5.1.0/24")
}

// TestStartFails lets the post-start command fail: no peer is added before it succeeds.
func TestStartFails(t *testing.T) {
	r := newRig(t)
	e := r.writing()
	e.PostStartup = fmt.Sprintf("[ -e %s/mended ]", r.dir)
	s := want(e, peer(2, ""))
	if err := r.fails(s); !strings.Contains(err.Error(), "Backend.PostStartupCommand (") || !strings.Contains(err.Error(), "it printed nothing") {
		t.Errorf("the error is %v", err)
	}
	r.says("")
	if err := os.WriteFile(r.dir+"/mended", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.apply(s)
	r.ran("add 10.5.2.0/24")
}

// TestHang lets a command hang, with a child of its own: others are told all the same, and nothing of it is left.
func TestHang(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Timeout = 300 * time.Millisecond })
	e := r.writing()
	e.SubnetAdd = fmt.Sprintf("[ $SUBNET != 10.5.2.0/24 ] || { sleep 1000 & echo $! >%s/pid; wait; };", r.dir) + e.SubnetAdd
	s := want(e, peer(2, ""), peer(3, ""))
	err := r.fails(s)
	if !strings.Contains(err.Error(), "for 10.5.2.0-24") || !strings.Contains(err.Error(), "it had not ended in time, and was killed") {
		t.Errorf("the error is %v", err)
	}
	r.ran("post 10.5.1.0/24", "add 10.5.3.0/24")
	text, err := os.ReadFile(r.dir + "/pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); alive(pid); {
		if time.Now().After(deadline) {
			t.Fatalf("process %d, the hanging command's child, is still there", pid)
		}
	}
}

// alive reports whether a process is there, and no zombie that nobody has waited for.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z")
}

// TestBackground leaves processes in the background: they go on, and keep nobody waiting, even if they hold the command's output.
func TestBackground(t *testing.T) {
	for _, output := range []string{">/dev/null 2>&1 </dev/null", ""} {
		r := newRig(t)
		e := r.writing()
		e.PostStartup = fmt.Sprintf("sleep 1000 %s & echo $! >%s/pid", output, r.dir)
		started := time.Now()
		r.apply(want(e))
		if took := time.Since(started); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		var pid int
		text, _ := os.ReadFile(r.dir + "/pid")
		if _, err := fmt.Sscan(string(text), &pid); err != nil || !alive(pid) {
			t.Errorf("what was left in the background does not go on: %s, %v", text, err)
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

func TestNoProgram(t *testing.T) {
	r := newRig(t)
	broken := filepath.Join(r.dir, "broken")
	if err := os.WriteFile(broken, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for command, words := range map[string]string{
		"no-such-program --now": "Backend.SubnetAddCommand for 10.5.2.0-24 (no-such-program --now): exit status 127:",
		broken:                  "exit status 126:",
	} {
		e := r.writing()
		e.SubnetAdd = command
		if err := r.fails(want(e, peer(2, ""))); !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "mend the command in the network's config") {
			t.Errorf("%s: the error is %v", command, err)
		}
	}
}

// prepare asks for what a command prints, until it is known or has failed.
func (r *rig) prepare(command string) (string, error) {
	r.Helper()
	for deadline := time.After(20 * time.Second); ; {
		var facts backend.Facts
		err := r.Prepare(r.Context(), backend.Needs{Command: command}, &facts)
		if err == nil || len(backend.Failed(err)) > 0 {
			return facts.Printed, err
		}
		if !strings.Contains(err.Error(), "waiting for Backend.PreStartupCommand") {
			r.Fatal(err)
		}
		select {
		case <-r.Doorbell():
		case <-deadline:
			r.Fatal("the pre-start command has not ended after 20 s")
		}
	}
}

func TestPreStart(t *testing.T) {
	r := newRig(t)
	first := r.write("pre") + "; printf ' one\ntwo \n'; echo unheard >&2"
	for range 3 { // it is run once
		if printed, err := r.prepare(first); err != nil || printed != "one\ntwo" {
			t.Errorf("printed %q, %v", printed, err)
		}
	}
	if n := len(r.log()); n != 1 {
		t.Errorf("it was run %d times", n)
	}
	if printed, err := r.prepare("echo another"); err != nil || printed != "another" {
		t.Errorf("another command printed %q, %v", printed, err)
	}
	e := r.writing()
	e.PostStartup = "echo $TULLE_DATA >>" + r.dir + "/log"
	r.apply(want(e))
	r.says("another")
	r.apply(want(backend.Extension{}))
	r.log()
	if _, err := r.prepare(first); err != nil || len(r.log()) != 1 {
		t.Errorf("after the end it is not run again: %v", err)
	}
}

func TestPreStartPrintsGarbage(t *testing.T) {
	r := newRig(t)
	for command, words := range map[string]string{
		`printf 'a\0b'`:                      "control characters",
		`printf '\033[31mred'`:               "control characters",
		`printf '\377\376'`:                  "not UTF-8",
		`head -c 9000 /dev/zero | tr '\0' x`: "more than 8192 bytes in a lease",
		`yes`:                                "",
	} {
		if command == "yes" {
			r.Timeout = 300 * time.Millisecond // nobody looks at it now
			words = "had not ended in time"
		}
		printed, err := r.prepare(command)
		if err == nil || printed != "" || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "Backend.PreStartupCommand ("+command) {
			t.Errorf("%s: printed %q, error %v", command, printed, err)
		}
	}
}

// TestPreStartIsMended hangs, until another command is wanted in its place.
func TestPreStartIsMended(t *testing.T) {
	r := newRig(t)
	hangs := fmt.Sprintf("touch %s/hangs; sleep 1000", r.dir)
	for deadline := time.Now().Add(5 * time.Second); ; {
		if err := r.Prepare(t.Context(), backend.Needs{Command: hangs}, &backend.Facts{}); err == nil {
			t.Fatal("a command that hangs has ended")
		}
		if _, err := os.Stat(r.dir + "/hangs"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it was not run")
		}
	}
	started := time.Now()
	r.apply(want(r.writing(), peer(2, ""))) // which needs none
	r.ran("post 10.5.1.0/24", "add 10.5.2.0/24")
	if printed, err := r.prepare("echo mended"); err != nil || printed != "mended" || time.Since(started) > 5*time.Second {
		t.Errorf("printed %q after %v, %v", printed, time.Since(started), err)
	}
	_ = r.Prepare(t.Context(), backend.Needs{Command: hangs}, &backend.Facts{})
	if printed, err := r.prepare("echo again"); err != nil || printed != "again" || time.Since(started) > 5*time.Second {
		t.Errorf("printed %q after %v, %v", printed, time.Since(started), err)
	}
}

// TestSecrets plants a password in the agent's environment: commands get none of it.
func TestSecrets(t *testing.T) {
	t.Setenv("TULLE_ETCD_PASSWORD", "planted")
	t.Setenv("HOME", "/planted/home")
	r := newRig(t)
	printed, err := r.prepare("env")
	if err != nil || strings.Contains(printed, "TULLE_ETCD_PASSWORD") || !strings.Contains(printed, "HOME=/planted/home") || !strings.Contains(printed, "PATH=") {
		t.Errorf("the environment is %s, %v", printed, err)
	}
}

// TestMemoryIsGarbage begins with a file that nobody can read.
func TestMemoryIsGarbage(t *testing.T) {
	for _, text := range []string{"{", `{"Told":[{"Peers":[]}]}`} {
		r := &rig{T: t, dir: t.TempDir()}
		if err := os.WriteFile(filepath.Join(r.dir, "extension.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r.live()
		r.apply(want(r.writing(), peer(2, "")))
		r.ran("post 10.5.1.0/24", "add 10.5.2.0/24")
	}
}

// TestMemoryCannotBeWritten carries peers all the same.
func TestMemoryCannotBeWritten(t *testing.T) {
	r := newRig(t, func(o *Options) { o.File = "/proc/none/extension.json" })
	r.apply(want(r.writing(), peer(2, "")))
	r.ran("post 10.5.1.0/24", "add 10.5.2.0/24")
}

// TestKilled ends a life in the middle of a command, without a word: the next one knows whom it may have been told of.
func TestKilled(t *testing.T) {
	r := newRig(t)
	e := r.writing()
	e.SubnetAdd = fmt.Sprintf("touch %s/adding; sleep 1000", r.dir)
	r.until(want(e, peer(2, "")), func(error) bool {
		_, err := os.Stat(r.dir + "/adding")
		if err != nil {
			ring(r.bell) // look again
		}
		return err == nil
	})
	r.log()
	r.live() // beside the one that hangs, which writes nothing
	r.apply(want(backend.Extension{}))
	r.ran("remove 10.5.2.0/24", "shutdown 10.5.1.0/24")
}

// TestBurst is of many peers at once.
func TestBurst(t *testing.T) {
	const n = 200
	r := newRig(t)
	var peers []subnet.Lease
	for i := range n {
		peers = append(peers, peer(i+2, ""))
	}
	r.apply(want(r.writing(), peers...))
	if got := len(r.log()); got != n+1 {
		t.Errorf("%d commands were run, want %d", got, n+1)
	}
}
