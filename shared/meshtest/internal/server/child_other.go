//go:build !linux

package server

import "syscall"

// endsWithUs works on Linux only: elsewhere a server outlives a test process that is killed.
func endsWithUs() *syscall.SysProcAttr { return nil }
