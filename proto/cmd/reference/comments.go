package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// comments are the comments before messages, fields, enums, enum values, services and methods, by full name. Each is
// one paragraph.
type comments map[protoreflect.FullName]string

// readComments reads the comments of all .proto files in a folder.
func readComments(ctx context.Context, folder string) (comments, error) {
	root := os.DirFS(folder)
	var names []string
	err := filepath.WalkDir(filepath.Join(folder, "edumatrix"), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Ext(path) != ".proto" {
			return err
		}
		name, err := filepath.Rel(folder, path)
		names = append(names, filepath.ToSlash(name))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find .proto files: %w", err)
	}
	compiler := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
			Accessor: func(name string) (io.ReadCloser, error) { return root.Open(name) },
		}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(ctx, names...)
	if err != nil {
		return nil, err
	}
	c := comments{}
	for _, f := range files {
		c.readMessages(f.Messages())
		c.readEnums(f.Enums())
		for i := range f.Services().Len() {
			c.read(f.Services().Get(i))
			methods := f.Services().Get(i).Methods()
			for j := range methods.Len() {
				c.read(methods.Get(j))
			}
		}
	}
	return c, nil
}

func (c comments) readMessages(messages protoreflect.MessageDescriptors) {
	for i := range messages.Len() {
		m := messages.Get(i)
		c.read(m)
		for j := range m.Fields().Len() {
			c.read(m.Fields().Get(j))
		}
		c.readMessages(m.Messages())
		c.readEnums(m.Enums())
	}
}

func (c comments) readEnums(enums protoreflect.EnumDescriptors) {
	for i := range enums.Len() {
		c.read(enums.Get(i))
		for j := range enums.Get(i).Values().Len() {
			c.read(enums.Get(i).Values().Get(j))
		}
	}
}

func (c comments) read(d protoreflect.Descriptor) {
	text := d.ParentFile().SourceLocations().ByDescriptor(d).LeadingComments
	c[d.FullName()] = strings.Join(strings.Fields(text), " ")
}
