package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// asTulle is the variable by which the tests' own binary is tulle.
const asTulle = "TULLE_TEST_AS_TULLE"

func TestMain(m *testing.M) {
	if os.Getenv(asTulle) != "" {
		os.Exit(run(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// Commands, flags, their values, and what is a file: in all places where they may stand.
func TestComplete(t *testing.T) {
	t.Parallel()
	root := newParser(new(cli)).Model.Node
	for line, want := range map[string]string{
		"statu":                                "words status",
		"compl":                                "words completion", // not the hidden one
		"config ":                              "words set get validate",
		"config set ":                          "files",
		"config set --force ":                  "files",
		"config set file ":                     "words --help",
		"agent --ip":                           "words --ip-masq --ipv6-masq",
		"agent --no-ip":                        "words --no-ip-masq --no-ipv6-masq",
		"agent --firewall ":                    "words auto iptables nftables",
		"agent --firewall=ip":                  "words iptables",
		"agent --firewall=auto --log-format ":  "words text json",
		"agent --ip-masq --log-format ":        "words text json", // --ip-masq takes no value
		"agent --run-dir ":                     "directories",
		"agent --run-dir=/":                    "directories",
		"agent --etcd-cafile ":                 "files",
		"agent --underlay-family ":             "words auto ipv4 ipv6 both",
		"agent --nonsense=":                    "words",
		"docker-opts -icf ":                    "files",
		"docker-opts -f x --format ":           "words env json",
		"lab exec host1 ":                      "files",
		"lab exec host1 -- tulle --":           "files",
		"lab up --backend w":                   "words wireguard",
		"status -- --":                         "words",
		"completion ":                          "words bash zsh fish",
		"nonsense agen":                        "words agent",
		"trace --json 10.5.2.1 --from web --j": "words --json",
	} {
		c := complete(root, strings.Split(line, " "))
		for i := range c.words {
			c.words[i], _, _ = strings.Cut(c.words[i], "\t")
		}
		if strings.HasPrefix(want, "words --") && strings.HasSuffix(line, " ") {
			c.words = c.words[:1]
		}
		if got := strings.Join(append([]string{c.kind}, c.words...), " "); got != want {
			t.Errorf("%q: %s, want %s", line, got, want)
		}
	}
}

// Each shell, typed at on a terminal, completes words, values behind a space and behind =, files and directories.
func TestCompletionShells(t *testing.T) {
	t.Parallel()
	for shell, start := range map[string]string{
		"bash": "bash --norc --noprofile -i",
		"zsh":  "zsh -f -i",
		"fish": "fish --no-config -i",
	} {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(shell); err != nil {
				if os.Getenv("TULLE_TEST_ROOT") != "" {
					t.Fatal(err)
				}
				t.Skip(err)
			}
			typeAt(t, shell, start)
		})
	}
}

func typeAt(t *testing.T, shell, start string) {
	dir := t.TempDir()
	ran := filepath.Join(dir, "ran")
	for name, text := range map[string]string{
		"tulle":             fmt.Sprintf("#!/bin/sh\n[ \"$1\" = complete ] && %s=1 exec %s \"$@\"\nprintf '%%s\\n' \"$*\" >>%s\n", asTulle, os.Args[0], ran),
		"network file.json": "{}",
		"down/inner.json":   "{}",
		"ran":               "",
		"script":            "",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script, err := completionScripts.ReadFile("completion/tulle." + shell)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "script"), script, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	terminal := exec.CommandContext(t.Context(), "script", "-qfc", start, "/dev/null")
	terminal.Dir = dir
	terminal.Env = []string{"PATH=" + dir + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + dir, "TERM=xterm", "LC_ALL=C.UTF-8", "HISTFILE=/dev/null"}
	var screen strings.Builder
	terminal.Stdout, terminal.Stderr = &screen, &screen
	keys, err := terminal.StdinPipe()
	if err == nil {
		err = terminal.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := keys.Write([]byte("\nexit\n")); err != nil || t.Failed() { // it may not listen any more
			_ = terminal.Process.Kill()
		}
		_ = terminal.Wait()
		if t.Failed() {
			t.Logf("on the screen: %q", screen.String())
		}
	}()
	prepare := "source ./script; tulle begin\n"
	if shell == "zsh" {
		prepare = "autoload -Uz compinit && compinit -u -D; " + prepare
	}
	for _, line := range []struct{ keys, want string }{
		{prepare, "begin"},
		{"tulle statu\t\n", "status"},
		{"tulle agent --peer-m\t\n", "agent --peer-metrics"},
		{"tulle agent --firewall ipt\t\n", "agent --firewall iptables"},
		{"tulle agent --firewall=ipt\t\n", "agent --firewall=iptables"},
		{"tulle config validate netw\t\n", "config validate network file.json"},
		{"tulle agent --etcd-cafile=netw\t\n", "agent --etcd-cafile=network file.json"},
		{"tulle agent --run-dir=do\t\n", "agent --run-dir=down"},
		{"tulle agent --etcd-endpoints http://a:1 --log-le\t war\t\n", "agent --etcd-endpoints http://a:1 --log-level warn"},
	} {
		if _, err := keys.Write([]byte(line.keys)); err != nil {
			t.Fatal(err)
		}
		await(t, ran, line.want)
	}
}

// await waits until a file's last line is as wanted.
func await(t *testing.T, path, want string) {
	t.Helper()
	var lines []string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines = strings.Split(strings.TrimSpace(string(text)), "\n")
		if strings.TrimRight(lines[len(lines)-1], " /") == want { // zsh takes the slash away again
			return
		}
	}
	t.Fatalf("not completed to %q, but: %q", want, slices.Clip(lines))
}
