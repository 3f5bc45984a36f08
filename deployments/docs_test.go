package deployments_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	require.NoError(t, err)
	return string(text)
}

// found searches the files that match a glob, except Go tests, for a regular expression. For each match it returns the
// text of the expression's first group. It fails the test if nothing matches.
func found(t *testing.T, glob, pattern string) (all []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, glob))
	require.NoError(t, err)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
			all = append(all, match[1])
		}
	}
	require.NotEmpty(t, all, "%s in %s", pattern, glob)
	return all
}

func TestDocs_LinksLeadToExistingFiles(t *testing.T) {
	t.Parallel()
	var pages []string
	for _, glob := range []string{"*.md", "docs/*.md", "docs/*/*.md"} {
		matched, err := filepath.Glob(filepath.Join(root, glob))
		require.NoError(t, err)
		pages = append(pages, matched...)
	}
	require.NotEmpty(t, pages)
	link := regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`)
	for _, page := range pages {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, match := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(match[1], "://") {
				continue
			}
			_, err := os.Stat(filepath.Join(filepath.Dir(page), match[1]))
			require.NoError(t, err, "%s links to %s", page, match[1])
		}
	}
}

func TestDocs_DescribeEveryVariable(t *testing.T) {
	t.Parallel()
	page := read(t, "docs/configuration.md")
	for _, name := range found(t, "shared/config/*.go", `r\.\w+\("([A-Z][A-Z_]+)"`) {
		require.Contains(t, page, "`"+name+"`")
	}
}

func TestDocs_DescribeEveryCodeAndReason(t *testing.T) {
	t.Parallel()
	page := read(t, "docs/reference.md")
	for _, code := range found(t, "proto/refusal/*.go", `(?m)^\t\w+ += "(\w+)"`) {
		require.Contains(t, page, "| `"+code+"` |")
	}
	for _, code := range found(t, "services/*/*/*.go", `(?m)^\tcode\w+ += "(\w+)"`) {
		require.Contains(t, page, "| `"+code+"` |")
	}
	for _, code := range found(t, "proto/edumatrix/gateway/v1/closing.proto", `CLOSE_CODE_\w+ = (\d{4})`) {
		require.Contains(t, page, "| "+code+" |")
	}
}

func TestDocs_DescribeEveryNameOfTheProtocol(t *testing.T) {
	t.Parallel()
	page := read(t, "docs/reference.md")
	for _, name := range found(t, "proto/edumatrix/*/v1/*.proto", `(?m)^ +name: "(\w+\.\w+)"`) {
		if strings.HasPrefix(name, "toy.") {
			continue // toy is a service for tests only
		}
		require.Contains(t, page, "`"+name+"`")
	}
}

// filesOfPath returns the files that a row of a table names. The table is in docs/architecture.md, under "The files of
// the path". A file that is named without a folder is in the same folder as the file before it.
func filesOfPath(t *testing.T, row string) (files []string) {
	t.Helper()
	dir := ""
	for _, match := range regexp.MustCompile("`([a-z/]+\\.go)`").FindAllStringSubmatch(row, -1) {
		if folder, _ := filepath.Split(match[1]); folder != "" {
			dir = folder
			if !strings.HasPrefix(dir, "shared/") {
				dir = filepath.Join("services", dir)
			}
		}
		files = append(files, filepath.Join(dir, filepath.Base(match[1])))
	}
	return files
}

func TestDocs_NameTheFilesOfThePath(t *testing.T) {
	t.Parallel()
	_, section, _ := strings.Cut(read(t, "docs/architecture.md"), "\n## The files of the path\n")
	section, _, _ = strings.Cut(section, "\n## ")
	named := 0
	for _, row := range strings.Split(section, "\n") {
		if strings.HasPrefix(row, "| ") {
			for _, file := range filesOfPath(t, row) {
				require.FileExists(t, filepath.Join(root, file), row)
				named++
			}
		}
	}
	require.Greater(t, named, 30)
}

// The hot path of the gateway, from the fan-out to the socket, must be short enough to read in one sitting.
func TestDocs_TheHotPathIsShort(t *testing.T) {
	t.Parallel()
	const maxLines = 700
	_, row, found := strings.Cut(read(t, "docs/architecture.md"), "\n| 7, 8: outwards | ")
	require.True(t, found)
	row, _, _ = strings.Cut(row, "\n")
	files := filesOfPath(t, row)
	require.Contains(t, files, "services/gateway/hub/deliver.go")
	require.Contains(t, files, "services/gateway/ws/writer.go")
	lines := 0
	for _, file := range files {
		lines += strings.Count(read(t, file), "\n")
	}
	require.Less(t, lines, maxLines, files)
}
