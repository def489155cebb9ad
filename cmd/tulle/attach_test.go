package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAttachRequest has all that the env file may say.
func TestAttachRequest(t *testing.T) {
	for name, test := range map[string]struct{ env, want string }{
		"no agent":    {"", "start tulle agent first"},
		"not asked":   {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\n", "--attach-addresses N"},
		"wrong range": {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\nTULLE_ATTACH=10.5.2.128/25\n", "TULLE_ATTACH"},
		"no MTU":      {"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nTULLE_ATTACH=10.5.1.128/25\n", "FLANNEL_MTU"},
		"no network":  {"FLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\nTULLE_ATTACH=10.5.1.128/25\n", "FLANNEL_NETWORK"},
	} {
		dir := t.TempDir()
		if test.env != "" {
			if err := os.WriteFile(filepath.Join(dir, "subnet.env"), []byte(test.env), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		c := attachCmd{RunDir: dir, SubnetFile: "subnet.env"}
		if _, err := c.request(); err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want one line with %q", name, err, test.want)
		}
	}
}

func TestAttachTarget(t *testing.T) {
	for want, f := range map[string]targetFlags{
		"unix://PATH":             {Container: "web", DockerHost: "tcp://192.0.2.1:2375"},
		"--pid or --netns":        {Container: "web", DockerHost: "unix:///nosuch/docker.sock"},
		"name one thing":          {},
		"one thing: a container":  {Container: "web", PID: 1, DockerHost: "unix:///nosuch/docker.sock"},
		"process 4194305":         {PID: 4194305}, // pid_max is 4194304
		"/run/netns/nosuch-ns":    {Netns: "nosuch-ns"},
		"not a network namespace": {Netns: "/proc/self/ns/mnt"},
	} {
		socket, err := f.socket()
		if err == nil {
			_, err = f.target(t.Context(), socket)
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v; want one line with %q", f, err, want)
		}
	}
}
