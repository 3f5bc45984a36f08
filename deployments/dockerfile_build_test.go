//go:build integration

package deployments_test

import (
	"bytes"
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/moby/patternmatcher"
	"github.com/stretchr/testify/require"
)

// image executes the instructions of one stage of a Dockerfile in a folder, instead of in a container.
type image struct {
	dir     string // the folder that replaces the root folder of the container
	workdir string
	args    map[string]string
	env     []string
	ignored *patternmatcher.PatternMatcher
}

func (i *image) run(t *testing.T, s stage) {
	t.Helper()
	for _, in := range s.instructions {
		rest := os.Expand(in.rest, func(name string) string {
			value, ok := i.args[name]
			require.True(t, ok, "%s %s: no ARG %s", in.word, in.rest, name)
			return value
		})
		switch in.word {
		case "ARG": // the test has set the argument in i.args
		case "ENV":
			i.env = append(i.env, strings.Fields(rest)...)
		case "WORKDIR":
			i.workdir = rest
			require.NoError(t, os.MkdirAll(i.at("."), 0o755))
		case "COPY":
			sources := strings.Fields(rest)
			target := sources[len(sources)-1]
			require.True(t, strings.HasSuffix(target, "/"), "COPY %s: the target must be a folder", rest)
			for _, source := range sources[:len(sources)-1] {
				i.copy(t, source, i.at(target))
			}
		case "RUN":
			command := strings.Fields(rest)
			command = slices.DeleteFunc(command, func(word string) bool { return strings.HasPrefix(word, "--mount=") })
			i.sh(t, strings.Join(command, " "))
		default:
			t.Fatalf("the test does not support %s", in.word)
		}
	}
}

func (i *image) at(name string) string {
	if !path.IsAbs(name) {
		name = path.Join(i.workdir, name)
	}
	return filepath.Join(i.dir, name)
}

// copy copies a file, or the contents of a folder, from the build context. From a folder, it leaves out the files that
// .dockerignore excludes. If the parameter source names a file that .dockerignore excludes, it fails the test.
func (i *image) copy(t *testing.T, source, target string) {
	t.Helper()
	from := filepath.Join(root, source)
	info, err := os.Stat(from)
	require.NoError(t, err, "COPY %s", source)
	if !info.IsDir() {
		require.False(t, ignored(t, i.ignored, path.Clean(source)), "COPY %s: .dockerignore excludes this path", source)
		require.NoError(t, copyFile(from, filepath.Join(target, path.Base(source))))
		return
	}
	require.NoError(t, filepath.WalkDir(from, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		inside, err := filepath.Rel(from, name)
		if err != nil || entry.IsDir() || ignored(t, i.ignored, path.Join(source, filepath.ToSlash(inside))) {
			return err
		}
		return copyFile(name, filepath.Join(target, inside))
	}))
}

func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o644)
}

// sh runs the command of a RUN instruction with a shell on this machine. The Go tool uses the module cache and the
// build cache of this machine.
func (i *image) sh(t *testing.T, command string) {
	t.Helper()
	require.NotRegexp(t, `(^|[\s=])/(src|out|go|root)\b`, command, "the command uses an absolute path of the container")
	c := exec.CommandContext(t.Context(), "sh", "-ec", command)
	c.Dir, c.Env = i.at("."), append(os.Environ(), i.env...)
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s\n%s", command, out)
}

func TestDockerfile_BuildsEveryService(t *testing.T) {
	t.Parallel()
	stages := readDockerfile(t)
	require.Len(t, stages, 2)
	require.Equal(t, "build", stages[0].name)
	// Build the services one after another, because they share the build cache and the machine.
	for _, service := range []string{"chat", "feed", "gateway", "notification", "presence"} {
		t.Run(service, func(t *testing.T) {
			i := &image{dir: t.TempDir(), workdir: "/", args: map[string]string{"SERVICE": service},
				ignored: dockerignore(t)}
			i.run(t, stages[0])

			built := ""
			for _, in := range stages[1].instructions {
				if source, ok := strings.CutPrefix(in.rest, "--from=build "); ok && in.word == "COPY" {
					built = strings.Fields(source)[0]
				}
			}
			require.NotEmpty(t, built, "the image must copy a file from the build stage")
			requireStatic(t, i.at(built))
			requireService(t, i.at(built), service)
		})
	}
}

// requireStatic checks that a binary needs no C library, because the final image may have another C library than the
// build stage.
func requireStatic(t *testing.T, binary string) {
	t.Helper()
	if runtime.GOOS != "linux" {
		return // the binary is built for the system of this machine, which may use another format than ELF
	}
	file, err := elf.Open(binary)
	require.NoError(t, err)
	defer func() { require.NoError(t, file.Close()) }()
	for _, p := range file.Progs {
		require.NotEqual(t, elf.PT_INTERP, p.Type, "%s is linked dynamically", binary)
	}
}

// requireService checks that a binary is the given service. Without a secret, the service must refuse to start. With
// the settings of docker-compose.yml, but with addresses of stores at which nothing listens, it must fail to connect to
// its first store.
func requireService(t *testing.T, binary, service string) {
	t.Helper()
	said := start(t, binary)
	require.Contains(t, said, service)
	require.Contains(t, said, "JWT_SECRET is not set")

	name := service
	if service == "gateway" {
		name = "socketio"
	}
	var env []string
	nowhere := strings.NewReplacer("postgres:5432", "127.0.0.1:1", "kafka:9092", "127.0.0.1:1")
	for variableName, value := range loaded(t).Services[name].Environment {
		switch variableName {
		case "REDIS_HOST":
			*value = "127.0.0.1"
		case "REDIS_PORT":
			*value = "1"
		}
		env = append(env, variableName+"="+nowhere.Replace(*value))
	}
	said = start(t, binary, env...)
	require.Regexp(t, `(Postgres|Redis) at 127\.0\.0\.1:1\b.*connection refused`, said)
	for _, secret := range secrets {
		_, value, _ := strings.Cut(secret, "=")
		require.NotContains(t, said, value)
	}
}

// start runs a service that must fail to start, and returns its error output.
func start(t *testing.T, binary string, env ...string) string {
	t.Helper()
	var said bytes.Buffer
	c := exec.CommandContext(t.Context(), binary)
	c.Env, c.Stderr = append([]string{}, env...), &said
	err := c.Run()
	var exit *exec.ExitError
	require.True(t, errors.As(err, &exit), "%v", err)
	require.Equal(t, 1, exit.ExitCode(), said.String())
	return said.String()
}
