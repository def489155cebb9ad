package backend

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/tulle-net/tulle/subnet"
)

// extension carries packets by the operator's own commands. It is flannel's extension.
type extension struct {
	PreStartupCommand, PostStartupCommand, SubnetAddCommand, SubnetRemoveCommand, ShutdownCommand string
}

func newExtension(o options) (Backend, error) {
	var b extension
	return b, o.read(&b)
}

func (b extension) Needs() Needs { return Needs{Command: b.PreStartupCommand} }

// Announce hands on what the pre-start command printed: a JSON string, whatever it is.
func (b extension) Announce(h Host) subnet.Lease {
	l := subnet.Lease{Backend: "extension", PublicIP: h.Public()}
	if b.PreStartupCommand != "" {
		l.Data.V4 = dataOf(h.Facts.Printed)
	}
	return l
}

func (extension) Inside(l subnet.Lease) subnet.Pair[netip.Addr] { return second(l) }

func (b extension) Fixed(h Host) (State, error) {
	mtu, err := h.inner(0, subnet.Pair[int]{}, "it")
	if err != nil {
		return State{}, err
	}
	s := h.common(mtu)
	s.Extension = Extension{PostStartup: b.PostStartupCommand, SubnetAdd: b.SubnetAddCommand, SubnetRemove: b.SubnetRemoveCommand, Shutdown: b.ShutdownCommand, Self: h.Self}
	for f, r := range h.Config.Range.All() {
		*s.Extension.Network.At(f) = r.Network
	}
	return s, nil
}

func (b extension) Peer(h Host, l subnet.Lease) (Part, error) {
	if _, err := h.legs("extension", l); err != nil {
		return Part{}, err
	}
	var data string
	if l.Data.V4 != "" && json.Unmarshal([]byte(l.Data.V4), &data) != nil {
		return Part{}, subnet.Rejectf(subnet.BadValue, "BackendData is not a JSON string: %s", l.Data.V4)
	}
	if err := CheckPrinted(data); err != nil {
		return Part{}, subnet.Rejectf(subnet.BadValue, "BackendData: %v", err)
	}
	return Part{Hooks: row(l.Key(), l)}, nil
}

// MaxPrinted is how many bytes of JSON a host may announce of what its pre-start command printed: all hosts keep all of it.
const MaxPrinted = 8 << 10

// CheckPrinted refuses what a pre-start command can't hand on to the commands of others: they get it in a variable.
func CheckPrinted(text string) error {
	switch {
	case len(dataOf(text)) > MaxPrinted:
		return fmt.Errorf("more than %d bytes in a lease", MaxPrinted)
	case !utf8.ValidString(text):
		return errors.New("it is not UTF-8")
	case strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }):
		return errors.New("there are control characters in it")
	}
	return nil
}
