package meshtest_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/meshtest/internal/server"
)

// habit is a way of writing that readers stumble over, and what to write instead.
type habit struct {
	found   *regexp.Regexp
	instead string
	example string // it is found in this line
	fine    string // it is not found in this one
}

// habits are those that came up again and again in reviews. CONTRIBUTING.md has the rules that they break.
var habits = []habit{
	{regexp.MustCompile(`(?i)\bsays whether\b`), `write "reports whether"`,
		"// open says whether it is open.", "// open reports whether it is open."},
	{regexp.MustCompile(`(?i)(?:^|[^e])\bis no [a-z0-9]`), `write "is not a …"`,
		`errors.New("header is no number")`, `errors.New("there is no number")`},
	{regexp.MustCompile(`//(?:.*[.:;])? (?:What|Who|Whoever) [^?]*$`), "begin the sentence with a noun that names its subject",
		"// Close ends it. What waits is lost.", "// What is it? It is a test."},
	{regexp.MustCompile(`\b(?:most|longest|largest)[A-Z][A-Za-z]*\s*=`), `begin the name of an upper bound with "max"`,
		"	mostEvents = 10", "	maxEvents = 10"},
}

// allowed are phrases that a habit finds and that are right as they are.
var allowed = regexp.MustCompile(`(?i)\b(?:there is no|is no longer|is no more)\b`)

func TestProse_HabitsAreFound(t *testing.T) {
	t.Parallel()
	for _, h := range habits {
		require.NotEmpty(t, stumbles(h.example), h.example)
		require.Empty(t, stumbles(h.fine), h.fine)
	}
}

// TestProse_HasNoneOfTheHabits reads all that is written in the repository by hand: Go, Protobuf and shell.
func TestProse_HasNoneOfTheHabits(t *testing.T) {
	t.Parallel()
	shared, err := server.ModuleDir()
	require.NoError(t, err)
	root := filepath.Dir(shared)
	read := 0
	require.NoError(t, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		if d.IsDir() {
			if name == filepath.Join("proto", "gen") || strings.HasPrefix(d.Name(), ".") && name != "." || d.Name() == "node_modules" {
				return filepath.SkipDir
			}
			return nil
		}
		switch filepath.Ext(name) {
		case ".go", ".proto", ".sh":
		default:
			return nil
		}
		if d.Name() == "prose_test.go" {
			return nil
		}
		read++
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for n, line := range strings.Split(string(text), "\n") {
			for _, instead := range stumbles(line) {
				t.Errorf("%s:%d: %s: %s", name, n+1, instead, strings.TrimSpace(line))
			}
		}
		return nil
	}))
	require.Greater(t, read, 300, "files")
}

// stumbles returns what to write instead of what a line has.
func stumbles(line string) (instead []string) {
	line = allowed.ReplaceAllString(line, "")
	for _, h := range habits {
		if h.found.MatchString(line) {
			instead = append(instead, h.instead)
		}
	}
	return instead
}
