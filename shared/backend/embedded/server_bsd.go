//go:build !linux && !windows

package embedded

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// endsWithUs: there is no such thing here. A server that is left over is stopped by the next start.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

// serves tells whether a process is a server; that it is the data's own follows from its number in the data.
func serves(pid int, _ string) bool {
	if !alive(pid) {
		return false
	}
	out, err := exec.Command("ps", "-o", "comm=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(out), "postgres")
}
