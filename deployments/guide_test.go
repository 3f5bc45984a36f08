package deployments_test

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const guide = "docs/adding-a-feature.md"

// patches are the worked examples of the guide, in the order in which they are applied.
var patches = []string{"docs/adding-a-feature/command.patch", "docs/adding-a-feature/aggregate.patch"}

// patched is a file that a patch changes.
type patched struct {
	path  string
	shown []string // the added lines with their context
	added []string
}

// readPatch returns the files that a patch changes. A patch contains only files that are edited by hand, and no
// generated files.
func readPatch(t *testing.T, name string) (files []*patched) {
	t.Helper()
	inHunk := false
	for _, line := range strings.Split(strings.TrimSuffix(read(t, name), "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "diff --git "):
			_, to, ok := strings.Cut(line, " b/")
			require.True(t, ok, line)
			files, inHunk = append(files, &patched{path: to}), false
		case strings.HasPrefix(line, "@@ "):
			inHunk = true
		case inHunk && strings.HasPrefix(line, "+"):
			f := files[len(files)-1]
			f.added, f.shown = append(f.added, line[1:]), append(f.shown, line[1:])
		case inHunk && strings.HasPrefix(line, " "):
			f := files[len(files)-1]
			f.shown = append(f.shown, line[1:])
		}
	}
	require.NotEmpty(t, files, name)
	return files
}

func isTest(name string) bool { return strings.HasSuffix(name, "_test.go") }

// kind is the purpose of a line of a patch. The guide describes the kinds.
type kind int

const (
	notCounted kind = iota // an empty line, a comment, only brackets, or an import
	content                // a rule of the domain, or a declaration in proto
	sql
	connecting // everything else
)

var (
	bracketsAlone = regexp.MustCompile(`^[\[\](){};,]+$`)
	goImport      = regexp.MustCompile(`^(package \w+|import .*|(\w+ )?"[\w./-]+")$`)
	// In a .proto file, the header, the first line of an option, and the name in an option are connecting lines.
	// Fields, and the other values of an option such as its stream, are content.
	protoConnecting = regexp.MustCompile(`^((syntax|package|import|option)\b|name:)`)
	// These functions are the same in every aggregate, except for the cases of their switch statements.
	aggregateFunction = regexp.MustCompile(`^func (New|\(\w+ \*?State\) (Decide|Evolve|Forget))\(`)
	topLevelType      = regexp.MustCompile(`^type State\b`)
	dispatch          = regexp.MustCompile(`^\t(switch|case|default|return)\b`)
)

// kinds returns the kind of each added line.
func (f *patched) kinds() (kinds []kind) {
	folder := path.Base(path.Dir(f.path))
	aggregate := path.Ext(f.path) == ".go" && !isTest(f.path) && !slices.Contains([]string{"chat", "store", "query"}, folder)
	inSQL, inRule := false, false
	for _, line := range f.added {
		trimmed := strings.TrimSpace(line)
		k := connecting
		switch path.Ext(f.path) {
		case ".md":
			k = notCounted
		case ".sql":
			if k = sql; trimmed == "" || strings.HasPrefix(trimmed, "-- ") && !strings.HasPrefix(trimmed, "-- +goose") ||
				bracketsAlone.MatchString(trimmed) {
				k = notCounted
			}
		case ".proto":
			switch {
			case trimmed == "" || strings.HasPrefix(trimmed, "//") || bracketsAlone.MatchString(trimmed):
				k = notCounted
			case !protoConnecting.MatchString(trimmed):
				k = content
			}
		case ".go":
			quotes := strings.Count(line, "`")
			if !strings.HasPrefix(line, "\t") && !strings.HasPrefix(line, "}") && trimmed != "" {
				inRule = aggregate && !aggregateFunction.MatchString(line) && !topLevelType.MatchString(line)
			}
			switch {
			case inSQL || quotes > 0:
				k = sql
			case trimmed == "" || strings.HasPrefix(trimmed, "//") || bracketsAlone.MatchString(trimmed) ||
				goImport.MatchString(trimmed):
				k = notCounted
			case inRule || aggregate && strings.HasPrefix(line, "\t") && !dispatch.MatchString(line):
				k = content
			}
			inSQL = inSQL != (quotes%2 == 1)
		default:
			panic("lines of " + f.path + " have no kind")
		}
		kinds = append(kinds, k)
	}
	return kinds
}

// count returns how many added lines have one of the kinds, in the files for which wanted(path) is true.
func count(files []*patched, wanted func(path string) bool, of ...kind) (lines int) {
	for _, f := range files {
		if !wanted(f.path) {
			continue
		}
		for _, k := range f.kinds() {
			if slices.Contains(of, k) {
				lines++
			}
		}
	}
	return lines
}

