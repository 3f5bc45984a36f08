package deployments_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/stretchr/testify/require"
)

// instruction is an instruction of a Dockerfile, with its lines joined.
type instruction struct{ word, rest string }

// stage is a FROM instruction, with the instructions up to the next FROM.
type stage struct {
	from, name   string
	instructions []instruction
}

func readDockerfile(t *testing.T) []stage {
	t.Helper()
	text, err := os.ReadFile("Dockerfile")
	require.NoError(t, err)
	var stages []stage
	pending := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if more, open := strings.CutSuffix(line, `\`); open {
			pending += more
			continue
		}
		word, rest, _ := strings.Cut(pending+line, " ")
		pending = ""
		if word != "FROM" {
			require.NotEmpty(t, stages, "%s before FROM", word)
			last := &stages[len(stages)-1]
			last.instructions = append(last.instructions, instruction{word, strings.TrimSpace(rest)})
			continue
		}
		from, name, _ := strings.Cut(rest, " AS ")
		stages = append(stages, stage{from: from, name: name})
	}
	return stages
}

func dockerignore(t *testing.T) *patternmatcher.PatternMatcher {
	t.Helper()
	file, err := os.Open(filepath.Join(root, ".dockerignore"))
	require.NoError(t, err)
	defer func() { require.NoError(t, file.Close()) }()
	patterns, err := ignorefile.ReadAll(file)
	require.NoError(t, err)
	matcher, err := patternmatcher.New(patterns)
	require.NoError(t, err)
	return matcher
}

// ignored reports whether .dockerignore excludes a path from the build context.
func ignored(t *testing.T, patterns *patternmatcher.PatternMatcher, name string) bool {
	t.Helper()
	out, err := patterns.MatchesOrParentMatches(name)
	require.NoError(t, err)
	return out
}

func TestDockerfile_RunsAsAnUnprivilegedUser(t *testing.T) {
	t.Parallel()
	stages := readDockerfile(t)
	last := stages[len(stages)-1]
	user, entry := "", ""
	for _, in := range last.instructions {
		switch in.word {
		case "USER":
			user = in.rest
		case "ENTRYPOINT":
			entry = in.rest
		}
	}
	require.Regexp(t, `^[1-9]\d*$`, user)
	require.True(t, strings.HasPrefix(entry, "["), "ENTRYPOINT must not use a shell, so that the service gets the signals")
	for _, s := range stages {
		require.Regexp(t, `^[a-z]+:\d+\.\d+(-alpine)?$`, s.from, "FROM must name a version")
	}
}

func TestDockerignore_ExcludesSecretsAndData(t *testing.T) {
	t.Parallel()
	patterns := dockerignore(t)
	for _, name := range []string{".env", ".git/config", ".data/secrets.json", "bin/edumatrix", "docker-compose.yml",
		"services/chat/service_test.go"} {
		require.True(t, ignored(t, patterns, name), name)
	}
	for _, name := range []string{"proto/go.mod", "shared/eventlog/migrations/00001_log.sql", "services/chat/service.go"} {
		require.False(t, ignored(t, patterns, name), name)
	}
}
