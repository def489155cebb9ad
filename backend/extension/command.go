package extension

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// call is a command to run: Backend's key, what stands there, and what it is told.
type call struct {
	key, command string
	peer         string // key of its lease; "" for none
	env          []string
	stdin        string
}

// inherited are those variables that commands have from the agent. The agent's others are none of their business: a password may be
// among them.
var inherited = []string{"PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR"}

// prefixes begin the names of one family's variables. Flannel has only those without.
var prefixes = [...]string{subnet.IPv4: "", subnet.IPv6: "IPV6_"}

// own is a command that is about this host.
func (c *Carrier) own(key, command string, by *backend.Extension) call {
	env := append(about(by, by.Self), "TULLE_DATA="+c.pre.printed)
	return call{key: key, command: command, env: env}
}

// about is a command that is about a peer.
func (c *Carrier) about(key, command string, t telling) call {
	data := text(t.lease.Data.V4)
	env := append(about(t.by, t.lease), places("TULLE_PEER_", t.by, t.lease)...)
	env = append(env, "TULLE_DATA="+c.pre.printed, "TULLE_PEER_KEY="+t.lease.Key(), "TULLE_PEER_DATA="+data)
	return call{key: key, command: command, peer: t.lease.Key(), env: env, stdin: data}
}

// about are the variables that every command has. Those without TULLE_ are flannel's.
func about(by *backend.Extension, l subnet.Lease) []string {
	env := append(places("", by, l), places("TULLE_", by, by.Self)...)
	for f, prefix := range prefixes {
		env = append(env, fmt.Sprintf("%sNETWORK=%s", prefix, known(by.Network.Of(subnet.Family(f)))))
	}
	return env
}

// places are a lease's subnets and addresses: the former as far as they are the network's, whose others nobody has looked at.
func places(begin string, by *backend.Extension, l subnet.Lease) (env []string) {
	for f, prefix := range prefixes {
		f := subnet.Family(f)
		own := netip.Prefix{}
		if by.Network.Of(f).IsValid() {
			own = l.Subnet.Of(f)
		}
		env = append(env, fmt.Sprintf("%s%sSUBNET=%s", begin, prefix, known(own)), fmt.Sprintf("%s%sPUBLIC_IP=%s", begin, prefix, known(l.PublicIP.Of(f))))
	}
	return env
}

// known writes an address or a prefix; "" for none.
func known(a interface {
	IsValid() bool
	String() string
}) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// text is what a JSON string says; "" for none. The planner has refused what is none.
func text(data string) (s string) {
	_ = json.Unmarshal([]byte(data), &s)
	return s
}

// run runs a command, and returns what it printed on its standard output, without the space around it. It lets go of mu meanwhile.
func (c *Carrier) run(ctx context.Context, k call) (string, error) {
	if k.command == "" {
		return "", nil
	}
	c.mu.Unlock()
	defer c.mu.Lock()
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	var out, errs capture
	started := time.Now()
	err := k.process(ctx, &out, &errs).Run()
	if errors.Is(err, exec.ErrWaitDelay) { // it has ended well, and something that it has left in the background holds its output
		err = nil
	}
	took := time.Since(started).Round(time.Millisecond)
	c.Log.Debug("the extension's command has run", "command", k.key, "peer", k.peer, "took", took, "printed", out.short(), "errors", errs.short(), "error", err)
	switch {
	case err == nil:
		return strings.TrimSpace(out.String()), nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "", k.failed(errors.New("it had not ended in time, and was killed"), "Put what goes on into the background, with its output elsewhere")
	}
	return "", k.failed(fmt.Errorf("%w: %s", err, cmp.Or(errs.short(), out.short(), "it printed nothing")), advice(err))
}

// process is the command's, with a group of its own, so that its children end with it. What it leaves in the background goes on.
func (k call) process(ctx context.Context, out, errs *capture) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "sh", "-c", k.command)
	for _, name := range inherited {
		if value, set := os.LookupEnv(name); set {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.Env = append(cmd.Env, k.env...)
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(k.stdin+"\n"), out, errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 100 * time.Millisecond // for output that a killed child of another group still holds
	return cmd
}

// failed says which command failed, why, and what to do.
func (k call) failed(err error, advice string) error {
	who := ""
	if k.peer != "" {
		who = " for " + k.peer
	}
	return fmt.Errorf("command Backend.%s%s (%s): %w. %s", k.key, who, shorten(k.command), err, advice)
}

// advice is what to do about a failure, by sh's own exit codes (POSIX, 2.8.2).
func advice(err error) string {
	exit := new(exec.ExitError)
	if errors.As(err, &exit) {
		switch exit.ExitCode() {
		case 126:
			return "A program in it can't be executed: is it a file with the right to, for this machine? chmod +x it, or mend the command in the network's config"
		case 127:
			return "A program in it is not there: install it on this host, or mend the command in the network's config"
		}
	}
	return "Mend the command in the network's config, or what it needs on this host"
}

// usable refuses what can't be handed on to peers.
func usable(command, printed string) error {
	if err := backend.CheckPrinted(printed); err != nil {
		return call{key: preStartup, command: command}.failed(fmt.Errorf("it prints what can't be handed on: %w", err), "Let it print only what is for peers")
	}
	return nil
}

// capture keeps the beginning of what a command prints: enough to tell that it is too much.
type capture struct{ bytes.Buffer }

func (c *capture) Write(p []byte) (int, error) {
	c.Buffer.Write(p[:min(len(p), backend.MaxPrinted+1-c.Len())])
	return len(p), nil
}

func (c *capture) short() string { return shorten(c.String()) }

// shorten makes one line for the log of what may be many and long.
func shorten(s string) string {
	const longest = 200 // bytes
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	if len(s) > longest {
		s = strings.ToValidUTF8(s[:longest], "") + "…"
	}
	return s
}
