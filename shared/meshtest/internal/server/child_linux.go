package server

import "syscall"

// endsWithUs makes the kernel send SIGTERM to a child when the thread that started the child ends.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
