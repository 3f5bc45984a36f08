//go:build !linux && !windows

package embedded

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// endsWithUs does nothing on these systems. The next start stops a server that was left behind.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

// serves reports whether a process is a server; the process id in the data shows that it is the data's own.
func serves(pid int, _ string) bool {
	if !alive(pid) {
		return false
	}
	out, err := exec.Command("ps", "-o", "comm=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(out), "postgres")
}
