package agent

import (
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notifier tells systemd how the agent is, where there is a systemd that asked (sd_notify(3)).
type notifier struct {
	interval time.Duration // the watchdog's; 0 without one
	ticker   *time.Ticker  // nil without one
	told     time.Time     // when it was last told that the loop is alive
	ready    bool
	last     string
}

func newNotifier() *notifier {
	n := &notifier{}
	if interval, err := daemon.SdWatchdogEnabled(false); err == nil && interval > 0 {
		n.interval, n.ticker, n.told = interval, time.NewTicker(interval/2), time.Now()
	}
	return n
}

// watchdog receives when it is time to say that the loop is alive; never, without a watchdog.
func (n *notifier) watchdog() <-chan time.Time {
	if n.ticker == nil {
		return nil
	}
	return n.ticker.C
}

// send tells systemd something. An unset NOTIFY_SOCKET is no error, and a supervisor that went away, or doesn't read, is no
// reason to stop carrying packets: the library's function would wait for it for ever.
func send(state string) {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: os.Getenv("NOTIFY_SOCKET"), Net: "unixgram"})
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = conn.Write([]byte(state))
}

// alive tells that the loop is. Before it is ready no watchdog runs, but the time that a start may take, which is extended.
func (n *notifier) alive() {
	n.told = time.Now()
	state := daemon.SdNotifyWatchdog
	if !n.ready {
		state += fmt.Sprintf("\nEXTEND_TIMEOUT_USEC=%d", 2*n.interval.Microseconds())
	}
	send(state)
}

// progress tells that the loop is alive though it has been at one thing for long.
func (n *notifier) progress() {
	if n.ticker != nil && time.Since(n.told) > n.interval*3/4 {
		n.alive()
	}
}

func (n *notifier) stopping() { send(daemon.SdNotifyStopping) }

// status tells the state, and the first time that it is ready that the start is done.
func (n *notifier) status(ready bool, reason string) {
	if ready && !n.ready {
		n.ready = true
		send(daemon.SdNotifyReady)
	}
	if reason != n.last {
		n.last = reason
		send("STATUS=" + strings.ReplaceAll(reason, "\n", "; ")) // a line's end would begin another assignment
	}
}
