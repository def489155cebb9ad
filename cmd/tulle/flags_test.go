package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCredential looks for the password where systemd puts it, if there is a user and no other file.
func TestCredential(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "etcd-password"), filepath.Join(dir, "other")
	for _, p := range []string{path, other} {
		if err := os.WriteFile(p, []byte("secret\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	flags := etcdFlags{EtcdEndpoints: []string{"http://127.0.0.1:2379"}, EtcdPrefix: "/n"}
	named := flags
	named.EtcdUsername = "host1"
	given := named
	given.EtcdPasswordFile = other
	for _, c := range []struct {
		flags     etcdFlags
		dir, file string
		fails     bool
	}{
		{named, dir, path, false},
		{given, dir, other, false},
		{flags, dir, "", false},
		{named, t.TempDir(), "", true},
		{named, "", "", true},
	} {
		t.Setenv("CREDENTIALS_DIRECTORY", c.dir)
		o, err := c.flags.options()
		if o.PasswordFile != c.file || (err != nil) != c.fails {
			t.Errorf("%+v with %q: %q, %v", c.flags, c.dir, o.PasswordFile, err)
		}
		if err != nil && !strings.Contains(err.Error(), "credential etcd-password") {
			t.Errorf("error %v", err)
		}
	}
}
