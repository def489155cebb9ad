package kernel

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/backend"
)

// rememberPorts notes which links are ports of a wanted bridge, whoever made it: makeLink puts them back if somebody deletes
// the bridge. It is the one thing that only a look at the past can tell, so an agent that was restarted meanwhile can't.
func (k *Kernel) rememberPorts(want map[string]backend.Link, have linkTable) {
	for name, l := range want {
		bridge, exists := have.all[name]
		if !exists || l.Kind != backend.KindBridge || bridge.Type() != string(l.Kind) {
			continue // what was known of one that is gone is just what is needed now
		}
		k.ports[name] = map[int]string{}
		for port, link := range have.all {
			if link.Attrs().MasterIndex == bridge.Attrs().Index {
				k.ports[name][link.Attrs().Index] = port
			}
		}
	}
}

// putBack makes the ports of a bridge that was deleted ports of the new one: those that are still the same links, and that
// nobody made a port of something else since.
func (k *Kernel) putBack(ports map[int]string, bridge netlink.Link) error {
	var errs []error
	for index, name := range ports {
		link, err := k.links.LinkByIndex(index)
		if err != nil || link.Attrs().Name != name || link.Attrs().MasterIndex != 0 {
			continue
		}
		if err := gone(k.links.LinkSetMaster(link, bridge)); err != nil {
			errs = append(errs, fmt.Errorf("put %s back: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