// The numbers in the guide must be those of its patches, and must not exceed the limits for a feature.
func TestGuide_CountsTheLinesOfAFeature(t *testing.T) {
	t.Parallel()
	product := func(path string) bool { return !isTest(path) }
	inProto := func(path string) bool { return strings.HasSuffix(path, ".proto") }
	command, aggregate := readPatch(t, patches[0]), readPatch(t, patches[1])
	glue := count(command, product, connecting)
	skeleton := count(aggregate, func(path string) bool { return product(path) && !inProto(path) }, connecting, sql)
	tests := count(aggregate, isTest, content, connecting)
	t.Logf("command: %d files, %d lines of glue; aggregate: %d lines of skeleton, %d of tests", len(command), glue, skeleton, tests)
	require.LessOrEqual(t, len(command), 8, "files that are edited by hand")
	require.LessOrEqual(t, glue, 25, "lines of glue")
	require.LessOrEqual(t, skeleton, 60, "lines of skeleton")
	require.LessOrEqual(t, tests, 80, "lines of tests")
	for _, f := range slices.Concat(command, aggregate) {
		require.False(t, strings.HasPrefix(f.path, "services/gateway/"), "%s: a feature must not change the gateway", f.path)
		require.False(t, strings.HasPrefix(f.path, "proto/gen/"), "%s is generated", f.path)
	}
	page := read(t, guide)
	for _, figure := range []string{fmt.Sprintf("%d files are edited by hand", len(command)), fmt.Sprintf("%d lines of glue", glue),
		fmt.Sprintf("%d lines of skeleton", skeleton), fmt.Sprintf("%d lines of tests", tests)} {
		require.Contains(t, page, figure)
	}
}

// The method patched.kinds must return the right kind for each of these lines. If it returned a wrong kind, the counts
// in the guide could be too low.
func TestGuide_SeesTheKindsOfLines(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		path, line string
		want       kind
	}{
		{"proto/edumatrix/chat/v1/a.proto", `syntax = "proto3";`, connecting},
		{"proto/edumatrix/chat/v1/a.proto", `    name: "chat.a"`, connecting},
		{"proto/edumatrix/chat/v1/a.proto", `  option (edumatrix.routing.v1.command) = {`, connecting},
		{"proto/edumatrix/chat/v1/a.proto", `  string name = 1;`, content},
		{"proto/edumatrix/chat/v1/a.proto", `    stream: "a:{b}"`, content},
		{"proto/edumatrix/chat/v1/a.proto", `  };`, notCounted},
		{"services/chat/conversation/a.go", "\tcase *chatv1.A:", connecting},
		{"services/chat/conversation/a.go", "\t\treturn s.a(c)", content},
		{"services/chat/conversation/a.go", "func New(string) State { return State{} }", connecting},
		{"services/chat/conversation/a.go", "func (s *State) a() {", content},
		{"services/chat/store/a.go", "\tsqlA = `SELECT`", sql},
		{"services/chat/store/a.go", "\treturn all, nil", connecting},
		{"services/chat/store/a.go", "\t// It is a comment.", notCounted},
		{"services/chat/query/a.go", `	"connectrpc.com/connect"`, notCounted},
		{"services/chat/query/a.go", `	"chat.a": store.Name,`, connecting},
		{"services/chat/service.go", "\ts.Project(store.A())", connecting},
		{"services/chat/store/migrations/1.sql", "-- +goose Up", sql},
		{"services/chat/store/migrations/1.sql", "-- A comment.", notCounted},
		{"services/chat/query/a_test.go", "\tt.Parallel()", connecting},
	} {
		f := &patched{path: c.path, added: []string{c.line}}
		require.Equal(t, []kind{c.want}, f.kinds(), "%s: %s", c.path, c.line)
	}
	f := &patched{path: "services/chat/store/a.go", added: []string{"const sqlA = `SELECT 1", "\tFROM a`", "", "func A() {}"}}
	require.Equal(t, []kind{sql, sql, notCounted, connecting}, f.kinds())
	f = &patched{path: "services/chat/notebook/a.go", added: []string{"func (s State) Decide(c any) {", "\tswitch c {", "\tif s {",
		"}", "func rule() {", "\treturn", "}"}}
	require.Equal(t, []kind{connecting, connecting, content, notCounted, content, content, notCounted}, f.kinds())
}

// Each patch must apply to the files of this checkout.
func TestGuide_PatchesApply(t *testing.T) {
	t.Parallel()
	for _, name := range patches {
		dir := t.TempDir()
		for _, f := range readPatch(t, name) {
			text, err := os.ReadFile(filepath.Join(root, f.path))
			if os.IsNotExist(err) {
				continue // the patch adds this file
			}
			require.NoError(t, err)
			require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(f.path)), 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(dir, f.path), text, 0o644))
		}
		file, err := filepath.Abs(filepath.Join(root, name))
		require.NoError(t, err)
		check := exec.Command("git", "apply", "--check", file)
		check.Dir, check.Env = dir, append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir))
		out, err := check.CombinedOutput()
		require.NoError(t, err, "%s does not apply any more; apply it with git apply --3way, and write the patch again from git diff, "+
			"without generated files:\n%s", name, out)
	}
}

// The lines of code that the guide quotes must be lines of its patches.
func TestGuide_QuotesItsPatches(t *testing.T) {
	t.Parallel()
	var shown []string
	for _, name := range patches {
		for _, f := range readPatch(t, name) {
			shown = append(shown, "\n"+strings.Join(f.shown, "\n")+"\n")
		}
	}
	quotes := regexp.MustCompile("(?s)```(?:proto|go|sql)\n(.*?)```").FindAllStringSubmatch(read(t, guide), -1)
	require.Greater(t, len(quotes), 5)
	for _, quote := range quotes {
		require.True(t, slices.ContainsFunc(shown, func(text string) bool { return strings.Contains(text, "\n"+quote[1]) }),
			"no patch has these lines:\n%s", quote[1])
	}
}
