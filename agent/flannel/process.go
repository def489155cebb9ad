// Package flannel is what is known about a flanneld on this host: whether one runs, and how it was configured. Its formats in etcd and
// on the wire are ours, and not here.
package flannel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Runs says which flanneld takes part in the network for this host; nil if none does. One that takes its subnet from Kubernetes is
// none of ours, nor is a container's, with a network of its own.
func Runs() error {
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return fmt.Errorf("look for a flanneld on this host: %w", err)
	}
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return fmt.Errorf("look for a flanneld on this host: %w", err)
	}
	for _, name := range names {
		comm, _ := os.ReadFile(name)
		if strings.TrimSpace(string(comm)) != "flanneld" {
			continue
		}
		dir := filepath.Dir(name)
		args, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		ns, err := os.Readlink(filepath.Join(dir, "ns/net"))
		if errors.Is(err, fs.ErrPermission) { // of another user: that it may be a container's can't be told
			ns, err = here, nil
		}
		if err == nil && ns == here && !strings.Contains(string(args), "kube-subnet-mgr") {
			return fmt.Errorf("flanneld runs on this host (process %s), and both would do the same work: systemctl disable --now flanneld", filepath.Base(dir))
		}
	}
	return nil
}
