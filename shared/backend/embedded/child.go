package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"time"
)

// child is a process that, on Linux, ends when this process does, however this process ends.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the child has ended
	err  error         // how the child ended; set before the channel done is closed
}

// startChild starts a process from an operating system thread of its own. On Linux the kernel signals a child when the
// thread that started the child ends, and an ordinary thread may end long before the process does. The thread of
// startChild is reserved until the child ends, so the kernel signals the child only if this process ends.
func startChild(cmd *exec.Cmd) (*child, error) {
	c := &child{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(c.done)
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		if c.err = cmd.Wait(); c.err == nil {
			c.err = errors.New("exit status 0")
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// stop stops a server, with an orderly shutdown if possible, and waits until the server has ended.
func (c *child) stop(of *cluster) error {
	select {
	case <-c.done:
		return nil
	default:
	}
	var problems []error
	for _, how := range []stopping{stopFast, stopNow} {
		problems = append(problems, of.signal(c.pid(), how))
		select {
		case <-c.done:
			return nil
		case <-time.After(20 * time.Second):
		}
	}
	problems = append(problems, c.cmd.Process.Kill())
	<-c.done
	return errors.Join(append(problems, errors.New("PostgreSQL did not stop when it was signalled, and was killed"))...)
}

// stopping is the way in which a server ends.
type stopping int

const (
	stopFast stopping = iota // orderly: memory is written to disk
	stopNow                  // at once: the next start recovers as after a crash
)

// run runs a program until the program or ctx ends, and returns the program's output.
func run(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	c, err := startChild(cmd)
	if err != nil {
		return nil, err
	}
	select {
	case <-ctx.Done():
		_ = cmd.Process.Kill() // it may have ended already
		<-c.done
		return out.Bytes(), context.Cause(ctx)
	case <-c.done:
	}
	if cmd.ProcessState.Success() {
		return out.Bytes(), nil
	}
	if stopped(ctx) {
		return out.Bytes(), context.Cause(ctx)
	}
	return out.Bytes(), c.err
}

// signalGap is the maximum delay between the signal to a child and the signal to this process.
const signalGap = 500 * time.Millisecond

// stopped reports whether ctx ends within signalGap. A supervisor that stops all processes of a service, such as
// systemd, signals this process and its children at about the same time. So a child may have been stopped on purpose
// although the signal to this process has not ended ctx yet.
func stopped(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return true
	case <-time.After(signalGap):
		return false
	}
}
