package server

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// stopTime is how long a server may take to shut down, on a busy machine.
const stopTime = 60 * time.Second

// child is a process that, on Linux, ends when this process does, however this process ends.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the child has ended
	err  error         // the child's error; set before the channel done is closed
}

// startChild starts a process from an operating system thread of its own. On Linux the kernel signals a child when the
// thread that started the child ends, and an ordinary thread may end long before the process does. The thread of
// startChild is reserved until the child ends, so the kernel signals the child only if this process ends.
func startChild(cmd *exec.Cmd) (*child, error) {
	cmd.SysProcAttr = endsWithUs()
	c := &child{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(c.done)
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return c, nil
}

func (c *child) running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// stop signals the process to end, kills it if it does not end in time, and waits for it.
func (c *child) stop() error {
	if !c.running() {
		return nil
	}
	// A frozen process reacts only after SIGCONT.
	_ = errors.Join(c.cmd.Process.Signal(syscall.SIGTERM), c.cmd.Process.Signal(syscall.SIGCONT)) // it may have ended
	select {
	case <-c.done:
		return nil
	case <-time.After(stopTime):
	}
	if err := c.cmd.Process.Kill(); err != nil {
		return err
	}
	<-c.done
	return fmt.Errorf("%s did not stop in %v, and was killed", c.cmd.Path, stopTime)
}
