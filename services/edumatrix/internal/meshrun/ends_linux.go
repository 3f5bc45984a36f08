package meshrun

import "syscall"

// endsWithUs makes the kernel stop a process when the thread that started it ends.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
