//go:build integration

package deployments_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/pluginpb"
)

// tree is the folder of a copy of the repository, to which patches are applied.
type tree string

func (d tree) path(name string) string { return filepath.Join(string(d), filepath.FromSlash(name)) }

// copyTree makes a temporary folder with a copy of each file that git tracks in this repository.
func copyTree(t *testing.T) tree {
	t.Helper()
	list := exec.Command("git", "ls-files", "-z")
	list.Dir = root
	out, err := list.Output()
	require.NoError(t, err)
	d := tree(t.TempDir())
	for _, name := range strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		text, err := os.ReadFile(filepath.Join(root, name))
		if os.IsNotExist(err) {
			continue // the file was deleted, but the deletion is not committed yet
		}
		require.NoError(t, err)
		info, err := os.Stat(filepath.Join(root, name))
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll(filepath.Dir(d.path(name)), 0o755))
		require.NoError(t, os.WriteFile(d.path(name), text, info.Mode().Perm()))
	}
	return d
}

// run runs a program in a folder of the tree, and returns its output. The environment has the same settings of the Go
// tool as make build and bin/testservers, so that packages that the patches do not change are already in the build
// cache.
func (d tree) run(t *testing.T, folder, program string, args ...string) string {
	t.Helper()
	c := exec.Command(program, args...)
	c.Dir = d.path(folder)
	c.Env = append(os.Environ(), "GOWORK="+d.path("go.work"), "CGO_ENABLED=0",
		"GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" -trimpath"), "GIT_CEILING_DIRECTORIES="+filepath.Dir(string(d)))
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s %s: %s", program, strings.Join(args, " "), out)
	return string(out)
}

// generate generates the same code as `buf generate`. It builds the plugins from the modules that proto/go.mod
// requires. It does not run buf, because `make test` does not install buf.
func (d tree) generate(t *testing.T) {
	t.Helper()
	plugins := []string{"protoc-gen-go", "protoc-gen-connect-go"}
	d.run(t, "proto", "go", "build", "-o", string(d)+"/.bin/", "google.golang.org/protobuf/cmd/protoc-gen-go",
		"connectrpc.com/connect/cmd/protoc-gen-connect-go")
	protos, err := filepath.Glob(d.path("proto/edumatrix/*/*/*.proto"))
	require.NoError(t, err)
	require.NotEmpty(t, protos)
	for i, name := range protos {
		protos[i], err = filepath.Rel(d.path("proto"), name)
		require.NoError(t, err)
	}
	compiler := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
			Accessor: func(name string) (io.ReadCloser, error) { return os.Open(d.path("proto/" + name)) },
		}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(context.Background(), protos...)
	require.NoError(t, err)
	request := &pluginpb.CodeGeneratorRequest{Parameter: proto.String("paths=source_relative"), FileToGenerate: protos}
	seen := map[string]bool{}
	var add func(f protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i).FileDescriptor)
		}
		request.ProtoFile = append(request.ProtoFile, protoutil.ProtoFromFileDescriptor(f))
	}
	for _, f := range files {
		add(f)
	}
	raw, err := proto.Marshal(request)
	require.NoError(t, err)
	for _, plugin := range plugins {
		c := exec.Command(d.path(".bin/" + plugin))
		c.Stdin, c.Stderr = bytes.NewReader(raw), os.Stderr
		out, err := c.Output()
		require.NoError(t, err, plugin)
		var response pluginpb.CodeGeneratorResponse
		require.NoError(t, proto.Unmarshal(out, &response))
		require.Empty(t, response.GetError(), plugin)
		for _, f := range response.GetFile() {
			name := d.path("proto/gen/" + f.GetName())
			require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
			require.NoError(t, os.WriteFile(name, []byte(f.GetContent()), 0o644))
		}
	}
}

// The test applies the patches of the guide, and generates code and documents. Then the tests that the patches add must
// pass, and the reference must contain the new commands and queries. A mesh must answer these commands and queries,
// although the patches do not change the gateway.
func TestGuide_PatchesBuildAndPass(t *testing.T) {
	t.Parallel()
	d := copyTree(t)
	test := regexp.MustCompile(`^func (Test\w+)\(`)
	var tests, packages []string
	for _, name := range patches {
		file, err := filepath.Abs(filepath.Join(root, name))
		require.NoError(t, err)
		d.run(t, ".", "git", "apply", file)
		added := len(tests)
		for _, f := range readPatch(t, name) {
			require.FileExists(t, d.path(f.path), "%s must be applied", name)
			for _, line := range f.added {
				if match := test.FindStringSubmatch(line); match != nil {
					tests, packages = append(tests, match[1]), append(packages, "./"+filepath.ToSlash(filepath.Dir(f.path)))
				}
			}
		}
		require.Greater(t, len(tests), added, "%s must add tests", name)
	}
	d.generate(t)
	require.Empty(t, d.run(t, ".", "gofmt", "-l", "services/chat", "proto/gen"))
	d.run(t, "proto", "go", "run", "./cmd/reference") // the other part of make generate
	reference, err := os.ReadFile(d.path("docs/reference.md"))
	require.NoError(t, err)
	for _, name := range []string{"chat.set_topic", "chat.topic", "chat.write_note", "chat.notes"} {
		require.Contains(t, string(reference), "### `"+name+"`")
	}
	d.run(t, ".", "go", "test", "-count=1", "-run", "TestLimits", "./services/chat/query")
	slices.Sort(packages)
	out := d.run(t, ".", "go", slices.Concat([]string{"test", "-v", "-count=1", "-tags", "integration",
		"-run", "^(" + strings.Join(tests, "|") + ")$"}, slices.Compact(packages))...)
	for _, name := range tests {
		require.Contains(t, out, "--- PASS: "+name+" ", out)
	}

	m := startMesh(t, d)
	started := regexp.MustCompile(`"stream":"conversation:([^"]+)"`).FindStringSubmatch(m.ask("chat.start_group", `{"title":"maths"}`))
	require.NotNil(t, started)
	m.ask("chat.set_topic", `{"conversation_id":"`+started[1]+`","topic":"fractions"}`)
	require.JSONEq(t, `{"topic":"fractions"}`, m.ask("chat.topic", `{"conversation_id":"`+started[1]+`"}`))
	m.ask("chat.write_note", `{"text":"milk"}`)
	require.Contains(t, m.ask("chat.notes", "{}"), `"text":"milk"`)
}
