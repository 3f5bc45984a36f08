package edumatrix

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/edumatrix/interlinked/shared/auth"
	"github.com/edumatrix/interlinked/shared/filelock"
)

// dataDir is the directory of `edumatrix up`. It contains the secrets, the data of the embedded PostgreSQL and Kafka,
// and the file with which other subcommands find the mesh. At most one `edumatrix up` at a time uses it.
type dataDir struct {
	path string
	lock *filelock.Lock
}

// lookTime is the maximum time that `edumatrix up` waits for the lock. Other subcommands hold the lock for a moment to
// find out whether a mesh is running.
const lookTime = 500 * time.Millisecond

// openDataDir creates the directory if it is missing and locks it for this process until close is called.
func openDataDir(ctx context.Context, path string) (*dataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("data directory (set DATA_DIR to another): %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	lock, err := filelock.Await(ctx, filepath.Join(path, lockFile))
	if errors.Is(err, filelock.ErrHeld) {
		return nil, fmt.Errorf("the data directory %s is in use by another edumatrix: stop that process, or set DATA_DIR "+
			"to another directory", path)
	} else if err != nil {
		return nil, fmt.Errorf("data directory (set DATA_DIR to another): %w", err)
	}
	return &dataDir{path, lock}, nil
}

func (d *dataDir) close() {
	_ = os.Remove(filepath.Join(d.path, meshFile))
	d.lock.Release()
}

func (d *dataDir) sub(name string) string { return filepath.Join(d.path, name) }

// secrets are the generated secrets of a mesh. They are generated at the first start and stored in the file
// secrets.json, with mode 0600.
type secrets struct {
	JWTSecret        string `json:"jwt_secret"`
	PostgresPassword string `json:"postgres_password"`
	RedisPassword    string `json:"redis_password"`
}

func (d *dataDir) secrets() (secrets, error) {
	var s secrets
	path := d.sub("secrets.json")
	if err := readJSON(path, &s); err == nil {
		return s, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("secrets of the data directory: %w", err)
	}
	s = secrets{JWTSecret: rand.Text() + rand.Text(), PostgresPassword: rand.Text(), RedisPassword: rand.Text()}
	if err := writeJSON(path, s); err != nil {
		return s, fmt.Errorf("secrets of the data directory: %w", err)
	}
	return s, nil
}

const (
	meshFile = "mesh.json"
	lockFile = "lock"
)

// runningMesh is the content of the file mesh.json in the data directory. With it, the other subcommands find a running
// `edumatrix up`.
type runningMesh struct {
	Gateway     string   `json:"gateway"`
	Socket      string   `json:"socket"`
	DatabaseURL string   `json:"database_url"`
	RedisURL    string   `json:"redis_url"`
	Brokers     []string `json:"kafka_brokers"`
	TopicPrefix string   `json:"topic_prefix"`
	JWTSecret   string   `json:"jwt_secret"`
	PID         int      `json:"pid"`

	Services      map[string]string `json:"services"` // the URLs at which services call each other, by name
	ServiceSecret string            `json:"service_secret"`
}

func (d *dataDir) announce(m runningMesh) error {
	if err := writeJSON(d.sub(meshFile), m); err != nil {
		return fmt.Errorf("write the addresses of the mesh for other commands: %w", err)
	}
	return nil
}

// findMesh reads the file of the running mesh. A mesh that was killed leaves the file behind, but does not hold the
// lock of the data directory. So findMesh ignores the file if this lock is free.
func findMesh(getenv func(string) string) (runningMesh, error) {
	var m runningMesh
	dir := dataDirOf(getenv)
	err := readJSON(filepath.Join(dir, meshFile), &m)
	if err == nil && !filelock.Held(filepath.Join(dir, lockFile)) {
		err = fs.ErrNotExist
	}
	if errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("no mesh runs in the data directory %s: start one with `edumatrix up`, or set DATA_DIR to its folder", dir)
	} else if err != nil {
		return m, fmt.Errorf("find the running mesh: %w", err)
	}
	return m, nil
}

func dataDirOf(getenv func(string) string) string {
	if dir := strings.TrimSpace(getenv("DATA_DIR")); dir != "" {
		if rest, ok := strings.CutPrefix(dir, "~/"); ok { // a shell does not expand "~" in an .env file
			if home, err := os.UserHomeDir(); err == nil {
				return filepath.Join(home, rest)
			}
		}
		return dir
	}
	return ".data"
}

func (m runningMesh) mint(user, role string, life time.Duration) (string, error) {
	if m.JWTSecret == "" {
		return "", errors.New("this mesh accepts tokens of its JWKS_URL only, and has no secret to sign a token with")
	}
	return auth.Mint(m.JWTSecret, auth.User{ID: user, Name: user, Role: role}, life)
}

func readJSON(path string, v any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// writeJSON replaces a file atomically. The file has mode 0600.
func writeJSON(path string, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	next := path + ".next"
	if err := os.WriteFile(next, append(raw, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}
