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

// plugIn makes a link a port of the bridge that it is to be one of, or takes it out of what it is a port of.
func (k *Kernel) plugIn(link netlink.Link, now, want backend.Link) error {
	if now.Master != want.Master {
		if err := k.setMaster(link, want.Master); err != nil {
			return err
		}
		now.Suppress = false // as every new port
	}
	if now.Suppress == want.Suppress {
		return nil
	}
	if err := k.links.LinkSetBrNeighSuppress(link, want.Suppress); err != nil {
		return fmt.Errorf("set neigh_suppress as a port of %s: %w", want.Master, err)
	}
	return nil
}

func (k *Kernel) setMaster(link netlink.Link, master string) error {
	if master == "" {
		return k.links.LinkSetNoMaster(link)
	}
	bridge, err := k.links.LinkByName(master)
	if err != nil {
		return fmt.Errorf("its bridge %s: %w", master, err)
	}
	if bridge.Type() != string(backend.KindBridge) {
		return fmt.Errorf("%s is a %s, not a bridge: remove it, or name the containers' bridge with --bridge", master, bridge.Type())
	}
	if err := k.links.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("make it a port of %s: %w", master, err)
	}
	return nil
}

// nested finds an attribute within attributes, as deep as kinds go. It is nil if there is none.
func nested(entry []byte, header int, kinds ...uint16) (found []byte) {
	for kind, value := range attributes(entry, header) {
		if kind == kinds[0] {
			found = value
		}
	}
	if len(kinds) == 1 || found == nil {
		return found
	}
	return nested(found, 0, kinds[1:]...)
}
