package meshtest_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/meshtest/internal/server"
)

// habit is a way of writing that readers have to read twice, with the words to write instead.
type habit struct {
	found   *regexp.Regexp
	instead string
	example string // a line with the habit
	fine    string // a line without it
}

// habits are looked for in all folders. Reviews have found them repeatedly; CONTRIBUTING.md has the rules for writing.
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

// revisedHabits are looked for only in the folders in the variables revised and edge.
var revisedHabits = []habit{
	{regexp.MustCompile(`^\s*// \w+ says `), `write "reports", "returns" or "contains": code does not speak`,
		"	// Kind says how it ended.", `// Text is what the log says of it.`},
	{regexp.MustCompile(`^\s*// \w+ tells `), `write "reports", "returns" or "publishes": code does not speak`,
		"// quiet tells once that it is gone.", "// A log tells tests what takes long."},
	{regexp.MustCompile(`(?i)\bsays (?:true|false)\b`), `write "returns"`,
		"// sleep waits, and says false when it is over.", "// sleep returns false when it is over."},
	{regexp.MustCompile(`//.*\banew\b`), `write "again", or "starts over"`,
		"// restart begins anew.", "// restart starts over."},
	{regexp.MustCompile(`//.*\bby the (?:second|minute|hour)\b`), `write "every second"`,
		"// It asks by the second.", "// It asks every second."},
	{regexp.MustCompile(`//.*\bfor ever\b`), `write "without end"`,
		"// It waits for ever.", "// It waits without end."},
}

// edgeHabits are looked for only in the folders in the variable edge.
var edgeHabits = []habit{
	{regexp.MustCompile(`//.*\b(?:[Tt]oo far|newcomers?|(?:[Tt]hose|one|ones|[Ss]omebody|[Ee]verybody) who)\b`),
		`name the subject: "users that …", "connections that …", "not recovered"`,
		"// Those who come back are told.", "// Connections that resume get the missed events."},
	{regexp.MustCompile(`//.*\bis told\b`), `write "gets", "is sent" or "is notified"`,
		"	// The client is told when it is over.", "	// The client is sent the outcome."},
}

// All folders are checked for habits. The folders in the variable revised are also checked for revisedHabits. The
// folders in the variable edge are also checked for revisedHabits and edgeHabits.
var (
	revised = []string{"shared/", "proto/catalog/", "proto/refusal/", "services/chat/", "services/feed/",
		"services/gateway/", "services/notification/", "services/presence/", "services/edumatrix/"}
	edge = []string{"services/gateway/", "services/presence/", "shared/client/"}
)

// habitsOf returns the habits that are looked for in a file.
func habitsOf(name string) []habit {
	within := func(folder string) bool { return strings.HasPrefix(filepath.ToSlash(name), folder) }
	switch {
	case slices.ContainsFunc(edge, within):
		return slices.Concat(habits, revisedHabits, edgeHabits)
	case slices.ContainsFunc(revised, within):
		return slices.Concat(habits, revisedHabits)
	}
	return habits
}

// allowed are phrases that match a habit and are correct nevertheless.
var allowed = regexp.MustCompile(`(?i)\b(?:there is no|is no longer|is no more)\b`)

func TestProse_HabitsAreFound(t *testing.T) {
	t.Parallel()
	all := habitsOf("shared/client/client.go")
	require.Greater(t, len(all), len(habitsOf("shared/bus/bus.go")))
	require.Greater(t, len(all), len(habitsOf("deployments/docs_test.go")))
	for _, h := range all {
		require.NotEmpty(t, stumbles(all, h.example), h.example)
		require.Empty(t, stumbles(all, h.fine), h.fine)
	}
}

// No line of a hand-written Go, Protobuf or shell file may have one of the habits. This file, which lists them, is not
// checked.
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
		wanted := habitsOf(name)
		for n, line := range strings.Split(string(text), "\n") {
			for _, instead := range stumbles(wanted, line) {
				t.Errorf("%s:%d: %s: %s", name, n+1, instead, strings.TrimSpace(line))
			}
		}
		return nil
	}))
	require.Greater(t, read, 300, "files")
}

// stumbles returns what to write instead of the habits in a line.
func stumbles(all []habit, line string) (instead []string) {
	line = allowed.ReplaceAllString(line, "")
	for _, h := range all {
		if h.found.MatchString(line) {
			instead = append(instead, h.instead)
		}
	}
	return instead
}
