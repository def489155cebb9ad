package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/etcd"
)

// etcdFlags say how to reach etcd. Their names are flannel's.
type etcdFlags struct {
	EtcdEndpoints    []string `group:"etcd" default:"http://127.0.0.1:2379" help:"URLs of etcd's members (default ${default})." placeholder:"URL"`
	EtcdPrefix       string   `group:"etcd" default:"/coreos.com/network" help:"What all of the network's keys begin with."`
	EtcdUsername     string   `group:"etcd" help:"User, if etcd asks for one." placeholder:"NAME"`
	EtcdPasswordFile string   `group:"etcd" help:"File with the user's password in its first line, read anew for each connection (default: systemd's credential etcd-password, if there is one)." placeholder:"FILE"`
	EtcdCafile       string   `group:"etcd" help:"Authorities that etcd's certificate is checked with, read anew for each connection (default: the system's, as they were at the start)." placeholder:"FILE"`
	EtcdCertfile     string   `group:"etcd" help:"This host's own certificate, read anew for each connection (default: none)." placeholder:"FILE"`
	EtcdKeyfile      string   `group:"etcd" help:"The key of that certificate." placeholder:"FILE"`
}

// credential is the path of one of those that systemd gave this process (systemd.exec(5), LoadCredential); "" for none.
func credential(name string) string {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return ""
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return path
}

func (f etcdFlags) options() (etcd.Options, error) {
	o := etcd.Options{Endpoints: f.EtcdEndpoints, Prefix: f.EtcdPrefix, Username: f.EtcdUsername, PasswordFile: f.EtcdPasswordFile,
		CAFile: f.EtcdCafile, CertFile: f.EtcdCertfile, KeyFile: f.EtcdKeyfile}
	if o.Username != "" && o.PasswordFile == "" {
		o.PasswordFile = credential("etcd-password")
	}
	return o, o.Check()
}

func (f etcdFlags) dial(ctx context.Context) (*etcd.Client, error) {
	o, err := f.options()
	if err != nil {
		return nil, err
	}
	return etcd.Dial(ctx, o)
}

// read returns a file's content, or standard input's for "-".
func read(path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(path)
}

// needAdmin fails unless the process may change the network (capabilities(7)).
func needAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New("this changes the host's network, which needs CAP_NET_ADMIN: run it as root")
	}
	return nil
}
