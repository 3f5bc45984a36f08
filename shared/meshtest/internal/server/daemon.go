package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// startTime is how long a server may take to respond, on a busy machine.
const startTime = 90 * time.Second

// daemon is a server in a process of its own, or in a container, that can be stopped and started again on its data.
type daemon struct {
	name      string
	dir       string           // folder of its data and its output
	command   func() *exec.Cmd // returns the command that runs the server, in the container if there is one
	container string           // "" for a process
	answers   func(context.Context) error
	child     *child
}

func (d *daemon) log() string { return filepath.Join(d.dir, "server.log") }

// Start starts the server, for the first time or again, and returns once it answers.
func (d *daemon) Start(ctx context.Context) error {
	if d.child != nil && d.child.running() {
		return fmt.Errorf("%s is running", d.name)
	}
	out, err := os.OpenFile(d.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }() // the server has its own handle
	cmd := d.command()
	cmd.Stdout, cmd.Stderr = out, out
	if d.child, err = startChild(cmd); err != nil {
		return err
	}
	if err := d.await(ctx); err != nil {
		return errors.Join(fmt.Errorf("start %s: %w; its output:\n%s", d.name, err, d.output()), d.Stop())
	}
	return nil
}

func (d *daemon) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		err := d.answers(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-d.child.done:
			return fmt.Errorf("it ended: %v", d.child.err)
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// output returns the end of the server's output.
func (d *daemon) output() string {
	text, err := os.ReadFile(d.log())
	if err != nil {
		return err.Error()
	}
	return tail(text)
}

// tail returns the end of a program's output, which contains the reason why the program ended.
func tail(text []byte) string {
	const maxBytes = 4000
	return strings.TrimSpace(string(text[max(0, len(text)-maxBytes):]))
}

// Stop shuts the server down and keeps its data.
func (d *daemon) Stop() error {
	if d.child == nil {
		return nil
	}
	if d.container != "" && d.child.running() {
		err := d.docker("stop", "--time", fmt.Sprint(int(stopTime.Seconds())))
		<-d.child.done
		return err
	}
	return d.child.stop()
}

// Kill ends the server without warning.
func (d *daemon) Kill() error {
	err := d.signal(syscall.SIGKILL, "kill")
	if err == nil {
		<-d.child.done
	}
	return err
}

// Freeze suspends the server, with its connections open.
func (d *daemon) Freeze() error { return d.signal(syscall.SIGSTOP, "pause") }

// Thaw resumes the frozen server.
func (d *daemon) Thaw() error { return d.signal(syscall.SIGCONT, "unpause") }

func (d *daemon) signal(s syscall.Signal, docker string) error {
	if d.container != "" {
		return d.docker(docker)
	}
	return d.child.cmd.Process.Signal(s)
}

// PID returns the process id of the server.
func (d *daemon) PID() int {
	if d.container == "" {
		return d.child.cmd.Process.Pid
	}
	var pid int
	out, err := exec.Command("docker", "inspect", "-f", "{{.State.Pid}}", d.container).Output()
	if err == nil {
		_, err = fmt.Sscan(string(out), &pid)
	}
	if err != nil {
		return 0
	}
	return pid
}

// Remove stops the server and deletes its data.
func (d *daemon) Remove() error {
	err := d.Stop()
	if d.container != "" {
		err = errors.Join(err, d.docker("rm", "--force", "--volumes"))
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}

// docker runs a docker command on the container.
func (d *daemon) docker(args ...string) error {
	out, err := exec.Command("docker", append(args, d.container)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
