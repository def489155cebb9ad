package etcd

import (
	"time"

	"github.com/tulle-net/tulle/subnet"
)

// leaving are the peers whose keys were deleted. A host that lives writes its own again within milliseconds, whoever deleted
// it; so that no packet is lost meanwhile, a deletion is believed a moment later.
type leaving struct {
	keys  []departure // in the order of their time
	timer *time.Timer
}

type departure struct {
	key string
	at  time.Time
}

const moment = time.Second

func (l *leaving) add(key string) {
	l.keys = append(l.keys, departure{key, time.Now().Add(moment)})
	if len(l.keys) == 1 {
		l.timer = time.NewTimer(moment)
	}
}

// due receives when somebody has left for good.
func (l *leaving) due() <-chan time.Time {
	if len(l.keys) == 0 {
		return nil
	}
	return l.timer.C
}

// publish puts those into u whose moment is over, and who have not come back.
func (l *leaving) publish(now map[string]record, u *subnet.Update) {
	for len(l.keys) > 0 && !time.Now().Before(l.keys[0].at) {
		if key := l.keys[0].key; now[key].modified == 0 {
			u.Leases[key] = subnet.Entry{}
		}
		l.keys = l.keys[1:]
	}
	if len(l.keys) == 0 {
		l.keys = nil // and what they were kept in
		return
	}
	l.timer.Reset(time.Until(l.keys[0].at))
}
