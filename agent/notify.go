package agent

import (
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notifier tells systemd how the agent is, where there is a systemd that asked (sd_notify(3)).
type notifier struct {
	ticker *time.Ticker // nil without a watchdog
	ready  bool
	last   string
}

func newNotifier() *notifier {
	n := &notifier{}
	if interval, err := daemon.SdWatchdogEnabled(false); err == nil && interval > 0 {
		n.ticker = time.NewTicker(interval / 2)
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

// An unset NOTIFY_SOCKET is no error, and a supervisor that went away is no reason to stop carrying packets.
func send(state string) { _, _ = daemon.SdNotify(false, state) }

func (n *notifier) alive() { send(daemon.SdNotifyWatchdog) }

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
