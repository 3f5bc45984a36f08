//go:build !linux && !windows

package embedded

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// endsWithUs returns no attributes on these systems. The next start stops a server that was left behind.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

// serves reports whether a process exists. The process id comes from the data folder, so it is that data's
// server.
func serves(pid int, _ string) bool {
	if !alive(pid) {
		return false
	}
	out, err := exec.Command("ps", "-o", "comm=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(out), "postgres")
}
