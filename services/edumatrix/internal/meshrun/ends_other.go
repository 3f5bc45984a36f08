//go:build !linux

package meshrun

import "syscall"

// endsWithUs does nothing, because only Linux supports it. On other systems, a program outlives a test process that is
// killed.
func endsWithUs() *syscall.SysProcAttr { return nil }
