package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Firewalld is a real firewalld of a host's own, on a D-Bus of its own.
type Firewalld struct {
	Host    *Host
	Process *Process

	root string // that firewalld's package is unpacked in
	bus  *Process
	lab  *Lab
	dir  string
}

// busConfig is for a bus that leaves all to all.
const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type><listen>%s</listen><auth>EXTERNAL</auth>
  <policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy>
</busconfig>
`

// firewalldFiles are its config. The underlay lets in what tunnels send; docker0 is where Docker puts it, in a zone of its making.
var firewalldFiles = map[string]string{
	"zones/public.xml": `<?xml version="1.0" encoding="utf-8"?><zone><port protocol="udp" port="8472"/></zone>`,
	"zones/docker.xml": `<?xml version="1.0" encoding="utf-8"?><zone target="ACCEPT"><interface name="docker0"/></zone>`,
}

// NewFirewalld starts a bus and a firewalld on a host, with nftables or iptables for its backend. Its package is unpacked in root.
func (l *Lab) NewFirewalld(ctx context.Context, h *Host, root, backend string) (*Firewalld, error) {
	f := &Firewalld{Host: h, root: root, lab: l, dir: filepath.Join(l.Dir(), h.Name+"-firewalld")}
	files := map[string]string{"bus.conf": fmt.Sprintf(busConfig, f.Bus()), "etc/firewalld.conf": "DefaultZone=public\nFirewallBackend=" + backend + "\n"}
	for name, text := range firewalldFiles {
		files["etc/"+name] = text
	}
	for name, text := range files {
		path := filepath.Join(f.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	var err error
	f.bus, err = startProcess(h.Namespace, filepath.Join(l.Dir(), h.Name+"-dbus.log"), "dbus-daemon", "--config-file="+filepath.Join(f.dir, "bus.conf"), "--nofork", "--nopidfile")
	if err != nil {
		return nil, err
	}
	err = Wait(ctx, readyWait, h.Name+"'s D-Bus is there", f.bus.alive(func() error {
		_, err := os.Stat(filepath.Join(f.dir, "bus"))
		return err
	}))
	if err != nil {
		return f, err
	}
	return f, f.Start(ctx)
}

// Bus is the address of the host's D-Bus.
func (f *Firewalld) Bus() string { return "unix:path=" + filepath.Join(f.dir, "bus") }

// Start starts firewalld and waits until it has its rules.
func (f *Firewalld) Start(ctx context.Context) (err error) {
	f.Process, err = startProcess(f.Host.Namespace, filepath.Join(f.lab.Dir(), f.Host.Name+"-firewalld.log"),
		"env", "DBUS_SYSTEM_BUS_ADDRESS="+f.Bus(), "/usr/bin/python3", filepath.Join(f.root, "usr/sbin/firewalld"), "--nofork", "--nopid",
		"--default-config", filepath.Join(f.root, "usr/lib/firewalld"), "--system-config", filepath.Join(f.dir, "etc"), "--log-target", "console")
	if err != nil {
		return err
	}
	f.Process.Args = f.Process.Args[2:] // env becomes it
	return Wait(ctx, readyWait, f.Host.Name+"'s firewalld runs", f.Process.alive(func() error {
		_, err := f.Do(ctx, "--state")
		return err
	}))
}

// Do runs firewall-cmd and returns what it prints.
func (f *Firewalld) Do(ctx context.Context, args ...string) (string, error) {
	return Output(ctx, f.Host.Namespace, append([]string{"env", "DBUS_SYSTEM_BUS_ADDRESS=" + f.Bus(), "/usr/bin/python3", filepath.Join(f.root, "usr/bin/firewall-cmd")}, args...)...)
}

// Stop ends firewalld. Its bus stays.
func (f *Firewalld) Stop() error { return f.Process.Stop(unix.SIGTERM) }

// Close ends both.
func (f *Firewalld) Close() error {
	if f.Process != nil {
		if err := f.Stop(); err != nil {
			return err
		}
	}
	return f.bus.Stop(unix.SIGTERM)
}
