// Package meshrun builds the mesh's programs and runs them as separate processes, for tests that observe the mesh from
// outside.
package meshrun

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// endTime is the maximum time that a program may take to end after a signal.
const endTime = 40 * time.Second

// Process is a program of the mesh, which may be running or not. Only Output and Tail are safe for concurrent use.
type Process struct {
	Name    string // the program's name
	Program string // the program's file
	Args    []string
	Env     []string // the environment; Start adds PATH, HOME and XDG_CACHE_HOME from the test's environment

	cmd    *exec.Cmd
	output Printed
	done   chan struct{}
}

// Start starts the program, for the first time or again. On Linux, the program gets SIGTERM when the test process ends.
func (p *Process) Start(t testing.TB) {
	t.Helper()
	cmd, done, started := exec.Command(p.Program, p.Args...), make(chan struct{}), make(chan error, 1)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, p.Env...)
	if cache := os.Getenv("XDG_CACHE_HOME"); cache != "" {
		cmd.Env = append(cmd.Env, "XDG_CACHE_HOME="+cache)
	}
	cmd.Stdout, cmd.Stderr = &p.output, &p.output
	cmd.SysProcAttr = endsWithUs()
	go func() {
		runtime.LockOSThread() // Pdeathsig is sent when the thread that started the program ends
		defer runtime.UnlockOSThread()
		defer close(done)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // the result is in ProcessState
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", p.Name, err)
	}
	p.cmd, p.done = cmd, done
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done returns a channel that is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether the process was started and has not ended.
func (p *Process) Running() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal to the program, if it is still running.
func (p *Process) Signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// Wait waits for the end of the program and returns its exit status. If the program takes longer than endTime, Wait
// fails the test and sends SIGQUIT, so that the program prints its goroutines and ends.
func (p *Process) Wait(t testing.TB) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(endTime):
		p.Signal(syscall.SIGQUIT)
		<-p.done
		t.Errorf("%s did not end:\n%s", p.Name, p.Tail())
	}
	return p.cmd.ProcessState.ExitCode()
}

// Stop sends SIGTERM and waits for the end of the program. An exit status other than 0 fails the test.
func (p *Process) Stop(t testing.TB) {
	t.Helper()
	p.Signal(syscall.SIGTERM)
	if status := p.Wait(t); status != 0 {
		t.Errorf("%s ended with status %d:\n%s", p.Name, status, p.Tail())
	}
}

// Kill ends the program with SIGKILL, even if it is frozen, and waits for its end.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Output returns the output of the program since its first start.
func (p *Process) Output() string { return p.output.String() }

// Tail returns the last 60 lines of Output.
func (p *Process) Tail() string {
	const most = 60
	lines := strings.Split(p.Output(), "\n")
	return strings.Join(lines[max(0, len(lines)-most):], "\n")
}

// Printed collects the output of a program, for messages of failed tests and for tests that check the output.
type Printed struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *Printed) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *Printed) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// Binaries is a folder with the mesh's programs.
type Binaries string

// Process returns a Process for one of the programs. The Process is not started yet.
func (b Binaries) Process(name string, args, env []string) *Process {
	return &Process{Name: name, Program: filepath.Join(string(b), name), Args: args, Env: env}
}
