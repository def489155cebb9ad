package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/agent/flannel"
)

// fromFlannel makes what flanneld was told the default of what nobody tells us: flags and variables of ours go before it.
func fromFlannel() (flannel.Settings, error) {
	s := flannel.Read(os.Environ())
	if s.Password != "" {
		path, err := passwordFile(s.Password)
		if err != nil {
			return s, fmt.Errorf("FLANNELD_ETCD_PASSWORD: %w", err)
		}
		s.Variables["TULLE_ETCD_PASSWORD_FILE"] = path
	}
	var errs []error
	for name, value := range s.Variables {
		if _, told := os.LookupEnv(name); !told {
			errs = append(errs, os.Setenv(name, value))
		}
	}
	return s, errors.Join(errs...)
}

// passwordFile puts a password into a file that only this process has, so that it is read as any other, and no command that we run
// finds it in its environment. (It is closed with the process.)
func passwordFile(password string) (path string, err error) {
	fd, err := unix.MemfdCreate("password", unix.MFD_CLOEXEC)
	if err != nil {
		return "", err
	}
	_, err = unix.Write(fd, []byte(password+"\n"))
	return fmt.Sprintf("/proc/self/fd/%d", fd), errors.Join(err, unix.Fchmod(fd, 0o600), os.Unsetenv("FLANNELD_ETCD_PASSWORD"))
}

// sayFlannel logs what became of flannel's variables.
func sayFlannel(log *slog.Logger, s flannel.Settings) {
	log.Info("flannel's variables are defaults", "taken", strings.Join(s.Taken, " "), "env-file", s.EnvFile)
	if len(s.Left) > 0 {
		log.Warn("some of flannel's variables have no counterpart: docs/migrating-from-flannel.md says what there is instead", "left", strings.Join(s.Left, " "))
	}
}
