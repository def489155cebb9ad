// Package file reads and replaces the files that an agent keeps: in its run directory and its state directory. Whatever somebody has put
// in the place of one, a symbolic link, a pipe, more than memory holds, is neither followed nor waited for nor taken in.
package file

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Open opens a file as os.OpenFile does. It is an error if there is something else than a file of this one name.
func Open(path string, flag int, mode fs.FileMode) (*os.File, error) {
	f, err := os.OpenFile(path, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, mode)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%s is a symbolic link, which is not followed: put the file itself there, or remove it", path)
	}
	if err != nil {
		return nil, err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Nlink > 1 {
		f.Close()
		return nil, fmt.Errorf("%s is not a file, or has another name, too: remove it", path)
	}
	return f, nil
}

// Read reads a file of so many bytes at most. None is an fs.ErrNotExist.
func Read(path string, most int64) ([]byte, error) {
	f, err := Open(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%s has more than %d bytes: remove it", path, most)
	}
	if err != nil {
		return nil, err
	}
	return text, nil
}

// Replace makes text the content of a file that has the given mode: in one piece, so that who reads it meanwhile reads what was there
// before. A symbolic link is replaced, and what it leads to stays as it is. Its error is the same each time: the name of a temporary
// file is not in it.
func Replace(path string, text []byte, mode fs.FileMode) error {
	return alike(replace(path, text, mode, nil))
}

// Update is Replace, but a file that is there keeps its owner: root, who changes it, need not be who uses it.
func Update(path string, text []byte, mode fs.FileMode) error {
	var before unix.Stat_t
	if os.Geteuid() != 0 || unix.Lstat(path, &before) != nil {
		return Replace(path, text, mode)
	}
	return alike(replace(path, text, mode, &before))
}

// alike is err without the name of a temporary file, which is another each time, and so no news.
func alike(err error) error {
	if errno := unix.Errno(0); errors.As(err, &errno) {
		return errno
	}
	return err
}

// replace is renameio.WriteFile without its regard for the mode that a file of that name has: who planted it may have chosen that.
// The file gets the owner of another; ours, if that is nil.
func replace(path string, text []byte, mode fs.FileMode, owner *unix.Stat_t) error {
	f, err := renameio.NewPendingFile(path, renameio.WithStaticPermissions(mode))
	if err != nil {
		return err
	}
	defer f.Cleanup() // does nothing once the file is in place
	if owner != nil {
		if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
	}
	if _, err := f.Write(text); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}
