package meshrun

import "syscall"

// endsWithUs returns attributes with which the kernel sends SIGTERM to a process when the thread that started it ends.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
