package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/edumatrix/interlinked/shared/backend"
)

const redisImage = "redis:7.4-alpine"

// Redis is a real server that writes every change to disk before it responds, so that a restart loses nothing.
type Redis struct {
	daemon
	settings backend.Redis
}

// StartRedis starts a server on empty data.
func StartRedis(ctx context.Context) (*Redis, error) {
	dir, err := NewDir("redis")
	if err != nil {
		return nil, err
	}
	r := &Redis{daemon: daemon{name: "Redis", dir: dir}}
	if err := r.start(ctx); err != nil {
		return nil, errors.Join(err, r.Remove())
	}
	return r, nil
}

func (r *Redis) start(ctx context.Context) error {
	port, err := FreePort()
	if err != nil {
		return err
	}
	r.settings = backend.Redis{Host: "127.0.0.1", Port: port, Password: rand.Text()}
	r.answers = func(ctx context.Context) error {
		// Dial before a client is opened, because a client would log each failed attempt.
		if conn, err := net.Dial("tcp4", r.settings.Where()); err != nil {
			return err
		} else if err := conn.Close(); err != nil {
			return err
		}
		client, err := r.settings.Open(ctx)
		if err != nil {
			return err
		}
		return client.Close()
	}
	settings := []string{"--port", strconv.Itoa(port), "--requirepass", r.settings.Password, "--save", "",
		"--appendonly", "yes", "--appendfsync", "always"}
	program, err := redisProgram(ctx)
	switch {
	case err == nil:
		r.command = func() *exec.Cmd {
			return exec.Command(program, append(settings, "--bind", "127.0.0.1", "--dir", r.dir)...)
		}
	case engineAnswers():
		if err := r.contain(ctx, redisImage, port, nil, append([]string{"redis-server"}, settings...)); err != nil {
			return err
		}
	default:
		return err
	}
	return r.Start(ctx)
}

var errNoRedis = errors.New("there is no real Redis: install redis-server with the package manager, or start Docker, " +
	"or set REDIS_URL; as root, or with sudo, make test installs it where there is apt-get")

// Snapshot copies the data on the running server's disk, for Rewind.
func (r *Redis) Snapshot() error { return r.copyData(redisData, redisSnapshot) }

// Rewind resets a stopped server to its snapshot.
func (r *Redis) Rewind() error { return r.copyData(redisSnapshot, redisData) }

// redisData is the folder of the append-only file, to which the server writes every change before it responds.
// redisSnapshot is the folder of a copy. The copy may end with an incomplete command, which the server removes when it
// starts.
const (
	redisData     = "appendonlydir"
	redisSnapshot = "snapshot"
)

func (r *Redis) copyData(from, to string) error {
	if r.container != "" {
		return errors.New("snapshots of a Redis in a container are not supported: install redis-server")
	}
	to = filepath.Join(r.dir, to)
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return os.CopyFS(to, os.DirFS(filepath.Join(r.dir, from)))
}

// Settings returns the address of the server.
func (r *Redis) Settings() backend.Redis { return r.settings }

var redisVersion = regexp.MustCompile(`redis_version:(\S+)`)

// RedisVersion returns the version of a server.
func RedisVersion(ctx context.Context, r backend.Redis) (string, error) {
	client, err := r.Open(ctx)
	if err != nil {
		return "", err
	}
	info, err := client.Info(ctx, "server").Result()
	if err = errors.Join(err, client.Close()); err != nil {
		return "", err
	}
	found := redisVersion.FindStringSubmatch(info)
	if found == nil {
		return "", fmt.Errorf("Redis at %s does not report its version", r.Where())
	}
	return found[1], nil
}
