//go:build !linux

package meshrun

import "syscall"

// endsWithUs returns nil, because most systems other than Linux cannot end a program together with the process that
// started it. On these systems, a program outlives a test process that is killed.
func endsWithUs() *syscall.SysProcAttr { return nil }
