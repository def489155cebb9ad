package e2e

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/e2e/lab"
)

// standIns take the place of what a lab's host has not: a package to install, systemd, and Debian's user etcd. A unit is started
// as systemd would: etcd answers then, and the agent is ready. Docker's does nothing; TestWalkthrough has real ones.
const standIns = `
	mkdir /run/etc && mount -t tmpfs tmpfs /run/etc && mkdir /run/etc/upper /run/etc/work
	mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work /etc
	grep -q '^overlay /etc ' /proc/mounts && rm -rf /etc/docker
	cat >/run/stand-ins <<'END'
	apt() { mkdir -p /etc/tulle; unit=tulle; [ ! -e /run/tulle.pid ] || end; }
	chown() { :; }
	launch() { "$@" >>/var/log/$unit.log 2>&1 & echo $! >/run/$unit.pid; }
	end() { kill $(cat /run/$unit.pid); while [ -e /proc/$(cat /run/$unit.pid)/exe ]; do sleep 0.05; done; }
	until_works() { until "$@" >/dev/null 2>&1; do sleep 0.05; done; }
	systemctl() {
		for unit; do :; done
		case "$1 $unit" in
		*docker*) ;;
		"start etcd")
			launch etcd --data-dir /var/lib/etcd/default --listen-client-urls http://192.0.2.11:2379 --advertise-client-urls http://192.0.2.11:2379
			until_works etcdctl --endpoints http://192.0.2.11:2379 get /
			;;
		"enable tulle"|"start tulle")
			set -a; . /etc/tulle/agent.env; set +a
			launch tulle agent
			until_works tulle status
			;;
		"restart tulle") systemctl stop tulle; systemctl start tulle ;;
		"stop etcd"|"stop tulle"|"disable tulle") end ;;
		*) echo "systemctl $*: nothing stands in for it"; return 1 ;;
		esac
	}
END`

// notRun are the blocks of docs/operations.md, by their sections, that no lab's host can run.
var notRun = []string{"Install by hand"}

// TestOperations runs docs/operations.md, command by command as they stand there, and looks after each section whether all hosts
// that are members reach each other.
func TestOperations(t *testing.T) {
	t.Parallel()
	tools, err := filepath.Abs("../bin/debian/usr/bin")
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t, lab.Options{Hosts: 3, Bare: true})
	hosts, profiles := map[string]*shellHost{}, map[string]string{}
	for _, h := range l.Nodes {
		hosts[h.Name] = newShellHost(t, l, h)
		hosts[h.Name].sh(t, standIns)
		profiles[h.Name] = "PATH=$PATH:" + tools + "\n. /run/stand-ins\n"
	}
	hosts["host1"].sh(t, profiles["host1"]+"systemctl start etcd")
	run, others := steps(t, "../docs/operations.md")
	var left []string
	for _, code := range others {
		left = append(left, code.Section)
	}
	if fmt.Sprint(left) != fmt.Sprint(notRun) {
		t.Errorf("what is not run is in %q, and not in %q", left, notRun)
	}
	for i, step := range run {
		for _, name := range step.machines {
			out := hosts[name].sh(t, profiles[name]+step.Text)
			t.Logf("%s: %s: %s\n%s", step.Section, name, step.Text, out)
			for line := range strings.Lines(step.Text) {
				if strings.HasPrefix(line, "export ") {
					profiles[name] += line
				}
			}
		}
		if i+1 == len(run) || run[i+1].Section != step.Section {
			membersTalk(t, step.Section, hosts)
		}
	}
	if out := hosts["host1"].sh(t, profiles["host1"]+"tulle config get"); !strings.Contains(out, "host-gw") {
		t.Errorf("not all of the document was run: %s", out)
	}
}

// membersTalk waits until the hosts with an agent reach each other's bridges.
func membersTalk(t *testing.T, after string, hosts map[string]*shellHost) {
	t.Helper()
	bridges := map[*shellHost]netip.Addr{}
	for _, m := range hosts {
		if env := m.sh(t, `if [ -e /run/tulle/agent.sock ]; then . /run/tulle/subnet.env; echo ${FLANNEL_SUBNET%/*}; fi`); env != "" {
			bridges[m] = netip.MustParseAddr(strings.TrimSpace(env))
		}
	}
	for from := range bridges {
		for to, address := range bridges {
			if from == to {
				continue
			}
			eventually(t, 30*time.Second, fmt.Sprintf("after %q: %s reaches %s", after, from.Name, to.Name), func() error {
				r, err := lab.Ping(t.Context(), from.Namespace, address, 1, 56)
				if err == nil && r.Lost() > 0 {
					err = fmt.Errorf("no answer from %s", address)
				}
				return err
			})
		}
	}
}
