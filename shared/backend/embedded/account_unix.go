//go:build !windows

package embedded

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is the operating system account of PostgreSQL's programs. It is the account of this process, or another one
// if this process is root: the programs refuse to run as root.
type account struct {
	other    bool
	uid, gid uint32
}

func (a account) String() string {
	if !a.other {
		return "this user"
	}
	return fmt.Sprintf("uid %d, which PostgreSQL runs as because it refuses to run as root,", a.uid)
}

// chooseAccount returns the account that runs the server. If this process is root, the result is the owner of the
// existing data, or "nobody" if there is no data or root owns the data. If this process is not root, the result is this
// process's own account, and data that belongs to another account is an error.
func chooseAccount(data string) (account, error) {
	var stat syscall.Stat_t
	exists := syscall.Stat(data, &stat) == nil
	if os.Geteuid() != 0 {
		if exists && int(stat.Uid) != os.Geteuid() {
			return account{}, fmt.Errorf("the data belongs to uid %d: start as that user, or as root", stat.Uid)
		}
		return account{}, nil
	}
	if exists && stat.Uid != 0 {
		return account{true, stat.Uid, stat.Gid}, nil
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		return account{}, errors.New("PostgreSQL refuses to run as root, and this machine has no user nobody: " +
			"start as an ordinary user")
	}
	uid, err := strconv.ParseUint(nobody.Uid, 10, 32)
	if err != nil {
		return account{}, fmt.Errorf("user nobody: %w", err)
	}
	gid, err := strconv.ParseUint(nobody.Gid, 10, 32)
	if err != nil {
		return account{}, fmt.Errorf("user nobody: %w", err)
	}
	return account{true, uint32(uid), uint32(gid)}, nil
}

// inaccessibleFolder returns the topmost folder that the account cannot enter, among the folder dir and the folders
// above dir. It returns "" if there is no such folder, or if the account is that of this process.
func (a account) inaccessibleFolder(dir string) string {
	if !a.other {
		return ""
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	hidden := ""
	for ; ; dir = filepath.Dir(dir) {
		var stat syscall.Stat_t
		if syscall.Stat(dir, &stat) == nil {
			enter := uint32(0o001)
			switch {
			case stat.Uid == a.uid:
				enter = 0o100
			case stat.Gid == a.gid:
				enter = 0o010
			}
			if uint32(stat.Mode)&enter == 0 {
				hidden = dir
			}
		}
		if dir == filepath.Dir(dir) {
			return hidden
		}
	}
}

// own makes the account the owner of a file.
func (a account) own(path string) error {
	if !a.other {
		return nil
	}
	return os.Chown(path, int(a.uid), int(a.gid))
}

// apply makes a program run as the account, in a process group of its own. So a Ctrl-C at the terminal does not signal
// the server, which this process still needs during its own shutdown.
func (a account) apply(cmd *exec.Cmd) {
	cmd.SysProcAttr = endsWithUs()
	cmd.SysProcAttr.Setpgid = true
	if a.other {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
}

// signal makes a server shut down. It returns nil if the server has ended already.
func (c *cluster) signal(pid int, how stopping) error {
	s := syscall.SIGINT
	if how == stopNow {
		s = syscall.SIGQUIT
	}
	if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

func alive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}
