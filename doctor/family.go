package doctor

import (
	"strings"

	"github.com/tulle-net/tulle/backend"
	"github.com/tulle-net/tulle/subnet"
)

// What differs between the families, where an operator meets it.
var (
	forwards   = subnet.Pair[string]{V4: "net.ipv4.ip_forward", V6: "net.ipv6.conf.all.forwarding"}
	bridgeAsks = subnet.Pair[string]{V4: "net.bridge.bridge-nf-call-iptables", V6: "net.bridge.bridge-nf-call-ip6tables"}
	resolution = subnet.Pair[string]{V4: "ARP", V6: "NDP"}
	bips       = subnet.Pair[string]{V4: "--bip", V6: "--bip6"}
)

// confOf names a device's sysctl of a family as sysctl(8) does: with a slash for a dot in the device's name.
func confOf(f subnet.Family, device, key string) string {
	return "net." + strings.ToLower(f.String()) + ".conf." + strings.ReplaceAll(device, ".", "/") + "." + key
}

// overheads are what is added to a packet on an underlay of each family, bytes.
var overheads = map[string]subnet.Pair[int]{"vxlan": {V4: 50, V6: 70}, "l2": {V4: 50, V6: 70}, "udp": {V4: 28, V6: 48}, "ipip": {V4: 20}, "wireguard": {V4: 80, V6: 80}}

// tunnels are the devices that encapsulate.
func (f Facts) tunnels() (names []string) {
	for _, o := range f.Plan.State().Outers() {
		names = append(names, o.Device)
	}
	return names
}

// networks are the overlay's ranges.
func networks(p *backend.Plan) string {
	var texts []string
	for _, r := range p.Host().Config.Range.All() {
		texts = append(texts, r.Network.String())
	}
	return strings.Join(texts, ", ")
}
