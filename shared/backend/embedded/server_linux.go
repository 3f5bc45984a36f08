package embedded

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// endsWithUs makes the kernel send SIGINT to a child when the thread that started the child ends. SIGINT shuts a
// PostgreSQL server down.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGINT} }

// isServerOf reports whether a process works on the data: a server's working directory is its data folder.
func isServerOf(pid int, data string) bool {
	if !alive(pid) {
		return false
	}
	where, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return false
	}
	real, err := filepath.EvalSymlinks(data)
	return err == nil && where == real
}
