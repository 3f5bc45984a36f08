//go:build !linux && !windows

package embedded

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// endsWithUs returns empty attributes, because these systems cannot end a child together with this process. The next
// start stops a server that was left behind.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

// isServerOf reports whether a process exists and runs PostgreSQL. The process id comes from the data folder, so the
// process is then taken for the server of that data.
func isServerOf(pid int, _ string) bool {
	if !alive(pid) {
		return false
	}
	out, err := exec.Command("ps", "-o", "comm=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(out), "postgres")
}
