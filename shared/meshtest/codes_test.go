package meshtest_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/meshtest/internal/server"
)

// notForClients are codes of refusals that only operators and gateways get.
var notForClients = []string{"key_taken", "not_failed", "old_report"}

// TestWalls_EveryCodeIsDeclared reads the source files in services and shared. Each code of a refusal in them must be
// documented for clients or listed in notForClients, and each documented code of a domain must be used. The test
// ignores codes that are known only at run time, such as the code of a refusal that is passed on.
func TestWalls_EveryCodeIsDeclared(t *testing.T) {
	t.Parallel()
	c, err := catalog.Load()
	require.NoError(t, err)
	declared := map[string]bool{}
	for _, code := range notForClients {
		declared[code] = true
	}
	for _, code := range refusal.Codes() {
		require.NotEmpty(t, code.Meaning, code.Name)
		require.Equal(t, code.Status, refusal.Status(code.Name))
		declared[code.Name] = true
	}
	for _, r := range c.Refusals() {
		require.Equal(t, refusal.DomainStatus, refusal.Status(r.Code))
		declared[r.Code] = true
	}
	shared, err := server.ModuleDir()
	require.NoError(t, err)
	root := filepath.Dir(shared)
	general := constants(parsed(t, filepath.Join(root, "proto", "refusal")))
	for name, code := range general {
		require.True(t, declared[code], "refusal.%s has no row in refusal.Codes", name)
	}
	used := map[string]bool{}
	for _, folder := range []string{"services", "shared"} {
		require.NoError(t, filepath.WalkDir(filepath.Join(root, folder), func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.IsDir() {
				return err
			}
			files := parsed(t, path)
			for place, code := range codesIn(files, general) {
				used[code] = true
				if !declared[code] {
					t.Errorf("%s: the code %q is declared neither by proto/refusal nor by a domain", place, code)
				}
			}
			return nil
		}))
	}
	for _, r := range c.Refusals() {
		require.True(t, used[r.Code], "no refusal has the code %s", r.Code)
	}
}

// sources contains the positions of the parsed files.
var sources = token.NewFileSet()

// parsed returns the files of the package in a folder, without tests.
func parsed(t *testing.T, folder string) (files []*ast.File) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(folder, "*.go"))
	require.NoError(t, err)
	for _, name := range names {
		if !strings.HasSuffix(name, "_test.go") {
			file, err := parser.ParseFile(sources, name, nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			files = append(files, file)
		}
	}
	return files
}

// constants returns the values of a package's string constants, by name.
func constants(files []*ast.File) map[string]string {
	all := map[string]string{}
	for _, file := range files {
		for _, d := range file.Decls {
			group, ok := d.(*ast.GenDecl)
			if !ok || group.Tok != token.CONST {
				continue
			}
			for _, spec := range group.Specs {
				s := spec.(*ast.ValueSpec)
				for i, name := range s.Names {
					if i < len(s.Values) {
						if text, ok := literal(s.Values[i]); ok {
							all[name.Name] = text
						}
					}
				}
			}
		}
	}
	return all
}

func literal(e ast.Expr) (string, bool) {
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(l.Value)
	return text, err == nil
}

// codesIn returns the codes that the files pass to refusal.New or use in a literal of type refusal.Error, by their
// positions in the source. The parameter general contains the constants of package refusal, by name.
func codesIn(files []*ast.File, general map[string]string) map[string]string {
	own, found := constants(files), map[string]string{}
	take := func(e ast.Expr) {
		code, ok := literal(e)
		switch x := e.(type) {
		case *ast.Ident:
			code, ok = own[x.Name]
		case *ast.SelectorExpr:
			if code, ok = general[x.Sel.Name]; !isRefusal(x, x.Sel.Name) {
				ok = false
			}
		}
		if ok {
			found[sources.Position(e.Pos()).String()] = code
		}
	}
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			switch x := n.(type) {
			case *ast.CallExpr:
				if isRefusal(x.Fun, "New") && len(x.Args) > 0 {
					take(x.Args[0])
				}
			case *ast.CompositeLit:
				for _, element := range x.Elts {
					if pair, ok := element.(*ast.KeyValueExpr); ok && isRefusal(x.Type, "Error") {
						if key, ok := pair.Key.(*ast.Ident); ok && key.Name == "Code" {
							take(pair.Value)
						}
					}
				}
			}
			return true
		})
	}
	return found
}

// isRefusal reports whether an expression is refusal.<name>.
func isRefusal(e ast.Expr, name string) bool {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	p, ok := s.X.(*ast.Ident)
	return ok && p.Name == "refusal" && s.Sel.Name == name
}
