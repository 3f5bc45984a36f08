package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/edumatrix/interlinked/shared/backend/embedded"
)

// Postgres is a real server, PostgreSQL 17 or later, that writes each commit to disk before it confirms the commit.
type Postgres struct {
	options embedded.PostgresOptions
	running *embedded.Postgres
	url     string
	frozen  []int
}

// StartPostgres starts a server on empty data.
func StartPostgres(ctx context.Context, log *slog.Logger) (*Postgres, error) {
	return StartPostgresWith(ctx, 0, nil, log)
}

// StartPostgresWith starts a server on empty data, with a cache of a given size in bytes (0: the default) and with
// PostgreSQL settings.
func StartPostgresWith(ctx context.Context, cache int64, settings map[string]string, log *slog.Logger) (*Postgres, error) {
	dir, err := NewDir("postgres")
	if err != nil {
		return nil, err
	}
	p := &Postgres{options: embedded.PostgresOptions{Dir: dir, Password: "meshtest", Log: log,
		Cache: cache, Settings: settings, Binaries: os.Getenv(embedded.BinariesVariable)}}
	if p.options.Port, err = FreePort(); err == nil {
		err = p.Start(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, p.Remove())
	}
	return p, nil
}

// Start starts the server on its data and port, for the first time or again.
func (p *Postgres) Start(ctx context.Context) (err error) {
	if p.running, err = embedded.StartPostgres(ctx, p.options); err != nil {
		return err
	}
	p.url = p.running.URL()
	return nil
}

// URL returns the URL of the server's own database, for its superuser.
func (p *Postgres) URL() string { return p.url }

// Port returns the server's port on loopback.
func (p *Postgres) Port() int { return p.options.Port }

// PID returns the process id of the server's main process.
func (p *Postgres) PID() int { return p.running.PID() }

// Version returns the version that the server's programs report.
func (p *Postgres) Version() string { return p.running.Version() }

// Stop shuts the server down and keeps its data.
func (p *Postgres) Stop() error {
	if p.running == nil {
		return nil
	}
	return errors.Join(p.Thaw(), p.running.Stop())
}

// Kill ends all of the server's processes without warning.
func (p *Postgres) Kill() error {
	pids, err := family(p.PID())
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill PostgreSQL: %w", err)
		}
	}
	<-p.running.Done()
	return p.running.Stop() // releases the data folder
}

// Freeze suspends all of the server's processes, with its connections open.
func (p *Postgres) Freeze() error {
	pids, err := family(p.PID())
	if err != nil {
		return err
	}
	p.frozen = pids
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("freeze PostgreSQL: %w", err)
		}
	}
	return nil
}

// Thaw resumes the frozen server.
func (p *Postgres) Thaw() error {
	for _, pid := range p.frozen {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("thaw PostgreSQL: %w", err)
		}
	}
	p.frozen = nil
	return nil
}

// Remove stops the server and deletes its data.
func (p *Postgres) Remove() error { return errors.Join(p.Stop(), os.RemoveAll(p.options.Dir)) }

// family returns the ids of a process and its children. PostgreSQL serves each connection with a child process in a
// process group of its own, so a signal to the parent's group would not reach the children.
func family(parent int) ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, errors.New("find PostgreSQL's processes: there is no /proc")
	}
	pids := []int{parent}
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // the process has ended
		}
		pid, rest, _ := strings.Cut(string(stat), " ")
		// The program's name is in parentheses and may contain any character. The state and the parent's id follow.
		fields := strings.Fields(rest[strings.LastIndex(rest, ")")+1:])
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			if n, err := strconv.Atoi(pid); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids, nil
}
